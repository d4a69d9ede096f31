"""Changed files: each is refused in words, or loads what it held before it was changed.

`python -m tests.fuzz_files --memory 2000 --runs 500` prints how the cases ended, and exits with 1 when one of them did
so otherwise: with a raw error, with other memories, names, settings or weights, late, or with gigabytes of memory. The
cases follow from the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save
from torch import nn

from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.errors import MemmodError
from memmod.files.checkpoint import FILE_NAME
from memmod.files.sealed import CARD_SHA256, TENSORS_SHA256, card_sha256, seal
from memmod.files.state_hash import state_sha256
from memmod.runs import commands
from memmod.runs.commands import DataOptions, UnlearnOptions
from memmod.runs.restore import restore_base, restore_unlearned
from memmod.unlearning import Trainer
from memmod.unlearning.round import Round
from tests.unlearning import problem

SECONDS = 10
MEBIBYTES = 512
NAMES = ("ant", "bee", "cow", "dog", "eel")
OTHER_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7.5, -0.0, 1e308, 10**12, 10**30, 10**400, float("nan"), float("inf"), "", "x", "1",
    "digits", "../..", "nul\0", "\ud800", "a" * 5000, "/" + "b/" * 3000, [], [1], [[]], ["a", "a"], [None] * 9, {},
    {"a": 1}, {"": {"": []}},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of everything inside a JSON value, at every depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def neighbour(rng: random.Random, value: Any) -> Any:
    """A value of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice((1, -1))
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice("abxyz019") + value[at + 1 :]
    if isinstance(value, list) and value:
        return rng.choice((value[::-1], value[:-1], [*value, value[0]], value[1:] + value[:1], [value[0]] * len(value)))
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return {**{k: v for k, v in value.items() if k != key}, f"{key}x": value[key]}
    return rng.choice(OTHER_VALUES)


def edited(rng: random.Random, value: Any) -> Any:
    """A JSON value with one field removed, replaced or moved."""
    value = copy.deepcopy(value)
    *parents, last = rng.choice(list(places(value)))
    holder = value
    for key in parents:
        holder = holder[key]
    action = rng.choice(("remove", "replace", "replace", "neighbour", "neighbour"))
    if action == "remove":
        del holder[last]
    else:
        holder[last] = rng.choice(OTHER_VALUES) if action == "replace" else neighbour(rng, holder[last])
    return value


def damaged_text(rng: random.Random, text: str) -> str:
    """A JSON text with something in it that a lax reader passes over, or falls over."""
    numbers = [i for i, c in enumerate(text) if c.isdigit() and (i == 0 or not text[i - 1].isalnum())]
    at = rng.choice(numbers)
    key = rng.choice([k for k in json.loads(text)])
    return rng.choice(
        (
            text[:at] + "1" * 5000 + text[at + 1 :],
            text[:at] + "1e999" + text[at + 1 :],
            text[:at] + "NaN" + text[at + 1 :],
            text[:at] + "-Infinity" + text[at + 1 :],
            text.replace("{", "{" + json.dumps(key) + ": 1, ", 1),
            text.rstrip()[:-1] + f", {json.dumps(key)}: null}}",
            text.rstrip()[:-1] + ', "deep": ' + "[" * 50_000 + "]" * 50_000 + "}",
            "[" * 100_000,
            '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"',
            f"[{text}]",
            text + text,
            "\ufeff" + text,
            text.replace('"', "'"),
            "null",
            "",
        )
    )


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flipped, lost, added and overwritten bytes; more of them near the front, where headers are."""
    data = bytearray(content)
    span = rng.choice((8, 400, len(data), len(data)))
    at = rng.randrange(min(span, len(data)))
    action = rng.choice(("flip", "flip", "flip", "flips", "cut", "insert", "append", "drop", "overwrite", "zero"))
    if action == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif action == "flips":
        for _ in range(rng.randint(2, 40)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del data[at:]
    elif action == "insert":
        data[at:at] = rng.randbytes(rng.randint(1, 16))
    elif action == "append":
        data += rng.randbytes(rng.randint(1, 64))
    elif action == "drop":
        del data[at : at + rng.randint(1, 16)]
    elif action == "overwrite":
        data[at : at + 8] = rng.randbytes(8)
    else:
        data[at : at + 64] = bytes(min(64, len(data) - at))
    return bytes(data)


def changed_json(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    kind = rng.choice(("fields", "fields", "fields", "text", "bytes", "layout"))
    if kind == "fields":
        return kind, json.dumps(edited(rng, json.loads(content))).encode()
    if kind == "text":
        return kind, damaged_text(rng, content.decode()).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        return kind, damaged_bytes(rng, content)
    return kind, json.dumps(reordered(rng, json.loads(content)), indent=rng.choice((None, 1, 7))).encode()


def reordered(rng: random.Random, value: Any) -> Any:
    """The same JSON value with its keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: reordered(rng, value[key]) for key in keys}
    return [reordered(rng, item) for item in value] if isinstance(value, list) else value


