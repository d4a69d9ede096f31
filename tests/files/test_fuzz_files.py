"""A share of the changed files of `python -m tests.fuzz_files`, and proof that it notices what goes wrong."""

from __future__ import annotations

import pytest

from tests import fuzz_files


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("CRITICAL", logger="memmod")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fuzz", "count"),
    [(fuzz_files.fuzz_memory, 400), (fuzz_files.fuzz_runs, 80), (fuzz_files.fuzz_checkpoints, 80)],
)
def test_changed_files_are_refused_or_load_the_same(fuzz, count, tmp_path):
    tally = fuzz(count, 1, tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
    ends = sum(tally.ends.values(), start=fuzz_files.Counter())
    assert ends.total() == count and ends["refused in words"] > 0.5 * count and ends["loads the same"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fuzz", "end"),
    [
        ("memmod.memory_file.check_tensors", fuzz_files.fuzz_memory, "loads something else: other memories"),
        ("memmod.memory_file.check_card", fuzz_files.fuzz_memory, "card fields: loads something else"),
        ("memmod.memory_file.check", fuzz_files.fuzz_memory, "raw error: KeyError"),
        ("memmod.memory_file.check_memories", fuzz_files.fuzz_memory, "odd tensors: raw error"),
        ("memmod.zoo.check_tensors", fuzz_files.fuzz_runs, "other weights of the base"),
        ("memmod.zoo.check_card", fuzz_files.fuzz_runs, "other class names of the base"),
        ("memmod.files.checkpoint.check_tensors", fuzz_files.fuzz_checkpoints, "another state"),
        ("memmod.files.checkpoint.check_card", fuzz_files.fuzz_checkpoints, "card fields: loads something else"),
    ],
)
def test_it_notices_a_check_that_is_left_out(fault, fuzz, end, tmp_path, monkeypatch):
    monkeypatch.setattr(fault, lambda *_, **__: None)
    # As many files as it takes.
    for count in (20, 60, 200):
        failures = fuzz(count, 1, tmp_path).failures
        if any(end in failure for failure in failures):
            return
    pytest.fail(f"{end!r} is not in {failures[:9]}")
