"""What processes do together: shares, errors on all of them, statistics over all rows, rounds that are refused."""

from __future__ import annotations

import pytest

from memmod.distributed import processes
from memmod.distributed.launched import is_launched, launched_count, launched_rank
from memmod.distributed.sharding import shard
from memmod.errors import RunError
from tests.distributed.launch import launch
from tests.unlearning.problem import modulated


@pytest.mark.slow
def test_two_processes() -> None:
    done = launch(2, "tests.distributed.together")
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # Process 0 warns for both.
    assert done.stderr.count("lagging at step 2") == 1


def test_one_process_sends_nothing() -> None:
    assert (processes.count(), processes.rank()) == (1, 0)
    assert processes.agreed(lambda: 3) == processes.by_first(lambda: 3) == 3
    with pytest.raises(KeyError):
        processes.agreed(lambda: {}["x"])
    assert processes.by_shares(4, lambda rows: rows).tolist() == [0, 1, 2, 3]


def test_splitting_needs_a_group() -> None:
    with pytest.raises(RunError, match="in none: start it with torchrun"):
        shard(modulated())


def test_what_a_launcher_says() -> None:
    said = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert is_launched(said) and (launched_rank(said), launched_count(said)) == (5, 8)
    # A variable of that name alone is somebody else's.
    assert not is_launched({"RANK": "5"}) and (launched_rank({"RANK": "5"}), launched_count({})) == (0, 1)
