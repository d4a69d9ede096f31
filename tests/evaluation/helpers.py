"""Networks and images that give neither all answers right nor none, and accuracies counted image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from memmod.data import Split, TensorSplit
from memmod.model import ModulatedModel
from tests.unlearning.problem import modulated, split


def half_forgetting(norm: bool = True, seed: int = 0) -> ModulatedModel:
    wf = modulated(norm)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(3 * torch.randn(memory.shape, generator=generator))
    return wf


def noisy(images_per_class: int, seed: int = 4) -> TensorSplit:
    """Images of every class with so much noise that the base errs on some."""
    images = split(images_per_class, seed)
    noise = torch.randn(images.images.shape, generator=torch.Generator().manual_seed(seed))
    return TensorSplit(images.images + 2.5 * noise, images.labels, 1.0, (0.0,), (1.0,))


def counted(logits_of: Callable[[Tensor], Tensor], split: Split, selection: Iterable[int]) -> tuple[float, float]:
    """(Acc_f, Acc_r) of a network, one image at a time."""
    right, images = {True: 0, False: 0}, {True: 0, False: 0}
    for i, label in enumerate(split.labels.tolist()):
        with torch.no_grad():
            predicted = int(logits_of(split.batch(torch.tensor([i])))[0].argmax())
        right[label in selection] += predicted == label
        images[label in selection] += 1
    return right[True] / images[True], right[False] / images[False]
