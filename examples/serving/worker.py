"""The handle of a process that computes whole batches, in the server's process; what the two tell each other."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

START_SECONDS = 300


class WorkerDied(Exception):
    """The process is gone, or did not answer in time, and was killed."""


class WorkerFailed(Exception):
    """The process lives, but cannot load the model or compute this batch; says why."""


@dataclass(frozen=True)
class Source:
    """Where the model is: a run of `memmod unlearn`, or a memory file and the folder of its base.

    Args:
        mean, std: of the images, by channel, where white is 1; default: those of the run's data set.
        threads: of torch, in each process.
    """

    run: str | None = None
    base: str | None = None
    memory: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int = 1


@dataclass(frozen=True)
class Description:
    """What the server has to know of the model: images are ``[C, H, W]``; black and white are pixels, by channel."""

    num_classes: int
    class_names: tuple[str, ...] | None
    input_shape: tuple[int, ...]
    black: tuple[float, ...]
    white: tuple[float, ...]


def _compute(connection: Connection, source: Source) -> None:
    # Imported here: the server's own process does without torch.
    from examples.serving.model import compute

    compute(connection, source)


class Worker:
    """A process that computes; its methods block, and are called in a thread. After `WorkerDied`: `start` again."""

    def __init__(self, source: Source, seconds: float) -> None:
        self.source, self.seconds = source, seconds
        self.starts = 0
        self.loaded = False
        self.pid: int | None = None
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None

    def start(self) -> Description:
        """Start the process anew, and wait for its model. Raises WorkerDied, WorkerFailed."""
        self.stop()
        # Not forked: threads and locks of the server would be copied in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_compute, args=(other, self.source), daemon=True)
        self.process.start()
        self.pid = self.process.pid
        other.close()
        self.starts += 1
        description = self._receive(START_SECONDS)
        self.loaded = True
        return description

    @property
    def ready(self) -> bool:
        """Whether the process lives and has its model."""
        process = self.process
        return self.loaded and process is not None and process.is_alive()

    def run(self, images: np.ndarray, forget: list[set[int]]) -> np.ndarray:
        """Logits fp32 ``[B, C]`` of images fp32 ``[B, ...]``, each without its own classes."""
        try:
            self.connection.send((images, forget))
        except OSError as error:
            raise self._died() from error
        return self._receive(self.seconds)

    def _receive(self, seconds: float):
        try:
            if not self.connection.poll(seconds):
                raise self._died(f"gave no answer within {seconds:g} s")
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(answer, WorkerFailed):
            raise answer
        return answer

    def _died(self, how: str = "has ended") -> WorkerDied:
        self.stop()
        return WorkerDied(f"the worker process {self.pid} {how}")

    def stop(self) -> None:
        """End the process, if there is one; a thread that waits for its answer gets WorkerDied."""
        self.loaded = False
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.join()
