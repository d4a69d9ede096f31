"""The copy of a base that surgery works on: detached from graphs, from inference mode and from torch.compile."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from memmod.compiled import is_compiled
from memmod.errors import ModelError
from memmod.surgery.replace import replace_module


class _Detaching(TorchFunctionMode):
    """Copies tensors that are part of a graph, or were made in inference mode, as ordinary ones."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].is_inference()):
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)
def detached_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a module whose tensors may belong to graphs (kept features, pruned or normed weights).

    Args:
        memo: as in `copy.deepcopy`: what other copies already hold.

    Raises:
        ModelError: something that the module keeps cannot be copied; the module and its attribute are named.
    """
    memo = {} if memo is None else memo
    for parameter in module.parameters():
        if not is_lazy(parameter) and parameter.is_inference() and id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    try:
        with _Detaching():
            return copy.deepcopy(module, memo)
    except Exception as error:
        raise _uncopied(module, error) from error


def _uncopied(model: nn.Module, error: Exception) -> ModelError:
    """Names the innermost module that cannot be copied, and which of its attributes."""
    for name, module in reversed(list(model.named_modules())):
        for attribute, value in _attributes(module):
            try:
                with _Detaching():
                    copy.deepcopy(value)
            except Exception as reason:
                return ModelError(
                    f"{_place(name, module)} cannot be copied: its attribute {attribute!r} holds "
                    f"{_culprit(value)} ({type(reason).__name__}: {reason}). Set it to None while modulate() "
                    f"runs, or give {type(module).__name__} a __getstate__ that leaves it out"
                )
    return ModelError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}")


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for attribute, value in vars(module).items():
        if attribute in ("_parameters", "_buffers"):
            yield from value.items()
        elif attribute != "_modules":
            yield attribute, value


def _culprit(value: Any) -> str:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    for part in parts:
        try:
            copy.deepcopy(part)
        except Exception:
            return f"a {type(part).__name__}"
    return f"a {type(value).__name__}"


def _place(name: str, module: nn.Module) -> str:
    return f"module {name!r} ({type(module).__name__})" if name else type(module).__name__


def base_copy(model: nn.Module) -> nn.Module:
    """A copy of a base to operate on: without the wrappers of `torch.compile`, detached.

    Raises:
        ModelError: not a module, compiled by TorchScript, an attribute that cannot be copied, or a forward that
            would go on running the original.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}, not a torch.nn.Module: pass the module itself")
    _refuse_scripts(model)
    memo: dict[int, Any] = {}
    copied = detached_copy(model, memo)
    copies = {id(module): memo[id(module)] for module in model.modules()}
    for name, module in list(copied.named_modules()):
        # The wrapper itself keeps compiled functions; it goes.
        if not is_compiled(module):
            _rebind_functions(name, module, copies)
    return without_compilation(copied)


def _refuse_scripts(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            kind = getattr(module, "original_name", type(module).__name__)
            raise ModelError(
                f"{_place(name, module)} is {kind} compiled by TorchScript (torch.jit.script, torch.jit.trace), whose "
                "layers cannot be gated: pass the original Python module"
            )


def without_compilation(model: nn.Module) -> nn.Module:
    """The module, in place, without the wrappers of `torch.compile` around it and its parts."""
    while is_compiled(model):
        model = model._orig_mod
    for module in list(model.modules()):
        if is_compiled(module):
            replace_module(model, module, without_compilation(module))
    return model


def _rebind_functions(name: str, module: nn.Module, copies: dict[int, Any]) -> None:
    """Copying leaves functions as they are: those kept on the instance must not go on running the original."""
    for attribute, value in list(vars(module).items()):
        if not isinstance(value, types.FunctionType):
            continue
        inner = getattr(value, "_torchdynamo_orig_callable", value)
        # torch.compile wraps the library's own functions once more.
        inner = inner if inner is value else inspect.unwrap(inner)
        if isinstance(inner, types.MethodType) and id(inner.__self__) in copies:
            delattr(module, attribute)
            if inner.__func__ is not getattr(type(module), attribute, None):
                setattr(module, attribute, types.MethodType(inner.__func__, copies[id(inner.__self__)]))
        elif _reaches(inner, copies.keys()):
            raise ModelError(
                f"{_place(name, module)} keeps a function {attribute!r} that refers to the original module, so a copy "
                "would go on running the original: define it in the class, or bind it with types.MethodType"
            )


def _reaches(value: Any, modules: Container[int], depth: int = 4) -> bool:
    """Whether a function refers to one of the modules, through its closure, defaults, arguments or bound object."""
    if id(value) in modules:
        return True
    if depth == 0:
        return False
    if isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    else:
        closure = inspect.getclosurevars(value).nonlocals if isinstance(value, types.FunctionType) else {}
        parts = list(closure.values())
        parts += [getattr(value, "__self__", None), getattr(value, "__wrapped__", None)]
        parts += list(getattr(value, "__defaults__", None) or ())
    return any(part is not None and _reaches(part, modules, depth - 1) for part in parts)
