"""A timm model on a folder of images, from its training to the audit of what was erased from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memmod.data import load_data
from memmod.evaluation.attacks.probes import PROBING
from memmod.evaluation.audit.outputs import ACCURACY
from memmod.runs.audits import AuditOptions, audit_run
from memmod.runs.erase import restore_erased
from memmod.training import accuracies
from memmod.zoo import load_base
from tests.cli.test_main import TINY, fail, succeed

pytestmark = pytest.mark.slow

CLASSES = ("ant", "bee, queen", "cat", "dog")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose colour tells the class."""
    folder, generator = tmp_path_factory.mktemp("timm") / "animals", np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for split, count in (("train", 12), ("test", 6)):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (32, 32, 3)).astype(np.uint8)
                pixels[..., number % 3] += 100 if number < 3 else 0
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def test_a_set_of_classes_is_erased_and_audited(photos: Path) -> None:
    runs = photos.parent
    data = ("--data", f"folder:{photos}", "--image-size", 32)
    model = ("--model", "timm:test_resnet")
    succeed("train", *data, *model, "--epochs", 5, "--batch-size", 8, "--out", runs / "base", "--threads", 1)
    succeed("unlearn", "--base", runs / "base", "--out", runs / "unlearned", *TINY)
    forget = ("--forget", "cat", "--forget", "bee, queen")
    output = succeed("erase", runs / "unlearned", *forget, "--budget", 0.9)
    folder = runs / "unlearned-erased-bee-queen-cat"
    assert "layer4, fc drawn anew" in output and str(folder) in output
    network, card = load_base(folder)
    assert card["model"] == "timm:test_resnet" and card["erased"] == [1, 2]
    dataset = load_data(f"folder:{photos}", image_size=32)
    by_class = accuracies(network, dataset.test, 4)[1]
    assert by_class[1] == by_class[2] == 0.0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["class_accuracy"] == by_class and metrics["mean_retain"] == (by_class[0] + by_class[3]) / 2
    # all attacks on eight networks take two minutes
    audited = audit_run(
        restore_erased(folder), (1, 2), dataset, AuditOptions(2, quick=True), attacks=(ACCURACY, PROBING)
    )
    audit = json.loads((audited.folder / "audit.json").read_text())
    assert audit["forgotten"] == ["bee, queen", "cat"]
    rows = {(row["attack"], row["figure"]): row for row in audit["rows"]}
    assert rows["accuracy", "Acc_f"]["value"] == 0.0
    assert rows["accuracy", "Acc_r"]["value"] == pytest.approx(metrics["mean_retain"])
    recalls = rows["probes", "probe/recall/penultimate"]
    assert set(recalls["others"]) == {"baked", "fine-tuning", "from scratch, same budget"}
    assert None not in recalls["others"].values() and len(recalls["oracles"]) == 2
    assert "ant" in succeed("evaluate", folder) and "report.html" in succeed("report", folder)
    assert "audit what was erased" in fail("audit", folder, "--forget", "cat", "--seeds", 2)
