"""Integrals over a path from 0 to 1."""

from __future__ import annotations

import numpy as np


def gauss_legendre(points: int) -> list[tuple[float, float]]:
    """The places in (0, 1) and the weights, of sum 1, of the Gauss-Legendre rule with so many points, at least 1."""
    places, weights = np.polynomial.legendre.leggauss(points)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
