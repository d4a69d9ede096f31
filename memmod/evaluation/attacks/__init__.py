"""Attacks on a network that should have forgotten, one a file, behind the one interface of `attack`."""

from memmod.errors import RunError
from memmod.evaluation.attacks.anamnesis import ANAMNESIS
from memmod.evaluation.attacks.attack import Attack, Case, Measure, Subject
from memmod.evaluation.attacks.batchnorm import BASE_NORMS, BATCHNORM, RESCALING
from memmod.evaluation.attacks.gate_flip import GATE_FLIP
from memmod.evaluation.attacks.head import HEAD_SWAP
from memmod.evaluation.attacks.membership import MEMBERSHIP
from memmod.evaluation.attacks.probes import PROBING
from memmod.evaluation.attacks.prototype import PROTOTYPE
from memmod.evaluation.attacks.quantisation import QUANTISATION
from memmod.evaluation.attacks.relearning import RELEARNING, RELEARNING_MEMORIES
from memmod.evaluation.attacks.shadow import SHADOW

__all__ = ["ATTACKS", "Attack", "Case", "Measure", "Subject", "get_attack"]

ATTACKS: tuple[Attack, ...] = (
    MEMBERSHIP,
    SHADOW,
    PROBING,
    PROTOTYPE,
    HEAD_SWAP,
    BATCHNORM,
    RESCALING,
    QUANTISATION,
    RELEARNING,
    ANAMNESIS,
    RELEARNING_MEMORIES,
    BASE_NORMS,
    GATE_FLIP,
)
"""Every attack, in the order in which an audit makes them."""


def get_attack(name: str) -> Attack:
    """The attack of that name.

    Raises:
        RunError: there is none.
    """
    for attack in ATTACKS:
        if attack.name == name:
            return attack
    raise RunError(f"unknown attack {name!r}; it must be one of {', '.join(repr(a.name) for a in ATTACKS)}")
