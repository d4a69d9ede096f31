"""Weights as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from memmod import export
from memmod.errors import SelectionError
from memmod.export.weights import write_state
from tests.export.helpers import images, modulated, small_cnn


def test_weights_load_into_a_fresh_network(tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    written = export.safetensors(wf, tmp_path / "w.safetensors", forget={"bee", "eel"}, threshold=0.3)
    fresh = small_cnn().eval()
    fresh.load_state_dict(load_file(written.path))
    with torch.no_grad():
        torch.testing.assert_close(fresh(images(3)), wf.bake({1, 4}, 0.3)(images(3)), rtol=1e-4, atol=1e-5)
    with safe_open(written.path, "pt") as file:
        assert json.loads(file.metadata()["memmod"]) == written.card
    assert written.card["forgotten"] == [{"class": 1, "name": "bee"}, {"class": 4, "name": "eel"}]


@pytest.mark.parametrize("forget", [None, -1, set()])
def test_nothing_to_forget_is_refused(forget: object, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="name the classes to forget for good"):
        export.safetensors(modulated(small_cnn()), tmp_path / "w.safetensors", forget=forget)
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    write_state(tmp_path / "tied.safetensors", model, {})
    assert set(load_file(tmp_path / "tied.safetensors")) == {"0.weight", "1.weight"}
