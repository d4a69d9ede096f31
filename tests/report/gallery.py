"""docs/gallery: a report's page as it looks, and its figures; `python -m tests.report.gallery RUN` makes them anew."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from memmod.cli.main import app
from tests.report.browser import ROOT, chromium

GALLERY = ROOT / "docs/gallery"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
# Vega draws once the fonts are there.
DRAWN_MS = 4000
# Enough for flat colours and small photographs, at a quarter of the bytes.
COLOURS = 128


def screenshots(page: Path, folder: Path) -> None:
    """The whole page at two widths, light and dark, as FOLDER/page-WIDTH-SCHEME.png."""
    with chromium() as browser:
        for name, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                tab = context.new_page()
                tab.goto(page.as_uri())
                tab.wait_for_timeout(DRAWN_MS)
                shot = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
                _save(shot, folder / f"page-{name}-{scheme}.png")
                context.close()


def _save(image: Image.Image, path: Path) -> None:
    image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run folder that explain and audit have been run on")
    parser.add_argument("--base", help="its base's folder, if that has moved since")
    parser.add_argument("--out", type=Path, default=GALLERY)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        moved = ["--base", options.base] if options.base else []
        app(
            ["report", options.run, "--out", str(page), "--png", str(options.out), "--overwrite", *moved],
            standalone_mode=False,
        )
        for figure in options.out.glob("*.png"):
            _save(Image.open(figure), figure)
        screenshots(page, options.out)


if __name__ == "__main__":
    main()
