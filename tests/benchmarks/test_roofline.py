"""The floor of a layer on a GPU, the clock that times it and the rivals there, tried on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import baselines as rivals
from benchmarks import clock, roofline, table
from benchmarks.baselines import make_layer
from benchmarks.cases import CONV, LINEAR, NETWORKS, Case
from benchmarks.layers import LayerComparison, LayerRunner
from benchmarks.measure import Result, compare
from benchmarks.roofline import Card, Roof, Work
from memmod.ops import dispatch
from memmod.ops.backends import gpu_policy

LAYER = Case("linear", "l", 4, 16, 32, tokens=5, dtype="bf16")
CONVOLUTION = Case("conv", "c", 4, 16, 32, kernel=3, side=7, stride=2)
DEPTHWISE = Case("conv", "d", 4, 16, 16, kernel=3, side=7, groups=16)
ROOF = Roof(1e12, 1e9, "bf16")


WITH_ONE_BY_ONE = [LAYER, CONVOLUTION, replace(CONVOLUTION, kernel=1, stride=1), DEPTHWISE, CONV[0]]


@pytest.mark.parametrize("case", WITH_ONE_BY_ONE, ids=str)
def test_bytes_are_those_of_the_tensors(case: Case) -> None:
    layer = make_layer(case, "cpu")

    def size(*tensors: torch.Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    forward = size(layer.x, layer.weight, layer.bias, layer.dy)
    gates = size(layer.memory, layer.index)
    assert roofline.work(case, "forward", gated=False).bytes == forward
    assert roofline.work(case, "forward").bytes == forward + gates
    backward = size(layer.dy, layer.weight, layer.x)
    assert roofline.work(case, "forward+backward", gated=False).bytes == forward + backward
    # The backward reads y, memory and index, and writes the memory's gradient.
    more = gates + size(layer.dy) + gates + size(layer.memory)
    assert roofline.work(case, "forward+backward").bytes == forward + backward + more


@pytest.mark.parametrize("case", [LAYER, CONVOLUTION, replace(CONVOLUTION, kernel=1), DEPTHWISE], ids=str)
def test_operations_are_those_that_torch_counts(case: Case) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for phase in ("forward", "forward+backward"):
        runner = LayerRunner("plain", make_layer(case, "cpu"), phase)
        with FlopCounterMode(display=False) as counter:
            runner.once()
        assert roofline.work(case, phase).operations == counter.get_total_flops()


def test_the_floor_is_the_larger_of_two_times() -> None:
    assert roofline.floor_seconds(Work(3 * 10**12, 10**9), ROOF) == 3.0
    assert roofline.floor_seconds(Work(10**12, 2 * 10**9), ROOF) == 2.0


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-40GB", 1.555),
        ("NVIDIA A100-PCIE-40GB", 1.555),
        ("NVIDIA A100-SXM4-80GB", 2.039),
        ("NVIDIA A100 80GB PCIe", 1.935),
        ("NVIDIA H100 80GB HBM3", 3.35),
        ("NVIDIA H100 PCIe", 2.0),
        ("NVIDIA H100 NVL", 3.9),
        ("NVIDIA H200", 4.8),
        ("NVIDIA B200", 8.0),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L4", None),
    ],
)
def test_cards_by_name(name: str, bandwidth: float | None) -> None:
    found = roofline.card(name)
    assert (found and found.bandwidth) == bandwidth


def test_peaks_by_dtype() -> None:
    card = Card(900, 300, 60, 3.0)
    assert roofline.operations_per_second(card, "bf16", False) == 900e12
    assert roofline.operations_per_second(card, "fp16", True) == 900e12
    assert roofline.operations_per_second(card, "fp32", True) == 300e12
    assert roofline.operations_per_second(card, "fp32", False) == 100e12
    assert roofline.operations_per_second(card._replace(fp32=150), "fp32", False) == 150e12


def test_unknown_cards_are_measured_and_known_ones_are_not() -> None:
    asked = []

    def measure(dtype: str) -> Roof:
        asked.append(dtype)
        return Roof(1.0, 2.0)

    known = roofline.roof("NVIDIA H200", "fp32", True, measure)
    assert (known, asked) == (Roof(495e12, 4.8e12, "fp32 in TF32"), [])
    unknown = roofline.roof("NVIDIA L4", "bf16", True, measure)
    assert (unknown, asked) == (Roof(1.0, 2.0, "bf16", measured=True), ["bf16"])
    assert "measured" in roofline.describe(unknown) and "measured" not in roofline.describe(known)
    assert roofline.of_device("cpu", "fp32", False) is None


def test_a_measured_roof_counts_both_ways_of_a_copy_and_two_operations_a_product() -> None:
    calls = []

    def seconds(run) -> float:
        calls.append(run())
        return 0.5

    scale = 1 / 256
    measured = roofline.measured_roof("fp32", "cpu", seconds, scale)
    copied, product = calls
    assert (copied.dtype, product.shape) == (torch.uint8, (32, 32))
    assert measured[:2] == (2 * 32**3 / 0.5, 2 * copied.numel() / 0.5)


def test_columns() -> None:
    # 2 s at the peak of the operations, 1 s at that of the bytes.
    work = Work(2 * 10**12, 10**9)
    assert roofline.columns(work, ROOF, 4.0) == ("0.5", "0", "50%")
    assert roofline.columns(work, ROOF._replace(bandwidth=0.125e9), 10.0) == ("0.2", "0", "80%")
    assert roofline.columns(Work(2 * 10**12, 8 * 10**9), ROOF, 4.0) == ("0.5", "2", "200%")
    assert roofline.columns(None, ROOF, 1.0) == roofline.columns(work, None, 1.0) == ("", "", "")


class FakeDevice:
    """Writes down what is asked of it; its time is the number of the entries so far."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def event(self):
        device = self

        class Event:
            def record(self) -> None:
                device.log.append("event")
                self.at = len(device.log)

            def elapsed_time(self, other) -> float:
                assert device.log[-1] == "synchronise"
                return float(other.at - self.at)

        return Event()

    def synchronise(self) -> None:
        self.log.append("synchronise")

    def flush(self) -> None:
        self.log.append("flush")


