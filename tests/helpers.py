"""What tests of several parts share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def assert_no_worse(
    actual: dict[str, Tensor], plain: dict[str, Tensor], oracle: dict[str, Tensor], factor: float = 2.0
) -> None:
    """Each named tensor's error is at most `factor` × plain PyTorch's own error plus eps × the oracle's magnitude."""
    for name, exact in oracle.items():
        error = (actual[name].double() - exact).abs().max().item()
        allowed = factor * (plain[name].double() - exact).abs().max().item()
        allowed += EPS[actual[name].dtype] * exact.abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def load_file(path: Path) -> ModuleType:
    """A Python file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
