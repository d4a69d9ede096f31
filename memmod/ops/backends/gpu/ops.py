"""The ops by name, each a function of a backend's kernels and of the op's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memmod.ops.backends.gpu import layers, output

OPS: dict[str, Callable[..., Any]] = {
    "modulated_linear": layers.modulated_linear,
    "modulated_linear_backward": layers.modulated_linear_backward,
    "modulated_conv2d": layers.modulated_conv2d,
    "modulated_conv2d_backward": layers.modulated_conv2d_backward,
    "modulate_output": output.modulate_output,
    "modulate_output_backward": output.modulate_output_backward,
}
