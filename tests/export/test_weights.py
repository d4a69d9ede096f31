"""Weights as safetensors."""

from __future__ import annotations

from safetensors.torch import load_file
from torch import nn

from memmod.export.weights import write_state


def test_tied_weights_are_written(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    write_state(tmp_path / "tied.safetensors", model, {})
    assert set(load_file(tmp_path / "tied.safetensors")) == {"0.weight", "1.weight"}
