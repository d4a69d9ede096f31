"""Explanations of any size, as `memmod explain` writes them, for tests of the page: shaped as found ones, but drawn."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from memmod.report.png import opacity_png

INK = (214, 72, 40)


def explanation(
    class_names: list[str],
    *,
    layers: int = 6,
    units: int = 32,
    shape: tuple[int, int, int] = (1, 8, 8),
    images: int = 4,
    matrices: bool = True,
    without_images: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON values with every part; `without_images` is a class that no test image belongs to."""
    generator, classes = np.random.default_rng(seed), len(class_names)
    gates = generator.random((layers, classes, units)) ** np.linspace(0.3, 1.2, layers)[:, None, None]
    closed = gates < 0.3
    names = [f"blocks.{layer // 2}.conv{layer % 2 + 1}.memory" for layer in range(layers)]
    before = _shares(generator, classes, 0.9)
    after = _shares(generator, classes, 0.0)
    if without_images is not None:
        before[without_images] = after[without_images] = None
    return {
        "explanation": 1,
        "data": "drawn",
        "class_names": class_names,
        "input_shape": list(shape),
        "settings": {"threshold": 0.3, "images": images, "seed": seed},
        "versions": {"python": "3", "memmod-torch": "0"},
        "atlas": _atlas(generator, gates, closed, names, matrices),
        "flows": {
            "before": before if matrices else None,
            "after": after if matrices else None,
            "retrained": {"0": _shares(generator, classes, 0.0)[0]},
            "sets": [{"classes": [0, 1], "after": {str(c): after[c] for c in (0, 1) if after[c]}}]
            if classes > 2
            else [],
        },
        "taken": [_taken(generator, names) for _ in range(classes)],
        "images": [_image(generator, c, k, classes, names, shape) for c in range(classes) for k in range(images)],
        "responses": [_response(generator, c, names, shape) for c in range(min(classes, 10))],
        "recount": {
            "classes": [
                {
                    "class": c,
                    "sentences": [
                        {
                            "text": f"Forgetting {name} closes {int(closed[:, c].sum())} of {layers * units} units.",
                            "values": [
                                {"shown": str(int(closed[:, c].sum())), "path": f"atlas.closed.{c}"},
                                {"shown": str(layers * units), "path": "atlas.units"},
                            ],
                        }
                    ],
                }
                for c, name in enumerate(class_names)
            ],
            "images": [{"image": 0, "sentences": [{"text": "The first of all.", "values": []}]}],
        },
        "faithfulness": {
            "steps": 20,
            "images": 100,
            "rows": [
                {
                    "map": name,
                    "insertion": 0.5 + place / 10,
                    "insertion_interval": [0.48 + place / 10, 0.53 + place / 10],
                    "deletion": 0.3 - place / 20,
                    "deletion_interval": [0.28 - place / 20, 0.31 - place / 20],
                    "other_class": 1.0 - place / 4,
                }
                for place, name in enumerate(("random", "gradient × input", "gate path"))
            ],
            "checks": {"memories_rank": 0.53, "row_rank": 0.38, "sum_median": 0.0005, "sum_worst": 0.0025},
        },
    }


def picture(pixels: np.ndarray) -> str:
    """Pixels `[H, W]` in [0, 1] as a data URI."""
    return "data:image/png;base64," + base64.b64encode(opacity_png(pixels, INK)).decode()


def _atlas(
    generator: np.random.Generator, gates: np.ndarray, closed: np.ndarray, names: list[str], matrices: bool
) -> dict[str, Any]:
    layers, classes, units = gates.shape
    rows = 1 - gates.transpose(1, 0, 2).reshape(classes, -1)
    ink = rows**3
    jaccard = (
        np.array([[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in ink] for a in ink]) if matrices else None
    )
    tree = None
    if matrices and classes > 1:
        distances = 1 - jaccard
        np.fill_diagonal(distances, 0)
        tree = linkage(squareform(distances, checks=False), "average")
    order = dendrogram(tree, no_plot=True)["leaves"] if tree is not None else None
    shared = closed.sum(1).ravel()
    return {
        "threshold": 0.3,
        "layers": [
            {"name": name, "units": units, "closed": closed[layer].sum(1).tolist()} for layer, name in enumerate(names)
        ],
        "units": layers * units,
        "closed": closed.sum((0, 2)).tolist(),
        "jaccard": None if jaccard is None else jaccard.tolist(),
        "rank": None if jaccard is None else np.corrcoef(rows).reshape(classes, classes).tolist(),
        "linkage": None if tree is None else tree.tolist(),
        "order": None if order is None else list(map(int, order)),
        "closed_by": np.bincount(shared, minlength=classes + 1).tolist(),
        "specific": [
            [
                {
                    "layer": names[-1],
                    "unit": int(unit),
                    "specificity": 0.9 - place / 10,
                    "gate": float(gates[-1, c, unit]),
                }
                for place, unit in enumerate(gates[-1, c].argsort()[:5])
            ]
            for c in range(classes)
        ],
        "confusions": {"rho": 0.41, "p": 0.003, "pairs": 45, "control": {"mean": 0.01, "low": -0.2, "high": 0.22}},
    }


def _shares(generator: np.random.Generator, classes: int, own: float) -> list[Any]:
    others = generator.gamma(0.3, size=(classes, classes)) + 1e-9
    np.fill_diagonal(others, 0 if classes > 1 else 1)
    others /= others.sum(1, keepdims=True)
    return (others * (1 - own) + np.eye(classes) * own).tolist()


def _image(
    generator: np.random.Generator, c: int, k: int, classes: int, names: list[str], shape: tuple[int, int, int]
) -> dict[str, Any]:
    parts = generator.dirichlet(np.ones(len(names)))
    return {
        "image": c * 10 + k,
        "label": c,
        "forgotten": [c],
        "before": c,
        "after": (c + 1 + k) % classes,
        "picture": picture(generator.random(shape[1:])),
        "map": picture(generator.random(shape[1:]) ** 4),
        "logit_before": 9.25,
        "logit_after": 2.5,
        "drop": 6.75,
        "unplaced": 0.04,
        "layers": [{"name": name, "share": float(part)} for name, part in zip(names, parts, strict=True)],
        "units": [{"layer": names[0], "unit": 3, "share": 0.2}],
    }


def _taken(generator: np.random.Generator, names: list[str]) -> dict[str, Any]:
    parts = generator.dirichlet(np.ones(len(names)))
    shares = [{"name": name, "share": float(part)} for name, part in zip(names, parts, strict=True)]
    return {
        "images": 100,
        "before": 3.5,
        "drop": 6.5,
        "unplaced": 0.0,
        "stages": [{"name": "blocks", "share": 1.0}],
        "layers": shares,
        "units": [{"layer": names[0], "unit": 5, "share": 0.25}],
    }


def _response(generator: np.random.Generator, c: int, names: list[str], shape: tuple[int, int, int]) -> dict[str, Any]:
    pixels = [picture(generator.random(shape[1:])) for _ in range(4)]
    return {
        "layer": names[-1],
        "unit": c,
        "class": c,
        "exciting": [{"image": k, "picture": pixels[k], "box": [1, 1, 5, 6], "value": 3.25 - k} for k in range(2)],
        "closing": [{"image": k, "picture": pixels[k], "change": -1.5 + k} for k in (2, 3)],
    }
