"""The compiled CPU kernels: their error bound, their determinism, what they decline, and when they refuse to load."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from memmod.errors import BackendError
from memmod.ops import dispatch
from memmod.ops.backends.cpu import extension, register
from memmod.ops.backends.cuda import register as cuda_kernels
from memmod.ops.calls import OutputGradCall
from tests.ops.bounds import assert_within_bound
from tests.ops.problems import Case, Problem, lay_out

KERNELS = ("modulate_output", "modulate_output_backward")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAST = (("dim", -1),)
output = partial(Case, "modulate_output")

built = pytest.mark.skipif(dispatch.availability()["cpu"] is not None, reason=f"cpu: {dispatch.availability()['cpu']}")


def _results(problem: Problem) -> tuple[torch.Tensor, ...]:
    """(y, saved, dx, dmemory) straight from the kernels."""
    p = problem
    forward, backward = (dispatch.kernel(name, "cpu").run for name in KERNELS)
    y, saved = forward(p.call)
    kept = saved if p.keep_gated else y
    call = OutputGradCall(p.dy, kept, p.memory, p.index, p.dim, p.gate, [True, True])
    return y, saved, *backward(call)


def _equal(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@built
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        output((8, 33, 9, 7), "sets", keep_gated=True),
        output((8, 33, 9, 7), "skewed", layout="channels_last", dy_layout="channels_last"),
        output((8, 65, 63), "mixed", options=LAST),
        output((8, 63), "whole batch"),
        output((3, 5, 130, 129), "distinct"),
        output((2, 1500, 17), "one", options=LAST),
        output((12, 31, 4), "repeated", rows_per_sample=3),
    ],
    ids=str,
)
def test_within_bound_of_the_reference_in_fp64(backend, case, dtype, poisoned):
    case = Case(**{**case.__dict__, "dtype": dtype})
    assert_within_bound([case.draw(seed) for seed in range(3)])


# Sizes that at least two threads share.
LARGE = [
    output((16, 33, 65, 31), "sets"),
    output((16, 33, 65, 31), "sets", keep_gated=True),
    output((16, 33, 65, 31), "sets", layout="channels_last", dy_layout="channels_last"),
    output((16, 197, 129), "skewed", options=LAST),
    output((4000, 33), "skewed"),
    output((2000, 129), "whole batch set"),
]


@built
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(case, dtype, threads):
    problem = Case(**{**case.__dict__, "dtype": dtype}).draw()
    threads(1)
    one = _results(problem)
    threads(2)
    assert _equal(one, _results(problem))


@built
@pytest.mark.parametrize("case", LARGE[:4], ids=str)
def test_a_sample_does_not_depend_on_the_others(case):
    problem = case.draw()
    keep = problem.x.shape[0] // 2
    other = case.draw(seed=1)

    def mix(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        mixed = theirs.clone()
        mixed[:keep] = mine[:keep]
        return mixed

    changed = problem.replace(
        x=mix(problem.x, other.x), dy=mix(problem.dy, other.dy), index=mix(problem.index, other.index)
    )
    before, after = _results(problem), _results(changed)
    assert torch.equal(before[0][:keep], after[0][:keep])
    assert torch.equal(before[2][:keep], after[2][:keep])
    assert not torch.equal(before[0][keep:], after[0][keep:])


@built
def test_a_class_depends_on_its_own_samples_only():
    problem = output((16, 33, 9, 7), "mixed", classes=5).draw()
    of_class = problem.index == 2
    assert of_class.any() and not of_class.all()
    other = problem.x.where(of_class.view(-1, 1, 1, 1), torch.randn_like(problem.x))
    dmemory, changed = _results(problem)[3], _results(problem.replace(x=other))[3]
    assert torch.equal(dmemory[2], changed[2])
    assert not torch.equal(dmemory, changed)


@built
def test_a_class_that_no_sample_selects_gets_exactly_zero():
    problem = output((4, 33, 5), "nothing").draw()
    assert not _results(problem)[3].any()


@built
def test_saved_is_a_copy_of_y():
    problem = output((4, 33, 5), keep_gated=True).draw()
    y, saved = _results(problem)[:2]
    assert torch.equal(y, saved) and y.data_ptr() != saved.data_ptr()


@built
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_backward_computes_what_is_asked_for(needs):
    p = output((4, 33, 5), "sets").draw()
    _, _, dx, dmemory = _results(p)
    y = _results(p)[0]
    backward = dispatch.kernel("modulate_output_backward", "cpu").run
    saved = y if needs[1] else None
    got = backward(OutputGradCall(p.dy, saved, p.memory, p.index, p.dim, p.gate, list(needs)))
    for asked, full, part in zip(needs, (dx, dmemory), got, strict=True):
        assert torch.equal(part, full) if asked else part.shape == (0,)


@built
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.randn(6, 31, 4, dtype=torch.float64)}, "torch.float64"),
        ({"memory": torch.randn(7, 31, dtype=torch.float64)}, "torch.float64"),
        ({"x": lay_out(torch.randn(6, 31, 4), "transposed")}, "strides"),
        ({"x": lay_out(torch.randn(6, 31, 4), "expanded")}, "strides"),
        ({"x": torch.randn(6, 31, 4, requires_grad=True)}, "not recorded by autograd"),
        ({"dim": 0}, "behind the rows"),
    ],
    ids=lambda v: None if isinstance(v, str) else next(iter(v)),
)
def test_declines_with_a_reason(change, reason):
    problem = output((6, 31, 4)).draw().replace(**change)
    supports = dispatch.kernel("modulate_output", "cpu").supports
    assert reason in supports(problem.call)


@built
def test_backward_declines_a_gradient_in_another_layout():
    p = output((6, 31, 4, 5)).draw()
    supports = dispatch.kernel("modulate_output_backward", "cpu").supports
    call = OutputGradCall(p.dy, p.x, p.memory, p.index, p.dim, "sigmoid", [True, True])
    assert supports(call) is None
    assert "layout" in supports(call._replace(saved=lay_out(p.x, "channels_last")))
    assert "torch.bfloat16" in supports(call._replace(saved=p.x.bfloat16()))


@built
def test_a_forced_kernel_that_declines_is_an_error():
    problem = output((6, 31, 4)).draw().map(torch.Tensor.double)
    dispatch.set_backend("cpu")
    try:
        with pytest.raises(BackendError, match="torch.float64"):
            torch.ops.memmod.modulate_output(*problem.args)
    finally:
        dispatch.set_backend(None)


@built
@pytest.mark.parametrize("wrong", [7, -2])
def test_the_kernel_itself_checks_the_classes(wrong):
    problem = output((2, 31, 4)).draw().replace(index=torch.tensor([0, wrong]))
    with pytest.raises(IndexError, match=f"class {wrong} was selected, the memory has 7 classes"):
        _results(problem)


def _package(folder, **facts):
    (folder / "_cpu.so").write_bytes(b"not a library")
    (folder / "_build_info.json").write_text(json.dumps({"extension": "_cpu.so", "torch": torch.__version__, **facts}))
    return folder


def test_refuses_an_extension_of_another_torch(tmp_path):
    reason = extension.unusable(_package(tmp_path, torch="1.2.3"))
    assert "built for torch 1.2.3" in reason and torch.__version__ in reason and "pip install" in reason


def test_refuses_what_was_not_built_or_lost_its_library(tmp_path):
    assert "was not built" in extension.unusable(tmp_path)
    package = _package(tmp_path)
    assert extension.unusable(package) is None
    (package / "_cpu.so").unlink()
    assert "is missing" in extension.unusable(package)
    (package / "_build_info.json").write_text("{")
    assert "was not built" in extension.unusable(package)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"extension": 5}',
        '{"extension": ["_cpu.so"]}',
        '{"extension": "../_cpu.so"}',
        '{"extension": "_cpu.so\\u0000"}',
        '{"torch": 2.14}',
        '{"reason": {}}',
        '{"cuda": "no"}',
        '{"cuda": {"toolkit": "13.0"}}',
        '{"cuda": {"extension": "_cuda.so"}}',
        '{"cuda": {"extension": "_cuda.so", "architectures": ["nine"]}}',
        '{"cuda": {"extension": "_cuda.so", "architectures": "9.0"}}',
        "\udcff",
    ],
)
def test_damaged_build_info_counts_as_none(tmp_path, text):
    (tmp_path / "_build_info.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert extension.build_info(tmp_path) is None
    assert "was not built" in extension.unusable(tmp_path) and "was not built" in cuda_kernels.unusable(tmp_path)


def test_says_why_it_is_pure_python(tmp_path):
    package = _package(tmp_path, extension=None, reason="it was built with MEMMOD_EXT=0")
    assert "MEMMOD_EXT=0" in extension.unusable(package)


@pytest.mark.parametrize(("torch_version", "words"), [("1.2.3", "built for torch 1.2.3"), (None, "cannot be loaded")])
def test_register_records_the_reason(tmp_path, monkeypatch, torch_version, words):
    dispatch.availability()
    monkeypatch.setattr(dispatch, "_unavailable", dict(dispatch._unavailable))
    package = _package(tmp_path, torch=torch_version or torch.__version__)
    monkeypatch.setattr(extension, "PACKAGE", package)
    register.register()
    assert words in dispatch.availability()["cpu"]
    monkeypatch.setattr(dispatch, "_kernels", {"modulate_output": {}})
    with pytest.raises(BackendError, match=words):
        dispatch.set_backend("cpu")
