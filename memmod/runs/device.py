"""The device that a command's networks run on."""

from __future__ import annotations

import torch

from memmod.errors import RunError


def usable_device(name: str) -> torch.device:
    """A device by name. Raises RunError where there is none that computes values."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"the device {name!r} cannot be used ({reason}): choose 'cpu', or 'cuda' with a GPU") from None
    return device
