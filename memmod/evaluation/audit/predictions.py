"""What a network predicts for images: logits, once, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memmod.evaluation.accuracy import BATCH, batches

if TYPE_CHECKING:
    from memmod.data import Split
    from memmod.evaluation.attacks.attack import Case


def predict(network: nn.Module, case: Case, split: Split) -> tuple[Tensor, Tensor]:
    """(logits ``[N, C]`` in fp32 on the CPU, labels ``[N]``) of a network in eval mode on a split."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    parts = [(case.logits(network, x).float().cpu(), labels) for x, labels in batches(split, BATCH, device)]
    return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])
