"""Replaces attention that reads its projections' weights by equivalents whose projections are modulated modules."""

from __future__ import annotations

import sys

from torch import nn

from memmod.nn import ModulatedMultiheadAttention
from memmod.surgery.config import ModulateConfig
from memmod.surgery.fold import has_hooks
from memmod.surgery.record import Surgery


def open_attention(surgery: Surgery, num_classes: int, config: ModulateConfig) -> None:
    """Replace attention that reads its projections' weights by equivalents whose projections are modulated modules."""
    options = config.layer_options
    window = _window_attention()
    for name, module in list(surgery.model.named_modules()):
        if isinstance(module, nn.TransformerEncoderLayer) and getattr(module, "activation_relu_or_gelu", 0):
            surgery.set_attribute(name, "activation_relu_or_gelu", 0)
        if type(module) is nn.MultiheadAttention:
            reason = ModulatedMultiheadAttention.refusal(module)
            if reason is not None or has_hooks(module):
                surgery.note(name, module, "skipped", reason or "hooks are registered on it")
                continue
            new = ModulatedMultiheadAttention.from_multihead_attention(module, num_classes, **options)
        elif window is not None and type(module) in window.CLASSES and not has_hooks(module):
            new = window.ModulatedWindowAttention(module, num_classes, **options)
        else:
            continue
        surgery.note(name, module, "replaced", f"by {type(new).__name__}, whose projections are modules")
        surgery.replace(name, new)


def _window_attention():
    if "torchvision.models.swin_transformer" not in sys.modules:
        return None
    from memmod.nn import window_attention

    return window_attention


def replaced_attention() -> tuple[type, ...]:
    window = _window_attention()
    return (ModulatedMultiheadAttention, *((window.ModulatedWindowAttention,) if window is not None else ()))
