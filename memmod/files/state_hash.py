"""The SHA-256 by which a base is known: of everything that its state dict holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memmod.compiled import uncompiled_names
from memmod.errors import ModelError


def state_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's state dict: names, dtypes, shapes and bytes, in the order of the names.

    Entries that are no plain tensors (extra state, packed and quantised weights) count by their content. A model that
    `torch.compile` wraps has the hash of the model inside.

    Raises:
        ModelError: an entry that has no content to hash; it is named.
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    entries = dict(zip(uncompiled_names(model, state), state.values(), strict=True))
    for name in sorted(entries):
        value = entries[name]
        try:
            for part in _tensor(name, value) if _is_plain(value) else _content(name, value):
                digest.update(part)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the entry {name!r} of the model's state dict ({type(value).__name__}) cannot be hashed, so memories "
                f"could not be tied to this base: {type(error).__name__}: {error}"
            ) from error
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    unusual = is_lazy(value) or value.is_meta or value.is_quantized or value.layout != torch.strided
    return not (unusual or _is_wrapper(value))


def _is_wrapper(tensor: Tensor) -> bool:
    """Whether it is made of other tensors, as torchao's quantised weights are; a part of a distributed one is none."""
    return is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "full_tensor")


def _tensor(name: str, tensor: Tensor) -> list[bytes]:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode()
    return [head, flat.view(torch.uint8).numpy() if flat.numel() else b""]


def _content(name: str, value: Any) -> list[bytes]:
    """What is hashed of an entry that is not a plain tensor; each part says its kind and its length."""
    if isinstance(value, Tensor):
        return _unusual_tensor(name, value)
    if isinstance(value, (str, bytes, bytearray)):
        data = value.encode() if isinstance(value, str) else bytes(value)
        return [f"{name}|{'str' if isinstance(value, str) else 'bytes'}|{len(data)}|".encode(), data]
    if value is None or isinstance(value, (bool, int, float, complex, torch.dtype, torch.device, Enum)):
        return [f"{name}|{type(value).__name__}|{value!r}|".encode()]
    if isinstance(value, Mapping):
        parts = sorted((repr(key), part) for key, part in value.items())
        return _group(name, "map", [(f"{name}[{key}]", part) for key, part in parts])
    if isinstance(value, (list, tuple)):
        return _group(name, "list", [(f"{name}[{place}]", part) for place, part in enumerate(value)])
    if isinstance(value, (set, frozenset)):
        return _group(name, "set", [(f"{name}[]", part) for part in sorted(value)])
    if is_dataclass(value) and not isinstance(value, type):
        return _group(name, type(value).__name__, [(name, {f.name: getattr(value, f.name) for f in fields(value)})])
    if isinstance(value, torch.ScriptObject):
        return _group(name, "packed", [(f"{name}.state", value.__getstate__())])
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return [f"{name}|numpy {value.dtype}|{value.shape}|".encode(), value.tobytes()]
    raise ModelError(
        f"the entry {name!r} of the model's state dict holds a {type(value).__name__}, which has no content that "
        "memmod could hash: let get_extra_state() return tensors, numbers, strings, lists and dicts of them"
    )


def _group(name: str, kind: str, parts: list[tuple[str, Any]]) -> list[bytes]:
    head = f"{name}|{kind}|{len(parts)}|".encode()
    return [head, *(piece for path, part in parts for piece in _any(path, part))]


def _any(name: str, value: Any) -> list[bytes]:
    return _tensor(name, value) if _is_plain(value) else _content(name, value)


def _unusual_tensor(name: str, tensor: Tensor) -> list[bytes]:
    if is_lazy(tensor):
        raise ModelError(
            f"{name!r} is not initialised yet (a lazy layer): run the model once on a batch before modulate()"
        )
    if tensor.is_meta:
        raise ModelError(f"{name!r} is on the meta device and has no values: load the model's weights first")
    if _is_wrapper(tensor):
        names, context = tensor.__tensor_flatten__()
        parts = [*((f"{name}.{part}", getattr(tensor, part)) for part in names), (f"{name}.context", context)]
        return _group(name, type(tensor).__name__, [(name, tuple(tensor.shape)), *parts])
    tensor, layout = tensor.detach().cpu(), tensor.layout
    if tensor.is_quantized:
        return _quantised(name, tensor)
    if layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        parts = (tensor.indices(), tensor.values())
    elif layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        parts = (tensor.to_dense(),)
    return _group(name, str(layout), [(name, part) for part in (tuple(tensor.shape), *parts)])


def _quantised(name: str, tensor: Tensor) -> list[bytes]:
    parts: list[Any] = [str(tensor.dtype), str(tensor.qscheme()), tensor.int_repr()]
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        parts += [tensor.q_scale(), tensor.q_zero_point()]
    else:
        parts += [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis()]
    return _group(name, "quantised", [(name, part) for part in parts])
