"""Options of the benchmarks, and the table that ends a run."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks import table
from benchmarks.cases import Case
from benchmarks.measure import Result, compare
from benchmarks.rivals import RIVALS, make_layer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memmod")
    group.addoption("--quick", action="store_true", help="a subset of the cases that ends within 3 minutes")
    group.addoption("--dtype", choices=DTYPES, default="fp32", help="dtype of the layers (default fp32)")
    group.addoption("--rounds", type=int, default=None, help="rounds per case (default 9, quick 5)")
    group.addoption("--rivals", default=",".join(RIVALS), help="comma-separated rivals; plain always runs")
    group.addoption("--devices", default=None, help="comma-separated devices (default: cpu, and cuda where present)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        named = metafunc.config.getoption("--devices")
        devices = named.split(",") if named else ["cpu"] + ["cuda"] * torch.cuda.is_available()
        metafunc.parametrize("device", devices)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    slow = [item for item in items if hasattr(item, "callspec") and not item.callspec.params["case"].quick]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest, device: str):
    """Measure one case in one phase: every rival alternately with plain."""
    config = request.config
    rounds = config.getoption("--rounds") or (5 if config.getoption("--quick") else 9)
    rivals = tuple(name for name in RIVALS if name == "plain" or name in config.getoption("--rivals").split(","))

    def run(case: Case, phase: str) -> None:
        layer = make_layer(case, DTYPES[config.getoption("--dtype")], device)
        results = compare(
            layer, phase, rivals, rounds, lambda one, count: benchmark.pedantic(one, rounds=count, warmup_rounds=0)
        )
        # Compiled code of one case must not count against the recompile limit of the next.
        torch.compiler.reset()
        benchmark.group = f"{case.group} {phase}"
        benchmark.extra_info.update(
            {r.rival: {"ratio": r.ratio, "extra_bytes": r.extra_bytes} for r in results if not r.note}
        )
        config.stash[RESULTS].extend(results)

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    write = terminalreporter.write_line
    terminalreporter.section("memmod: ratios to the plain layer")
    write(table.machine())
    for line in table.render(results):
        write(line)
    terminalreporter.section("memmod: geometric means")
    for line in table.summarise(results):
        write(line)
