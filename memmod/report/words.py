"""Figures as the page writes them."""

from __future__ import annotations

import json
from typing import Any

NOTHING = "–"


def percent(value: float | None) -> str:
    """0.987 as 98.7 %, which no line breaks."""
    return NOTHING if value is None else f"{100 * value:.1f}\u00a0%"


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: -0.004 as −0.4."""
    if value is None:
        return NOTHING
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def figure(value: float | None, digits: int = 3) -> str:
    """0.98712 as 0.987, -0.5 as −0.500."""
    return NOTHING if value is None else f"{value:.{digits}f}".replace("-", "−")


def layer(name: str) -> str:
    """A layer by the name of its memory: blocks.2.conv1.memory is that of blocks.2.conv1."""
    return name.removesuffix(".memory")


def setting(value: Any) -> str:
    """A JSON value as settings are read: text as it is, lists separated by commas."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int, float)) for item in value):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
