"""Errors planted in a copy of a module's source, and the test that has to see each."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Plant(NamedTuple):
    """One error: in a module of `memmod`, `snippet`, which is there once, becomes `replacement`."""

    name: str
    module: str
    snippet: str
    replacement: str
    test: Callable[[], None]


@contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """A scope in which the module's functions and classes are those of its changed source; the file stays as it is."""
    module = importlib.import_module(f"memmod.{plant.module}")
    source = Path(module.__file__).read_text()
    assert source.count(plant.snippet) == 1, f"{plant.snippet!r} is there {source.count(plant.snippet)} times"
    changed = types.ModuleType(module.__name__)
    changed.__file__ = module.__file__
    # dataclasses look their module up
    sys.modules[module.__name__] = changed
    try:
        exec(compile(source.replace(plant.snippet, plant.replacement), module.__file__, "exec"), vars(changed))
    finally:
        sys.modules[module.__name__] = module
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (types.FunctionType, type)) and value.__module__ == module.__name__
    }
    # where the test has them from: the module, and what it imported by name
    places = [vars(module), plant.test.__globals__]
    before = [(place, name, value) for place in places for name, value in own.items() if place.get(name) is value]
    try:
        for place, name, _ in before:
            place[name] = getattr(changed, name)
        yield
    finally:
        for place, name, value in before:
            place[name] = value
