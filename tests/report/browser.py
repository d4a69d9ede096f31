"""A page in headless Chromium: what it logs, what it asks for, and what axe-core finds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
AXE_VERSION = "4.14.1"
AXE = ROOT / f"build/axe-core-{AXE_VERSION}.js"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_SECONDS = 20


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements/dev.txt)")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that was opened from a file, and everything it logged and asked for since."""

    page: Any
    logged: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        """The text of the first element, white space as single blanks; no-break spaces stay."""
        return " ".join(part for part in self.page.inner_text(selector).replace("\n", " ").split(" ") if part)

    def violations(self, axe: Path) -> list[str]:
        """What axe-core objects to, each with the elements."""
        # beside the page's policy, which lets no other script in
        self.page.evaluate(axe.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{violation['id']}: {violation['help']}: {[node['html'][:200] for node in violation['nodes']][:4]}"
            for violation in found["violations"]
        ]


@contextmanager
def opened(
    browser: Any, html: str, folder: Path, *, width: int = 1100, scheme: str = "light", anchor: str = ""
) -> Iterator[Opened]:
    """The page in a window of a width, once it is drawn; it must have logged nothing and asked for nothing else."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(1000 * _SECONDS)
    shown = Opened(page)
    page.on("console", lambda message: shown.logged.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: shown.logged.append(f"error: {error}"))
    page.on("dialog", lambda dialog: shown.logged.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: shown.requests.append(request.url))
    page.goto(path.as_uri() + anchor)
    page.wait_for_selector("html[data-ready]", state="attached")
    yield shown
    page.wait_for_timeout(50)
    assert shown.logged == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def axe() -> Path:
    """axe-core's script, fetched once by npm; the test is skipped, with the reason, where that cannot be."""
    if AXE.exists():
        return AXE
    if shutil.which("npm") is None:
        pytest.skip("axe-core is fetched by npm, which is not installed")
    AXE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=AXE.parent) as folder:
        command = ["npm", "pack", "--silent", f"axe-core@{AXE_VERSION}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"axe-core cannot be fetched: {getattr(error, 'stderr', None) or error}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            script = archive.extractfile("package/axe.min.js").read()
        Path(folder, "axe.js").write_bytes(script)
        os.replace(Path(folder, "axe.js"), AXE)
    return AXE
