"""What may look at a call besides its caller: transforms, tracers, modes and subclasses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter, type(None))


def transformed() -> bool:
    """Whether a forward-mode level or a transform of `torch.func` is open, which do not know kernels."""
    return forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None


def counts_may_run() -> bool:
    """Whether a mode looks at eager calls, as flop counters do."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0


def ordinary(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing but autograd looks at a call of these tensors."""
    return (
        not torch.compiler.is_compiling()
        and not transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and all(type(t) in _PLAIN for t in tensors)
    )
