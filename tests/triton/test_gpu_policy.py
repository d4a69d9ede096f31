"""Every path of a layer on the GPU keeps the error bound: fused, library product and tail, folded weight."""

from __future__ import annotations

import os

import pytest
import torch

from tests.ops.bounds import assert_within_bound
from tests.ops.problems import Case

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
]

LAST = {"layout": "channels_last", "dy_layout": "channels_last"}
BOTH = {"granularity": "unit+input"}


def conv(shape, pattern="sets", **values):
    kind = {k: values.pop(k) for k in ("gate", "gate_bias", "keep_gated", "granularity", "dtype") if k in values}
    return Case("modulated_conv2d", shape, pattern, options=tuple(values.items()), **LAST, **kind)


CASES = [
    Case("modulated_linear", (6, 5, 33, 31), "sets", **BOTH),
    Case("modulated_linear", (6, 5, 33, 31), "sets", gate="identity", **BOTH),
    Case("modulated_linear", (3, 67, 129, 63), "mixed", gate_bias=False),
    Case("modulated_linear", (6, 5, 33, 31), "mixed", granularity="input", gate_bias=False),
    Case("modulated_linear", (3, 67, 129, 63), "whole batch", dtype=torch.float16),
    conv((6, 8, 7, 5, 12, 3), padding=(1, 1), **BOTH),
    conv((6, 8, 7, 5, 12, 3), padding=(2, 2), dilation=(2, 1), gate="identity", **BOTH),
    conv((6, 8, 7, 5, 12, 3), stride=(2, 1), padding=(1, 0), gate_bias=False),
    conv((6, 8, 7, 5, 12, 3), padding=(3, 3), keep_gated=True),
    conv((2, 33, 9, 7, 65, 3), "mixed", padding=(1, 1), dtype=torch.float16),
    conv((6, 8, 7, 5, 12, 3), "whole batch", padding=(1, 1), **BOTH),
    conv((6, 8, 7, 5, 12, 3), "whole batch", padding=(1, 1)),
    Case("modulated_conv2d", (6, 8, 7, 5, 12, 3), "sets", options=(("padding", (1, 1)),)),
    conv((6, 16, 7, 5, 24, 1), **BOTH),
    conv((6, 8, 7, 5, 12, 3), "nothing", padding=(0, 3), kernel_width=5),
]


@pytest.fixture
def path(request):
    import memmod
    from memmod.ops.backends import gpu_policy

    memmod.set_backend("triton")
    gpu_policy.force(request.param)
    yield request.param
    gpu_policy.force(None)
    memmod.set_backend(None)


# Folding needs one selection for the whole batch.
WAYS = [(path, c) for c in CASES for path in ("fused", "unfused", "fold")[: 3 if c.pattern == "whole batch" else 2]]


@pytest.mark.parametrize(("path", "case"), WAYS, ids=str, indirect=["path"])
def test_within_bound(path, case):
    assert_within_bound([case.draw(seed) for seed in range(2)])
