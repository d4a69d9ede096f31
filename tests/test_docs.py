"""The pages of docs/ and README: their links lead somewhere, and the site of `make docs` has all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import load_file

ROOT = Path(__file__).resolve().parent.parent
HOOKS = load_file(ROOT / "docs/mkdocs_hooks.py")
PAGES = [ROOT / name for name in HOOKS.ELSEWHERE.values()] + sorted((ROOT / "docs").rglob("*.md"))


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title)) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for _, _, target in HOOKS.LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


def test_links_of_readme_lead_into_the_site():
    text = (
        "[a](docs/audit.md#x) ![b](docs/erase-frontier.svg) [c](LICENSE) [d](docs/audits/) [e](CONTRIBUTING.md) [f](#g)"
    )
    moved = "[a](audit.md#x) ![b](erase-frontier.svg) c [d](audits/README.md) [e](contributing.md) [f](#g)"
    assert HOOKS._moved(text, "README.md", "index.md") == moved
    assert HOOKS._moved("[a](../../README.md)", "docs/audits/README.md", "audits/README.md") == "[a](../index.md)"
    block = "```\n[a](nothing.md)\n```"
    assert HOOKS._moved(block, "README.md", "index.md") == block


def test_a_link_to_nothing_is_refused_in_words():
    with pytest.raises(FileNotFoundError, match=r"README.md links to docs/nothing.md, but there is no docs/nothing.md"):
        HOOKS._moved("[a](docs/nothing.md)", "README.md", "index.md")


@pytest.mark.exhaustive
def test_the_site_has_every_page_and_every_public_name(tmp_path):
    pytest.importorskip("mkdocstrings", reason="make docs installs mkdocs and mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        place = page.relative_to(ROOT / "docs").with_suffix("").as_posix().removesuffix("README")
        place = place if not place or place.endswith("/") else f"{place}/"
        assert (tmp_path / place / "index.html").is_file() and f'href="{place}"' in index, place
    for module, names in HOOKS.public_names().items():
        reference = (tmp_path / "reference" / module / "index.html").read_text(encoding="utf-8")
        assert [name for name in names if f'id="{module}.{name}"' not in reference] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("planted", ["[a](audit.md#no-such-heading)", "[a](no-such-page.md)"])
def test_a_broken_link_fails_the_site(planted, tmp_path):
    pytest.importorskip("mkdocstrings", reason="make docs installs mkdocs and mkdocstrings")
    for name in ("docs", "mkdocs.yml", "README.md", "CONTRIBUTING.md", "LICENSE", "benchmarks", "examples"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    # The pages alone: the reference takes most of the time.
    (tmp_path / "memmod").mkdir()
    page = tmp_path / "docs/report.md"
    page.write_text(f"{page.read_text()}\n{planted}\n")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode and "report.md" in result.stderr, result.stderr