@dataclass
class Parts:
    """A safetensors file in its parts: the header as JSON, the card within it, and the bytes of the tensors."""

    header: dict[str, Any]
    data: bytes

    @classmethod
    def of(cls, content: bytes) -> Parts:
        (length,) = struct.unpack("<Q", content[:8])
        return cls(json.loads(content[8 : 8 + length]), content[8 + length :])

    @property
    def card(self) -> dict[str, Any]:
        return json.loads(self.header["__metadata__"]["card"])

    def with_card(self, text: str) -> bytes:
        return Parts({**self.header, "__metadata__": {"card": text}}, self.data).join()

    def join(self) -> bytes:
        # A reader has to take the header as it stands, half surrogate pairs and NaN included.
        header = json.dumps(self.header).encode()
        header += b" " * (-len(header) % 8)
        return struct.pack("<Q", len(header)) + header + self.data


def changed_safetensors(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A safetensors file with a changed header, exchanged tensors, or changed bytes."""
    parts = Parts.of(content)
    kind = rng.choice(("header", "tensors swapped", "bytes", "bytes", "tensor bits"))
    if kind == "header":
        entries = edited(rng, {key: entry for key, entry in parts.header.items() if key != "__metadata__"})
        kept = {key: parts.header[key] for key in ("__metadata__",) if key in parts.header}
        return kind, Parts({**kept, **entries}, parts.data).join()
    if kind == "tensors swapped":
        one, two = rng.sample([key for key in parts.header if key != "__metadata__"], 2)
        header = dict(parts.header)
        header[one], header[two] = header[two], header[one]
        return kind, Parts(header, parts.data).join()
    if kind == "bytes":
        return kind, damaged_bytes(rng, content)
    data = bytearray(parts.data)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return kind, Parts(parts.header, bytes(data)).join()


def changed_card(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A safetensors file with a changed card: as it is, with its hash made anew, or without hashes (format 1)."""
    parts = Parts.of(content)
    kind = rng.choice(("card fields", "card fields", "card text", "card layout", "card sealed anew", "card version 1"))
    card = parts.card
    if kind == "card text":
        return kind, parts.with_card(damaged_text(rng, json.dumps(card)))
    if kind == "card layout":
        return kind, parts.with_card(json.dumps(reordered(rng, card), indent=rng.choice((None, 1, 7))))
    if kind == "card version 1":
        card = {**{key: v for key, v in card.items() if key not in (TENSORS_SHA256, CARD_SHA256)}, "version": 1}
    card = edited(rng, card)
    if kind == "card sealed anew":
        # Text that is not UTF-8 has no hash.
        with contextlib.suppress(ValueError):
            card = {**card, CARD_SHA256: card_sha256(card)}
    return kind, parts.with_card(json.dumps(card))


def odd_tensors(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A memory file of tensors that no model has, with hashes that fit them."""
    tensors, card = deserialise(content), Parts.of(content).card
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    odd = rng.choice(
        (
            lambda: tensor.to(rng.choice((torch.bool, torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn))),
            lambda: tensor.to(rng.choice((torch.float8_e5m2, torch.int16, torch.uint16, torch.float8_e8m0fnu))),
            lambda: tensor.double().fill_(1e300),
            lambda: torch.full_like(tensor, rng.choice((float("nan"), float("inf")))),
            lambda: tensor[:, :0],
            lambda: tensor[:0],
            lambda: tensor[0],
            lambda: tensor.sum(),
            lambda: tensor[None],
            lambda: tensor.T,
            lambda: torch.cat([tensor, tensor]),
            lambda: torch.empty(0),
        )
    )().contiguous()
    tensors[name] = odd
    return "odd tensors", save(tensors, metadata={"card": json.dumps(seal(card, tensors))})


@dataclass
class Tally:
    """How cases ended, by what was changed, and the failures in words."""

    ends: dict[str, Counter] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, end: str, what: str = "") -> None:
        self.ends.setdefault(kind, Counter())[end] += 1
        if end not in ("refused in words", "loads the same"):
            self.failures.append(f"{kind}: {end}: {what.strip()}")

    def __str__(self) -> str:
        columns = ["refused in words", "loads the same"]
        columns += sorted({end for counts in self.ends.values() for end in counts} - set(columns))
        rows = [["changed", "cases", *columns]]
        rows += [[kind, c.total(), *(c[end] for end in columns)] for kind, c in sorted(self.ends.items())]
        rows.append(["all", *(sum(row[i] for row in rows[1:]) for i in range(1, len(rows[0])))])
        return "\n".join("".join(str(cell).ljust(40 if i == 0 else 18) for i, cell in enumerate(row)) for row in rows)


def judge(tally: Tally, kind: str, load: Callable[[], str | None], names: tuple[str, ...], change: str = "") -> None:
    """Load one case: `load` gives None, or what differs from the original; a refusal has to hold one of `names`."""

    def late(*_: object) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(3 * SECONDS)
    try:
        different = load()
        end = ("loads the same", "") if different is None else ("loads something else", different)
    except MemmodError as error:
        named = any(name in str(error) for name in names)
        end = ("refused in words", "") if named else ("refused without naming the file", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        end = ("raw error", f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if time.monotonic() - started > SECONDS:
        end = ("late", end[1])
    elif grown > MEBIBYTES:
        end = ("memory", f"{grown:.0f} MiB more, {end}")
    tally.add(kind, end[0], f"{change} {end[1]}")


def put(path: Path, content: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def put_another_kind(rng: random.Random, path: Path) -> str:
    """Put something that is no file of memmod in the place of one."""
    if path.exists():
        path.unlink()
    kind = rng.choice(("missing", "directory", "empty", "link to itself", "pickle", "noise"))
    if kind == "directory":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "pickle":
        torch.save({"memory": torch.randn(3, 3)}, path)
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else rng.randbytes(rng.randint(1, 4000)))
    return kind


class Net(nn.Module):
    """The smallest network with two memories of one shape, a convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.head = nn.Linear(6, len(NAMES))

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(self.norm(self.conv(x)).mean(dim=(2, 3))).relu()))


