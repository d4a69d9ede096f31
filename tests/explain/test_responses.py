"""Images that excite a unit, and images that need it, where both are known beforehand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from memmod import ModulatedModel
from memmod.data import TensorSplit
from memmod.errors import SelectionError
from memmod.explain.gate_path import gates_at
from memmod.explain.receptive import Boxes
from memmod.explain.responses import deciding, exciting
from tests.explain.helpers import Small, settle, with_memories

MEMORY = "0.memory"


def two_units() -> ModulatedModel:
    """Unit 0 is the pixel, unit 1 its negative; the logits are the sums of both."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        network[3].weight.copy_(torch.eye(2))
    return with_memories(network.eval(), torch.randn(2, 1, 8, 8))


def spots() -> TensorSplit:
    """Image n has one pixel of value ±n: at row n and column 7 - n, negative where n is odd."""
    images = torch.zeros(8, 1, 8, 8)
    for n in range(8):
        images[n, 0, n, 7 - n] = float(n) * (-1) ** n
    return TensorSplit(images, torch.arange(8) % 2, 1.0, (0.0,), (1.0,))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_brightest_spots_excite_and_are_boxed(batch_size: int) -> None:
    even, odd = exciting(two_units(), spots(), [(MEMORY, 0), (MEMORY, 1)], top=3, batch_size=batch_size)
    assert even.images == (6, 4, 2) and even.values == (6.0, 4.0, 2.0)
    assert even.boxes == ((1, 6, 2, 7), (3, 4, 4, 5), (5, 2, 6, 3))
    assert odd.images == (7, 5, 3) and odd.values == (7.0, 5.0, 3.0)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_images_that_need_a_unit_are_found(batch_size: int) -> None:
    """The mean of 64 pixels holds a 64th of the spot, and closing unit 0 takes it from logit 0."""
    first, second = deciding(two_units(), spots(), [(MEMORY, 0), (MEMORY, 1)], of=0, top=3, batch_size=batch_size)
    assert first.images == (7, 6, 5) and first.drops == (-7 / 64, 6 / 64, -5 / 64)
    assert second.drops == (0.0, 0.0, 0.0)
    own = deciding(two_units(), spots(), [(MEMORY, 0)], top=8, batch_size=batch_size)[0]
    # Odd images have label 1, whose logit unit 0 has no part in.
    assert own.images[:3] == (6, 4, 2) and set(own.drops[3:]) == {0.0}


def test_one_closed_unit_is_a_gate_of_nought() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 1, 16, 16)
    wf = with_memories(settle(Small()), x)
    data = TensorSplit(x, torch.arange(6) % 5, 1.0, (0.0,), (1.0,))
    units = [("stem.0.memory", 2), ("mix.memory", 5), ("neck.memory", 1)]
    found = deciding(wf, data, units, top=6, batch_size=4)
    for (memory, unit), of in zip(units, found, strict=True):
        gates = {name: torch.ones(6, gate.shape[1]) for name, gate in wf.gates().items()}
        gates[memory][:, unit] = 0.0
        with torch.no_grad(), gates_at(wf, gates):
            closed = wf(x, forget=-1)
        drops = (wf(x, forget=-1) - closed).gather(1, data.labels[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(of.drops), drops[list(of.images)].detach(), rtol=1e-4, atol=1e-5)
        assert list(of.images) == drops.abs().argsort(descending=True).tolist()


def test_a_box_is_what_a_position_sees() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    wf = with_memories(settle(network), torch.randn(2, 1, 32, 32))
    boxes = Boxes(wf, ["0.memory", "2.memory", "4.memory"])
    # 3 × 3 around the pixel; 5 × 5 around it; that of two positions to each side besides, each two pixels apart.
    assert boxes.of("0.memory", 5 * 32 + 9) == (8, 4, 11, 7)
    assert boxes.of("2.memory", 5 * 16 + 9) == (16, 8, 21, 13)
    assert boxes.of("4.memory", 5 * 16 + 9) == (12, 4, 25, 17)
    # Cut off at the edges.
    assert boxes.of("0.memory", 0) == (0, 0, 2, 2) and boxes.of("0.memory", 32 * 32 - 1) == (30, 30, 32, 32)


def test_behind_an_attention_the_box_is_the_cell_and_half_of_one_around() -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, in_chans=1, depth=2)
    wf = with_memories(settle(network), torch.randn(2, 1, 32, 32))
    boxes = Boxes(wf, ["patch_embed.proj.memory", "blocks.1.mlp.fc1.memory"])
    assert boxes.of("patch_embed.proj.memory", 5) == (8, 8, 16, 16)
    assert boxes.of("blocks.1.mlp.fc1.memory", 5) == (4, 4, 20, 20)
    assert boxes.of("blocks.1.mlp.fc1.memory", -1) is None
    data = TensorSplit(torch.randn(4, 1, 32, 32), torch.arange(4), 1.0, (0.0,), (1.0,))
    found = exciting(wf, data, [("blocks.1.mlp.fc1.memory", 7)], top=4)[0]
    assert sorted(found.images) == [0, 1, 2, 3] and list(found.values) == sorted(found.values, reverse=True)


def test_behind_the_pooling_there_is_no_box() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 1, 16, 16)
    wf = with_memories(settle(Small()), x)
    data = TensorSplit(x, torch.arange(4), 1.0, (0.0,), (1.0,))
    assert exciting(wf, data, [("neck.memory", 0)], top=2)[0].boxes == (None, None)


@pytest.mark.parametrize(
    ("units", "options", "words"),
    [
        ([("1.memory", 0)], {}, "there is no memory '1.memory'"),
        ([(MEMORY, 2)], {}, "units 0 to 1, but unit 2"),
        ([], {}, "there are 0 units"),
        ([(MEMORY, 0)], {"top": 0}, "top is 0"),
    ],
)
def test_bad_input_is_worded(units, options, words) -> None:
    for of in (exciting, deciding):
        with pytest.raises(SelectionError, match=words):
            of(two_units(), spots(), units, **options)
    with pytest.raises(SelectionError, match="of is class 2"):
        deciding(two_units(), spots(), [(MEMORY, 0)], of=2)
