"""What `torch.compile` wraps around modules, and the names without it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import nn

_PREFIX = "_orig_mod."


def uncompiled_name(path: str) -> str:
    """A module's name as it was before it, or a module around it, was compiled."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def is_compiled(module: nn.Module) -> bool:
    """Whether `module` is what `torch.compile` wraps around another."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def uncompiled_names(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of a state dict's entries without the parts that the wrappers of `torch.compile` add."""
    wrappers = [name for name, module in model.named_modules(remove_duplicate=False) if is_compiled(module)]
    result = []
    for name in names:
        for wrapper in reversed(wrappers):
            place = f"{wrapper}." if wrapper else ""
            if name.startswith(place + _PREFIX):
                name = place + name[len(place + _PREFIX) :]
        result.append(name)
    return result
