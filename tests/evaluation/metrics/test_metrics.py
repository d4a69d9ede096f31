"""Every metric against values worked out by hand."""

import math

import pytest
import torch

from memmod.errors import DataError
from memmod.evaluation.metrics import (
    anamnesis_index,
    js_divergence,
    linear_cka,
    mean_activation_distance,
    rms_activation_distance,
    total_variation,
    zrf,
    zrf_as_in_published_code,
)

CERTAIN = torch.tensor([[1.0, 0.0]])
EVEN = torch.tensor([[0.5, 0.5]])
OTHER = torch.tensor([[0.0, 1.0]])


def test_js_of_opposite_distributions_is_the_largest_there_is():
    # m = (1/2, 1/2): each KL is ln 2
    assert js_divergence(CERTAIN, OTHER).tolist() == pytest.approx([math.log(2)])


def test_js_by_hand():
    # m = (3/4, 1/4): KL(p‖m) = ln 4/3; KL(q‖m) = ½ ln 2/3 + ½ ln 2
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert js_divergence(CERTAIN, EVEN).tolist() == pytest.approx([expected])
    assert js_divergence(EVEN, CERTAIN).tolist() == pytest.approx([expected])
    assert js_divergence(EVEN, EVEN).tolist() == [0.0]


def test_js_is_of_each_image_by_itself():
    p, q = torch.cat([CERTAIN, EVEN]), torch.cat([OTHER, EVEN])
    assert js_divergence(p, q).tolist() == pytest.approx([math.log(2), 0.0])


def test_zrf_by_hand():
    # one of ten classes for certain against an even network: m = (.55, .05, ...)
    p, even = torch.eye(10)[:1], torch.full((1, 10), 0.1)
    js = (math.log(1 / 0.55) + 0.1 * math.log(0.1 / 0.55) + 0.9 * math.log(2)) / 2
    assert zrf(p, even) == pytest.approx(1 - js)
    assert zrf(p, even) == pytest.approx(0.474, abs=5e-4)
    assert zrf(even, even) == pytest.approx(1.0)


def test_zrf_is_the_mean_over_images():
    p, q = torch.cat([CERTAIN, EVEN]), torch.cat([OTHER, EVEN])
    assert zrf(p, q) == pytest.approx(1 - math.log(2) / 2)


@pytest.mark.filterwarnings("ignore:reduction")
def test_zrf_of_the_published_code_by_hand():
    # p = (.9, .1), q = (.5, .5), m = (.7, .3); KL(m‖p), KL(m‖q), each over N·C = 2 numbers
    p, q = torch.tensor([[0.9, 0.1]]), EVEN
    to_p = 0.7 * math.log(0.7 / 0.9) + 0.3 * math.log(0.3 / 0.1)
    to_q = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    assert zrf_as_in_published_code(p, q) == pytest.approx(1 - (to_p + to_q) / 2 / 2)
    # what that code itself does
    m = (p + q) / 2
    code = 0.5 * torch.nn.functional.kl_div(p.log(), m) + 0.5 * torch.nn.functional.kl_div(q.log(), m)
    assert zrf_as_in_published_code(p, q) == pytest.approx(1 - code.item(), rel=1e-6)


def test_total_variation_is_between_the_means():
    # the means are equal, though no image's distributions are
    assert total_variation(torch.cat([CERTAIN, OTHER]), torch.cat([OTHER, CERTAIN])) == 0.0


def test_total_variation_is_between_the_means_by_hand():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.7]])
    assert total_variation(p, q) == pytest.approx(0.6)


def test_activation_distances_by_hand():
    # ‖(1, -1)‖ = √2 for the first image, 0 for the second
    p, q = torch.cat([CERTAIN, EVEN]), torch.cat([OTHER, EVEN])
    assert mean_activation_distance(p, q) == pytest.approx(math.sqrt(2) / 2)
    assert rms_activation_distance(p, q) == pytest.approx(1.0)


def test_cka_by_hand():
    # centred x = (-1, 0, 1), y = (0, -1, 1) after centring (1, 0, 2): (yᵀx)² = 1, norms 2 and 2
    x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [0.0], [2.0]])
    assert linear_cka(x, y) == pytest.approx(1 / 4)
    assert linear_cka(x, -3 * x + 5) == pytest.approx(1.0)


def test_cka_of_two_columns_by_hand():
    # x has both columns of an orthogonal pair, y one of them: ‖yᵀx‖² = 16, ‖xᵀx‖ = 4√2, ‖yᵀy‖ = 4
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert linear_cka(x, x[:, :1]) == pytest.approx(16 / (4 * math.sqrt(2) * 4))


def test_cka_is_invariant_to_rotation_and_not_to_stretching():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    assert linear_cka(x, x @ rotation) == pytest.approx(1.0)
    assert linear_cka(x, x * torch.tensor([10.0, 1.0, 1.0])) < 0.9


def test_anamnesis_index():
    assert anamnesis_index(5, 20) == 0.25
    assert anamnesis_index(0, 20) == 0.0
    with pytest.raises(DataError, match="0 steps"):
        anamnesis_index(5, 0)


@pytest.mark.parametrize("metric", [js_divergence, total_variation, mean_activation_distance, zrf])
def test_what_is_no_pair_of_distributions_is_refused(metric):
    with pytest.raises(DataError, match="do not sum to 1"):
        metric(torch.tensor([[2.0, 1.0]]), EVEN)
    with pytest.raises(DataError, match=r"\(2, 2\)"):
        metric(EVEN, torch.cat([EVEN, EVEN]))
    with pytest.raises(DataError, match="at least 1 image"):
        metric(torch.empty(0, 2), torch.empty(0, 2))


def test_what_has_no_similarity_is_refused():
    with pytest.raises(DataError, match="the same for all images"):
        linear_cka(torch.ones(3, 2), torch.randn(3, 2))
    with pytest.raises(DataError, match="same images"):
        linear_cka(torch.randn(3, 2), torch.randn(4, 2))
