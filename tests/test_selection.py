from __future__ import annotations

import numpy as np
import pytest
import torch

from memmod.errors import SelectionError
from memmod.selection import to_index

NAMES = ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("forget", "expected"),
    [
        (-1, None),
        (set(), None),
        (2, [2]),
        ("dog", [1]),
        (np.int64(1), [1]),
        ({"fox", 0, 2}, [[0, 2]]),
        (torch.tensor(1), [1]),
        (torch.tensor([0, -1]), [0, -1]),
        (torch.tensor([[0, -1], [1, 2]]), [[0, -1], [1, 2]]),
        ([0, "fox", -1], [0, 2, -1]),
        ([{0, 1}, 2, set()], [[0, 1], [2, -1], [-1, -1]]),
        ([], []),
    ],
)
def test_forms(forget, expected) -> None:
    index = to_index(forget, 3, NAMES)
    if expected is None:
        assert index is None
    else:
        assert index.dtype == torch.int64 and index.is_contiguous() and index.tolist() == expected


@pytest.mark.parametrize(
    ("forget", "text"),
    [
        (3, "class 3 is out of range: this model has 3 classes"),
        (-2, "class -2 is out of range"),
        ("cow", "unknown class name 'cow'; this model knows 'cat', 'dog', 'fox'"),
        (True, "is not a selection"),
        (1.0, "is not a selection"),
        ([[0, 1]], "one entry per sample"),
        (torch.tensor([0], dtype=torch.int32), "pass forget.to(torch.int64)"),
        (torch.tensor([0.0]), "int64"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "it must be 0-d, [B] or [B, S]"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), "is on meta but the model's memories are on cpu"),
    ],
)
def test_refused(forget, text: str) -> None:
    with pytest.raises(SelectionError) as caught:
        to_index(forget, 3, NAMES, "cpu")
    assert text in str(caught.value)


def test_name_without_names() -> None:
    with pytest.raises(SelectionError, match="has no class names"):
        to_index("cat", 3)


def test_inference_mode_selection_can_be_saved_for_backward() -> None:
    with torch.inference_mode():
        made = torch.tensor([0, 1])
    assert not to_index(made, 3).is_inference()
