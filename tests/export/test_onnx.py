"""ONNX files: run by onnxruntime, equal to the model for every selection."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from memmod import export
from memmod.errors import ExportError
from tests.export.helpers import NAMES, images, modulated, small_cnn

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wf = modulated(small_cnn())
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else ModuleType(name))
    with pytest.raises(ExportError, match=rf"{missing} cannot be imported .*pip install 'memmod-torch\[onnx\]'"):
        export.onnx(wf, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_more_than_a_file_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memmod.export import onnx_file

    monkeypatch.setattr(onnx_file, "_check_packages", lambda: None)
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(ExportError, match="one ONNX file holds less than 2: export a torch.export program"):
        export.onnx(modulated(small_cnn()), tmp_path / "m.onnx")


def test_bfloat16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memmod.export import onnx_file

    monkeypatch.setattr(onnx_file, "_check_packages", lambda: None)
    with pytest.raises(ExportError, match="has weights in bfloat16"):
        export.onnx(modulated(small_cnn()).bfloat16(), tmp_path / "m.onnx")


def session(path: Path):
    return pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("sets", [False, True])
def test_a_runtime_selects_by_an_input(sets: bool, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    wf = modulated(small_cnn())
    written = export.onnx(wf, tmp_path / "m.onnx", sets=sets, any_size=True)
    run = session(written.path)
    assert json.loads(run.get_modelmeta().custom_metadata_map["memmod"]) == written.card
    inputs = {i.name: i.shape for i in run.get_inputs()}
    assert inputs == {"input": ["batch", 3, "height", "width"], "forget": ["batch", "classes"][: 1 + sets]}
    x = images(4, 14, 20)
    singles = [[-1] * 4, [0, 3, -1, 4]]
    sets_of = [[[0, 3], [1, 1], [-1, -1], [4, -1]], [[2], [-1], [0], [1]]]
    logits = []
    for forget in sets_of if sets else singles:
        found = run.run(["logits"], {"input": x.numpy(), "forget": np.array(forget, np.int64)})[0]
        logits.append(torch.from_numpy(found))
        with torch.no_grad():
            torch.testing.assert_close(logits[-1], wf(x, forget=torch.tensor(forget)), **ROUNDING)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
    wrong = np.array([[1, 5], [0, -1], [2, -7], [1, 1]] if sets else [5, 0, -2, 1], np.int64)
    found = np.isnan(run.run(["logits"], {"input": x.numpy(), "forget": wrong})[0])
    assert found[[0, 2]].all() and not found[[1, 3]].any()


@pytest.mark.slow
def test_a_baked_file_runs_as_its_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    wf = modulated(small_cnn())
    written = export.onnx(wf, tmp_path / "m.onnx", forget="bee", threshold=0.3)
    monkeypatch.chdir(tmp_path)
    names = {"input": images(2).numpy()}
    exec("\n".join(written.card["call"]), names)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(names["logits"]), wf.bake(1, 0.3)(images(2)), **ROUNDING)
    assert written.card["forgotten"] == [{"class": 1, "name": NAMES[1]}]
