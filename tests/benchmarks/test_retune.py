"""`benchmarks.retune` with a made-up clock: the tables that it prints are Python, and hold the fastest choices."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from benchmarks import retune
from memmod.ops.backends import gpu_policy

pytest.importorskip("triton")

from benchmarks import tuning
from benchmarks.tuning import PathPoint, TilePoint
from memmod.kernels import configs
from memmod.kernels.configs import MatmulConfig

# Where fused begins or ends to be faster on the made-up clock.
TRUTH = {
    "linear: fused up to inputs": 1536,
    "linear: fused from outputs": 8 * 196 * 768,
    "conv: fused up to inputs x taps": 9 * 128,
    "conv: fused from units": 8,
    "conv: fused from pixels": 64 * 14**2,
}


def paths_clock(point: PathPoint) -> float:
    bound = TRUTH[point.threshold]
    fused = point.value <= bound if " up to " in point.threshold else point.value >= bound
    return 2e-3 if point.path == "unfused" else 1e-3 if fused else 3e-3


def printed_paths(text: str) -> dict[str, int]:
    found: dict = {}
    exec("TABLES = {\n" + text + "\n}", {}, found)
    return found["TABLES"][8]


def unwrapped(text: str) -> str:
    """The comments on one line."""
    return " ".join(line.strip().removeprefix("# ") for line in text.splitlines())


def printed_tiles(text: str) -> dict:
    return eval("{\n" + text + "\n}", {"MatmulConfig": MatmulConfig})


def test_paths_are_cut_where_the_clock_says() -> None:
    text = tuning.paths_table(paths_clock, tuning.path_points(), "a card", 8)
    assert printed_paths(text) == TRUTH
    assert list(TRUTH) == list(gpu_policy.TABLES[8])
    assert "Measured on a card" in text and "2.00 at 1536, 0.67 at 2048" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_threshold_is_measured_on_both_sides_of_its_present_value() -> None:
    for threshold, value in gpu_policy.TABLES[8].items():
        values = {point.value for point in tuning.path_points() if point.threshold == threshold}
        assert min(values) < value < max(values)


def test_one_noisy_width_does_not_move_the_cut() -> None:
    def noisy(point: PathPoint) -> float:
        return paths_clock(point) * (2.2 if point.path == "fused" and point.value == 768 else 1.0)

    text = tuning.paths_table(noisy, tuning.path_points(), "a card", 8)
    assert "0.91 at 768" in text
    assert printed_paths(text)["linear: fused up to inputs"] == 1536


@pytest.mark.parametrize(
    ("gains", "up_to", "threshold"),
    [
        ([(1, 0.5), (2, 0.5), (3, -0.1)], True, 2),
        ([(1, -0.5), (2, -0.5)], True, 0),
        ([(1, 0.5), (2, 0.5)], True, 2),
        ([(1, -0.5), (2, 0.1), (3, 0.5)], False, 2),
        ([(1, -0.5), (2, -0.1)], False, 3),
        ([(1, 0.5), (2, 0.1)], False, 1),
    ],
)
def test_cut(gains: list, up_to: bool, threshold: int) -> None:
    assert tuning.cut(gains, up_to) == threshold


def test_a_path_that_fails_is_not_chosen_and_named() -> None:
    def failing(point: PathPoint) -> float:
        if point.path == "fused" and point.value > 768:
            raise retune.WrongResult("off by 1")
        return paths_clock(point)

    points = [point for point in tuning.path_points() if point.threshold.startswith("linear")]
    text = tuning.paths_table(failing, points, "a card", 8)
    table = printed_paths(text)
    assert table["linear: fused up to inputs"] == 768
    assert "failed at 1024" in text and "# Left out: PathPoint(" in text and "WrongResult: off by 1" in text
    # What was not measured stays, and the table says so.
    assert {k: v for k, v in table.items() if k.startswith("conv")} == {
        k: v for k, v in gpu_policy.TABLES[8].items() if k.startswith("conv")
    }
    assert text.count("# Not measured.") == 3


FASTEST = {
    "many rows": MatmulConfig(128, 128, 32, 8, 8, 4),
    "some rows": MatmulConfig(64, 64, 64, 8, 4, 4),
    "few tiles": MatmulConfig(32, 64, 64, 8, 4, 4),
    "few rows": MatmulConfig(16, 64, 128, 8, 4, 3),
}


def tiles_clock(point: TilePoint) -> float:
    return 1e-3 if point.config == FASTEST[point.bucket] else 2e-3


def test_tiles_are_those_that_the_clock_prefers_under_the_rule_of_the_kernels() -> None:
    text = tuning.tiles_table(tiles_clock, 90, "a card", dtypes=("bf16",))
    (key, table), *others = printed_tiles(text).items()
    assert key == (90, 2) and not others
    assert max(map(len, text.splitlines())) <= 120
    assert table[0] == FASTEST["many rows"] and table[-1] == FASTEST["few rows"]
    areas = [config.block_m * config.block_n for config in table]
    assert areas == sorted(areas, reverse=True)
    points = tuning.tile_points("bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(configs.MATMUL, key, table)
        taken = {bucket: [p.chosen(90) for p in points if p.bucket == bucket] for bucket in FASTEST}
    assert set(taken["many rows"]) == {FASTEST["many rows"]}
    assert set(taken["few rows"]) == {FASTEST["few rows"]}
    comment = unwrapped(text)
    assert "many rows 1.00" in comment and "few rows 1.00" in comment


def test_tiles_of_both_types_and_no_table_longer_than_it_pays() -> None:
    best = {2: MatmulConfig(64, 64, 64, 8, 4, 4), 4: MatmulConfig(64, 64, 32, 8, 4, 3)}

    def clock(point: TilePoint) -> float:
        config = point.config
        if point.bucket == "few rows":
            return 1e-3 * config.block_m
        return 1e-3 if config == best[2 if point.dtype == "bf16" else 4] else 2e-3

    tables = printed_tiles(tuning.tiles_table(clock, 80, "a card"))
    assert set(tables) == {(80, 2), (80, 4)}
    for (_, itemsize), table in tables.items():
        assert len(table) == 2 and table[0] == best[itemsize] and table[1].block_m == 16


def test_tiles_that_cannot_run_are_not_chosen_and_named() -> None:
    def failing(point: TilePoint) -> float:
        if point.config.block_m == 128:
            raise RuntimeError("out of resource: shared memory\nmore")
        return tiles_clock(point)

    text = tuning.tiles_table(failing, 90, "a card", dtypes=("bf16",))
    assert all(config.block_m < 128 for config in printed_tiles(text)[90, 2])
    assert "RuntimeError: out of resource: shared memory" in unwrapped(text) and "more" not in text

    def dead(point: TilePoint) -> float:
        return math.inf

    with pytest.raises(RuntimeError, match="no table of these candidates"):
        tuning.tiles_table(dead, 90, "a card", dtypes=("bf16",))


POINTS = [
    PathPoint("linear", 20, 2 * tuning.TOKENS, 20, 24, dtype="bf16"),
    PathPoint("conv", 9 * 20, 2 * 49, 20, 24, 7, kernel=3, dtype="bf16"),
    TilePoint("bucket", 2 * tuning.TOKENS, 40, 24, True, "bf16"),
    TilePoint("bucket", 16, 40, 24, False, "fp32"),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: type(point).__name__)
def test_a_wrong_result_is_caught_before_it_is_timed(point) -> None:
    got = [t.clone() for t in point.prepare("cpu")()]
    retune.check(point, got, "cpu")
    for tensor in got:
        for wrong in (1.0, float("nan")):
            kept = tensor.clone()
            tensor[(-1,) * tensor.dim()] += wrong * max(1.0, tensor.abs().max().item())
            with pytest.raises(retune.WrongResult):
                retune.check(point, got, "cpu")
            tensor.copy_(kept)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.retune"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "benchmarks.retune cannot run here: it measures on an NVIDIA GPU, and torch sees none\n"


def test_an_unknown_table_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        retune.main(["tile"])
    assert "there is no table 'tile': use paths or tiles" in capsys.readouterr().err
