"""Every kernel in every configuration: compiled for three GPU generations without a GPU, and its machine code read."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from memmod.kernels.configs import every_config  # noqa: E402
from tests.triton import report  # noqa: E402
from tests.triton.variants import ARCHITECTURES, FIRST, FORMS, GROUPS, TYPES, facts, numbers, wrong  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"),
]
KERNELS = {
    "matmul": ("modulated_matmul", "modulated_conv2d"),
    "rows": ("modulate_rows",),
    "lines": ("modulate_lines",),
    "class_sums": ("class_sums",),
}


def current() -> bool:
    """Whether the report is by the compilers that are here."""
    return f"Compiled by {report.compilers()}, " in report.REPORT.read_text()


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(g, id=str(g), marks=() if (g.arch, g.kind) == (FIRST, "bf16") else pytest.mark.exhaustive)
        for g in GROUPS
    ],
)
def test_machine_code(group):
    compilations = group.compilations()
    found = facts(compilations, group.arch)
    problems = wrong(compilations, found, group.arch)
    assert compilations and not problems, "\n".join(problems)
    # Other compilers give other numbers: the report is compared where they are its own.
    if current():
        missing = set(report.lines(group, compilations, found)) - set(report.committed()[group.arch])
        assert not missing, "docs/gpu-report.md is out of date, run `make gpu-report`:\n" + "\n".join(missing)


def test_the_report_names_its_compilers_and_every_group_once():
    """Whatever the versions: only with the same ones are numbers compared, above."""
    assert re.search(
        r"^Compiled by triton \S+, ptxas \S+, ptxas-blackwell \S+, torch \S+$", report.REPORT.read_text(), re.M
    )
    tables = report.committed()
    assert list(tables) == list(ARCHITECTURES)
    for arch, lines in tables.items():
        named = list(dict.fromkeys(tuple(line.split(" | ")[:3]) for line in lines))
        wanted = [(f"| {g.form.kernel}", g.form.name, g.kind) for g in GROUPS if g.arch == arch]
        assert named == wanted
        products = [g for g in GROUPS if g.arch == arch and "modulated" in g.form.kernel]
        assert len(lines) == len(wanted) - len(products) + sum(len(g.compilations()) for g in products)


# The blocks of class_sums do not depend on the type: all are compiled with 2 bytes.
@pytest.mark.parametrize("itemsize, kernels", [(b, k) for b in (2, 4) for k in KERNELS if (b, k) != (4, "class_sums")])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_groups_have_every_configuration(arch, itemsize, kernels):
    compiled = set()
    for group in GROUPS:
        if group.arch == arch and TYPES[group.kind].itemsize == itemsize and group.form.kernel in KERNELS[kernels]:
            compiled |= {frozenset(numbers(one.launch).items()) for one in group.compilations()}
    wanted = {frozenset(config.launch().items()) for config in every_config(arch, itemsize)[kernels]}
    if kernels == "lines":
        # Lines of one number are rows, which have a kernel of their own.
        wanted = {config for config in wanted if dict(config)["BLOCK_I"] > 1}
    sizes = {name for config in wanted for name, _ in config}
    assert {frozenset(item for item in config if item[0] in sizes) for config in compiled} == wanted


def test_low_samples_take_the_other_way_to_their_gates():
    for group in GROUPS:
        if "modulated" in group.form.kernel:
            pairs = {one.launch.constants()["PAIR"] for one in group.compilations()}
            assert pairs == {"low samples" not in group.form.name}, str(group)
    assert len(FORMS) == len({(form.kernel, form.name) for form in FORMS})
