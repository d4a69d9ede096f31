"""Modulated layers under torch.fx: one node each, so that a traced graph calls the layer, and with it its gates."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def call_node(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Proxy:
    """The call of `module` as a node of the graph that is being traced, None among the keywords left out.

    Traced into, a layer would leave the graph what it does with the selection of that moment: mostly nothing.
    """
    tracer = next(arg.tracer for arg in (*args, *kwargs.values()) if isinstance(arg, Proxy))
    given = {name: value for name, value in kwargs.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)
