"""A lint of the Triton kernels' source: rules that no run can check, because the interpreter forgives their breach or
only a large problem shows it. It reads syntax trees and needs neither triton nor a GPU."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RULES = {
    "mask": "a load or store without mask= touches memory beyond the tensor",
    "other": "a masked load without other= is undefined where the mask is false (the interpreter reads 0 there)",
    "accumulator": "tl.dot must add to an fp32 accumulator that is its third argument",
    "precision": "tl.dot must take input_precision= from the constexpr PRECISION, as the user's TF32 setting says",
    "atomic": "atomics add in an order that differs from run to run",
    "autotune": "tuning at run time lets the same call run different code",
    "bf16": "code for bf16 alone: the interpreter that tests the kernels has no bf16",
    "float64": "fp64 is slow on every GPU, and the sums are fp32 by contract",
    "offset": "an offset times a run-time size, in 32 bits, reaches an address: cast to tl.int64 before the product",
    "gates": "a kernel with tl.dot evaluates a gate: products read multipliers from the table",
}
_GATES = {"sigmoid", "exp", "exp2", "softmax"}


class Violation(NamedTuple):
    rule: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"kernels/memmod_kernels/{self.file}:{self.line}: {RULES[self.rule]}"


def sources() -> dict[str, str]:
    """The kernels' files by name, as installed."""
    (folder,) = importlib.util.find_spec("memmod.kernels").submodule_search_locations
    return {path.name: path.read_text() for path in sorted(Path(folder).glob("*.py"))}


class Function(NamedTuple):
    """A function that Triton compiles."""

    file: str
    tree: ast.FunctionDef

    @property
    def constants(self) -> set[str]:
        return {a.arg for a in self.tree.args.args if a.annotation and ast.unparse(a.annotation) == "tl.constexpr"}


def functions(files: dict[str, str]) -> dict[str, Function]:
    """Every @triton.jit function of the files, by name."""
    found = {}
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and any(_name(d).endswith("jit") for d in node.decorator_list):
                assert node.name not in found, f"two kernels are named {node.name}"
                found[node.name] = Function(file, node)
    return found


def violations(files: dict[str, str]) -> list[Violation]:
    """All breaches in the files, in their order."""
    compiled = functions(files)
    found = {v for function in compiled.values() for v in _local(function)}
    found |= set(_gates(compiled))
    called = {name for f in compiled.values() for name in _calls(f.tree)}
    for name, function in compiled.items():
        if name not in called:
            found |= _Offsets(compiled).kernel(function)
    return sorted(found, key=lambda v: (v.file, v.line, v.rule))


