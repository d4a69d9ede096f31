"""Curves of insertion and deletion as they come out by hand, on a network that adds pixels up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from memmod import ModulatedModel
from memmod.errors import SelectionError
from memmod.explain.blur import blurred
from memmod.explain.faithfulness import FaithfulnessConfig, area, curves, ranks
from tests.explain.helpers import with_memories

WEIGHTS = torch.tensor([[2.0, -1.0], [0.5, 1.0]])
X = torch.tensor([[[1.0, 2.0], [4.0, 0.5]]])[None]
ZERO = torch.zeros(1, dtype=torch.int64)


class Adds(nn.Module):
    """Logits (Σ w·x, 0) of 2 × 2 pixels; its one gated layer passes them on."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(1, 1, 1, bias=False)
        self.fc = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.pixels.weight.fill_(1.0)
            self.fc.weight.copy_(torch.stack((WEIGHTS.flatten(), torch.zeros(4))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pixels(x).flatten(1))


def network() -> ModulatedModel:
    return with_memories(Adds().eval(), torch.cat((X, torch.randn(1, 1, 2, 2))))


def by_hand(start: list[float], end: list[float], order: list[int]) -> list[float]:
    """sigmoid(Σ w·x) as the pixels of `end` take the place of those of `start`."""
    pixels, found = list(start), []
    for pixel in [None, *order]:
        if pixel is not None:
            pixels[pixel] = end[pixel]
        logit = sum(w * p for w, p in zip(WEIGHTS.flatten().tolist(), pixels, strict=True))
        found.append(1 / (1 + math.exp(-logit)))
    return found


def test_pixels_turn_black_and_back_in_the_map_s_order() -> None:
    """A blur of one pixel leaves the image, so that insertion changes nothing; black is -3."""
    maps = torch.tensor([[[0.3, 0.1], [0.2, 0.4]]])
    found = curves(network(), X, ZERO, maps, -3.0, FaithfulnessConfig(steps=4, blur=1))
    pixels = X.flatten().tolist()
    expected = torch.tensor([by_hand(pixels, [-3.0] * 4, [3, 0, 2, 1])])
    torch.testing.assert_close(found.deletion, expected)
    torch.testing.assert_close(found.insertion, expected[:, :1].expand(1, 5))
    heights = expected[0].tolist()
    torch.testing.assert_close(
        found.areas()[1], torch.tensor([(heights[0] / 2 + heights[1] + heights[2] + heights[3] + heights[4] / 2) / 4])
    )


def test_pixels_come_into_the_blurred_image() -> None:
    """Three equal weights along each side, edges continued: of 2 × 2 pixels a, b; c, d the first becomes
    ((2a + b)·2 + (2c + d)) / 9."""
    maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    (a, b), (c, d) = X[0, 0].tolist()
    blur = [
        (4 * a + 2 * b + 2 * c + d) / 9,
        (4 * b + 2 * a + 2 * d + c) / 9,
        (4 * c + 2 * d + 2 * a + b) / 9,
        (4 * d + 2 * c + 2 * b + a) / 9,
    ]
    found = curves(network(), X, ZERO, maps, 0.0, FaithfulnessConfig(steps=2, blur=3, sigma=1e6))
    four = by_hand(blur, X.flatten().tolist(), [0, 1, 2, 3])
    torch.testing.assert_close(found.insertion, torch.tensor([[four[0], four[2], four[4]]]))


def test_the_best_order_of_a_linear_network_beats_all_others() -> None:
    best = WEIGHTS * X[0, 0]
    orders = torch.stack(
        [
            torch.tensor(p).view(2, 2).float()
            for p in torch.cartesian_prod(*[torch.arange(4)] * 4).tolist()
            if len(set(p)) == 4
        ]
    )
    config = FaithfulnessConfig(steps=4, blur=1)
    areas = curves(network(), X.expand(25, -1, -1, -1), ZERO.expand(25), torch.cat((best[None], orders)), 0.0, config)
    deletion = areas.areas()[1]
    assert (deletion[0] <= deletion[1:] + 1e-6).all() and deletion.max() > deletion[0] + 0.1


def test_a_gaussian_kernel_is_a_gaussian() -> None:
    x = torch.zeros(1, 2, 9, 9)
    x[0, 1, 4, 4] = 1.0
    found = blurred(x, 5, 1.2)
    one = [math.exp(-(d**2) / (2 * 1.2**2)) for d in (-2, -1, 0, 1, 2)]
    expected = torch.tensor([[a * b for a in one] for b in one]) / sum(one) ** 2
    torch.testing.assert_close(found[0, 1, 2:7, 2:7], expected)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))


def test_equal_pixels_are_not_left_in_reading_order() -> None:
    maps = torch.zeros(1, 8, 8)
    maps[0, 5, 5] = 1.0
    found = ranks(maps, torch.zeros(1, 1, 8, 8))
    assert found[0, 5, 5] == 0 and found.flatten().sort().values.equal(torch.arange(64))
    assert not found.flatten()[:10].sort().values.equal(found.flatten()[:10])
    assert found.equal(ranks(maps, torch.zeros(1, 1, 8, 8))) and not found.equal(ranks(maps, maps[:, None], seed=1))


def test_batches_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(3)
    x, maps = torch.randn(5, 1, 2, 2, generator=generator), torch.randn(5, 2, 2, generator=generator)
    classes = torch.tensor([0, 1, 0, 1, 1])
    one, all_ = (
        curves(network(), x, classes, maps, 0.0, FaithfulnessConfig(steps=3, blur=1, batch_size=size))
        for size in (1, 9)
    )
    torch.testing.assert_close(one.deletion, all_.deletion)
    assert one.deletion.shape == (5, 4)


def test_a_straight_line_has_half_the_area() -> None:
    torch.testing.assert_close(area(torch.linspace(0, 1, 8)[None]), torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("maps", "words"), [(torch.zeros(1, 3, 2), "each needs one"), (torch.full((1, 2, 2), torch.nan), "not finite")]
)
def test_maps_that_have_no_order_are_refused(maps: Tensor, words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        curves(network(), X, ZERO, maps, 0.0)


@pytest.mark.parametrize("options", [{"steps": 0}, {"blur": 4}, {"sigma": 0.0}, {"batch_size": 0}])
def test_a_config_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(SelectionError, match="blur must be odd"):
        FaithfulnessConfig(**options)
