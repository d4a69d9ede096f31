"""The kernels move and compute what they must: each large tensor once, and products of no more than padded tiles."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.triton import cost
from tests.triton.cost import Access, Launch, needs_interpreter, traffic

pytestmark = [*needs_interpreter, pytest.mark.exhaustive]

# Of the memory's traffic over the floor, for a product.
BOUND = 1.15
# Of all bytes asked for besides the large tensors, over those asked for of them.
APART = 0.05
product = functools.cache(cost.product)
convolution = functools.cache(cost.convolution)


@pytest.mark.parametrize(("shape", "dim"), [((cost.SAMPLES, cost.HEIGHT, cost.WIDTH), -1), (cost.LINES, 1)])
@pytest.mark.parametrize("call", [cost.tail_forward, cost.tail_backward])
def test_a_tail_touches_each_element_once(call, shape, dim):
    count = call(shape, dim)
    for name in count.streamed:
        assert (count.main.times(name, store=name == "y") == 1).all(), name
        assert not count.main.times(name, store=name != "y").any(), name
    assert count.moved == count.floor == len(count.streamed) * 2 * torch.Size(shape).numel()
    assert 0 < count.apart <= APART


def test_a_tail_that_reads_twice_is_seen():
    """The sums alone and then the product alone: what the one pass saves."""
    from memmod.ops.backends.gpu.output import memory_gradient, modulate
    from memmod.ops.backends.triton.primitives import TRITON

    x, memory, index = cost.randn(4, 50, 16), cost.randn(3, 16, dtype=torch.float32), torch.tensor([0, -1, 2, 1])
    gates = TRITON.gates(memory, index, "sigmoid")
    with cost.record() as launches:
        memory_gradient(TRITON, x, x.clone(), gates, -1, with_dz=False)
        modulate(TRITON, x, gates, -1)
    passes = [launch for launch in launches if launch.kernel == "modulate_rows_kernel"]
    assert sum(launch.times("x", store=False) for launch in passes).tolist() == [2] * x.numel()


@pytest.mark.parametrize("b_columns", [True, False])
@pytest.mark.parametrize("gates", ["", "in+out"])
def test_a_product_reads_its_operands_about_once(b_columns, gates):
    count = product(b_columns, gates=gates)
    # More is asked for than moves: the cache has something to do.
    assert sum(count.main.moved(name) for name in count.streamed) > 3 * count.floor
    assert count.ratio <= BOUND
    assert (count.main.times("y", store=True) == 1).all()


def test_a_bad_order_of_tiles_is_seen():
    """All rows of one tile of columns first: a does not stay in the cache until the next columns."""
    assert product(group_m=10**6).ratio > 2


def test_a_cache_that_does_not_hold_the_weight_is_seen():
    count = product()
    assert traffic(count.main, cost.PRODUCT_CACHE // 6)["b"] > 4 * cost.floor(count.main, ["b"])


@pytest.mark.parametrize("gates", ["", "in"])
def test_a_convolution_reads_its_input_about_once(gates):
    count = convolution(gates=gates)
    # Nine taps, less what the padding cuts off.
    assert count.main.times("x", store=False).max() == 9
    assert cost.CONVOLUTION_CACHE < cost.floor(count.main, ["x", "x", "y"])
    assert count.ratio <= BOUND
    assert (count.main.times("y", store=True) == 1).all()


def test_a_cache_without_room_for_the_taps_is_seen():
    small = traffic(convolution().main, cost.CONVOLUTION_CACHE // 8)
    assert small["x"] > 2 * cost.floor(convolution().main, ["x"])


def test_no_more_operations_than_the_padded_tiles():
    block_m, block_n, block_k = cost.PRODUCT[:3]

    def padded(n: int, block: int) -> int:
        return -(-n // block) * block

    for count in (product(), product(False, gates="in+out")):
        sizes = padded(cost.ROWS, block_m), padded(cost.UNITS, block_n), padded(cost.INNER, block_k)
        assert count.main.operations == 2 * np.prod(sizes)
        assert 1 < count.overhead < 1.02
    # All sizes are multiples of the tiles'.
    assert convolution().overhead == 1


def test_two_rows_of_gates_serve_a_tile():
    """Where a sample has at least a tile's rows, a step loads two rows of gates instead of one for each of its rows."""
    pair = product(gates="in+out")
    tiles = -(-cost.ROWS // cost.PRODUCT[0]) * (cost.UNITS // cost.PRODUCT[1])
    assert 0 < pair.main.moved("in_table") <= tiles * 2 * cost.INNER * 4
    assert 0 < pair.main.moved("out_table") <= tiles * 2 * cost.PRODUCT[1] * 4
    assert pair.apart <= APART
    many = product(gates="in+out", height=8)
    assert many.main.moved("in_table") > 20 * pair.main.moved("in_table")
    assert many.apart > APART


def test_every_access_is_inside_its_tensor():
    counts = [product(gates="in+out"), convolution(gates="in"), cost.tail_backward((3, 5, 33)), cost.tail_forward()]
    assert not [stray for count in counts for launch in count.launches for stray in launch.strays]


def hand_made(*accesses: tuple[int, int, str, bool, list[int]]) -> Launch:
    """A launch with accesses of (program, step, argument, store, lines)."""
    launch = Launch("by hand", {})
    for program, step, name, store, lines in accesses:
        launch.accesses.append(Access((program, 0, 0), step, name, store, np.array(lines) * (cost.LINE // 2), 2))
    return launch


def test_the_cache_gives_up_the_line_not_used_for_longest():
    reads = [(0, step, "x", False, [line]) for step, line in enumerate([0, 1, 0, 2, 0, 1])]
    # Room for two lines, each in both halves: 0 stays, 1 makes room for 2 and comes back.
    assert traffic(hand_made(*reads), 4 * cost.LINE) == {"x": 4 * cost.LINE}
    assert traffic(hand_made(*reads), 6 * cost.LINE) == {"x": 3 * cost.LINE}
    writes = [(0, step, "y", True, [line]) for step, line in enumerate([0, 1, 0])]
    assert traffic(hand_made(*writes), 2 * cost.LINE) == {"y": 2 * cost.LINE}
    assert traffic(hand_made(*writes), cost.LINE) == {"y": 3 * cost.LINE}


def test_programs_run_in_step():
    # Recorded one after another, both read line 0 first: together, one of them finds it.
    one_by_one = [(program, step, "x", False, [line]) for program in (0, 1) for step, line in enumerate([0, 1, 2])]
    assert traffic(hand_made(*one_by_one), 2 * cost.LINE) == {"x": 3 * cost.LINE}
