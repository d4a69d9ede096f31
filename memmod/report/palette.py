"""The colours of the page and of its charts, for light and dark: one table for the style sheet and the figures."""

from __future__ import annotations

import re

# name: (light, dark). Text and soft text have a contrast of at least 4.5 on paper and on card, marks of at least 3.
COLOURS = {
    "paper": ("#fbfaf7", "#14171b"),
    "card": ("#ffffff", "#1c2026"),
    "text": ("#1d2127", "#e9e7e2"),
    "soft": ("#565d68", "#a5acb6"),
    "line": ("#ddd9d0", "#343a43"),
    "track": ("#ece9e2", "#2a3038"),
    "forget": ("#c23c17", "#ff8a66"),
    "retain": ("#1f6aa5", "#74b3e6"),
    "before": ("#767d88", "#8b93a0"),
    "retrained": ("#2f7d4f", "#6fc795"),
    # of heat maps: text keeps its contrast on the fullest of it
    "heat": ("#ec7a50", "#a8401f"),
    "cool": ("#7db3dd", "#1f5f92"),
    "mark": ("#fff3d6", "#2b2617"),
    "mark-line": ("#d9a400", "#b98d1c"),
}

_LIGHT, _DARK = 0, 1


def style() -> str:
    """The colours as CSS variables; the dark ones where the reader's system asks for them, never on paper."""
    light, dark = (" ".join(f"--{name}: {pair[k]};" for name, pair in COLOURS.items()) for k in (_LIGHT, _DARK))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def variable(name: str) -> str:
    """How charts on the page name a colour, so that it follows the reader's system."""
    if name not in COLOURS:
        raise KeyError(name)
    return f"var(--{name})"


def on_paper(text: str) -> str:
    """The same text with light colours in place of variables: for figures outside of the page."""
    return re.sub(r"var\(--([a-z-]+)\)", lambda match: COLOURS[match[1]][_LIGHT], text)
