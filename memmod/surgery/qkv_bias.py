"""Attention that adds its query and value biases itself: they go into `qkv`, so that the layer is called, and gated."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.surgery.example import Example
from memmod.surgery.fold import FOLD_TOLERANCE, has_hooks
from memmod.surgery.record import Surgery
from memmod.surgery.replace import plain_linear
from memmod.surgery.trace import Observation, run_example, same_output


def has_biases_apart(module: nn.Module) -> bool:
    """Whether a module holds the biases of its `qkv` ``[3·D, I]`` apart, as `q_bias` and `v_bias` ``[D]``.

    timm's BEiT, EVA and Swin V2 do: without `q_bias` they call `qkv`, with it they hand its weight to a function.
    """
    qkv = module._modules.get("qkv")
    biases = [module._parameters.get(name) for name in ("q_bias", "v_bias")]
    if type(qkv) is not nn.Linear or qkv.bias is not None or any(bias is None for bias in biases):
        return False
    return all(bias.shape == (qkv.out_features // 3,) for bias in biases) and not has_hooks(qkv)


def join_biases(surgery: Surgery, observation: Observation, example: Example) -> None:
    """Give `qkv` the biases that its attention holds apart, where the model then computes what it did.

    Args:
        observation: the run of the example so far.
    """
    found = [name for name, module in surgery.model.named_modules() if name and has_biases_apart(module)]
    joined = _join(surgery, found)
    if joined and not _agrees(surgery, observation, example):
        surgery.undo(len(joined))
        found, joined = joined, []
        for name in found:
            _join(surgery, [name])
            if _agrees(surgery, observation, example):
                joined.append(name)
            else:
                surgery.undo(1)
    for name in joined:
        module = surgery.model.get_submodule(name)
        surgery.note(name, module, "replaced", "its query, key and value biases are those of qkv, which it calls")


def _join(surgery: Surgery, names: list[str]) -> list[str]:
    for name in names:
        surgery.replace(name, _with_one_bias(surgery.model.get_submodule(name)))
    return names


def _agrees(surgery: Surgery, observation: Observation, example: Example) -> bool:
    try:
        with torch.no_grad():
            output = run_example(surgery.model, example.args, example.kwargs)
    except ModelError:
        return False
    return same_output(output, observation.output, FOLD_TOLERANCE)


def _with_one_bias(attention: nn.Module) -> nn.Module:
    new, qkv = _shallow(attention), attention.qkv
    q, v = attention.q_bias.detach(), attention.v_bias.detach()
    k = attention._buffers.get("k_bias")
    bias = torch.cat((q, torch.zeros_like(v) if k is None else k.to(v), v))
    new._modules["qkv"] = plain_linear(qkv, qkv.weight, bias)
    new._parameters["q_bias"] = new._parameters["v_bias"] = None
    return new


def part_biases(model: nn.Module, originals: Sequence[tuple[str, nn.Module]]) -> None:
    """Undo `join_biases` in a model whose layers are ordinary: each part of the bias of `qkv` where it was.

    Args:
        originals: (name, module) of what was replaced, as in `Changes`.
    """
    for name, original in originals:
        if has_biases_apart(original):
            attention = model.get_submodule(name)
            qkv = attention.qkv
            q, k, v = (part.clone() for part in qkv.bias.detach().chunk(3))
            attention._parameters["q_bias"], attention._parameters["v_bias"] = _frozen(q), _frozen(v)
            if attention._buffers.get("k_bias") is not None:
                attention._buffers["k_bias"] = k
            attention._modules["qkv"] = plain_linear(qkv, qkv.weight, None)


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _shallow(module: nn.Module) -> nn.Module:
    """A copy that shares the parts of `module`, in tables of its own."""
    new = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        setattr(new, table, dict(getattr(module, table)))
    return new
