"""JSON read strictly: what has two meanings or none is refused, and every refusal names field and value."""

from __future__ import annotations

import json

import msgspec
import pytest

from memmod.errors import DataError
from memmod.files.strict_json import Origin, as_json, canonical, check, dump, parse

ORIGIN = Origin("file.json", DataError, "mend it")


class Inner(msgspec.Struct):
    a: int
    b: tuple[float, ...] = ()


class Outer(msgspec.Struct):
    inner: Inner
    more: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ('{"a": 1, "a": 1}', "the key 'a' comes twice"),
        ('{"x": [{"b": 1, "c": 2, "b": null}]}', "the key 'b' comes twice"),
        ("[NaN]", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ("[1e999]", "1e999 is too large"),
        ("1" * 5000, "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[" * 500 + '{"a":' * 100_000, "cannot be read as JSON"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\udc80": 1}', "surrogates not allowed"),
        (b'["\xff"]', "'utf-8' codec can't decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ("{} {}", "Extra data"),
    ],
)
def test_what_is_no_json_is_refused(text, words):
    with pytest.raises(DataError, match="^file.json is damaged or cut short.*mend it$") as caught:
        parse(text, ORIGIN)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected `object`, got `array` at $: "),
        ({}, "object missing required field `inner` at $: "),
        ({"inner": {"a": "x"}}, "expected `int`, got `str` at $.inner.a (it is 'x'): "),
        ({"inner": {"a": True}}, "expected `int`, got `bool` at $.inner.a (it is True): "),
        ({"inner": {"a": 1.0}}, "expected `int`, got `float` at $.inner.a (it is 1.0): "),
        ({"inner": {"a": None}}, "expected `int`, got `null` at $.inner.a: "),
        ({"inner": {"a": 1, "b": [0.5, "y" * 900]}}, "at $.inner.b[1] (it is 'yyy"),
        ({"inner": {"a": 1, "b": [10**400]}}, "at $.inner.b[0] (it is a number of over 60 digits): "),
        ({"inner": {"a": 1}, "more": {"k": {"a": []}}}, "expected `int`, got `array` at $.more[...].a: "),
    ],
)
def test_a_refusal_names_field_and_value(value, words):
    with pytest.raises(DataError) as caught:
        check(value, Outer, ORIGIN)
    assert words in str(caught.value) and str(caught.value).startswith("file.json is damaged: ")
    assert len(str(caught.value)) < 300


def test_what_fits_is_taken():
    assert check({"inner": {"a": 1, "b": [1, 0.5]}, "else": 3}, Outer, ORIGIN) == Outer(Inner(1, (1.0, 0.5)))


def test_canonical_bytes_follow_the_meaning_alone():
    one = parse('{"b": [1.0, -0.0, 1e-9], "a": {"é": "x", "d": null}}', ORIGIN)
    two = parse('{ "a" : {"d":null,"\\u00e9":"\\u0078"},\n"b":[1.0,-0.0,0.000000001]}', ORIGIN)
    assert canonical(one) == canonical(two)
    for other in ({"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": 0.0}, {"a": -0.0}):
        assert canonical(other) not in [canonical(x) for x in ({"a": None}, {"a": 2}, {})]
    assert len({canonical({"a": x}) for x in (1, 1.0, True, "1", None, 0.0, -0.0)}) == 7


def test_writing_gives_what_reading_takes():
    value = {"a": (1, 2.5), 3: "é", "nan": [float("nan")]}
    assert parse(dump(value), ORIGIN) == {"a": [1, 2.5], "3": "é", "nan": [None]}
    assert as_json({"a": (1,), 3: None}, ORIGIN) == {"a": [1], "3": None}


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}, {"a": "\udc80"}, {1: "x", "1": "y"}])
def test_what_cannot_be_read_again_is_not_json(value):
    with pytest.raises(DataError, match="file.json"):
        as_json(value, ORIGIN)


def test_nesting_that_python_reads_but_cannot_follow():
    deep = "[" * 900 + "]" * 900
    assert json.loads(deep)
    try:
        parse(deep, ORIGIN)
    except DataError as error:
        assert "recursion" in str(error)
