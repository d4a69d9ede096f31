"""Requests that wait, taken in batches by processes that compute; a process that dies is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from examples.serving.worker import Description, Source, Worker, WorkerDied, WorkerFailed

logger = logging.getLogger("memmod.serving")

# A request may be computed by a second process after the first died, not by a third: it may be what kills them.
ATTEMPTS = 2
LONGEST_PAUSE = 5.0
# How often a process that nobody asks is looked after.
IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """How requests wait.

    Args:
        max_batch: images in one forward.
        max_wait: seconds that a batch waits for more images after its first.
        max_queue: images that may wait; more are refused.
        workers: processes, each with a model of its own.
        forward_seconds: after which a process that does not answer is killed.
        request_seconds: after which a request is given up.
    """

    max_batch: int = 32
    max_wait: float = 0.005
    max_queue: int = 1024
    workers: int = 1
    forward_seconds: float = 30.0
    request_seconds: float = 60.0


class Busy(Exception):
    """As many requests wait as may."""


class Unavailable(Exception):
    """No process could compute the request."""


@dataclass
class Job:
    """One image ``[C, H, W]`` and the classes that it is to be seen without; `answer` will hold the logits ``[C]``."""

    image: np.ndarray
    forget: set[int]
    answer: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    attempts: int = 0


class Batcher:
    """Answers `submit` by batches; all of it but the processes runs in one event loop."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.limits = limits
        self.workers = [Worker(source, limits.forward_seconds) for _ in range(limits.workers)]
        self.waiting: deque[Job] = deque()
        self.arrived = asyncio.Event()
        self.tasks: list[asyncio.Task] = []

    async def start(self) -> Description:
        """Load the model in every process. Raises WorkerDied, WorkerFailed."""
        try:
            descriptions = [await asyncio.to_thread(worker.start) for worker in self.workers]
        except BaseException:
            self._stop_workers()
            raise
        self.tasks = [asyncio.create_task(self._serve(worker)) for worker in self.workers]
        return descriptions[0]

    async def close(self) -> None:
        """End the processes; whoever still waits is refused."""
        for task in self.tasks:
            task.cancel()
        # The processes first: a thread that waits for an answer would keep the task from ending.
        await asyncio.to_thread(self._stop_workers)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for job in self.waiting:
            _refuse(job, Unavailable("the server is shutting down"))

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.stop()

    async def submit(self, image: np.ndarray, forget: set[int]) -> np.ndarray:
        """Logits fp32 ``[C]``. Raises Busy, Unavailable, WorkerFailed."""
        if len(self.waiting) >= self.limits.max_queue:
            raise Busy(f"{len(self.waiting)} requests wait already, no more are taken: try again in a moment")
        job = Job(image, forget)
        self.waiting.append(job)
        self.arrived.set()
        try:
            return await asyncio.wait_for(job.answer, self.limits.request_seconds)
        except asyncio.TimeoutError:
            raise Unavailable(f"no answer within {self.limits.request_seconds:g} s: try again later") from None

    async def _serve(self, worker: Worker) -> None:
        while True:
            jobs = await self._take(worker)
            try:
                await self._compute(worker, jobs)
            except asyncio.CancelledError:
                for job in jobs:
                    _refuse(job, Unavailable("the server is shutting down"))
                raise
            except Exception as error:
                # An error of the server's own must not leave the others waiting for nobody.
                logger.exception("a batch of %d failed", len(jobs))
                for job in jobs:
                    _refuse(job, WorkerFailed(f"{type(error).__name__}: {error}"))

    async def _take(self, worker: Worker) -> list[Job]:
        """The next batch: whatever waits once `max_batch` do, or `max_wait` after the first of them."""
        loop = asyncio.get_running_loop()
        while True:
            while not self.waiting:
                if not worker.ready:
                    logger.warning(
                        "the worker process %s has ended while nothing was asked; starting another", worker.pid
                    )
                    await self._restart(worker)
                await self._arrival(IDLE_SECONDS)
            until = loop.time() + self.limits.max_wait
            while self.waiting and len(self.waiting) < self.limits.max_batch and loop.time() < until:
                await self._arrival(until - loop.time())
            taken = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.limits.max_batch))]
            # Whoever has given up is not computed. Another worker may have been faster.
            jobs = [job for job in taken if not job.answer.done()]
            if jobs:
                return jobs

    async def _arrival(self, seconds: float) -> None:
        """Until a request comes, or so many seconds."""
        self.arrived.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.arrived.wait(), seconds)

    async def _compute(self, worker: Worker, jobs: list[Job]) -> None:
        for job in jobs:
            job.attempts += 1
        try:
            logits = await asyncio.to_thread(
                worker.run, np.stack([job.image for job in jobs]), [job.forget for job in jobs]
            )
        except WorkerFailed as error:
            logger.error("a batch of %d failed: %s", len(jobs), error)
            for job in jobs:
                _refuse(job, error)
        except WorkerDied as error:
            logger.warning("%s; starting another", error)
            await self._restart(worker)
            # One by one, so that an image that kills its process takes no other request with it.
            for job in jobs:
                if job.answer.done():
                    continue
                if job.attempts < ATTEMPTS:
                    await self._compute(worker, [job])
                else:
                    _refuse(job, Unavailable(f"{error}, as did the one before it, while they computed this request"))
        else:
            for job, own in zip(jobs, logits, strict=True):
                if not job.answer.done():
                    job.answer.set_result(own)

    async def _restart(self, worker: Worker) -> None:
        """Start a process until one lives, with growing pauses."""
        pause = 0.1
        while True:
            try:
                await asyncio.to_thread(worker.start)
                return
            except (WorkerDied, WorkerFailed) as error:
                logger.error("no worker could be started: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _refuse(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
