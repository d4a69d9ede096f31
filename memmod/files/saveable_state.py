"""A module's state as tensors that safetensors can write."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import save as serialise
from torch import Tensor, nn

from memmod.errors import ModelError


def saveable_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, contiguous, each tensor with memory of its own: tied weights once per name.

    Raises:
        ModelError: an entry that is not a dense tensor with values; it is named.
    """
    seen: set[int] = set()
    result = {}
    for name, entry in model.state_dict().items():
        if not isinstance(entry, Tensor):
            raise ModelError(
                f"the state of {type(model).__name__} holds {name}, a {type(entry).__name__}: safetensors keeps "
                "tensors alone; leave it out of the state dict (get_extra_state), or make it a buffer"
            )
        if nn.parameter.is_lazy(entry) or entry.is_meta or entry.is_quantized or entry.layout != torch.strided:
            raise ModelError(
                f"the state of {type(model).__name__} holds {name}, which is not a dense tensor with values of its "
                "own: run the model once where it is lazy, load its weights where they are missing, or make it dense"
            )
        tensor = entry.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def serialised_state(model: nn.Module, metadata: dict[str, str] | None = None) -> bytes:
    """The state dict as the content of a safetensors file.

    Raises:
        ModelError: an entry that safetensors does not keep.
    """
    state = saveable_state(model)
    try:
        return serialise(state, metadata=metadata)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"the state of {type(model).__name__} cannot be written as safetensors: {error}") from error
