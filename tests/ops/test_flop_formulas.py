"""Flop counters count a modulated layer as the plain one, in either order of imports."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memmod import ModulatedConv2d, ModulatedLinear, modulate, set_backend
from memmod.ops import flop_formulas
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

INDEX = torch.tensor([1, -1])


def counted(run, x: torch.Tensor) -> tuple[int, int]:
    """Operations of the forward and of the backward."""
    with FlopCounterMode(display=False) as forward:
        y = run(x)
    with FlopCounterMode(display=False) as backward:
        if y.requires_grad:
            y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("kind", ["linear", "conv", "strided and grouped", "depthwise"])
def test_layers_count_as_plain_ones(kind: str, granularity: str) -> None:
    if kind == "linear":
        plain, x = nn.Linear(6, 10), torch.randn(4, 5, 6)
        layer = ModulatedLinear.from_linear(plain, 3, granularity=granularity)
        products = 2 * 4 * 5 * 6 * 10
    else:
        options = {
            "conv": {},
            "strided and grouped": {"stride": 2, "padding": 1, "groups": 2},
            "depthwise": {"groups": 6},
        }
        plain, x = nn.Conv2d(6, 12, 3, **options[kind]), torch.randn(4, 6, 9, 7)
        layer = ModulatedConv2d.from_conv2d(plain, 3, granularity=granularity)
        products = 2 * plain(x).numel() * plain.weight[0].numel()
    for needs_x, needs_weight in itertools.product((True, False), repeat=2):
        plain.requires_grad_(needs_weight)
        x.requires_grad_(needs_x)
        expected = counted(plain, x)
        found = counted(lambda t: layer(t, INDEX), x)
        assert expected[0] == found[0] == products
        if granularity != "unit" and not needs_x:
            # An input's gate learns from the gradient of the layer's input.
            x.requires_grad_(True)
            expected = counted(plain, x)
        assert expected[1] == found[1]
        assert expected[1] > 0 or not (needs_x or needs_weight)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_networks_count_as_the_reference(name: str) -> None:
    base = randomise(create_model(name, 5, (1, 16, 16))).eval()
    wf, x = modulate(base, example_input=torch.randn(2, 1, 16, 16)), torch.randn(2, 1, 16, 16, requires_grad=True)
    found = counted(lambda t: wf(t, forget=INDEX), x)
    plain = counted(base.requires_grad_(False), x)
    assert found == plain and min(found) > 0
    with FlopCounterMode(display=False) as by_module:
        wf(x, forget=INDEX)
    names = {str(op) for op in by_module.get_flop_counts()["Global"]}
    assert any(op.startswith("memmod.modulated_") for op in names)


ORDERS = """
import torch
{imports}
layer = ModulatedLinear(6, 10, 3)
x, index = torch.randn(4, 6, requires_grad=True), torch.tensor([1, -1])
{before}
with FlopCounterMode(display=False) as counter:
    layer(x, index).sum().backward()
assert counter.get_total_flops() == 3 * 2 * 4 * 6 * 10, counter.get_flop_counts()
"""
COUNTER, LAYER = "from torch.utils.flop_counter import FlopCounterMode", "from memmod import ModulatedLinear"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "before"),
    [
        (f"{COUNTER}\n{LAYER}", ""),
        (f"{LAYER}\n{COUNTER}", ""),
        (LAYER, COUNTER),
        (LAYER, f"layer(x, index)\n{COUNTER}"),
    ],
)
def test_any_order_of_imports(imports: str, before: str) -> None:
    program = ORDERS.format(imports=imports, before=before)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_compiled_networks_count_too() -> None:
    base = randomise(create_model("vit", 5, (1, 8, 8))).eval()
    wf, x = modulate(base, example_input=torch.randn(2, 1, 8, 8)), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = counted(lambda t: wf(t, forget=INDEX), x)
        wf.model = torch.compile(wf.model)
        assert counted(lambda t: wf(t, forget=INDEX), x) == expected


def test_a_counter_made_earlier_gets_the_formulas() -> None:
    counter, layer = FlopCounterMode(display=False), ModulatedLinear(6, 10, 3)
    for name in ("modulated_linear", "modulated_linear_backward"):
        del counter.flop_registry[getattr(torch.ops.memmod, name)]
    with counter:
        layer(torch.randn(4, 6), INDEX)
    assert counter.get_total_flops() == 2 * 4 * 6 * 10


def test_the_reference_alone_counts_the_same() -> None:
    layer, x = ModulatedLinear(6, 10, 3), torch.randn(4, 6)
    set_backend("reference")
    try:
        assert counted(lambda t: layer(t, INDEX), x)[0] == 2 * 4 * 6 * 10
    finally:
        set_backend(None)
    flop_formulas.register()