def _local(function: Function) -> Iterator[Violation]:
    """What one function shows by itself."""
    accumulators = {
        target.id
        for node in ast.walk(function.tree)
        if isinstance(node, ast.Assign) and _is_fp32_block(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for decorator in function.tree.decorator_list:
        if any(isinstance(n, ast.Attribute) and n.attr in ("autotune", "heuristics") for n in ast.walk(decorator)):
            yield Violation("autotune", function.file, decorator.lineno)
    for node in ast.walk(function.tree):
        for rule in _breaches(node, accumulators, function.constants):
            yield Violation(rule, function.file, node.lineno)


def _breaches(node: ast.AST, accumulators: set[str], constants: set[str]) -> Iterator[str]:
    word = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
    if word in ("bfloat16", "bf16"):
        yield "bf16"
    if word in ("float64", "fp64", "double"):
        yield "float64"
    if isinstance(node, ast.Attribute) and node.attr.startswith("atomic_"):
        yield "atomic"
    if not isinstance(node, ast.Call):
        return
    options = {k.arg: k.value for k in node.keywords}
    if _name(node) in ("tl.load", "tl.store"):
        if _absent(options.get("mask")):
            yield "mask"
        if _name(node) == "tl.load" and _absent(options.get("other")):
            yield "other"
    if _name(node) == "tl.dot":
        into = node.args[2] if len(node.args) > 2 else options.get("acc")
        if not isinstance(into, ast.Name) or into.id not in accumulators:
            yield "accumulator"
        precision = options.get("input_precision")
        if not isinstance(precision, ast.Name) or precision.id != "PRECISION" or "PRECISION" not in constants:
            yield "precision"


def _gates(compiled: dict[str, Function]) -> Iterator[Violation]:
    """Gates evaluated in a kernel with tl.dot, also by the functions that it calls."""
    for name, function in compiled.items():
        if not any(_name(n) == "tl.dot" for n in ast.walk(function.tree)):
            continue
        reached, todo = set(), [name]
        while todo:
            reached.add(current := todo.pop())
            todo += [n for n in _calls(compiled[current].tree) if n in compiled and n not in reached]
        for other in map(compiled.get, reached):
            for node in ast.walk(other.tree):
                if isinstance(node, ast.Attribute) and node.attr in _GATES:
                    yield Violation("gates", other.file, node.lineno)


class _Value(NamedTuple):
    """What the flow of addresses needs to know of an integer."""

    offset: bool = False
    """derived from tl.arange, tl.program_id or a loop"""
    size: bool = False
    """derived from a run-time argument, and not an offset"""
    wide: bool = False
    """64 bits"""
    narrow: frozenset[Violation] = frozenset()
    """products in 32 bits that are summands of it"""

    def join(self, other: _Value) -> _Value:
        """Of a sum or quotient of the two."""
        offset = self.offset or other.offset
        size = (self.size or other.size) and not offset
        return _Value(offset, size, self.wide or other.wide, self.narrow | other.narrow)

    def branch(self, other: _Value) -> _Value:
        """Of one of the two, as a condition says."""
        return self.join(other)._replace(wide=self.wide and other.wide)


class _Offsets:
    """Follows a kernel's integers into its addresses, through its calls of other compiled functions.

    A quotient's remainder, written `x - x // size * size`, is less than the size and counts as one. Numbers that are
    loaded are int64: the only ones are class indices. A cast behind a product is taken for meant (as of pixels).
    """

    def __init__(self, compiled: dict[str, Function]):
        self.compiled = compiled
        self.found: set[Violation] = set()

    def kernel(self, function: Function) -> set[Violation]:
        names = [a.arg for a in function.tree.args.args]
        self._function(function, [_Value(size=name not in function.constants) for name in names])
        return self.found

    def _function(self, function: Function, arguments: list) -> object:
        names = [a.arg for a in function.tree.args.args]
        frame = _Frame(self, function, dict(zip(names, arguments, strict=True)))
        frame.block(function.tree.body)
        return frame.returned


class _Frame:
    def __init__(self, flow: _Offsets, function: Function, names: dict[str, object]):
        self.flow, self.function, self.names = flow, function, names
        self.quotients: dict[str, tuple[str, list[str]]] = {}
        self.returned: object = _Value()

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.assign(target, value, node.value)
        elif isinstance(node, ast.AugAssign):
            as_binary = ast.BinOp(left=ast.Name(id=node.target.id), op=node.op, right=node.value, lineno=node.lineno)
            self.assign(node.target, self.value(as_binary), as_binary)
        elif isinstance(node, ast.For):
            for argument in node.iter.args:
                self.value(argument)
            self.names[node.target.id] = _Value(offset=True)
            # Twice: what the first pass assigns, the second reads.
            self.block(node.body)
            self.block(node.body)
        elif isinstance(node, ast.If):
            before = dict(self.names)
            self.block(node.body)
            after, self.names = self.names, before
            self.block(node.orelse)
            for name, value in after.items():
                self.names[name] = _branch(value, self.names.get(name))
        elif isinstance(node, ast.Return):
            self.returned = self.value(node.value)
        elif isinstance(node, ast.Expr):
            self.value(node.value)
        else:
            kind = type(node).__name__
            raise NotImplementedError(f"{self.function.file}:{node.lineno}: the lint does not know {kind}")

    def assign(self, target: ast.expr, value: object, source: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            values = value if isinstance(value, list) else [value] * len(target.elts)
            parts = source.elts if isinstance(source, ast.Tuple) else [source] * len(target.elts)
            for part in zip(target.elts, values, parts, strict=True):
                self.assign(*part)
            return
        self.names[target.id] = value
        self.quotients.pop(target.id, None)
        if isinstance(source, ast.BinOp) and isinstance(source.op, ast.FloorDiv):
            self.quotients[target.id] = (ast.unparse(source.left), sorted(_factors(source.right)))

    def value(self, node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _Value())
        if isinstance(node, ast.Tuple):
            return [self.value(e) for e in node.elts]
        if isinstance(node, ast.BinOp):
            return self.binary(node)
        if isinstance(node, ast.UnaryOp):
            return self.value(node.operand)
        if isinstance(node, ast.Subscript):
            return self.value(node.value)
        if isinstance(node, ast.IfExp):
            return _branch(self.value(node.body), self.value(node.orelse))
        if isinstance(node, ast.Call):
            return self.call(node)
        return None if isinstance(node, ast.Constant) and node.value is None else _Value()

    def binary(self, node: ast.BinOp) -> _Value:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Sub) and self.is_remainder(node):
            return _Value(size=True, wide=left.wide or right.wide, narrow=left.narrow)
        result = left.join(right)
        is_product = isinstance(node.op, ast.Mult) and not result.wide
        if is_product and (left.offset and (right.size or right.offset) or right.offset and left.size):
            here = Violation("offset", self.function.file, node.lineno)
            return result._replace(narrow=result.narrow | {here})
        return result

    def is_remainder(self, node: ast.BinOp) -> bool:
        factors = _factors(node.right)
        for factor in factors:
            whole, divisor = self.quotients.get(factor, (None, None))
            rest = sorted(factors)
            rest.remove(factor)
            if whole == ast.unparse(node.left) and divisor == rest:
                return True
        return False

    def call(self, node: ast.Call) -> object:
        name = _name(node)
        arguments = [self.value(a) for a in [*node.args, *(k.value for k in node.keywords)]]
        if name in self.flow.compiled:
            assert not node.keywords, "the lint follows calls by position"
            return self.flow._function(self.flow.compiled[name], arguments)
        if name.endswith(".to") or name == "tl.cast":
            value = self.value(node.args[0] if name == "tl.cast" else node.func.value)
            is_int64 = ast.unparse(node.args[-1]) == "tl.int64"
            return value._replace(wide=True, narrow=frozenset()) if is_int64 else value
        if name in ("tl.load", "tl.store"):
            self.flow.found |= arguments[0].narrow
            return _Value(wide=True)
        if name in ("tl.program_id", "tl.arange"):
            return _Value(offset=True)
        result = _Value()
        for argument in arguments:
            result = result.join(argument) if isinstance(argument, _Value) else result
        return result


def _branch(a: object, b: object) -> object:
    """Either of two values; None is no number."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, list):
        return [_branch(x, y) for x, y in zip(a, b, strict=True)]
    return a.branch(b)


def _factors(node: ast.expr) -> list[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _factors(node.left) + _factors(node.right)
    return [ast.unparse(node)]


def _is_fp32_block(node: ast.expr) -> bool:
    if _name(node) not in ("tl.zeros", "tl.full"):
        return False
    return any(ast.unparse(a) == "tl.float32" for a in [*node.args, *(k.value for k in node.keywords)])


def _absent(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _name(node: ast.AST) -> str:
    """What a call calls, or how an expression is spelt."""
    node = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _calls(tree: ast.AST) -> set[str]:
    return {_name(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
