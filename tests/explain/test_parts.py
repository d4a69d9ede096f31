"""Flows, shares, pictures and sentences: each value against what it is made from."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from memmod.data.splits import TensorSplit
from memmod.explain import attribute
from memmod.explain.flows import flows, predictions_of
from memmod.explain.pictures import HELD_DOWN, HELD_UP, overlay, picture
from memmod.explain.recount import at_path, recount_class, recount_image, shown
from memmod.explain.taken import stages_of, taken
from tests.explain.helpers import Small, settle, with_memories

IMAGES = torch.randn(30, 1, 16, 16, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(30) % 4


def split() -> TensorSplit:
    return TensorSplit(IMAGES, LABELS, 1.0, (0.0,), (1.0,))


def model():
    torch.manual_seed(0)
    return with_memories(settle(Small()), IMAGES[:2])


def test_flows_are_shares_of_predictions() -> None:
    wf = model()
    with torch.no_grad():
        wf.model.fc.weight.mul_(30)
        for number, memory in enumerate(wf.memory_parameters()):
            memory.copy_(3 * torch.randn(memory.shape, generator=torch.Generator().manual_seed(number)))
    found = flows(wf, split(), [(3, 0)], batch_size=7)
    with torch.no_grad():
        before, after, both = (wf(IMAGES, forget=forget).argmax(1) for forget in (-1, LABELS, {0, 3}))
        alone = wf(IMAGES, forget=3).argmax(1)
        mean = wf(IMAGES, forget=-1).softmax(1)[LABELS == 2].mean(0)
    assert (before != after).any() and (both != alone)[LABELS == 0].any()
    for c in range(4):
        own = LABELS == c
        for table, predictions in ((found.before, before), (found.after, after)):
            expected = torch.bincount(predictions[own], minlength=5) / own.sum()
            assert np.allclose(table[c], expected)
    assert np.allclose(found.probabilities[2], mean, atol=1e-6)
    # No image has label 4.
    assert not found.before[4].any()
    ((classes, rows),) = found.sets
    assert classes == (0, 3) and set(rows) == {0, 3}
    for c in (0, 3):
        assert np.allclose(rows[c], torch.bincount(both[LABELS == c], minlength=5) / (LABELS == c).sum())


def test_predictions_of_networks_are_their_mean() -> None:
    networks = [settle(Small(), seed) for seed in (0, 1)]
    expected = sum(torch.bincount(n(IMAGES).argmax(1), minlength=5) / 60 for n in networks)
    assert np.allclose(predictions_of(networks, split(), 5), expected)


def test_shares_are_of_the_sum_and_add_up() -> None:
    wf = model()
    found = attribute(wf, IMAGES[:4], LABELS[:4])
    stages = stages_of(list(found.units), ("stem", "down"))
    assert stages == {"stem.0.memory": "stem", "down.memory": "down", "mix.memory": "mix", "neck.memory": "neck"}
    own = taken(found, torch.tensor([1, 3]), stages, units=3)
    assert own.residual == pytest.approx((found.residual[[1, 3]].abs().max() / found.drop[[1, 3]].abs().mean()).item())
    assert own.images == 2 and own.drop == pytest.approx(found.drop[[1, 3]].mean().item())
    assert sum(layer.share for layer in own.layers) == pytest.approx(1)
    assert [stage.name for stage in own.stages] == ["stem", "down", "mix", "neck"]
    expected = found.units["mix.memory"][[1, 3]].sum() / found.total[[1, 3]].sum()
    assert dict((layer.name, layer.share) for layer in own.layers)["mix.memory"] == pytest.approx(expected.item())
    every = torch.cat([values[[1, 3]].sum(0) for values in found.units.values()]) / found.total[[1, 3]].sum()
    assert [unit.share for unit in own.units] == pytest.approx(every.topk(3).values.tolist())
    first = own.units[0]
    value = found.units[first.layer][[1, 3], first.unit].sum() / found.total[[1, 3]].sum()
    assert first.share == pytest.approx(value.item()) and first.stage == stages[first.layer]


def read(address: str) -> Image.Image:
    head, _, body = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L")])
def test_a_picture_has_the_image_s_pixels(channels: int, mode: str) -> None:
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    image = read(picture(pixels))
    assert image.mode == mode and image.size == (7, 5)
    assert np.array_equal(np.asarray(image).reshape(5, 7, -1)[:, :, 0], pixels[0].numpy())


def test_an_overlay_shows_sign_and_size() -> None:
    values = torch.zeros(4, 4)
    values[0, 1], values[2, 3], values[3, 3] = 2.0, -2.0, 1.0
    found = np.asarray(read(overlay(values)))
    assert tuple(found[0, 1, :3]) == HELD_UP and tuple(found[2, 3, :3]) == HELD_DOWN
    assert found[0, 0, 3] == 0 and found[0, 1, 3] == found[2, 3, 3] > found[3, 3, 3] > 0
    assert not np.asarray(read(overlay(torch.zeros(3, 3))))[:, :, 3].any()


def explanation() -> dict:
    return {
        "class_names": ["cat", "dog", "owl"],
        "atlas": {"closed": [4, 2, 0], "units": 20, "overlaps": [{"class": 1, "share": 0.25}, None, None]},
        "taken": [
            {
                "drop": 9.34,
                "residual": 0.01,
                "stages": [{"name": "stem", "share": 0.39}, {"name": "blocks.2", "share": 0.61}],
                "units": [{"layer": "blocks.2.conv.memory", "unit": 7, "stage": "blocks.2", "share": 0.08}],
            },
            None,
            None,
        ],
        "flows": {"after": [[0.0, 0.71, 0.29], [0.0, 0.0, 0.0], [0.0, 0.02, 0.98]]},
        "images": [
            {"label": 0, "forgotten": [0], "before": 0, "after": 1, "logit_before": 7.0, "drop": 8.25, "stages": []},
            {"label": 0, "forgotten": [0, 2], "before": 1, "after": 1, "logit_before": 7.0, "drop": -0.5, "stages": []},
        ],
    }


def test_a_class_is_told_in_sentences() -> None:
    text = " ".join(sentence.text for sentence in recount_class(explanation(), 0))
    assert text == (
        "Forgetting cat closes 4 of 20 units; 25 % of them also close for dog. Of the 9.3 points of logit that this "
        "takes from images of cat, 61 % go in blocks.2 and 8 % with one unit of it (blocks.2.conv, unit 7). Its test "
        "images are then called dog (71 %) and owl (29 %)."
    )
    assert [s.text for s in recount_class(explanation(), 1)] == ["Forgetting dog closes 2 of 20 units."]
    assert recount_class(explanation(), 2)[-1].text == "Its test images are then called owl (98 %)."


def test_parts_that_do_not_add_up_are_told() -> None:
    rough = explanation()
    rough["taken"][0]["residual"] = 0.034
    told = recount_class(rough, 0)
    assert [s.text for s in told if s not in recount_class(explanation(), 0)] == [
        "The parts add up to that only roughly: of an image they miss up to 3 % of the mean that is taken."
    ]
    assert told[2].values[0].path == "taken.0.residual"


def test_an_image_is_told_in_sentences() -> None:
    assert " ".join(s.text for s in recount_image(explanation(), 0)) == (
        "Forgetting cat takes 8.2 of the 7.0 points of this image's logit for cat. It was called cat, and is now "
        "called dog."
    )
    assert "Forgetting cat and owl takes −0.5" in recount_image(explanation(), 1)[0].text
    assert recount_image(explanation(), 1)[1].text == "It is still called dog."


@pytest.mark.parametrize("part", ["atlas", "taken", "flows"])
def test_what_is_missing_is_not_told(part: str) -> None:
    whole, without = explanation(), explanation()
    without[part] = None
    told = [s.text for s in recount_class(whole, 0)]
    assert [s.text for s in recount_class(without, 0)] == [
        t for n, t in enumerate(told) if ("atlas", "taken", "flows")[n] != part
    ]


def test_every_figure_follows_its_path() -> None:
    whole = explanation()
    sentences = [s for c in range(3) for s in recount_class(whole, c)]
    sentences += [s for number in range(2) for s in recount_image(whole, number)]
    assert sum(len(s.values) for s in sentences) > 15
    for sentence in sentences:
        rest = sentence.text
        for value in sentence.values:
            assert value.shown == shown(at_path(whole, value.path), value.format)
            assert value.shown in rest
            rest = rest[rest.index(value.shown) + len(value.shown) :]


def test_nothing_taken_has_no_shares() -> None:
    wf = model()
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.fill_(100.0)
    found = attribute(wf, IMAGES[:2], 0)
    own = taken(found, torch.arange(2), stages_of(list(found.units), ()))
    assert own.drop == own.residual == 0 and all(layer.share == 0 for layer in own.layers)
