"""What `torch.utils.flop_counter.FlopCounterMode` counts for the ops: their products, as for the plain layers.

The counter knows matrix products and convolutions, and counts element-wise operations as nothing: so do gates, and the
sums that are the gradient of a memory. The counter's module imports Triton, so it is not imported here: formulas join
it where it is loaded already, or when an op runs under a counter. A counter copies the formulas when it is made; one
that was made before they were there gets them then.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from memmod.ops.calls import ConvCall, ConvGradCall, LinearCall, LinearGradCall

_COUNTER = "torch.utils.flop_counter"


def register() -> None:
    """Have flop counters count the ops, if the module of counters is loaded; those that run too."""
    module = sys.modules.get(_COUNTER)
    # While it is being imported it has no counter yet.
    if module is None or not hasattr(module, "FlopCounterMode"):
        return
    ops, formulas = torch.ops.memmod, _formulas(module)
    for name, formula in formulas.items():
        if getattr(ops, name) not in module.flop_registry:
            module.register_flop_formula(getattr(ops, name))(formula)
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, module.FlopCounterMode):
            for name in formulas:
                counter.flop_registry.setdefault(getattr(ops, name), module.flop_registry[getattr(ops, name)])


def _formulas(module: ModuleType) -> dict[str, Any]:
    """By the op's name; a formula takes the op's arguments with the shapes of tensors in their place."""

    def linear(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        call = LinearCall(*args, **kwargs)
        return 2 * math.prod(call.x) * call.weight[0]

    def linear_backward(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        call = LinearGradCall(*args, **kwargs)
        need_dx, need_dweight, _, _, need_dinput = call.needs
        return ((need_dx or need_dinput) + need_dweight) * 2 * math.prod(call.dy) * call.x_shape[-1]

    def conv2d(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        call = ConvCall(*args, **kwargs)
        return module.conv_flop_count(call.x, call.weight, out_shape[0])

    def conv2d_backward(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        call = ConvGradCall(*args, **kwargs)
        need_dx, need_dweight, need_dbias, _, need_dinput = call.needs
        if not (need_dx or need_dweight or need_dinput):
            return 0
        wanted = [need_dx or need_dinput, need_dweight, need_dbias]
        shapes = (call.x_shape, call.weight, call.dy[1:2])
        options = (call.stride, call.padding, call.dilation, False, [0, 0], call.groups)
        return module.conv_backward_flop(call.dy, call.x_shape, call.weight, None, *options, wanted, out_val=shapes)

    return {
        "modulated_linear": linear,
        "modulated_linear_backward": linear_backward,
        "modulated_conv2d": conv2d,
        "modulated_conv2d_backward": conv2d_backward,
    }
