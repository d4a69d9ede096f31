"""memmod::modulated_conv2d keeps the error bound for every kind of input and every option of a convolution."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from tests.ops.backends import each_case
from tests.ops.bounds import assert_within_bound, run_op
from tests.ops.problems import PATTERNS, Case

conv = partial(Case, "modulated_conv2d")
# rows, input channels, height, width, output channels, kernel
SMALL = (6, 8, 7, 5, 12, 3)


def options(**values):
    return tuple(values.items())


PADDED = options(padding=(1, 1))

CASES = [
    *(conv(SMALL, pattern, granularity="unit+input", options=PADDED) for pattern in PATTERNS),
    *(conv(SMALL, pattern, gate_bias=False) for pattern in ("mixed", "sets", "whole batch")),
    *(conv(SMALL, pattern, gate="identity", granularity="unit+input") for pattern in ("mixed", "sets", "repeated")),
    conv(SMALL, "sets", gate="identity", gate_bias=False),
    conv(SMALL, granularity="input"),
    conv(SMALL, granularity="input", gate_bias=False),
    conv(SMALL, bias=False, gate_bias=False),
    conv(SMALL, keep_gated=True),
    conv(SMALL, keep_gated=True, gate_bias=False),
    conv(SMALL, "sets", rows_per_sample=3, granularity="unit+input"),
    conv(SMALL, classes=1000, granularity="unit+input"),
    conv((1, 1, 1, 1, 1, 1), granularity="unit+input"),
    conv((3, 31, 9, 33, 63, 1)),
    conv((2, 33, 31, 3, 127, 1), "distinct", granularity="unit+input"),
    conv((2, 3, 129, 63, 17, 3), "distinct", granularity="unit+input", options=PADDED),
    conv((0, 8, 7, 5, 12, 3), granularity="unit+input"),
    *(
        conv(SMALL, granularity="unit+input", options=options(**values))
        for values in (
            {"stride": (2, 2)},
            {"stride": (1, 3), "padding": (2, 1)},
            {"dilation": (2, 1), "padding": (2, 2)},
            {"groups": 4},
            {"groups": 2, "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
            {"kernel_width": 1},
            {"kernel_width": 5, "padding": (0, 3)},
        )
    ),
    conv((6, 12, 7, 5, 12, 3), granularity="unit+input", options=options(groups=12, padding=(1, 1))),
    conv((6, 12, 7, 5, 24, 3), options=options(groups=12)),
    *(
        conv(SMALL, "sets", dtype=dtype, granularity="unit+input", gate_bias=gate_bias)
        for dtype, gate_bias in product((torch.bfloat16, torch.float16), (True, False))
    ),
    conv((6, 16, 33, 31, 16, 3), dtype=torch.bfloat16, options=PADDED),
    *(
        conv(SMALL, layout=layout, dy_layout=dy_layout, granularity="unit+input", options=PADDED)
        for layout, dy_layout in (
            ("channels_last", "channels_last"),
            ("channels_last", "contiguous"),
            ("weights channels_last", "channels_last"),
            ("contiguous", "channels_last"),
            ("transposed", "transposed"),
            ("strided", "strided"),
            ("expanded", "expanded"),
            ("one number", "one number"),
        )
    ),
    conv((2, 16, 63, 63, 33, 3), "distinct", layout="channels_last", dy_layout="channels_last"),
    *(
        conv(shape, layout="channels_last", dy_layout="channels_last", options=options(**values), **kind)
        for shape, values, kind in (
            (SMALL, {"stride": (2, 2), "padding": (1, 1)}, {"granularity": "unit+input"}),
            (SMALL, {"stride": (3, 1), "padding": (0, 2), "dilation": (1, 2)}, {"pattern": "sets"}),
            (SMALL, {"stride": (4, 4), "padding": (1, 1)}, {"keep_gated": True}),
            (SMALL, {"dilation": (2, 1), "padding": (2, 2)}, {"gate_bias": False}),
            (SMALL, {"kernel_width": 5, "padding": (0, 4)}, {"gate": "identity"}),
            (SMALL, {"padding": (3, 3)}, {"pattern": "whole batch set"}),
            ((6, 8, 1, 1, 12, 3), {"padding": (1, 1)}, {}),
            ((6, 8, 2, 9, 12, 2), {"stride": (2, 2)}, {"rows_per_sample": 3}),
            ((6, 16, 7, 5, 24, 1), {"stride": (2, 2)}, {"granularity": "unit+input"}),
            ((6, 16, 7, 5, 24, 1), {"padding": (1, 0)}, {}),
            # Bands of an image's rows, several images to a task, and columns that no panel ends with.
            ((2, 8, 129, 63, 33, 3), {"padding": (1, 1)}, {"granularity": "unit+input"}),
            ((2, 8, 129, 63, 33, 3), {"padding": (1, 1), "stride": (2, 2)}, {"pattern": "sets"}),
            ((127, 33, 3, 2, 17, 3), {"padding": (1, 1)}, {"pattern": "skewed"}),
            ((2, 129, 9, 7, 127, 3), {"padding": (1, 1)}, {"keep_gated": True, "gate_bias": False}),
        )
    ),
    # Depthwise: channels of whole vectors and not, filters with and without a border, several images to a task, bands.
    *(
        conv((*shape, width, side), layout="channels_last", dy_layout="channels_last", options=values, **kind)
        for shape, side, values, kind in (
            ((6, 48, 7, 5), 3, {"padding": (1, 1)}, {"granularity": "unit+input"}),
            ((6, 64, 9, 7), 3, {"padding": (1, 1), "stride": (2, 2)}, {"pattern": "sets", "granularity": "unit+input"}),
            ((6, 16, 9, 7), 5, {"padding": (2, 2), "stride": (3, 1)}, {"keep_gated": True, "gate_bias": False}),
            ((6, 32, 9, 11), 7, {"padding": (3, 3)}, {"gate": "identity"}),
            ((6, 80, 7, 8), 3, {"dilation": (2, 1)}, {"pattern": "whole batch", "gate_bias": False}),
            ((6, 24, 7, 5), 3, {"padding": (2, 1)}, {"rows_per_sample": 3}),
            ((6, 31, 7, 5), 3, {"padding": (1, 1)}, {}),
            ((2, 16, 5, 4), 25, {"padding": (12, 12)}, {}),
            ((2, 96, 63, 33), 3, {"padding": (1, 1)}, {"granularity": "unit+input"}),
            ((127, 16, 3, 2), 3, {"padding": (1, 1)}, {"pattern": "skewed"}),
        )
        for width in shape[1:2]
        for values in (options(groups=width, **values),)
    ),
]


@each_case(CASES, every_isa=True)
def test_within_bound(backend, case, poisoned):
    assert_within_bound([case.draw(seed) for seed in range(3)])


LAYOUTS = ("contiguous", "channels_last", "weights channels_last")
KERNELS = (SMALL, (6, 8, 7, 5, 12, 1))


@each_case(
    (conv(shape, layout=layout, dy_layout=layout.removeprefix("weights ")) for layout in LAYOUTS for shape in KERNELS),
    every_isa=True,
)
def test_results_have_the_memory_format_of_the_library(backend, case):
    problem = case.draw()
    results = run_op(problem)
    assert results["y"].stride() == torch.conv2d(problem.x, problem.weight).stride()
    last = case.layout != "contiguous"
    assert results["dx"].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
