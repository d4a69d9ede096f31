"""Points and weights of integrals over a path."""

from __future__ import annotations

import pytest

from memmod.explain.quadrature import gauss_legendre


def test_polynomials_are_integrated_exactly() -> None:
    for points in (1, 2, 5, 16):
        rule = gauss_legendre(points)
        assert len(rule) == points and all(0 < place < 1 for place, _ in rule)
        for power in range(2 * points):
            assert sum(weight * place**power for place, weight in rule) == pytest.approx(1 / (power + 1), rel=1e-12)