@pytest.mark.parametrize("cold", [False, True])
def test_the_clock_flushes_outside_of_the_events_and_waits_before_it_reads_them(cold: bool) -> None:
    device = FakeDevice()
    work = iter([3, 1, 2])

    def once() -> None:
        device.log.extend(["call"] * next(work))

    # An entry for each call, and one for the end itself.
    assert clock.seconds(once, 3, device, cold) == pytest.approx(3e-3)
    one = ["flush"] * cold + ["event"]
    expected = [*one, *["call"] * 3, "event", *one, "call", "event", *one, *["call"] * 2, "event"]
    assert device.log == ["synchronise", *expected, "synchronise"]


def test_the_host_does_not_wait_inside_its_own_time() -> None:
    device = FakeDevice()
    assert clock.host_seconds(lambda: device.log.append("call"), 2, device) > 0
    assert device.log == ["synchronise", "call", "call", "synchronise"]


def test_rivals_on_a_gpu_name_memmod_by_backend_and_path() -> None:
    memmods = ("memmod", "memmod triton", "memmod triton unfused", "memmod cuda", "memmod cuda unfused")
    assert rivals.rivals_on("cuda") == ("plain", "eager", "compile", *memmods)
    assert rivals.rivals_on("cpu") == tuple(rivals.RIVALS)


def test_a_way_is_taken_in_forward_and_backward_and_not_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "availability", lambda: dict.fromkeys(dispatch.BACKENDS))
    dispatch.set_backend("reference")
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, memory):
            seen.append((dispatch.get_backend(), gpu_policy._forced))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append((dispatch.get_backend(), gpu_policy._forced))
            return gradient, torch.zeros(10, 16)

    monkeypatch.setitem(rivals.RIVALS, "memmod", lambda layer: Spy.apply)
    layer = make_layer(Case("linear", "square", 4, 16, 16), "cpu")
    try:
        for name in ("memmod triton", "memmod cuda", "memmod triton unfused", "memmod"):
            LayerRunner(name, layer, "forward+backward").once()
        expected = [("triton", "fused"), ("cuda", "fused"), ("triton", "unfused"), ("reference", None)]
        assert seen[::2] == seen[1::2] == expected
        assert dispatch.get_backend() == "reference" and gpu_policy._forced is None
    finally:
        dispatch.set_backend(None)


