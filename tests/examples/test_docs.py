"""The Python in docs/training-loops.md runs as written; what the pages link to and name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = ("training-loops.md", "serving.md")


@pytest.mark.slow
def test_training_loops_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "training-loops.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/training-loops.md, snippet {number + 1}", "exec"), names)
    assert (tmp_path / "digits.safetensors").exists()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("http") or (DOCS / link).exists(), link


def test_the_servers_options_exist() -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    known = set(re.findall(r'"(--[\w-]+)"', (DOCS.parent / "examples/serve.py").read_text(encoding="utf-8")))
    known |= set(re.findall(r'"(--[\w-]+)"', (DOCS.parent / "benchmarks/serving.py").read_text(encoding="utf-8")))
    named = set(re.findall(r"(--[a-z][\w-]+)", text)) - {"--data-binary", "--json"}
    assert named and named <= known, named - known
