"""Uses that are wrong, checked and not run: the checker finds each, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from memmod import ModulateConfig, ModulatedConv2d, ModulatedLinear, modulate, set_backend
from memmod.data import load_data
from memmod.evaluation import evaluate
from memmod.unlearning import Trainer
from memmod.zoo import TrainConfig, create_model

data = load_data(8)  # error: bad-argument-type
base = create_model("resnet", "ten", data.input_shape)  # error: bad-argument-type
wf = modulate(base, number_of_classes=10)  # error: unexpected-keyword
wf(torch.randn(2, 1, 8, 8), forget=3.5)  # error: bad-argument-type
wf(torch.randn(2, 1, 8, 8), forget=[[1, 2], 3])  # error: bad-argument-type
wf.bake()  # error: missing-argument
wf.bake(3, threshold="high")  # error: bad-argument-type
wf.save_memory(3)  # error: bad-argument-type
ModulateConfig(granularity=3)  # error: bad-argument-type
Trainer(wf, data.test)  # error: bad-argument-type
evaluate(wf, data)  # error: bad-argument-type
TrainConfig(epoch=3)  # error: unexpected-keyword
ModulatedLinear(3, 4)  # error: missing-argument
ModulatedLinear(3, 4, num_classes=10)("x")  # error: bad-argument-type
ModulatedConv2d.from_conv2d(nn.Linear(3, 4), 10)  # error: bad-argument-type
number: int = ModulatedLinear(3, 4, 10)(torch.randn(2, 3))  # error: bad-assignment
set_backend(0)  # error: bad-argument-type
