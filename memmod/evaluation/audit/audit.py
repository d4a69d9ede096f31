"""The audit: every attack on a network and on what it is compared with, each figure judged by the oracles' interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memmod.errors import DataError, ModelError, RunError
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.audit.card import AuditCard, Row
from memmod.evaluation.audit.interval import UNJUDGED, WITHIN, OracleInterval, Verdict, judge
from memmod.files.state_hash import state_sha256

if TYPE_CHECKING:
    from memmod.files.parts import Parts

# Raised whenever the figures of every attack would change: what is handed to them, how images are chosen.
VERSION = 1
# Images that time a forward pass.
TIMED = 200


@dataclass(frozen=True)
class Progress:
    """One part done: `part` of `parts`, the `attack` and its `subject`; the rest takes about `seconds_left`."""

    part: int
    parts: int
    attack: str
    subject: str
    seconds_left: float


@dataclass(frozen=True)
class Bench:
    """Who is on the bench: the suspect, and whom it is compared with.

    Args:
        suspect: the network that should have forgotten.
        held_out: an oracle that the interval is not made from, which every attack must let pass; None: none is spared.
        control: the trivial rival.
        others: further networks that the suspect stands beside; no verdict is about them.
    """

    suspect: Subject
    held_out: Subject | None
    control: Subject
    others: tuple[Subject, ...] = ()


def audit(
    bench: Bench,
    case: Case,
    attacks: Sequence[Attack],
    *,
    parts: Parts | None = None,
    data: str = "",
    on_part: Callable[[Progress], None] = lambda _progress: None,
) -> AuditCard:
    """Run every attack on the suspect, the oracles, the original and the control.

    The held-out oracle comes first: an attack that calls it worse than the oracles is reported as broken.

    Args:
        bench: the networks.
        case: the original network, the oracles, the classes and the data.
        attacks: of `memmod.evaluation.attacks.ATTACKS`, say.
        parts: where finished parts are kept; a later call with the same networks, data and settings takes them from
            there, so that an audit resumes after a kill.
        data: a hash of the images and labels, part of the parts' keys.
        on_part: called after each part.

    Raises:
        RunError: fewer than 2 oracles.
        ModelError: an oracle is of another architecture than the original.
    """
    if len(case.oracles) < 2:
        raise RunError(f"an audit needs at least 2 oracles to make an interval from, not {len(case.oracles)}")
    check_architectures(bench, case)
    work = list(_work(bench, case, attacks))
    clock = _Clock(work, lambda: seconds_per_image(bench.suspect, case))
    found: dict[tuple[str, str], dict[str, Measure] | str] = {}
    hashes = _Hashes()
    for number, (attack, subject, own_case) in enumerate(work):
        key = _key(attack, subject, own_case, data, hashes) if parts is not None else {}
        stored = parts.get(key) if parts is not None else None
        if stored is None:
            start = time.monotonic()
            result = _attempt(attack, subject, own_case)
            clock.took(number, time.monotonic() - start)
            if parts is not None:
                parts.put(key, _stored(result))
        else:
            result = _restored(stored)
            clock.took(number, None)
        found[attack.name, subject.name] = result
        on_part(Progress(number + 1, len(work), attack.name, subject.name, clock.left()))
    rows = [row for attack in attacks for row in _rows(attack, bench, case, found)]
    return AuditCard(case.forget, tuple(rows), len(case.oracles), tuple(other.name for other in bench.others))


def expected_seconds(bench: Bench, case: Case, attacks: Sequence[Attack]) -> float:
    """About how long `audit` takes for the same `bench`, `case` and `attacks` where no part of it is finished."""
    return _cost(list(_work(bench, case, attacks))) * seconds_per_image(bench.suspect, case)


def _work(bench: Bench, case: Case, attacks: Sequence[Attack]) -> Iterator[tuple[Attack, Subject, Case]]:
    """Every part, in order; each oracle is judged against the others alone."""
    first = [] if bench.held_out is None else [bench.held_out]
    oracles = [Subject(oracle_name(number), network) for number, network in enumerate(case.oracles)]
    original = Subject("original", case.original)
    for subject in [*first, *oracles, bench.suspect, original, bench.control, *bench.others]:
        rest = tuple(oracle for oracle in case.oracles if oracle is not subject.network)
        for attack in attacks:
            yield attack, subject, replace(case, oracles=rest)


def oracle_name(number: int) -> str:
    """What the cards call an oracle."""
    return f"oracle {number + 1}"


def check_architectures(bench: Bench, case: Case) -> None:
    """Check that the oracles are networks of the original's architecture.

    Raises:
        ModelError: one is not.
    """
    expected = _layout(case.original)
    held_out = [] if bench.held_out is None else [bench.held_out.network]
    for number, oracle in enumerate([*case.oracles, *held_out]):
        if _layout(oracle) != expected:
            raise ModelError(
                f"{oracle_name(number)} is a {type(oracle).__name__} of another architecture than the original "
                f"{type(case.original).__name__}: retrain it from the same base with `memmod retrain`"
            )


def _layout(network: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in network.state_dict().items() if hasattr(value, "shape")]


def _attempt(attack: Attack, subject: Subject, case: Case) -> dict[str, Measure] | str:
    """The figures, or why there are none."""
    reason = attack.applies(subject, case)
    if reason is not None:
        return reason
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            return attack.run(subject, case)
    except DataError as error:
        return str(error)


class _Hashes(dict[nn.Module, str]):
    """The hash of each network's state, computed once."""

    def __missing__(self, network: nn.Module) -> str:
        self[network] = state_sha256(network)
        return self[network]


