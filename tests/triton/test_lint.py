"""The kernels' source keeps the lint's rules, and the lint sees each of them broken."""

from __future__ import annotations

import re
import textwrap

import pytest

from tests.triton.lint import RULES, functions, sources, violations


def kernel(body: str, decorator: str = "@triton.jit") -> dict[str, str]:
    """A file with one kernel of pointers x, y, a run-time N and two constants."""
    head = f"{decorator}\ndef kernel(x, y, N, BLOCK: tl.constexpr, PRECISION: tl.constexpr):\n"
    return {"file.py": head + textwrap.indent(textwrap.dedent(body), "    ")}


def rules(files: dict[str, str]) -> list[str]:
    return [violation.rule for violation in violations(files)]


def test_the_kernels_keep_every_rule():
    assert not (found := violations(sources())), "\n".join(map(str, found))


def test_the_lint_reads_every_kernel():
    compiled = functions(sources())
    decorated = sum(text.count("@triton.jit") for text in sources().values())
    assert len(compiled) == decorated
    assert {"modulated_matmul_kernel", "modulated_conv2d_kernel", "modulate_rows_kernel"} < compiled.keys()


OFFSET = "o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n"
DOT = "z = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)\n"
BROKEN = {
    "mask": ["tl.load(x + 1, other=0.0)", "tl.store(y + 1, 0.0)", "tl.store(y + 1, 0.0, mask=None)"],
    "other": ["tl.load(x + 1, mask=N > 1)", "tl.load(x + 1, mask=N > 1, other=None)"],
    "accumulator": [
        DOT + "z += tl.dot(x, y, input_precision=PRECISION)",
        DOT.replace("32", "16") + "z = tl.dot(x, y, z, input_precision=PRECISION)",
    ],
    "precision": [
        DOT + "z = tl.dot(x, y, z)",
        DOT + "z = tl.dot(x, y, z, input_precision='ieee')",
        DOT + "z = tl.dot(x, y, z, allow_tf32=False)",
    ],
    "atomic": ["tl.atomic_add(y + 1, 1.0, mask=N > 1)", "tl.atomic_cas(y, 0, 1)"],
    "bf16": ["z = (N + 1).to(tl.bfloat16)"],
    "float64": ["z = tl.zeros((BLOCK,), dtype=tl.float64)", "z = x.to(y.float64)"],
    "offset": [
        OFFSET + "tl.load(x + o * N, mask=o < N, other=0.0)",
        OFFSET + "tl.store(x + N * o[:, None], 0.0, mask=o < N)",
        OFFSET + "p = x + o * N\nfor i in range(0, N, BLOCK):\n    tl.load(p, mask=o < N, other=0.0)",
        # The sum is 64 bits wide, the product in it is not.
        OFFSET + "tl.load(x + o * N + o.to(tl.int64), mask=o < N, other=0.0)",
        OFFSET + "q = o // N\ntl.load(x + (o - q * BLOCK) * N, mask=o < N, other=0.0)",
        "for i in range(N):\n    tl.load(x + i * N, mask=i < N, other=0.0)",
        OFFSET + "if x is not None:\n    w = o.to(tl.int64)\nelse:\n    w = o\n"
        "tl.load(x + w * N, mask=o < N, other=0.0)",
    ],
    "gates": [
        DOT + "z = tl.dot(x, y, z, input_precision=PRECISION) * tl.sigmoid(z)",
        DOT + "z = tl.exp(tl.dot(x, y, z, input_precision=PRECISION))",
    ],
}


@pytest.mark.parametrize(("rule", "body"), [(rule, body) for rule, bodies in BROKEN.items() for body in bodies])
def test_a_broken_rule_is_seen(rule, body):
    assert rules(kernel(body)) == [rule]


def test_run_time_tuning_is_seen():
    for word in ("autotune(configs=[], key=[])", "heuristics({})"):
        assert rules(kernel("z = 1", f"@triton.{word}\n@triton.jit")) == ["autotune"]


def test_every_rule_has_a_breach():
    assert BROKEN.keys() | {"autotune"} == RULES.keys()


@pytest.mark.parametrize(
    "body",
    [
        OFFSET + "tl.load(x + o.to(tl.int64) * N, mask=o < N, other=0.0)",
        OFFSET + "tl.load(x + o[:, None] * tl.cast(N, tl.int64), mask=o < N, other=0.0)",
        OFFSET + "w = o.to(tl.int64)\nfor i in range(N):\n    tl.load(x + (w + i) * N, mask=o < N, other=0.0)",
        # A remainder is less than what it was divided by.
        OFFSET + "q = o // N\ntl.load(x + (o - q * N) * N, mask=o < N, other=0.0)",
        OFFSET + "q = o // (BLOCK * N)\ntl.load(x + (o - q * BLOCK * N), mask=o < N, other=0.0)",
        OFFSET + "m = o < N * N\ntl.load(x + o, mask=m, other=0.0)",
        OFFSET + "z = tl.sigmoid(tl.load(x + o, mask=o < N, other=0.0))",
        DOT + "z = tl.dot(x, y, z, input_precision=PRECISION)\nz = tl.dot(x, y, acc=z, input_precision=PRECISION)",
    ],
)
def test_what_keeps_the_rules_passes(body):
    assert rules(kernel(body)) == []


def test_a_gate_in_a_called_function_is_seen():
    helper = "@triton.jit\ndef helper(x):\n    return tl.sigmoid(x)\n\n"
    body = kernel(DOT + "z = tl.dot(helper(x), y, z, input_precision=PRECISION)")["file.py"]
    assert [(v.rule, v.line) for v in violations({"file.py": helper + body})] == [("gates", 3)]


def test_a_product_in_a_called_function_is_seen():
    helper = "@triton.jit\ndef helper(x, o, N):\n    return tl.load(x + o * N, mask=o < N, other=0.0)\n\n"
    for offset, found in (("tl.arange(0, BLOCK)", ["offset"]), ("tl.arange(0, BLOCK).to(tl.int64)", [])):
        assert rules({"file.py": helper + kernel(f"helper(x, {offset}, N)")["file.py"]}) == found


def test_a_violation_names_its_line():
    files = sources()
    line = next(i for i, text in enumerate(files["linear.py"].splitlines(), 1) if "tl.store(y" in text)
    store = "tl.store(y + o_y, b_y.to(y.dtype.element_ty)"
    files["linear.py"] = files["linear.py"].replace(f"{store}, mask=m_y)", f"{store})")
    (violation,) = violations(files)
    assert re.fullmatch(rf"kernels/memmod_kernels/linear\.py:{line}: .* mask= .*", str(violation))


# Without their cast no breach: a program's number times a constant, and a class, which is loaded as int64.
HARMLESS = ("* BLOCK + tl.arange(0, BLOCK)", "* BLOCK_K + tl.arange(0, BLOCK_K)", "o_gate = b_class")


@pytest.mark.slow
def test_every_cast_before_a_product_is_needed():
    files, missed = sources(), []
    for file, text in files.items():
        for match in re.finditer(r"\.to\(tl\.int64\)", text):
            if rules({**files, file: text[: match.start()] + text[match.end() :]}) == []:
                line = text.count("\n", 0, match.start())
                missed.append(text.splitlines()[line])
    assert all(any(words in line for words in HARMLESS) for line in missed), missed
