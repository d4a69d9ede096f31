"""Pictures of the gates: they show them, count them, and have words."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from memmod.report import Memory
from memmod.report.pictures import INK, picture, pictures
from memmod.report.png import opacity_png
from tests.report.pages import Parsed, page, run


def test_pictures_have_words_and_show_the_gates():
    generator = np.random.default_rng(0)
    memories = [Memory("stem.conv", generator.random((3, 7))), Memory("block.fc<1>", generator.random((3, 200)))]
    images = [a for tag, a in Parsed(page(run(memories=memories))).tags if tag == "img"]
    assert len(images) == 2
    for image, memory in zip(images, memories, strict=True):
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


def test_more_gates_than_a_page_holds_are_told_not_drawn():
    many = [Memory("fc", np.broadcast_to(np.float32(0.5), (1000, 1501)))]
    names = tuple(map(str, range(1000)))
    assert pictures(many, names) is None
    assert len(pictures([Memory("fc", many[0].gates[:, :9])], names)) == 1
    text = Parsed(page(run(names, False, memories=many))).text
    assert "The gates themselves are not drawn: 1,501,000 of them" in text


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 2, 2)])
def test_png_refuses_what_is_no_picture(shape):
    with pytest.raises(ValueError, match="matrix with rows and columns"):
        opacity_png(np.zeros(shape), INK)