def facts(wf: ModulatedModel) -> tuple:
    return wf.class_names, wf.num_classes, wf.config, wf.input_shape


def same_memories(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def fuzz_memory(count: int, seed: int, folder: Path) -> Tally:
    """Changed memory files, each loaded by `ModulatedModel.from_file`."""
    rng, tally = random.Random(f"memory {seed}"), Tally()
    torch.manual_seed(seed)
    base, path = Net().eval(), folder / "memory.safetensors"
    config = ModulateConfig(skip=("nothing.*",), granularity="unit+input")
    wf = modulate(base, len(NAMES), torch.randn(2, 1, 5, 5), config, NAMES)
    for memory in wf.memory_parameters():
        memory.data.normal_()
    wf.save_memory(path, {"note": "mine", "seed": 3, "metrics": {"worst": [0.25, 1e-9]}})
    content, memories, expected = path.read_bytes(), wf.memory_state(), facts(wf)

    def load() -> str | None:
        again = ModulatedModel.from_file(base, path)
        if not same_memories(again.memory_state(), memories):
            return "other memories"
        # Who can make the hashes anew, or writes the old format, can name other classes.
        if not honest and facts(again) != expected:
            return f"{facts(again)} for {expected}"
        return None

    for _ in range(count):
        honest = False
        group = rng.choice(("card", "card", "card", "tensors", "tensors", "odd", "another"))
        if group == "card":
            kind, changed = changed_card(rng, content)
            honest = kind in ("card sealed anew", "card version 1")
        elif group == "tensors":
            kind, changed = changed_safetensors(rng, content)
        elif group == "odd":
            kind, changed = odd_tensors(rng, content)
        if group == "another":
            put(path, b"")
            kind = put_another_kind(rng, path)
        else:
            put(path, changed)
        judge(tally, kind, load, (str(path),))
    return tally


FILES = {
    "base": ("config.json", "base.json", "metrics.json", "base.safetensors"),
    "unlearned": ("config.json", "metrics.json", "memory.safetensors"),
}


def make_runs(folder: Path, seed: int) -> dict[str, dict[str, bytes]]:
    """The files of a base and of an unlearned run in `folder`, as small as they get."""
    base = commands.train(folder / "base", DataOptions(), "resnet", changes={"epochs": 1, "seed": seed}, overwrite=True)
    tiny = {"steps": 2, "eval_every": 1, "batch_size": 8, "seed": seed, "validation_images": 40}
    commands.unlearn(base, folder / "unlearned", UnlearnOptions(changes=tiny), overwrite=True)
    return {run: {name: (folder / run / name).read_bytes() for name in names} for run, names in FILES.items()}


def fuzz_runs(count: int, seed: int, folder: Path) -> Tally:
    """Changed run folders of a base and its unlearning, each read as `memmod evaluate` and `memmod bake` read them."""
    rng, tally = random.Random(f"runs {seed}"), Tally()
    other = make_runs(folder, seed + 1)
    files = make_runs(folder, seed)
    expected = restore_unlearned(folder / "unlearned")
    memories, weights = expected.wf.memory_state(), state_sha256(expected.base.model)

    def load() -> str | None:
        base = restore_base(folder / "base")
        if state_sha256(base.model) != weights:
            return "other weights of the base"
        if base.meta["class_names"] != expected.base.meta["class_names"]:
            return "other class names of the base"
        unlearned = restore_unlearned(folder / "unlearned")
        data = unlearned.load_data()
        unlearned.run.metrics()
        if not same_memories(unlearned.wf.memory_state(), memories):
            return "other memories"
        if facts(unlearned.wf) != facts(expected.wf) or data.class_names != expected.wf.class_names:
            return f"{facts(unlearned.wf)} for {facts(expected.wf)}"
        return None

    for _ in range(count):
        run = rng.choice(list(files))
        name = rng.choice(FILES[run])
        path = folder / run / name
        group = rng.choice(("content", "content", "content", "content", "another", "swap"))
        if group == "content":
            change = changed_json if name.endswith(".json") else changed_safetensors
            if name == "memory.safetensors" and rng.random() < 0.5:
                change = changed_card
            kind, content = change(rng, files[run][name])
            # A card whose hash was made anew is not damage, but another card.
            while kind in ("card sealed anew", "card version 1"):
                kind, content = change(rng, files[run][name])
            put(path, content)
        elif group == "another":
            kind = put_another_kind(rng, path)
        else:
            kind, source = rng.choice((("other run's", other[run]), ("another name's", files[run])))
            put(path, source[name] if kind == "other run's" else source[rng.choice(FILES[run])])
        judge(tally, f"{run}/{name}", load, (str(folder), "data set"), kind)
        put(path, files[run][name])
    return tally


class Reached(Exception):
    """The round was about to go on."""


def fuzz_checkpoints(count: int, seed: int, folder: Path) -> Tally:
    """Changed checkpoints, each taken up by a round; what it would go on from is compared."""
    rng, tally = random.Random(f"checkpoints {seed}"), Tally()
    path, data = folder / FILE_NAME, problem.dataset()
    Trainer(problem.modulated(), data, problem.quick(), folder).fit()
    content = path.read_bytes()

    def state(round_: Round) -> tuple:
        tensors = {**round_.wf.memory_state(), **{f"best {k}": t for k, t in round_.best_memories.items()}}
        for i, values in round_.optimiser.state_dict()["state"].items():
            tensors.update({f"{i} {key}": value for key, value in values.items()})
        tensors["draws"] = round_.generator.get_state()
        progress = (round_.step, round_.seconds, round_.history, round_.since_evaluation, round_.best, round_.warned)
        return {name: t.clone() for name, t in tensors.items()}, progress

    def reach() -> tuple:
        reached: list[tuple] = []
        run = Round.run

        def stop(self: Round) -> None:
            reached.append(state(self))
            raise Reached

        Round.run = stop
        try:
            with contextlib.suppress(Reached):
                Trainer(problem.modulated(), data, problem.quick(), folder).fit(resume=True)
        finally:
            Round.run = run
        return reached[0]

    tensors, progress = reach()

    def load() -> str | None:
        found, other = reach()
        if not same_memories(found, tensors):
            return "another state"
        return None if other == progress or honest else f"{other} for {progress}"

    for _ in range(count):
        kind, changed = rng.choice((changed_card, changed_safetensors))(rng, content)
        honest = kind == "card sealed anew"
        put(path, changed)
        judge(tally, kind, load, (str(path),))
    return tally


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Load changed files of memmod, and tell how that ended.")
    parser.add_argument("--memory", type=int, default=2000, help="changed memory files")
    parser.add_argument("--runs", type=int, default=500, help="changed run folders")
    parser.add_argument("--checkpoints", type=int, default=500, help="changed checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.getLogger("memmod").setLevel(logging.ERROR)
    failures: list[str] = []
    kinds = {"memory": fuzz_memory, "runs": fuzz_runs, "checkpoints": fuzz_checkpoints}
    for name, fuzz in kinds.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            tally = fuzz(getattr(options, name), options.seed, Path(folder))
        failures += tally.failures
        print(f"{name}, {time.monotonic() - started:.0f} s\n{tally}\n")
    print("\n".join(failures[:100]) or "no failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
