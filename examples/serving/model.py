"""What the worker process does: load the model, and compute batches of which each image forgets classes of its own."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

import numpy as np
import torch

from examples.serving.worker import Description, Source, WorkerFailed
from memmod import ModulatedModel
from memmod.errors import MemmodError
from memmod.runs.restore import restore_base, restore_unlearned


def load(source: Source) -> tuple[ModulatedModel, Description]:
    """The model and its description.

    Raises:
        MemmodError: it cannot be loaded, or the scale of its images is not known.
    """
    if source.run is not None:
        unlearned = restore_unlearned(source.run, source.base)
        wf = unlearned.wf
    else:
        base = restore_base(source.base)
        wf = ModulatedModel.from_file(base.model, source.memory)
    channels = wf.input_shape[0]
    if source.mean is not None:
        mean, std = (np.broadcast_to(values, (channels,)) for values in (source.mean, source.std))
        black, white = -mean / std, (1 - mean) / std
    else:
        split = (unlearned if source.run is not None else base).load_data().test
        black, white = split.black.flatten().numpy(), split.white.flatten().numpy()
    names = None if wf.class_names is None else tuple(wf.class_names)
    pixels = (tuple(map(float, np.broadcast_to(values, (channels,)))) for values in (black, white))
    return wf, Description(wf.num_classes, names, tuple(wf.input_shape), *pixels)


def compute(connection: Connection, source: Source) -> None:
    """The process: says what it serves, then answers batches until the other end closes."""
    # Ctrl-C reaches the whole group: the server finishes what it has, and then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(source.threads)
    try:
        wf, description = load(source)
    except (MemmodError, OSError, ValueError) as error:
        connection.send(WorkerFailed(str(error)))
        return
    connection.send(description)
    while True:
        try:
            images, forget = connection.recv()
        except EOFError:
            return
        try:
            with torch.inference_mode():
                answer = wf.logits(wf(torch.from_numpy(images), forget=forget)).float().numpy()
        except Exception as error:
            answer = WorkerFailed(f"{type(error).__name__}: {error}")
        connection.send(answer)
