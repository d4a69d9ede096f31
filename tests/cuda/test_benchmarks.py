"""The rivals of the benchmarks that run the CUDA kernels agree with the reference: checked as before they are timed."""

from __future__ import annotations

import pytest

from benchmarks.baselines import make_layer
from benchmarks.cases import Case, NetworkCase
from benchmarks.layers import LayerComparison
from benchmarks.measure import PHASES
from benchmarks.networks import make_network
from benchmarks.steps import NetworkComparison

pytestmark = pytest.mark.cuda_host

LAYERS = (
    Case("linear", "few rows", 4, 40, 24),
    Case("linear", "tokens", 6, 16, 24, tokens=5),
    Case("conv", "square", 4, 8, 16, kernel=3, side=6),
    Case("conv", "depthwise", 4, 8, 8, kernel=3, side=6, groups=8),
)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_layers(case: Case, phase: str) -> None:
    comparison = LayerComparison(make_layer(case, "cpu"), phase)
    for layout in comparison.layouts_of("memmod cuda"):
        comparison.check("memmod cuda", comparison.runner("memmod cuda", layout))


def test_a_network() -> None:
    case = NetworkCase("tiny", "resnet", "resnet", 8, 4)
    comparison = NetworkComparison(make_network(case, "cpu", whole_batch=False), "forward+backward")
    comparison.check("memmod cuda", comparison.runner("memmod cuda", "NHWC"))
