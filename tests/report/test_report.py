"""The report: self-contained, complete, escaped, and its pictures show the gates."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from memmod.report import LayerNote, Memory, Method, Network, Report, render, write_report
from memmod.report.bars import bars
from memmod.report.page import percent, points
from memmod.report.pictures import INK, picture
from memmod.report.png import opacity_png

NAMES = ("cat", "dog & <owl>", "eel")


@pytest.fixture
def report() -> Report:
    generator = np.random.default_rng(0)
    methods = [
        Method("memmod", [0.0, 0.01, 0.02], [0.9, 0.91, 0.925]),
        Method("original", [0.93, 0.94, 0.95], [0.92, 0.91, 0.9]),
        Method("logit mask", [0.0, 0.0, 0.0], [0.95, 0.94, 0.93]),
        Method("random gates", [0.4, 0.5, 0.6], [0.5, 0.5, 0.5]),
    ]
    memories = [Memory("stem.conv", generator.random((3, 7))), Memory("block.fc<1>", generator.random((3, 200)))]
    notes = [LayerNote("stem.conv", "gated", "folded with stem.bn"), LayerNote("head", "skipped", "classifier head")]
    network = Network("ResNet", methods, memories, notes, {"unlearning": "7 s"})
    return Report("Forgetting animals", "folder:animals", NAMES, [network], {"seed": "0"})


class _Page(HTMLParser):
    void = {"meta", "link", "img", "br", "col", "input", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_page_loads_nothing_from_elsewhere(report):
    page = parse(render(report))
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, attributes[name])
    style = re.search(r"<style>(.*?)</style>", render(report), re.S).group(1)
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_links_in_the_page_lead_somewhere(report):
    page = parse(render(report))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    targets += [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert targets and set(targets) <= set(ids)


def test_every_figure_is_in_the_table(report):
    page = parse(render(report))
    text = " ".join(page.text)
    for method in report.networks[0].methods:
        assert method.name in text
        for value in [*method.forget, *method.retain, method.worst_forget, method.mean_retain]:
            assert percent(value) in text
    cells = sum(tag == "td" for tag, _ in page.tags)
    assert cells == (len(NAMES) + 2) * 8 + 2 * len(report.networks[0].notes)


def test_page_says_what_it_does_not_do(report):
    text = re.sub(r"\s+", " ", " ".join(parse(render(report)).text))
    assert "suppresses at run time" in text
    assert "It suppresses; it does not erase." in text
    assert "classifier head" in text


def test_names_are_escaped(report):
    html = render(report)
    assert "<owl>" not in html and "dog &amp; &lt;owl&gt;" in html
    assert "fc<1>" not in html


def test_pictures_have_words_and_show_the_gates(report):
    page = parse(render(report))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2
    for image, memory in zip(images, report.networks[0].memories, strict=True):
        assert memory.layer in image["alt"] and "%" in image["alt"]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).convert("RGBA"))
        assert pixels.shape == (*memory.gates.shape, 4)
        assert (pixels[..., :3] == INK).all()
        np.testing.assert_allclose(pixels[..., 3] / 255, 1 - memory.gates, atol=0.5 / 255)


def test_picture_counts_closed_gates():
    gates = np.array([[0.0, 0.1, 0.9, 0.9], [0.0, 0.8, 0.9, 0.9]])
    drawn = picture(Memory("fc", gates), ("a", "b"))
    assert drawn.closed == 3 / 8
    assert drawn.shared == 1
    assert "38% of the gates are closed, most for a (50%), fewest for b (25%)" in drawn.description


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 2, 2)])
def test_png_refuses_what_is_no_picture(shape):
    with pytest.raises(ValueError, match="matrix with rows and columns"):
        opacity_png(np.zeros(shape), INK)


def test_bars_are_as_long_as_the_accuracies(report):
    ours, original = report.networks[0].methods[:2]
    rows = bars(ours, original, NAMES)
    assert [row.label for row in rows] == list(NAMES)
    widths = re.findall(r'class="bar (\w+)" width="([\d.]+)%"', str(rows[2].svg))
    assert widths == [("forget", "2.00"), ("retain", "92.50")]
    assert re.findall(r'class="tick" x="([\d.]+)%"', str(rows[2].svg)) == ["95.00", "90.00"]


def test_differences_carry_their_sign():
    assert [points(v) for v in (-0.004, 0.004, -0.0001, 0.0)] == ["−0.4", "+0.4", "0.0", "0.0"]


def test_report_is_written_over_an_older_one(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(report, path)
    assert path.read_text(encoding="utf-8") == render(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
