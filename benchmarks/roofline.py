"""How fast a layer could be on a GPU: its operations and bytes, the card's peaks, and the larger of the two times."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks import clock
from benchmarks.cases import CLASSES, DTYPES, Case

MEMORY_BYTES = 4  # of a number of the memory, whatever the layer's dtype
INDEX_BYTES = 8
COPIED_BYTES = 1 << 30
MULTIPLIED = 8192


class Work(NamedTuple):
    """What a case cannot do without: multiplications and additions, and bytes read or written once each."""

    operations: int
    bytes: int


class Card(NamedTuple):
    """Peaks as their maker states them, without sparsity: TF/s by kind of product, and TB/s."""

    half: float
    tf32: float
    fp32: float
    bandwidth: float


class Roof(NamedTuple):
    """What a device reaches in one kind of product: operations and bytes a second."""

    operations: float
    bandwidth: float
    kind: str = ""
    measured: bool = False


# By words of the device's name, the first that match; a part of a card (MIG) is none of them.
CARDS: tuple[tuple[tuple[str, ...], Card], ...] = (
    (("A100", "80GB", "PCIE"), Card(312, 156, 19.5, 1.935)),
    (("A100", "80GB"), Card(312, 156, 19.5, 2.039)),
    (("A100", "40GB"), Card(312, 156, 19.5, 1.555)),
    (("H100", "PCIE"), Card(756, 378, 51, 2.0)),
    (("H100", "NVL"), Card(835, 417, 60, 3.9)),
    (("H100",), Card(989, 495, 67, 3.35)),
    (("H200", "NVL"), Card(835, 417, 60, 4.8)),
    (("H200",), Card(989, 495, 67, 4.8)),
    (("B200",), Card(2250, 1125, 75, 8.0)),
)


def card(name: str) -> Card | None:
    """The card that a device's name names, or None."""
    words = set(re.split("[ -]", name.upper()))
    if "MIG" in words:
        return None
    return next((found for needed, found in CARDS if words.issuperset(needed)), None)


def work(case: Case, phase: str, gated: bool = True) -> Work:
    """Of a layer with a frozen weight, `gated` by a unit memory or plain.

    The forward reads x, weight and bias and writes y; the backward reads dy and weight and writes dx. Gates add the
    memory and the index, and in the backward y, from which the memory's gradient comes, and that gradient.
    """
    itemsize = DTYPES[case.dtype].itemsize
    inner = case.inputs // case.groups * max(1, case.kernel) ** 2
    x, weight = case.batch * case.inputs, case.outputs * inner
    if case.kernel:
        side = (case.side + 2 * (case.kernel // 2) - case.kernel) // case.stride + 1
        x, rows = x * case.side**2, case.batch * side**2
    else:
        x, rows = x * case.tokens, case.batch * case.tokens
    y = rows * case.outputs
    gates = (CLASSES * case.outputs * MEMORY_BYTES + case.batch * INDEX_BYTES) * gated
    operations, size = 2 * y * inner, (x + weight + case.outputs + y) * itemsize + gates
    if phase != "forward":
        operations *= 2
        size += (y + weight + x + y * gated) * itemsize + gates + CLASSES * case.outputs * MEMORY_BYTES * gated
    return Work(operations, size)


def floor_seconds(work: Work, roof: Roof) -> float:
    """No kernel can be faster: the larger of the times that its operations and its bytes take at the peaks."""
    return max(work.operations / roof.operations, work.bytes / roof.bandwidth)


def operations_per_second(card: Card, dtype: str, tf32_allowed: bool) -> float:
    """The peak of a product in `dtype`. In fp32 without TF32, three TF32 products are as exact, and faster."""
    if dtype != "fp32":
        return card.half * 1e12
    return (card.tf32 if tf32_allowed else max(card.fp32, card.tf32 / 3)) * 1e12


def roof(name: str, dtype: str, tf32_allowed: bool, measure: Callable[[str], Roof]) -> Roof:
    """From the table, or measured if the device's name is not in it."""
    known, kind = card(name), dtype + " in TF32" * (dtype == "fp32" and tf32_allowed)
    if known is None:
        return measure(dtype)._replace(kind=kind, measured=True)
    return Roof(operations_per_second(known, dtype, tf32_allowed), known.bandwidth * 1e12, kind)


def measured_roof(
    dtype: str, device: str, seconds: Callable[[Callable[[], object]], float], scale: float = 1.0
) -> Roof:
    """By a large copy and a large product of the library; `scale` < 1 for smaller ones."""
    source = torch.empty(int(COPIED_BYTES * scale), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / seconds(lambda: target.copy_(source))
    size = int(MULTIPLIED * scale)
    a = torch.randn(size, size, device=device).to(DTYPES[dtype])
    return Roof(2 * size**3 / seconds(lambda: a @ a), bandwidth)


@functools.cache
def of_device(device: str, dtype: str, tf32_allowed: bool) -> Roof | None:
    """What the benchmarks count fractions from; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    timed = functools.partial(clock.seconds, calls=10, device=clock.cuda(torch.device(device)))

    def measure(dtype: str) -> Roof:
        return measured_roof(dtype, device, timed)

    return roof(torch.cuda.get_device_name(device), dtype, tf32_allowed, measure)


def columns(work: Work | None, roof: Roof | None, seconds: float) -> tuple[str, str, str]:
    """(TF/s, GB/s, fraction of the floor's speed) as the table prints them; empty where they are unknown."""
    if work is None or roof is None:
        return "", "", ""
    reached = floor_seconds(work, roof) / seconds
    return f"{work.operations / seconds / 1e12:.1f}", f"{work.bytes / seconds / 1e9:.0f}", f"{reached:.0%}"


def describe(roof: Roof) -> str:
    """One line: what the fractions of the floor are counted from."""
    source = "measured" if roof.measured else "stated by the maker"
    return f"floor in {roof.kind}: {roof.operations / 1e12:.0f} TF/s, {roof.bandwidth / 1e9:.0f} GB/s ({source})"