def test_a_way_that_cannot_be_taken_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "get_backend", lambda: None)
    monkeypatch.setattr(dispatch, "availability", lambda: {"triton": "no GPU", "cuda": None})
    assert rivals.left_out("memmod triton", LAYER) == rivals.left_out("memmod triton unfused", LAYER) == "no GPU"
    assert rivals.left_out("memmod cuda", LAYER) is None
    monkeypatch.setattr(dispatch, "get_backend", lambda: "cuda")
    assert rivals.left_out("memmod triton unfused", LAYER) == "backend cuda is forced"
    assert rivals.left_out("memmod cuda", LAYER) is None
    assert rivals.left_out("memmod", LAYER) is None


def test_own_convolutions_run_in_nhwc_alone() -> None:
    comparison = LayerComparison(make_layer(CONVOLUTION, "cpu"), "forward")
    assert comparison.layouts_of("memmod triton") == comparison.layouts_of("memmod cuda") == ("NHWC",)
    assert set(comparison.layouts_of("memmod cuda unfused")) == set(comparison.layouts_of("plain")) == {"NCHW", "NHWC"}
    grouped = LayerComparison(make_layer(DEPTHWISE, "cpu"), "forward")
    assert set(grouped.layouts_of("memmod cuda")) == {"NCHW", "NHWC"}
    assert LayerComparison(make_layer(LAYER, "cpu"), "forward").layouts_of("memmod triton") == ("",)


def test_the_table_of_a_gpu_shows_what_is_reached() -> None:
    work = Work(2 * 10**12, 10**9)
    common = {"ratios": [1.0], "seconds": [4.0], "device": "cuda", "host_seconds": 7e-6, "work": work, "roof": ROOF}
    result = Result("a cuda", "g cuda", "forward", "memmod", **common)
    assert result.of_floor == 0.5
    header, line = table.render([result])
    for name, cell in (("host µs", "7"), ("TF/s", "0.5"), ("GB/s", "0"), ("of floor", "50%")):
        assert line[header.index(name) :].split()[0] == cell
    assert table.machine([result, result])[1:] == [roofline.describe(ROOF)]
    on_cpu = replace(result, device="cpu", host_seconds=None, roof=None)
    assert on_cpu.of_floor is None
    assert "TF/s" not in table.render([on_cpu])[0] and len(table.machine([on_cpu])) == 1
    left_out = Result("b cuda", "g", "forward", "memmod cuda", device="cuda", note="no GPU")
    header, _, line = table.render([result, left_out])
    assert line[header.index("note") :] == "left out: no GPU"


def test_a_comparison_tells_its_device_and_work() -> None:
    results = compare(
        LayerComparison(make_layer(LAYER, "cpu"), "forward"), ("plain", "memmod"), 1, lambda one, _: one()
    )
    plain, memmod = results
    assert (plain.case, plain.device, plain.roof, plain.host_seconds) == (str(LAYER), "cpu", None, None)
    assert plain.work == roofline.work(LAYER, "forward", gated=False)
    assert memmod.work == roofline.work(LAYER, "forward")


def test_gpu_cases_come_in_every_dtype() -> None:
    for cases in (LINEAR, CONV):
        large = [case for case in cases if case.devices == ("cuda",)]
        by_dtype = {dtype: {case.name for case in large if case.dtype == dtype} for dtype in ("fp32", "bf16", "fp16")}
        assert by_dtype["fp32"] == by_dtype["bf16"] == by_dtype["fp16"] != set()
        assert any(case.quick for case in large)
    assert any(case.devices == ("cuda",) for case in NETWORKS)
    assert not any(case.group.endswith("large") for case in LINEAR + CONV if "cpu" in case.devices)
