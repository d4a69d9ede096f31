"""Makes layers and what overwrites their output in place agree."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from memmod.surgery.example import Example
from memmod.surgery.record import Surgery
from memmod.surgery.trace import run_example


def protect_outputs(surgery: Surgery, gated: list[str], example: Example) -> None:
    """Make in-place neighbours safe: backward reads a layer's output, which the next layer must not have overwritten.

    In-place activations behind a gated layer are switched to new outputs; layers whose output is overwritten by the
    model's own code (``out += identity``) keep the gated part apart.
    """
    layers = {name: surgery.model.get_submodule(name) for name in gated}
    storages: dict[int, Tensor] = {}
    inplace: list[str] = []

    def held(_module, _args, out):
        storages[out.untyped_storage().data_ptr()] = out

    def check(module, args, name):
        if args and isinstance(args[0], Tensor) and args[0].untyped_storage().data_ptr() in storages:
            inplace.append(name)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for layer in layers.values():
            hooks.callback(layer.register_forward_hook(held).remove)
        for name, module in surgery.model.named_modules():
            if getattr(module, "inplace", False) is True:
                hook = module.register_forward_pre_hook(lambda m, a, name=name: check(m, a, name))
                hooks.callback(hook.remove)
        run_example(surgery.model, example.args, example.kwargs)
    for name in dict.fromkeys(inplace):
        surgery.set_attribute(name, "inplace", False)

    outputs: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in gated}
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():

            def keep(_module, _args, out, name=name):
                outputs[name].append((out, out._version))

            hooks.callback(layer.register_forward_hook(keep).remove)
        run_example(surgery.model, example.args, example.kwargs)
    for name, kept in outputs.items():
        if any(out._version != version for out, version in kept):
            layers[name].keep = "gated"
