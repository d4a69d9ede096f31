"""The audit of a network that should have forgotten: attacks, oracles' intervals, verdicts, one card."""

from memmod.evaluation.audit.audit import Bench, Progress, audit, expected_seconds
from memmod.evaluation.audit.card import AuditCard, Row
from memmod.evaluation.audit.interval import OracleInterval, Verdict, judge

__all__ = [
    "AuditCard",
    "Bench",
    "OracleInterval",
    "Progress",
    "Row",
    "Verdict",
    "audit",
    "expected_seconds",
    "judge",
]
