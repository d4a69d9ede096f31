"""JSON read strictly: one meaning or none, every value checked against a type, every error worded."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from memmod.errors import MemmodError

T = TypeVar("T")

# What json, msgspec and str.encode raise for text that is not JSON in UTF-8, or is nested too deeply.
_NOT_JSON = (ValueError, TypeError, RecursionError)


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: `what` names it, `error` is raised for it, `advice` says what to do then."""

    what: str
    error: type[MemmodError]
    advice: str

    def refuse(self, problem: str, cause: BaseException | None = None) -> NoReturn:
        """Raise `error` with the whole sentence."""
        raise self.error(f"{self.what} {problem}: {self.advice}") from cause


def parse(text: str | bytes, origin: Origin) -> Any:
    """The value of a JSON text.

    Refused beside what is no JSON: a key that comes twice in an object, NaN and infinities, numbers that overflow,
    text that is not UTF-8, nesting beyond Python's recursion limit.

    Raises:
        MemmodError: `origin.error`.
    """
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
        )
        # Half a surrogate pair is a str, but no text: it cannot be written again.
        canonical(value)
    except _NOT_JSON as error:
        origin.refuse(f"is damaged or cut short, it cannot be read as JSON ({error})", error)
    return value


def check(value: Any, type: type[T], origin: Origin) -> T:
    """A parsed value as a msgspec Struct, dataclass or other type, without any conversion but int to float.

    Raises:
        MemmodError: `origin.error`, with the field and its value.
    """
    import msgspec

    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        path = path.strip("`") or "$"
        origin.refuse(f"is damaged: {problem[0].lower()}{problem[1:]} at {path}{_shown(value, path)}", error)
    except RecursionError as error:
        origin.refuse("is damaged: nested too deeply", error)


def canonical(value: Any) -> bytes:
    """The bytes that stand for a JSON value in a hash: the same for any order of keys and any white space.

    Raises:
        ValueError, TypeError, RecursionError: it is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def dump(value: Any) -> bytes:
    """A value as readable JSON that `parse` reads; a figure that is not a number becomes null.

    Raises:
        ValueError, TypeError, RecursionError: it is not JSON: an infinity, an object, text that is not UTF-8.
    """
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def without_nan(value: Any) -> Any:
    """The same value with None for every float that is not a number: a figure that there is none of."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def as_json(value: Any, origin: Origin) -> Any:
    """What `parse` gives back of a value once it is written as JSON: tuples as lists, keys as text.

    Raises:
        MemmodError: `origin.error`: it is not JSON, NaN included.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except _NOT_JSON as error:
        origin.refuse(f"must be JSON ({error})", error)
    return parse(text, origin)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} comes twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:60]} is too large")
    return value


def _shown(value: Any, path: str) -> str:
    """The value at a msgspec path such as ``$.settings.lambdas[1]``, where it is a single one that can be found."""
    for key, index in re.findall(r"\.([^.\[]+)|\[([^\]]*)\]", path):
        try:
            value = value[key or int(index)] if key or index.isdecimal() else None
        except (KeyError, IndexError, TypeError):
            return ""
        if value is None:
            return ""
    return "" if isinstance(value, (dict, list, type(None))) else f" (it is {_short(value)})"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**60 else "a number of over 60 digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
