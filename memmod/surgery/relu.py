"""Has modulated layers apply the ReLU that follows them: the kernel does it on the way, and one output less is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from memmod.nn import ModulatedConv2d, ModulatedLinear
from memmod.surgery.example import Example
from memmod.surgery.fold import has_hooks
from memmod.surgery.record import Surgery
from memmod.surgery.replace import replace_module
from memmod.surgery.trace import Observation, observe


class FusedReLU(nn.ReLU):
    """Stands in the place of a ReLU that the layer in front of it applies: passes its input on."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def fuse_activations(surgery: Surgery, gated: list[str], example: Example) -> None:
    """Fuse each `nn.ReLU` that alone reads a gated layer's output, where both are called once.

    A layer whose memory's gradient needs more than the output behind the ReLU is left as it is, and so is a ReLU whose
    output is changed in place.
    """
    with _out_of_place(surgery.model):
        observation = observe(surgery.model, example.args, example.kwargs)
    modules = dict(surgery.model.named_modules())
    for name in gated:
        layer = modules[name]
        relu = _relu_behind(name, modules, observation) if _fuses(layer) else None
        if relu is None:
            continue
        layer.activation = "relu"
        fused = FusedReLU(modules[relu].inplace)
        surgery.note(relu, modules[relu], "fused", f"into {name}")
        surgery.replace(relu, fused.train(modules[relu].training))


def unfuse_activations(model: nn.Module) -> None:
    """Put the ReLUs back into a model whose modulated layers have become ordinary ones."""
    for module in list(model.modules()):
        if isinstance(module, FusedReLU):
            replace_module(model, module, nn.ReLU(module.inplace).train(module.training))


def _fuses(layer: nn.Module) -> bool:
    if type(layer) not in (ModulatedConv2d, ModulatedLinear) or layer.memory is None or has_hooks(layer):
        return False
    return layer.gate != "identity" and layer.keep == "output" and (layer.gate_bias or layer.bias is None)


def _relu_behind(name: str, modules: dict[str, nn.Module], observation: Observation) -> str | None:
    calls = observation.modules[name]
    if len(calls) != 1:
        return None
    output = calls[0].outputs[0]
    consumers = observation.consumers(output)
    if len(consumers) != 1 or observation.is_returned(output):
        return None
    reader = consumers[0].module
    if type(modules[reader]) is not nn.ReLU or has_hooks(modules[reader]) or len(observation.modules[reader]) != 1:
        return None
    call = observation.modules[reader][0]
    changed = call.outputs[0]._version > 0
    return reader if call.inputs[0] is output and not changed else None


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """ReLUs return new tensors, so that what reads a ReLU is told from what reads the layer in front of it."""
    inplace = [module for module in model.modules() if type(module) is nn.ReLU and module.inplace]
    for module in inplace:
        module.inplace = False
    try:
        yield
    finally:
        for module in inplace:
            module.inplace = True
