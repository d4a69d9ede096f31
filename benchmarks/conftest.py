"""Options of the benchmarks, and the table that ends a run."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch

from benchmarks import summary, table
from benchmarks.baselines import RIVALS, make_layer
from benchmarks.cases import DTYPES, Case, NetworkCase
from benchmarks.layers import LayerComparison
from benchmarks.measure import MOST_SECONDS, Comparison, Result, compare
from benchmarks.networks import make_network
from benchmarks.steps import NetworkComparison

RESULTS = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("memmod")
    group.addoption("--quick", action="store_true", help="a subset of the cases that ends within 3 minutes")
    group.addoption("--dtype", choices=DTYPES, default=None, help="dtype of all cases (default: their own)")
    group.addoption("--rounds", type=int, default=None, help="rounds per case (default 9, quick 5, fewer where slow)")
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
    left = [item for item in items if hasattr(item, "callspec") and not _is_chosen(item, config)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _is_chosen(item: pytest.Item, config: pytest.Config) -> bool:
    case = item.callspec.params["case"]
    if config.getoption("--quick") and not case.quick:
        return False
    if item.callspec.params["device"] not in case.devices:
        return False
    # Cases that differ in dtype alone would all become the same one.
    return config.getoption("--dtype") is None or case.dtype == "fp32"


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest, device: str):
    """Measure one case in one phase: every rival alternately with plain."""
    config = request.config
    rounds = config.getoption("--rounds") or (5 if config.getoption("--quick") else 9)
    most_seconds = math.inf if config.getoption("--rounds") else MOST_SECONDS
    chosen = {"plain", *config.getoption("--rivals").split(",")}

    def run(case: Case | NetworkCase, phase: str) -> None:
        comparison = _comparison(replace(case, dtype=config.getoption("--dtype") or case.dtype), phase, device)
        names = [name for name in comparison.rivals if name.split()[0] in chosen]
        results = compare(
            comparison,
            names,
            rounds,
            lambda one, count: benchmark.pedantic(one, rounds=count, warmup_rounds=0),
            most_seconds,
        )
        # Compiled code of one case must not count against the recompile limit of the next.
        torch.compiler.reset()
        benchmark.group = f"{results[0].group} {phase}"
        benchmark.extra_info.update(
            {
                r.rival: {
                    "ratio": r.ratio,
                    "extra_bytes": r.extra_bytes,
                    "saved_bytes": r.saved_bytes,
                    "of_floor": r.of_floor,
                }
                for r in results
                if not r.note
            }
        )
        config.stash[RESULTS].extend(results)

    return run


def _comparison(case: Case | NetworkCase, phase: str, device: str) -> Comparison:
    if isinstance(case, NetworkCase):
        return NetworkComparison(make_network(case, device, whole_batch=phase == "forward"), phase)
    return LayerComparison(make_layer(case, device), phase)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not results:
        return
    terminalreporter.section("memmod: ratios to plain")
    for line in table.machine(results):
        terminalreporter.write_line(line)
    for title, lines in (
        (None, table.render(results)),
        ("memmod: geometric means", summary.by_group(results)),
        ("memmod: networks", summary.networks(results)),
        ("memmod: layers that plain computes in less than 1 ms (on a GPU 50 µs)", summary.small_layers(results)),
    ):
        if title is not None and lines:
            terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
