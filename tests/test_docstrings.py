"""Every public name says what it is, what it takes and what it raises; what its shapes are; and where a method is from.

An argument is described where its name stands in the docstring, or where it is one of those that mean the same
everywhere (`CONVENTIONS` of docs/mkdocs_hooks.py, a table of the reference).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from memmod.evaluation.attacks import ATTACKS
from memmod.unlearning.baselines import METHODS
from tests.helpers import load_file

ROOT = Path(__file__).resolve().parent.parent
HOOKS = load_file(ROOT / "docs/mkdocs_hooks.py")
NAMES = [(module, name) for module, names in HOOKS.public_names().items() for name in names]
# What an annotation of tensors needs in words: dimensions in brackets, or that there are none.
SHAPE = re.compile(r"\[[^\]]*\]|0-d|shape|scalar")
# Where a formula is from: a paper's number, authors with a year, or memmod itself.
SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|\w+.{0,80}, (19|20)\d\d|doi:|memmod's own|controls?\b", re.IGNORECASE)


def _public(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _callables() -> Iterator[tuple[str, Callable, str]]:
    """Every public function, constructor and method, with its name and what its class's docstring adds to its own."""
    for module, name in NAMES:
        thing = _public(module, name)
        if inspect.isfunction(thing):
            yield f"{module}.{name}", thing, ""
        if not inspect.isclass(thing):
            continue
        of_class = thing.__doc__ or ""
        if "__init__" in vars(thing) and not dataclasses.is_dataclass(thing):
            yield f"{module}.{name}", thing.__init__, of_class
        fields = getattr(thing, "__dataclass_fields__", {})
        for method, value in vars(thing).items():
            if method in fields:
                continue
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if inspect.isfunction(function) and not method.startswith("_"):
                inherited = "" if function.__doc__ else inspect.getdoc(getattr(thing, method)) or ""
                yield f"{module}.{name}.{method}", function, f"{of_class}\n{inherited}"


CALLABLES = {name: (function, more) for name, function, more in _callables()}


def undescribed(function: Callable, more: str = "") -> list[str]:
    """Its arguments that neither the docstring names nor a convention explains."""
    text = f"{function.__doc__ or ''}\n{more}"
    named = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    named = [name for name in named if not name.startswith("_")]
    return [name for name in named if name not in HOOKS.CONVENTIONS and not re.search(rf"\b{name}\b", text)]


def unsaid_errors(function: Callable, more: str = "") -> list[str]:
    """The errors that its own lines raise, and that the docstring does not name."""
    text = f"{function.__doc__ or ''}\n{more}"
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    names = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in raised}
    # An abstract method is no error of the user's; a name in lower case is an error that was caught.
    names = {name for name in names if name != "NotImplementedError" and name[0].isupper()}
    return sorted(name for name in names if not re.search(rf"\b{name}\b", text))


def lacks_shapes(function: Callable, more: str = "") -> bool:
    """Whether it takes or returns tensors, and the docstring says no shape."""
    annotations = [str(value) for value in function.__annotations__.values()]
    tensors = any(re.search(r"\bTensor\b", annotation) for annotation in annotations)
    return tensors and not SHAPE.search(f"{function.__doc__ or ''}\n{more}")


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda value: value)
def test_every_public_name_has_a_docstring(module, name):
    thing = _public(module, name)
    if isinstance(thing, ModuleType) or inspect.isclass(thing) or inspect.isfunction(thing):
        text = thing.__doc__ or ""
        # dataclass makes a docstring of the signature where there is none.
        assert text and not text.startswith(f"{name}("), "no docstring"
    else:
        text = _below_its_assignment(importlib.import_module(module), name)
        assert text, "a constant has its docstring below the assignment"
    assert re.search(r"[.:]$", text.strip().split("\n\n")[0].strip()), "the first paragraph is a sentence"


def _below_its_assignment(module: ModuleType, name: str) -> str:
    """The docstring of a constant, wherever it was imported from."""
    body = ast.parse(inspect.getsource(module)).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _below_its_assignment(importlib.import_module(str(node.module)), name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in [getattr(target, "id", "") for target in targets]:
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            return str(after.value.value) if said else ""
    return ""


@pytest.mark.parametrize("name", CALLABLES)
def test_every_callable_says_its_arguments_shapes_and_errors(name):
    function, more = CALLABLES[name]
    assert (function.__doc__ or more).strip(), "no docstring"
    assert undescribed(function, more) == []
    assert unsaid_errors(function, more) == []
    assert not lacks_shapes(function, more)


CLASSES = [(module, name) for module, name in NAMES if inspect.isclass(_public(module, name))]


@pytest.mark.parametrize(("module", "name"), CLASSES, ids=lambda value: value)
def test_every_field_and_property_is_described(module, name):
    thing = _public(module, name)
    own = vars(thing).get("__annotations__", {}) if dataclasses.is_dataclass(thing) else {}
    fields = [field for field in own if not field.startswith("_") and field not in HOOKS.CONVENTIONS]
    assert [field for field in fields if not re.search(rf"\b{field}\b", thing.__doc__)] == []
    properties = [key for key, value in vars(thing).items() if isinstance(value, property) and key[0] != "_"]
    assert [key for key in properties if not inspect.getdoc(getattr(thing, key))] == []


METRICS = [name for module, name in NAMES if module == "memmod.evaluation.metrics"]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_its_source(name):
    function = _public("memmod.evaluation.metrics", name)
    assert SOURCE.search(f"{inspect.getmodule(function).__doc__} {function.__doc__}")


@pytest.mark.parametrize("thing", [*METHODS.values(), *ATTACKS], ids=lambda thing: thing.name)
def test_every_method_and_attack_names_its_source(thing):
    run = next(value for value in vars(thing).values() if inspect.isfunction(value))
    assert SOURCE.search(f"{inspect.getmodule(run).__doc__} {run.__doc__} {thing}")


def test_the_rules_see_what_is_missing():
    def bare(x, width: int, depth: int):
        """Cuts to width."""
        if depth < 0:
            raise ValueError("depth")
        raise KeyError

    assert undescribed(bare) == ["depth"] and unsaid_errors(bare) == ["KeyError", "ValueError"]
    assert undescribed(bare, "depth: of what") == [] and unsaid_errors(bare, "KeyError, ValueError") == []
    bare.__annotations__ = {"x": "Tensor"}
    assert lacks_shapes(bare) and not lacks_shapes(bare, "x ``[B, C]``") and not lacks_shapes(bare, "0-d")
