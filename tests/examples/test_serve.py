"""The server under load: every answer is that of its own selection, whatever else is in the batch, and who dies."""

from __future__ import annotations

import asyncio
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from memmod import ModulatedModel
from memmod.data import Dataset
from memmod.runs.restore import restore_unlearned
from tests.fuzz_files import make_runs

ROOT = Path(__file__).resolve().parent.parent.parent
PNG, JPEG, JSON = ({"content-type": kind} for kind in ("image/png", "image/jpeg", "application/json"))

pytestmark = pytest.mark.slow


@dataclass
class Served:
    """A model in this process, and what starts a server of it."""

    wf: ModulatedModel
    data: Dataset
    arguments: tuple[str, ...]

    def image(self, number: int) -> np.ndarray:
        """uint8 ``[8, 8]``."""
        return self.data.test.pixels(torch.tensor([number]))[0, 0].numpy()

    def direct(self, image: np.ndarray, forget: set[int]) -> torch.Tensor:
        """The logits ``[C]`` of pixels in 0..255 by themselves: nothing of the server's."""
        black, white = self.data.test.black, self.data.test.white
        x = black + torch.tensor(image).float() / 255 * (white - black)
        with torch.no_grad():
            return self.wf(x[None], forget=forget)[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    make_runs(folder, 0)
    unlearned = restore_unlearned(folder / "unlearned")
    wf = unlearned.wf
    # Memories with which every selection of every image has logits of its own.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(2 * torch.randn(memory.shape, generator=generator) + 1)
    wf.save_memory(folder / "memory.safetensors")
    return Served(wf, unlearned.load_data(), ("--memory", f"{folder}/memory.safetensors", "--base", f"{folder}/base"))


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    log: Path

    def worker(self) -> dict:
        return httpx.get(f"{self.url}/health").json()["workers"][0]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.ended()

    def ended(self) -> None:
        """As it should: uvicorn shuts down, then lets the signal end the process."""
        assert self.process.wait(timeout=60) in (0, -signal.SIGTERM), self.log.read_text()
        assert "Application shutdown complete" in self.log.read_text()


def start(arguments: tuple[str, ...], log: Path) -> Server:
    command = [sys.executable, "-m", "examples.serve", *arguments, "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        running = re.search(r"running on (http://[\d.:]+)", log.read_text())
        if running:
            return Server(process, running[1], log)
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


@pytest.fixture(scope="module")
def server(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(
        (*served.arguments, "--max-bytes", "20000", "--request-seconds", "300"),
        tmp_path_factory.mktemp("log") / "server.log",
    )
    try:
        yield running
    finally:
        running.stop()


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


@dataclass
class Question:
    """An image with a set to forget, asked for as a file with the classes in the address, or as JSON."""

    number: int
    forget: set[int]
    as_json: bool

    async def ask(self, client: httpx.AsyncClient, served: Served) -> httpx.Response:
        image, names = served.image(self.number), [str(c) for c in sorted(self.forget)]
        if not self.as_json:
            return await client.post("/predict", params={"forget": names}, content=encoded(image), headers=PNG)
        black, white = served.data.test.black.item(), served.data.test.white.item()
        values = (black + image[None] / 255 * (white - black)).tolist()
        mixed = [int(name) if number % 2 else name for number, name in enumerate(names)]
        return await client.post("/predict", json={"image": values, "forget": mixed})


def questions(count: int, seed: int) -> list[Question]:
    draw = random.Random(seed)
    return [
        Question(draw.randrange(300), set(draw.sample(range(10), draw.randrange(4))), draw.random() < 0.5)
        for _ in range(count)
    ]


def check(served: Served, question: Question, answer: dict) -> None:
    image, logits = served.image(question.number), torch.tensor(answer["logits"])
    # A batch of another size rounds otherwise, and no more.
    torch.testing.assert_close(logits, served.direct(image, question.forget), rtol=1e-4, atol=1e-4)
    assert answer["forgotten"] == sorted(question.forget)
    assert answer["number"] == logits.argmax() and answer["class"] == str(answer["number"])


async def asked(
    server: Server, served: Served, made: list[Question], at_once: int = 400, kill: int | None = None
) -> list[dict]:
    """The answers to all questions; once a quarter is there, the process `kill` is killed."""
    answers = [{}] * len(made)
    gate, done = asyncio.Semaphore(at_once), 0
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

        async def one(place: int) -> None:
            nonlocal done
            async with gate:
                response = await made[place].ask(client, served)
            assert response.status_code == 200, response.text
            answers[place], done = response.json(), done + 1
            if done == len(made) // 4 and kill is not None:
                os.kill(kill, signal.SIGKILL)

        await asyncio.gather(*(one(place) for place in range(len(made))))
    return answers


def test_selections_can_be_told_apart(served: Served) -> None:
    """Else the load test could not fail: of one image, the selections that are asked for differ by much."""
    image = served.image(0)
    all_logits = torch.stack([served.direct(image, {c} if c >= 0 else set()) for c in range(-1, 10)])
    distances = torch.cdist(all_logits, all_logits) + 10 * torch.eye(11)
    assert distances.min() > 0.05


def test_hundreds_at_once_each_with_its_own_selection(server: Server, served: Served) -> None:
    made = questions(400, 0)
    for question, answer in zip(made, asyncio.run(asked(server, served, made)), strict=True):
        check(served, question, answer)


def test_a_worker_killed_under_load_is_replaced_and_no_answer_lost(server: Server, served: Served) -> None:
    before, made = server.worker(), questions(400, 1)
    answers = asyncio.run(asked(server, served, made, at_once=60, kill=before["pid"]))
    for question, answer in zip(made, answers, strict=True):
        check(served, question, answer)
    after = server.worker()
    assert after["ready"] and after["pid"] != before["pid"] and after["restarts"] == before["restarts"] + 1


@pytest.mark.exhaustive
def test_a_worker_killed_while_nothing_is_asked_is_replaced(server: Server, served: Served) -> None:
    before = server.worker()
    os.kill(before["pid"], signal.SIGKILL)
    seen, until = [], time.monotonic() + 120
    while server.worker()["restarts"] == before["restarts"] or not server.worker()["ready"]:
        seen.append(httpx.get(f"{server.url}/health").status_code)
        assert time.monotonic() < until
        time.sleep(0.1)
    assert 503 in seen
    (question,) = questions(1, 4)
    (answer,) = asyncio.run(asked(server, served, [question]))
    check(served, question, answer)


def png(**request) -> dict:
    return {"content": encoded(np.zeros((8, 8), np.uint8)), "headers": PNG} | request


def lists(image: object = [[[0.0] * 8] * 8], **fields) -> dict:  # noqa: B006 - never changed
    return {"json": {"image": image, **fields}}


INFINITE = b'{"image": [[' + b",".join([b"[" + b",".join([b"1e999"] * 8) + b"]"] * 8) + b"]]}"
BAD = {
    "unknown name": (422, "unknown class 'cat'; known are 0, 1", png(params={"forget": "cat"})),
    "unknown number": (422, "unknown class 10; numbers lie in 0 to 9", lists(forget=[3, 10])),
    "no class": (422, "null in forget is neither", lists(forget=[None])),
    "half a class": (422, "1.5 in forget is neither", lists(forget=1.5)),
    "true": (422, "true in forget is neither", lists(forget=[True])),
    "other size": (422, "has 9 × 8 pixels, the network takes 8 × 8", png(content=encoded(np.zeros((8, 9), np.uint8)))),
    "no image": (422, "no PNG image, or a damaged one", png(content=b"not an image")),
    "cut short": (422, "no PNG image, or a damaged one", png(content=png()["content"][:40])),
    "png as jpeg": (422, "no JPEG image", png(headers=JPEG)),
    "sixteen bits": (422, "mode 'I;16'", png(content=encoded(np.zeros((8, 8), np.uint16)))),
    "nothing": (415, "the content type is ''", {}),
    "other type": (415, "'text/plain': send image/png", png(headers={"content-type": "text/plain"})),
    "no json": (400, "the body is not JSON", {"content": b"{", "headers": JSON}),
    "not text": (400, "the body is not JSON", {"content": b"\xff\xfe\xfd", "headers": JSON}),
    "deep": (400, "the body is not JSON", {"content": b"[" * 15000, "headers": JSON}),
    "no image in it": (400, 'an object with "image"', {"json": {"forget": [3]}}),
    "unknown field": (400, 'an object with "image"', lists(forgot=[3])),
    "in both": (400, 'put the classes into its "forget"', lists() | {"params": {"forget": "3"}}),
    "other shape": (422, "the shape 1×1×8, the network takes 1×8×8", lists([[[0.0] * 8]])),
    "ragged": (422, "lists are of different lengths", lists([[[0.0] * 8, [0.0]]])),
    "words": (422, "nested lists of numbers", lists([[["0"] * 8] * 8])),
    "infinite": (422, "not finite", {"content": INFINITE, "headers": JSON}),
    "too big": (413, "larger than 20,000 bytes", png(content=bytes(20001))),
}


def test_bad_requests_are_refused_in_words(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        for name, (status, words, request) in BAD.items():
            response = client.post("/predict", **request)
            assert (response.status_code, words in response.json()["error"]) == (status, True), (name, response.text)
        assert client.get("/predict").status_code == 405 and client.get("/nothing").status_code == 404
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/classes").json()["class_names"] == list("0123456789")


def test_jpeg_and_colour_are_taken(server: Server, served: Served) -> None:
    image = served.image(5)
    colour = np.stack([image] * 3, 2)
    with httpx.Client(base_url=server.url) as client:
        for body, headers in ((encoded(colour), PNG), (encoded(image, "JPEG"), JPEG)):
            answer = client.post("/predict?forget=3&forget=-1", content=body, headers=headers).json()
            seen = np.asarray(Image.open(io.BytesIO(body)).convert("L"))
            torch.testing.assert_close(torch.tensor(answer["logits"]), served.direct(seen, {3}), rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
def test_what_waits_is_answered_before_the_server_ends(served: Served, tmp_path: Path) -> None:
    running = start((*served.arguments, "--max-wait", "2", "--max-batch", "64"), tmp_path / "log")
    worker, made = running.worker()["pid"], questions(20, 2)

    async def stopped() -> list[dict]:
        answers = asyncio.create_task(asked(running, served, made))
        # All of them wait for the batch to fill.
        while httpx.get(f"{running.url}/health").json()["waiting"] < len(made):
            await asyncio.sleep(0.02)
        running.process.send_signal(signal.SIGTERM)
        return await answers

    for question, answer in zip(made, asyncio.run(stopped()), strict=True):
        check(served, question, answer)
    running.ended()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


@pytest.mark.exhaustive
def test_a_model_that_cannot_be_loaded_is_said(served: Served, tmp_path: Path) -> None:
    _, memory, _, base = served.arguments
    with pytest.raises(RuntimeError, match="there is no memory file at"):
        start(("--memory", f"{memory}.not", "--base", base), tmp_path / "log")
