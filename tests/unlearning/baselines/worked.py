"""Problems small enough to be worked by hand: a few vectors and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memmod.data import Split, TensorSplit
from memmod.training import TrainConfig
from memmod.unlearning.baselines import ForgetTask


def vectors(rows: list[list[float]], labels: list[int]) -> TensorSplit:
    """Vectors as images of one row."""
    images = torch.tensor(rows).view(len(rows), 1, 1, -1)
    return TensorSplit(images, torch.tensor(labels), 1.0, (0.0,), (1.0,))


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(), layer).eval()


def worked_task(network: nn.Module, retain: Split, forget: Split, num_classes: int, **changes) -> ForgetTask:
    values = {"classes": (0,), "training": TrainConfig(epochs=1, batch_size=1)}
    return ForgetTask(network, retain, forget, num_classes=num_classes, **values | changes)


def weight_of(network: nn.Module) -> Tensor:
    return network[1].weight.detach()
