"""The extras: README's table, pyproject's lists and the pinned requirements name the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _pinned(file: str) -> set[str]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return {_name(line) for line in lines if line and not line.startswith(("#", "-r"))}


def test_readme_lists_every_extra_in_order():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| extra | for |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(EXTRAS) == sorted(EXTRAS)


def test_each_list_is_sorted_and_names_a_package_once():
    for extra, packages in EXTRAS.items():
        names = [_name(package) for package in packages]
        assert names == sorted(set(names)), extra


def test_what_is_pinned_for_development_is_in_the_dev_extra():
    assert _pinned("dev.txt") <= {_name(package) for package in EXTRAS["dev"]}


def test_what_memmod_depends_on_is_pinned():
    assert {_name(package) for package in PROJECT["dependencies"]} <= _pinned("setup.txt")


def test_extras_named_in_messages_exist():
    named = set()
    for file in (ROOT / "memmod").rglob("*.py"):
        named |= {(extra, file.name) for extra in re.findall(r"memmod(?:-torch)?\[(\w+)\]", file.read_text())}
    assert {extra for extra, _ in named} <= set(EXTRAS), sorted(named)
