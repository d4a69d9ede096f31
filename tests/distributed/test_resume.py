"""A round whose processes are killed goes on, on as many or on fewer processes, split or whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memmod.errors import RunError
from memmod.files.checkpoint import FILE_NAME
from memmod.files.sharded_checkpoint import FOLDER_NAME
from tests.distributed.launch import launch
from tests.distributed.problem import LENGTH, whole_round

pytestmark = pytest.mark.slow


def run(folder: Path, count: int, *more: str) -> tuple[int, str, dict[str, Tensor] | None]:
    """(exit code, output, memories and history) of a round on so many processes."""
    file = folder.with_suffix(f".{count}.safetensors")
    done = launch(count, "tests.distributed.resumed_round", str(folder), str(file), *more)
    return done.returncode, done.stdout + done.stderr, load_file(file) if file.exists() else None


def alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        allowed = LENGTH * torch.finfo(torch.float32).eps * tensor.abs().max()
        assert (found[name] - tensor).abs().max() <= allowed, name


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """What one process comes to without an interruption."""
    wf, result = whole_round()
    rows = [[e.step, e.mean_retain, *e.acc_forget, *e.losses.values()] for e in result.history[1:]]
    return {**wf.memory_state(), "history": torch.tensor(rows)}


def alone(folder: Path) -> dict[str, Tensor]:
    wf, result = whole_round(str(folder), resume=True)
    rows = [[e.step, e.mean_retain, *e.acc_forget, *e.losses.values()] for e in result.history[1:]]
    return {**wf.memory_state(), "history": torch.tensor(rows)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_one_of_two_is_killed(tmp_path: Path, expected: dict[str, Tensor], kind: str) -> None:
    more = ["sharded"] if kind == "sharded" else []
    folder = tmp_path / "round"
    code, words, _ = run(folder, 2, *more, "1:step:11")
    assert code != 0 and "SIGKILL" in words
    there = FOLDER_NAME if more else FILE_NAME
    assert [path.name for path in folder.iterdir()] == [there]
    for count in (0, 1, 2):
        copy = tmp_path / f"on-{count}"
        shutil.copytree(folder, copy)
        if count == 0:
            found = alone(copy)
        else:
            code, words, found = run(copy, count, *more)
            assert code == 0, words[-3000:]
        alike(found, expected)


@pytest.mark.exhaustive
def test_from_whole_to_split_and_back(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    folder = tmp_path / "round"
    assert run(folder, 2, "0:step:7")[0] != 0
    assert run(folder, 2, "sharded", "1:step:14")[0] != 0
    assert [path.name for path in folder.iterdir()] == [FOLDER_NAME]
    code, words, found = run(folder, 2)
    assert code == 0, words[-3000:]
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    alike(found, expected)
    code, _, found = run(folder, 3, "sharded")
    assert code == 0
    alike(found, expected)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in parts of a finished round."""
    folder = tmp_path_factory.mktemp("split") / "round"
    code, words, _ = run(folder, 2, "sharded")
    assert code == 0, words[-3000:]
    return folder


def card(folder: Path) -> Path:
    return folder / FOLDER_NAME / "card.json"


def rewrite(folder: Path, /, **changes) -> None:
    found = json.loads(card(folder).read_text())
    card(folder).write_text(json.dumps({**found, **changes}))


def first_part(folder: Path) -> Path:
    return next((folder / FOLDER_NAME).glob("*/*.safetensors"))


def cut(folder: Path) -> None:
    first_part(folder).write_bytes(first_part(folder).read_bytes()[:-9])


DAMAGE = {
    "cut": (cut, "is missing or was changed"),
    "missing": (lambda folder: first_part(folder).unlink(), "is missing or was changed"),
    "more": (lambda folder: first_part(folder).with_name("x").write_text(""), "does not belong to it"),
    "no card": (lambda folder: card(folder).write_text("{"), "cannot be read as JSON"),
    "another card": (lambda folder: card(folder).write_text("{}"), "is not a checkpoint of memmod"),
    "version": (lambda folder: rewrite(folder, version=9), "has format version 9"),
    "changed card": (lambda folder: rewrite(folder, progress={}), "its card_sha256 does not fit"),
    "field": (lambda folder: rewrite(folder, tensors=3), "$.tensors"),
    "elsewhere": (lambda folder: rewrite(folder, folder="../../step-1-0"), "$.folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused(tmp_path: Path, split: Path, damage: str) -> None:
    do, words = DAMAGE[damage]
    shutil.copytree(split, tmp_path / "round")
    do(tmp_path / "round")
    with pytest.raises(RunError) as caught:
        alone(tmp_path / "round")
    assert words in str(caught.value) and FOLDER_NAME in str(caught.value)


def test_a_finished_round_in_parts_is_whole_again_on_one_process(
    tmp_path: Path, split: Path, expected: dict[str, Tensor]
) -> None:
    shutil.copytree(split, tmp_path / "round")
    alike(alone(tmp_path / "round"), expected)


def test_a_split_checkpoint_is_not_overwritten_and_belongs_to_its_round(tmp_path: Path, split: Path) -> None:
    shutil.copytree(split, tmp_path / "round")
    with pytest.raises(RunError, match=f"{FOLDER_NAME} holds an earlier round"):
        whole_round(str(tmp_path / "round"))
    with pytest.raises(RunError, match=r"belongs to another run: lr was 0.1, now 0.2"):
        whole_round(str(tmp_path / "round"), resume=True, lr=0.2)