def _key(attack: Attack, subject: Subject, case: Case, data: str, hashes: _Hashes) -> dict[str, Any]:
    """Everything that a part's figures depend on."""
    return {
        "audit": VERSION,
        "attack": attack.name,
        "version": attack.version,
        "subject": hashes[subject.network],
        "memories": None if subject.wf is None else hashes[subject.wf],
        "original": hashes[case.original],
        "oracles": [hashes[oracle] for oracle in case.oracles],
        "forget": list(case.forget),
        "data": data,
        "training": asdict(case.training),
        "seed": case.seed,
        "quick": case.quick,
        "torch": torch.__version__,
    }


def _stored(result: dict[str, Measure] | str) -> Any:
    if isinstance(result, str):
        return {"reason": result}
    return {name: [m.value, m.resolution, m.interval] for name, m in result.items()}


def _restored(stored: dict[str, Any]) -> dict[str, Measure] | str:
    if "reason" in stored:
        return stored["reason"]
    return {
        name: Measure(math.nan if value is None else value, resolution, None if interval is None else tuple(interval))
        for name, (value, resolution, interval) in stored.items()
    }


def _rows(
    attack: Attack, bench: Bench, case: Case, found: dict[tuple[str, str], dict[str, Measure] | str]
) -> Iterator[Row]:
    """A row for each figure of an attack, or one that says why it has none."""
    own = found[attack.name, bench.suspect.name]
    if isinstance(own, str):
        yield Row(attack.name, "", attack.level, None, (), None, None, None, Verdict(UNJUDGED), False, own)
        return
    names = [oracle_name(number) for number in range(len(case.oracles))]
    for figure, measure in own.items():

        def value_of(subject: str, figure: str = figure) -> float | None:
            figures = found.get((attack.name, subject))
            return figures[figure].value if isinstance(figures, dict) and figure in figures else None

        values = tuple(value for value in map(value_of, names) if value is not None)
        held_out = None if bench.held_out is None else value_of(bench.held_out.name)
        verdict, broken = Verdict(UNJUDGED), False
        if len(values) >= 2:
            interval = OracleInterval(values, measure.resolution)
            meaning = attack.meaning(figure)
            verdict = judge(measure.value, interval, meaning)
            broken = held_out is not None and judge(held_out, interval, meaning).word not in (WITHIN, UNJUDGED)
        yield Row(
            attack=attack.name,
            figure=figure,
            level=attack.level,
            measure=measure,
            oracles=values,
            held_out=held_out,
            original=value_of("original"),
            control=value_of(bench.control.name),
            verdict=verdict,
            broken=broken,
            reason="",
            others={other.name: value_of(other.name) for other in bench.others},
        )


def seconds_per_image(subject: Subject, case: Case) -> float:
    """How long a forward pass takes, by image."""
    device = next((p.device for p in subject.network.parameters()), torch.device("cpu"))
    x = case.test.batch(torch.arange(min(TIMED, len(case.test)))).to(device)
    with torch.no_grad():
        case.logits(subject.network, x)
        start = time.monotonic()
        case.logits(subject.network, x)
    return (time.monotonic() - start) / len(x)


def _cost(work: Sequence[tuple[Attack, Subject, Case]]) -> float:
    return sum(attack.cost(case) for attack, subject, case in work if attack.applies(subject, case) is None)


class _Clock:
    """Tells how long the rest will take, from what the parts so far cost and took."""

    def __init__(self, work: Sequence[tuple[Attack, Subject, Case]], seconds_per_image: Callable[[], float]) -> None:
        self.costs = [_cost([part]) for part in work]
        self.rate = seconds_per_image()
        self.cost = self.seconds = 0.0
        self.done = 0

    def took(self, number: int, seconds: float | None) -> None:
        """Part `number` is done, in that many seconds; None: it was finished before."""
        self.done = number + 1
        if seconds is not None:
            self.cost += self.costs[number]
            self.seconds += seconds

    def left(self) -> float:
        rest = sum(self.costs[self.done :])
        return rest * (self.seconds / self.cost if self.cost else self.rate)
