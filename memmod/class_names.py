"""The names of a model's classes, from the forms that people keep them in."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from memmod.errors import ModelError


def checked_names(class_names: Any, num_classes: int) -> tuple[str, ...] | None:
    """C names in the order of their numbers, from a list, a tuple, or a mapping between names and numbers.

    A mapping goes either way round (``{"cat": 0}``, ``{0: "cat"}``, ``{"0": "cat"}``); its numbers are exactly
    0 to C - 1.

    Raises:
        ModelError: another type, an entry that is no string, a name twice, or not one name per class.
    """
    if class_names is None:
        return None
    if isinstance(class_names, Mapping):
        names = _names_of_mapping(class_names, num_classes)
    elif isinstance(class_names, (list, tuple)):
        names = tuple(class_names)
        _check_strings(names)
    else:
        raise ModelError(
            f"class_names is a {type(class_names).__name__}, whose order says nothing certain about the classes' "
            "numbers: pass a list or tuple in the order of the numbers, or a mapping such as {'cat': 0, 'dog': 1}"
        )
    if len(names) != num_classes:
        raise ModelError(f"{len(names)} class_names for {num_classes} classes: pass one name per class")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ModelError(f"class_names repeats {', '.join(map(repr, repeated))}: each class needs a name of its own")
    return names


def _check_strings(names: Sequence[Any]) -> None:
    other = next((name for name in names if not isinstance(name, str)), None)
    if other is not None or None in names:
        raise ModelError(
            f"class_names holds {other!r} ({type(other).__name__}): names are strings, since a number selects a class "
            "by its place; pass [str(name) for name in ...], or leave class_names out"
        )


def _names_of_mapping(mapping: Mapping[Any, Any], num_classes: int) -> tuple[str, ...]:
    keys, values = list(mapping), list(mapping.values())
    by_number = _numbers_are_the_keys(keys, values)
    given, names = (keys, values) if by_number else (values, keys)
    _check_strings(names)
    numbers = [int(number) if isinstance(number, str) else operator.index(number) for number in given]
    if sorted(numbers) != list(range(num_classes)):
        missing = [str(number) for number in range(num_classes) if number not in numbers]
        wrong = [str(n) for n in sorted(set(numbers)) if not 0 <= n < num_classes or numbers.count(n) > 1]
        raise ModelError(
            f"the numbers of class_names must be 0 to {num_classes - 1}, each once: "
            + "; ".join([f"missing {', '.join(missing)}"] * bool(missing) + [f"wrong {', '.join(wrong)}"] * bool(wrong))
        )
    return tuple(name for _, name in sorted(zip(numbers, names, strict=True)))


def _numbers_are_the_keys(keys: list[Any], values: list[Any]) -> bool:
    """Which side of a mapping holds the numbers: ints are, and digits in strings where the other side has none."""
    for is_number in (_is_int, _is_written_number):
        sides = [bool(side) and all(map(is_number, side)) for side in (keys, values)]
        if sum(sides) == 1:
            return sides[0]
    raise ModelError(
        f"class_names maps {keys[:3]} to {values[:3]}: one side must be the names (strings), the other the numbers "
        "(ints); pass a list of the names in the order of the numbers"
    )


def _is_int(value: Any) -> bool:
    return not isinstance(value, (str, bool)) and hasattr(value, "__index__")


def _is_written_number(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()
