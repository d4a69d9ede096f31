"""The atlas and its agreement with confusions, by values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from memmod.errors import SelectionError
from memmod.explain.atlas import atlas, spearman, weighted_jaccard
from memmod.explain.confusions import agreement

# Three classes; class 0 closes one unit of the first memory, class 1 the same and one of its own, class 2 another.
GATES = {
    "a.memory": np.array([[0.1, 0.9], [0.2, 0.9], [0.9, 0.9]], np.float32),
    "b.memory": np.array([[0.9, 0.9, 0.9], [0.0, 0.9, 0.9], [0.9, 0.9, 0.1]], np.float32),
}


def test_closed_units_by_class_and_layer() -> None:
    found = atlas(GATES)
    assert [(layer.name, layer.units, layer.closed) for layer in found.layers] == [
        ("a.memory", 2, (1, 1, 0)),
        ("b.memory", 3, (0, 1, 1)),
    ]
    assert found.units == 5 and found.closed == (1, 2, 1)
    # Two units stay open, two are closed by one class, one by two.
    assert found.closed_by == (2, 2, 1, 0)


def test_the_threshold_decides_what_is_closed() -> None:
    assert atlas(GATES, threshold=0.15).closed == (1, 1, 1)


def test_specific_units_come_first() -> None:
    first, second = atlas(GATES).specific[1]
    # (.9 + .9) / 2 - 0 = .9, (.1 + .9) / 2 - .2 = .3
    assert (first.layer, first.unit, first.gate) == ("b.memory", 0, 0.0) and first.specificity == pytest.approx(0.9)
    assert (second.layer, second.unit) == ("a.memory", 0) and second.specificity == pytest.approx(0.3)


def test_overlaps_are_shares_of_the_class_s_own_units() -> None:
    zero, one, two = atlas(GATES).overlaps
    assert (zero.class_, zero.share) == (1, 1.0) and (one.class_, one.share) == (0, 0.5)
    assert two.share == 0.0


def test_weighted_jaccard_by_hand() -> None:
    found = weighted_jaccard(np.array([[0.5, 0.0, 1.0], [0.25, 0.5, 1.0], [0.0, 0.0, 0.0]], np.float32))
    # (.25 + 0 + 1) / (.5 + .5 + 1)
    assert found[0, 1] == found[1, 0] == pytest.approx(1.25 / 2)
    assert found[0, 2] == 0 and np.allclose(np.diag(found), 1)


def test_spearman_is_scipy_s() -> None:
    rows = np.random.default_rng(0).random((5, 40)).round(1)
    assert np.allclose(spearman(rows), spearmanr(rows, axis=1).statistic, atol=1e-6)
    assert spearman(np.array([[1.0, 1.0], [0.0, 1.0]]))[0, 1] == 0


def test_the_dendrogram_joins_the_likest_first() -> None:
    found = atlas(GATES).likeness
    assert sorted(found.linkage[0, :2]) == [0, 1]
    assert found.linkage[0, 2] == pytest.approx(1 - found.jaccard[0, 1])
    assert set(found.order[:2]) == {0, 1} or set(found.order[1:]) == {0, 1}


def test_one_class_has_no_likeness() -> None:
    found = atlas({"memory": np.array([[0.1, 0.9]], np.float32)})
    assert found.likeness is None and found.overlaps == (None,) and found.to_dict()["jaccard"] is None


def test_matrices_of_too_many_classes_are_left_out() -> None:
    drawn = atlas(GATES).to_dict(pairs=2)
    assert drawn["jaccard"] is drawn["rank"] is drawn["linkage"] is None and len(drawn["order"]) == 3


def test_memories_of_different_classes_are_refused() -> None:
    with pytest.raises(SelectionError, match="one number of classes"):
        atlas({"a": np.ones((2, 3)), "b": np.ones((3, 3))})


def chain(classes: int, noise: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Memories whose neighbouring classes share units, and confusions between neighbours."""
    gates = np.full((classes, 4 * classes), 0.9, np.float32)
    for c in range(classes):
        gates[c, 4 * c : 4 * c + 8] = 0.05
    far = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    generator = np.random.default_rng(0)
    confused = 1.0 / (1 + far) + noise * generator.random((classes, classes))
    return {"memory": gates}, (confused + confused.T) / 2


def test_agreement_is_seen_where_neighbours_share_units() -> None:
    gates, confused = chain(10)
    found = agreement(gates, confused)
    assert found.pairs == 45 and found.p <= 0.01
    # Sharing is 1 or 0, distance goes on: the ties bound the correlation.
    jaccard = weighted_jaccard(1 - gates["memory"])
    upper = np.triu_indices(10, 1)
    assert found.rho == pytest.approx(spearmanr(jaccard[upper], confused[upper]).statistic)
    assert found.control.low <= found.control.mean <= found.control.high < found.rho


def test_chance_is_seen_as_chance() -> None:
    generator = np.random.default_rng(3)
    values = [
        agreement({"memory": generator.random((10, 60))}, (lambda m: m + m.T)(generator.random((10, 10))), seed).p
        for seed in range(20)
    ]
    assert sum(p <= 0.05 for p in values) <= 4 and max(values) > 0.5


def test_too_few_classes_to_correlate() -> None:
    with pytest.raises(SelectionError, match="too few"):
        agreement({"memory": np.ones((3, 4))}, np.ones((3, 3)))
