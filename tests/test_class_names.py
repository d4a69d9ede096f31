"""Class names from lists, tuples and mappings; everything whose order is uncertain is refused."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from memmod import modulate
from memmod.class_names import checked_names
from memmod.errors import ModelError

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "given",
    [
        ["cat", "dog", "owl"],
        ("cat", "dog", "owl"),
        {"dog": 1, "owl": 2, "cat": 0},
        {2: "owl", 0: "cat", 1: "dog"},
        {"1": "dog", "0": "cat", "2": "owl"},
        {"owl": "2", "dog": "1", "cat": "0"},
        {np.int64(2): "owl", 0: "cat", 1: "dog"},
        OrderedDict(dog=1, owl=2, cat=0),
    ],
    ids=repr,
)
def test_names_stand_in_the_order_of_their_numbers(given) -> None:
    assert checked_names(given, 3) == NAMES


def test_digits_as_names() -> None:
    assert checked_names({"3": 0, "1": 1, "2": 2}, 3) == ("3", "1", "2")
    assert checked_names({0: "2", 1: "0", 2: "1"}, 3) == ("2", "0", "1")
    assert checked_names(None, 3) is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cat", "dog", "owl"}, "is a set"),
        (frozenset(NAMES), "is a frozenset"),
        ("abc", "is a str"),
        (b"abc", "is a bytes"),
        (iter(NAMES), "is a tuple_iterator"),
        ((name for name in NAMES), "is a generator"),
        ({"cat": 0, "dog": 1, "owl": 2}.keys(), "is a dict_keys"),
        (np.array(NAMES), "is a ndarray"),
        (range(3), "is a range"),
        ([0, 1, 2], "holds 0 (int)"),
        (["cat", None, "owl"], "holds None (NoneType)"),
        ({"cat": 1, "dog": 2, "owl": 3}, "must be 0 to 2, each once: missing 0; wrong 3"),
        ({"cat": 0, "dog": 0, "owl": 1}, "missing 2; wrong 0"),
        ({"cat": 0, "dog": 1}, "missing 2"),
        ({"0": "1", "1": "2", "2": "0"}, "one side must be the names"),
        ({0: 1, 1: 2, 2: 0}, "one side must be the names"),
        ({"cat": 0.0, "dog": 1.0, "owl": 2.0}, "one side must be the names"),
        ({True: "dog", False: "cat"}, "one side must be the names"),
        ({"cat": "x", "dog": "y", "owl": "z"}, "one side must be the names"),
        ({}, "one side must be the names"),
        ({0: "cat", 1: "cat", 2: "owl"}, "repeats 'cat'"),
        (["cat", "dog"], "2 class_names for 3 classes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_refused(given, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        checked_names(given, 3)
    assert text in str(caught.value)


def test_a_mapping_names_the_class_that_is_forgotten() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    wf = modulate(base, example_input=torch.randn(2, 4), class_names={"dog": 1, "owl": 2, "cat": 0})
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.normal_()
    x = torch.randn(2, 4)
    assert torch.equal(wf(x, forget="cat"), wf(x, forget=0)) and not torch.equal(wf(x, forget="cat"), wf(x, forget=1))
