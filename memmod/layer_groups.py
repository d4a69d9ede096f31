"""What timm groups parameters by, as names in a wrapper of the model: depth, and who has no weight decay."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from memmod.compiled import uncompiled_name

# A parameter's place among the layers, as timm's `group_with_matcher` orders them.
Place = tuple[float, ...]
Matcher = Mapping[str, Any] | Callable[[str], Any]
# Where timm puts what no pattern matches: necks and heads, the last of all.
LAST: Place = (float("inf"),)


def inside(prefix: str, matcher: Matcher) -> Callable[[str], Place]:
    """A timm `group_matcher`'s result, for names that begin with `prefix` where the matcher's own do not.

    Args:
        matcher: a mapping of patterns, or a function from a name to its place.
    """
    place = _by_pattern(matcher) if isinstance(matcher, Mapping) else _by_function(matcher)
    return lambda name: place(uncompiled_name(name).removeprefix(prefix))


def _by_function(matcher: Callable[[str], Any]) -> Callable[[str], Place]:
    def place(name: str) -> Place:
        found = matcher(name)
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    return place


def _by_pattern(matcher: Mapping[str, Any]) -> Callable[[str], Place]:
    """The meaning of a mapping: the first pattern that matches gives (its number, its groups, its suffix)."""
    patterns = []
    for number, of_group in enumerate(matcher.values()):
        alternatives = of_group if isinstance(of_group, (tuple, list)) else [(of_group, None)]
        patterns += [(re.compile(text), number, suffix) for text, suffix in alternatives if text is not None]

    def place(name: str) -> Place:
        for pattern, number, suffix in patterns:
            found = pattern.match(name)
            if found:
                return (
                    float(number),
                    *(float(part) for part in (*found.groups(), *(suffix or ())) if part is not None),
                )
        return LAST

    return place
