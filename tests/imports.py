"""What may import what: the rule, and what breaks it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the lowest to the highest: a part may import itself and those above it here. Imports inside of functions count,
# those under TYPE_CHECKING do not.
ORDER = (
    ("errors",),
    ("compiled", "outputs", "selection", "class_names", "distributed"),
    ("files", "run_state", "layer_groups", "muon"),
    ("memory_file",),
    ("ops",),
    ("kernels",),
    ("ops.backends.triton",),
    ("functional",),
    ("nn",),
    ("surgery",),
    ("model",),
    ("export",),
    ("data",),
    ("training",),
    ("zoo",),
    ("evaluation", "report"),
    ("explain",),
    ("unlearning",),
    ("info", "runs"),
    ("cli",),
    ("__main__",),
)
# Parts that must not need these libraries: they run where those are missing, or print through whoever calls them.
WITHOUT = {
    "rich": ("cli",),
    "typer": ("cli",),
    "jinja2": ("report",),
    "vl_convert": ("report",),
    "captum": ("explain",),
    "onnx": ("export",),
    "onnxruntime": ("export",),
    "onnxscript": ("export",),
}
BACKENDS = "memmod.ops.backends"
# Tests of benchmarks, and the harnesses that run their variants of GPU kernels.
KNOW_BENCHMARKS = ("tests/benchmarks/", "tests/cuda/", "tests/triton/", "tests/ops/test_cuda.py")
# Backends that others build on, and which.
SHARED = {"gpu": ("cuda", "triton")}
# All that these know of the package: nothing that calls them, and no backend.
MAY_IMPORT = {
    "memmod.kernels": ("memmod.kernels", "memmod.ops.layout"),
    f"{BACKENDS}.gpu": (f"{BACKENDS}.gpu", f"{BACKENDS}.gpu_policy", "memmod.ops.calls", "memmod.ops.layout"),
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of memmod by its name."""
    found = {}
    for folder, package in ((root / "memmod", "memmod"), (root / "kernels/memmod_kernels", "memmod.kernels")):
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports when it runs, by whole names."""
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def part(name: str) -> str:
    """The part of memmod that a module belongs to; "" for the package itself."""
    # Of the ops, this backend alone stands above the kernels; the dispatcher knows it by name only.
    if name.startswith(f"{BACKENDS}.triton"):
        return "ops.backends.triton"
    return name.split(".")[1] if name.startswith("memmod.") else ""


def _between_benchmarks_and_tests(root: Path) -> Iterator[str]:
    """What breaks the rule that benchmarks run without the tests, and that tests of benchmarks alone know them."""
    for path in sorted((root / "benchmarks").rglob("*.py")):
        if any(name.split(".")[0] == "tests" for name in imports(path, {})):
            yield f"{path.relative_to(root)} imports tests"
    for path in sorted((root / "tests").rglob("*.py")):
        own = path.relative_to(root).as_posix()
        knows = any(name.split(".")[0] == "benchmarks" for name in imports(path, {}))
        if knows and not own.startswith(KNOW_BENCHMARKS):
            yield f"{own} imports benchmarks"


def _packages(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def violations(root: Path = ROOT) -> list[str]:
    """Every import that breaks a rule, in words."""
    known = modules(root)
    rank = {name: number for number, names in enumerate(ORDER) for name in names}
    graph = {name: sorted(set(imports(path, known))) for name, path in sorted(known.items())}
    found = [f"{name} belongs to no part in the order" for name in graph if part(name) not in {"", *rank}]
    for name, targets in graph.items():
        own = part(name)
        for target in targets:
            library = target.split(".")[0]
            if library in WITHOUT and own not in WITHOUT[library]:
                found.append(f"{name} imports {library}, which only {', '.join(WITHOUT[library])} may")
            if library != "memmod" or not own or not part(target):
                continue
            other = part(target)
            if other != own and rank.get(other, 0) >= rank.get(own, 0):
                found.append(f"{name} imports {target}, which is not below it")
            if name.startswith(f"{BACKENDS}.") and target.startswith(f"{BACKENDS}."):
                one, another = (module.removeprefix(f"{BACKENDS}.").split(".")[0] for module in (name, target))
                folder = (root / "memmod/ops/backends" / another).is_dir()
                if one not in (another, *SHARED.get(another, ())) and folder:
                    found.append(f"{name} imports {target}: backends do not know of each other")
            for package, allowed in MAY_IMPORT.items():
                if f"{name}.".startswith(f"{package}.") and not f"{target}.".startswith(_packages(allowed)):
                    found.append(f"{name} imports {target}: of memmod it may know {', '.join(allowed)} alone")
    found += _between_benchmarks_and_tests(root)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"{' <- '.join(error.args[1])} is a circle")
    return found
