"""A program of a user's, checked and not run: what memmod returns has the type that it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from memmod import (
    ModulateConfig,
    ModulatedConv2d,
    ModulatedLinear,
    ModulatedModel,
    ModulatedMultiheadAttention,
    ModulatedOutput,
    get_backend,
    modulate,
    set_backend,
)
from memmod.data import Dataset, load_data
from memmod.evaluation import Accuracies, Scorecard, evaluate, scorecard
from memmod.functional import modulated_linear
from memmod.unlearning import Trainer, UnlearnConfig, UnlearnResult, preset
from memmod.zoo import TrainConfig, create_model, train_model

data = load_data("digits", image_size=8)
assert_type(data, Dataset)
assert_type(data.input_shape, tuple[int, int, int])
base = create_model("resnet", data.num_classes, data.input_shape)
assert_type(base, nn.Module)
train_model(base, data, TrainConfig(epochs=1))

wf = modulate(base, class_names=data.class_names, config=ModulateConfig(granularity="unit+input"))
assert_type(wf, ModulatedModel)
assert_type(wf.num_classes, int)
assert_type(wf.class_names, tuple[str, ...] | None)
x = data.test.batch(torch.tensor([0, 1, 2, 3]))
assert_type(x, Tensor)

# Every form of a selection.
wf(x)
wf(x, forget=None)
wf(x, forget=-1)
wf(x, forget="3")
wf(x, forget={3, "5"})
wf(x, forget=[3, -1, {1, 5}, "0"])
wf(x, forget=frozenset({1}))
wf(x, forget=torch.tensor([[3, -1], [2, 2]]))
with wf.forgetting({1, 2}):
    wf(x)

assert_type(wf.gates(), dict[str, Tensor])
assert_type(wf.memory_state(), dict[str, Tensor])
assert_type(wf.bake("3", threshold=0.3), nn.Module)
assert_type(wf.unload(), nn.Module)
wf.save_memory("digits.safetensors", {"note": "ten epochs"})
assert_type(ModulatedModel.from_file(base, "digits.safetensors"), ModulatedModel)

config = preset("fast", wf, steps=10)
assert_type(config, UnlearnConfig)
assert_type(Trainer(wf, data, config).fit(), UnlearnResult)
assert_type(evaluate(wf, data.test), Accuracies)
assert_type(scorecard(wf, base, data.test), Scorecard)

index = torch.tensor([3, -1, 0])
linear = ModulatedLinear(64, 128, num_classes=10)
assert_type(linear(torch.randn(3, 64), index=index), Tensor)
assert_type(ModulatedLinear.from_linear(nn.Linear(4, 5), 10, granularity="input"), ModulatedLinear)
conv = ModulatedConv2d.from_conv2d(nn.Conv2d(3, 16, 3), num_classes=10)
assert_type(conv, ModulatedConv2d)
assert_type(conv(torch.randn(3, 3, 8, 8), index), Tensor)
assert_type(ModulatedOutput(16, 10)(torch.randn(3, 16), index), Tensor)
attention = ModulatedMultiheadAttention(16, 2, num_classes=10, batch_first=True)
tokens = torch.randn(3, 5, 16)
assert_type(attention(tokens, tokens, tokens, index=index), tuple[Tensor, Tensor | None])
assert_type(modulated_linear(torch.randn(3, 4), torch.randn(5, 4), memory=torch.randn(10, 5), index=index), Tensor)
set_backend("reference")
assert_type(get_backend(), str | None)
card: dict[str, Any] = scorecard(wf, None, data.test).to_dict()
