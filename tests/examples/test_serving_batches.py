"""How requests wait and are batched, and what becomes of them when processes die: with stand-ins for the processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from examples.serving import batching
from examples.serving.batching import Batcher, Busy, Limits, Unavailable
from examples.serving.worker import Source, WorkerDied, WorkerFailed

# Pixels that end the process, that it cannot compute, that it waits on, and that the server stumbles over.
DEADLY, WRONG, SLOW, BUG = -1.0, -2.0, -3.0, -4.0


class StandIn:
    """Answers (pixel, the sum of the classes) for a worker, in the thread that asks it."""

    refusals = 0

    def __init__(self, source: Source, seconds: float) -> None:
        self.batches: list[list[float]] = []
        self.starts, self.pid, self.ready = 0, 1, False
        self.go_on = threading.Event()

    def start(self) -> str:
        self.starts += 1
        if self.starts > 1 and StandIn.refusals:
            StandIn.refusals -= 1
            raise WorkerFailed("no memory left")
        self.ready = True
        return "described"

    def run(self, images: np.ndarray, forget: list[set[int]]) -> np.ndarray:
        pixels = images[:, 0, 0, 0]
        self.batches.append(pixels.tolist())
        if DEADLY in pixels:
            self.ready = False
            raise WorkerDied("the worker process 1 has ended")
        if WRONG in pixels:
            raise WorkerFailed("RuntimeError: no")
        if BUG in pixels:
            raise ZeroDivisionError("division by zero")
        if SLOW in pixels:
            self.go_on.wait(20)
        return np.stack([pixels, [float(sum(classes)) for classes in forget]], 1)

    def stop(self) -> None:
        self.go_on.set()


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "Worker", StandIn)
    monkeypatch.setattr(batching, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(StandIn, "refusals", 0)


def serving(limits: Limits, test: Callable[[Batcher], Awaitable[None]]) -> Batcher:
    async def run() -> Batcher:
        batcher = Batcher(Source(), limits)
        assert await batcher.start() == "described"
        try:
            await asyncio.wait_for(test(batcher), 30)
        finally:
            await batcher.close()
        return batcher

    return asyncio.run(run())


def ask(batcher: Batcher, pixel: float, forget: set[int] | None = None) -> Awaitable[np.ndarray]:
    return batcher.submit(np.full((1, 2, 2), pixel, np.float32), forget or set())


async def outcomes(batcher: Batcher, pixels: list[float]) -> list:
    found = await asyncio.gather(*(ask(batcher, p, {int(p)}) for p in pixels), return_exceptions=True)
    return [f if isinstance(f, Exception) else f.tolist() for f in found]


def right(pixels: range | list[float]) -> list[list[float]]:
    return [[float(p), float(p)] for p in pixels]


def test_batches_fill_up_and_end_with_the_wait() -> None:
    async def test(batcher: Batcher) -> None:
        assert await outcomes(batcher, list(range(10))) == right(range(10))

    (worker,) = serving(Limits(max_batch=4, max_wait=0.05), test).workers
    assert worker.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_several_workers_share_what_waits() -> None:
    async def test(batcher: Batcher) -> None:
        slow = asyncio.create_task(ask(batcher, SLOW))
        await asyncio.sleep(0.1)
        assert await outcomes(batcher, list(range(8))) == right(range(8))
        batcher.workers[0].go_on.set()
        batcher.workers[1].go_on.set()
        await slow

    one, other = serving(Limits(max_batch=4, max_wait=0.0, workers=2), test).workers
    assert sorted(map(len, (one.batches, other.batches)))[0] == 1 and one.starts == other.starts == 1


def test_no_more_wait_than_may() -> None:
    async def test(batcher: Batcher) -> None:
        slow = asyncio.create_task(ask(batcher, SLOW))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(ask(batcher, float(p))) for p in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="3 requests wait already"):
            await ask(batcher, 9.0)
        batcher.workers[0].go_on.set()
        assert [a[0] for a in await asyncio.gather(*waiting)] == [0, 1, 2]
        await slow

    serving(Limits(max_queue=3, max_wait=0.0), test)


def test_an_image_that_kills_processes_takes_no_other_with_it() -> None:
    async def test(batcher: Batcher) -> None:
        *others, deadly = await outcomes(batcher, [*range(3), DEADLY])
        assert others == right(range(3))
        assert isinstance(deadly, Unavailable) and "as did the one before it" in str(deadly)
        assert await outcomes(batcher, [7]) == right([7])

    (worker,) = serving(Limits(max_batch=4, max_wait=0.05), test).workers
    assert worker.batches == [[0, 1, 2, DEADLY], [0], [1], [2], [DEADLY], [7]]
    assert worker.starts == 3


def test_a_process_is_started_until_one_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(batcher: Batcher) -> None:
        StandIn.refusals = 3
        first, second = await outcomes(batcher, [1, DEADLY])
        assert first == [1, 1] and isinstance(second, Unavailable)

    assert serving(Limits(max_batch=2, max_wait=0.05), test).workers[0].starts == 6


@pytest.mark.parametrize("pixel", [WRONG, BUG])
def test_a_batch_that_cannot_be_computed_fails_and_the_next_does_not(pixel: float) -> None:
    async def test(batcher: Batcher) -> None:
        assert all(isinstance(f, WorkerFailed) for f in await outcomes(batcher, [1, pixel]))
        assert await outcomes(batcher, [5]) == right([5])

    assert serving(Limits(max_batch=2, max_wait=0.05), test).workers[0].starts == 1


def test_who_gives_up_is_not_computed() -> None:
    async def test(batcher: Batcher) -> None:
        slow = asyncio.create_task(ask(batcher, SLOW))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(ask(batcher, 3.0))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(Unavailable, match="no answer within 0.2 s"):
            await slow
        batcher.workers[0].go_on.set()
        assert (await ask(batcher, 4.0))[0] == 4

    (worker,) = serving(Limits(max_wait=0.0, request_seconds=0.2), test).workers
    assert worker.batches == [[SLOW], [4]]


def test_closing_refuses_who_waits() -> None:
    async def run() -> list:
        batcher = Batcher(Source(), Limits(max_batch=1, max_wait=0.0))
        await batcher.start()
        asked = [asyncio.create_task(ask(batcher, p)) for p in (SLOW, 1.0, 2.0)]
        await asyncio.sleep(0.1)
        await batcher.close()
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(refused) for refused in asyncio.run(run())] == ["the server is shutting down"] * 3
