"""The parts of an attribution add up to the logit that forgetting takes, whatever the network and the selection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedModel
from memmod.errors import ModelError, SelectionError
from memmod.explain import attribute
from memmod.explain.gate_path import gates_at
from memmod.explain.placement import onto_image, places
from tests.explain.helpers import Small, settle, with_memories

X = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(5))
CLASSES = torch.tensor([0, 3, 1, 4])


def small(config: ModulateConfig | None = None) -> ModulatedModel:
    torch.manual_seed(0)
    return with_memories(settle(Small()), X, config)


def drop(wf: ModulatedModel, x: Tensor, forget: object, classes: Tensor) -> Tensor:
    """The logit that forgetting takes, by the network's own kernels."""
    with torch.no_grad():
        return (wf(x, forget=-1) - wf(x, forget=forget)).gather(1, classes.unsqueeze(1)).squeeze(1).double()


def assert_adds_up(wf: ModulatedModel, x: Tensor, classes: Tensor, share: float = 0.01) -> None:
    found, expected = attribute(wf, x, classes), drop(wf, x, classes, classes)
    assert expected.abs().min() > 0
    torch.testing.assert_close(found.drop, expected, rtol=1e-4, atol=1e-5)
    assert (found.total - expected).abs().le(share * expected.abs() + 1e-5).all()
    torch.testing.assert_close(found.image().sum((1, 2)) + found.unplaced, found.total)


@pytest.mark.parametrize(
    "config",
    [
        None,
        ModulateConfig(fold=False),
        ModulateConfig(granularity="input"),
        ModulateConfig(granularity="unit+input"),
        ModulateConfig(gate_bias=False),
        ModulateConfig(gate="hard"),
        ModulateConfig(gate="identity"),
    ],
    ids=["default", "unfolded", "input", "unit+input", "gate_bias", "hard", "identity"],
)
def test_the_parts_add_up_to_the_drop(config: ModulateConfig | None) -> None:
    assert_adds_up(small(config), X, CLASSES)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(
            lambda: timm.create_model("efficientnet_lite0", num_classes=5), (3, 64, 64), marks=pytest.mark.slow
        ),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2), (3, 32, 32)),
        (
            lambda: timm.create_model(
                "swin_tiny_patch4_window7_224",
                num_classes=5,
                img_size=56,
                embed_dim=24,
                depths=(2, 2),
                num_heads=(2, 4),
            ),
            (3, 56, 56),
        ),
        (
            lambda: torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [5, 5], num_classes=5),
            (3, 32, 32),
        ),
        (
            lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48, num_classes=5),
            (3, 32, 32),
        ),
    ],
    ids=["efficientnet_lite0", "timm vit", "timm swin", "torchvision swin", "torchvision vit"],
)
def test_the_parts_add_up_in_every_kind_of_network(make, shape) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    wf = with_memories(settle(make()), x)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.add_(1.0)
    assert_adds_up(wf, x, torch.tensor([1, 4]))


def test_units_are_the_memory_gradient_integrated() -> None:
    """dα of the kernels is σ(-α)·(…), so that (1 - s)·∂f/∂s follows from it: the same integral on another way."""
    wf, steps = small(), 64
    units = {name: torch.zeros(len(X), gate.shape[1], dtype=torch.float64) for name, gate in wf.gates().items()}
    gates, stored = wf.gates(), wf.memory_state()
    for sample, c in enumerate(CLASSES.tolist()):
        for step in range(steps):
            t = (step + 0.5) / steps
            multiplier = {name: 1 - t * (1 - gate[c]) for name, gate in gates.items()}
            with torch.no_grad():
                for name, memory in wf.named_memories():
                    memory[c] = multiplier[name].logit()
            memories = dict(wf.named_memories())
            value = wf(X[sample : sample + 1], forget=c)[0, c]
            for (name, _), gradient in zip(
                memories.items(), torch.autograd.grad(value, list(memories.values())), strict=True
            ):
                # ds/dα = s·(1 - s), and 1 - s_t = t·(1 - s)
                units[name][sample] += gradient[c] / multiplier[name] / t / steps
        wf.load_memory_state(stored)
    found = attribute(wf, X, CLASSES, steps=steps)
    for name, expected in units.items():
        torch.testing.assert_close(found.units[name], expected, rtol=2e-2, atol=2e-3, msg=name)


def test_a_set_closes_by_the_product_of_its_gates() -> None:
    wf = small()
    found = attribute(wf, X, {1, 3}, classes=3)
    expected = drop(wf, X, {1, 3}, torch.full((4,), 3))
    assert (found.total - expected).abs().max() <= 0.01 * expected.abs().max()
    samples = attribute(wf, X, [{1, 3}, {0}, {2, 4}, -1], classes=3)
    torch.testing.assert_close(samples.total[0], found.total[0], rtol=1e-2, atol=1e-4)
    assert samples.drop[3] == 0 and samples.total[3] == 0


def test_strength_is_the_exponent_of_the_gates() -> None:
    wf = small()
    found = attribute(wf, X, CLASSES, strength=2.0)
    # Selecting a class and its twin multiplies the gates with themselves.
    twin = with_memories(settle(Small()), X)
    twin.model.load_state_dict(wf.model.state_dict())
    with torch.no_grad():
        for memory in twin.memory_parameters():
            memory[1] = memory[0]
    doubled = attribute(twin, X[:1], {0, 1}, classes=0)
    torch.testing.assert_close(found.drop[:1], doubled.drop)
    torch.testing.assert_close(found.total[:1], doubled.total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target", ["margin", "log-probability"])
def test_other_targets_add_up_too(target: str) -> None:
    found = attribute(small(), X, CLASSES, target=target, steps=64)
    assert (found.residual.abs() <= 0.01 * found.drop.abs() + 1e-5).all()
    wf = small()
    with torch.no_grad():
        outputs = [wf(X, forget=forget) for forget in (-1, CLASSES)]
    rows = torch.arange(4)
    if target == "margin":
        before, after = (z[rows, CLASSES] - z.scatter(1, CLASSES[:, None], -1e9).amax(1) for z in outputs)
    else:
        before, after = (z.log_softmax(1)[rows, CLASSES] for z in outputs)
    torch.testing.assert_close(found.drop, (before - after).double(), rtol=1e-4, atol=1e-5)


def test_a_closed_unit_that_alone_reads_a_place_is_found_there() -> None:
    """One unit sees the image, the others nothing: the map is where the image is not zero."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
        network[3].weight.copy_(torch.eye(2))
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, 2, 3], x[1, 0, 6, 1] = 4.0, 8.0
    wf = with_memories(network.eval(), x + torch.randn_like(x))
    with torch.no_grad():
        dict(wf.named_memories())["0.memory"].fill_(0.0)
    found = attribute(wf, x, 0)
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    # Half of each pixel, over 64 pooled ones.
    expected[0, 2, 3], expected[1, 6, 1] = 2 / 64, 4 / 64
    torch.testing.assert_close(found.image(), expected)
    torch.testing.assert_close(found.units["0.memory"], torch.tensor([[2 / 64, 0.0], [4 / 64, 0.0]]).double())


def test_batches_do_not_matter() -> None:
    wf = small()
    one, all_ = attribute(wf, X, CLASSES, batch_size=1), attribute(wf, X, CLASSES)
    torch.testing.assert_close(one.image(), all_.image(), rtol=1e-4, atol=1e-6)


def test_a_path_that_misses_is_walked_again() -> None:
    coarse = attribute(small(), X, CLASSES, steps=1, tolerance=None)
    fine = attribute(small(), X, CLASSES, steps=1, tolerance=0.001)
    assert coarse.residual.abs().max() > 0.01 * coarse.drop.abs().max()
    assert (fine.residual.abs() <= 0.001 * fine.drop.abs()).all()
    assert (coarse.points == 1).all() and (fine.points > 1).any()


def one_unit() -> ModulatedModel:
    """One unit, fully closed by either class; the logit of class 0 is what it lets through, 1 - t of the pixel."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    wf = with_memories(network.eval(), torch.randn(2, 1, 1, 1))
    with torch.no_grad():
        dict(wf.named_memories())["0.memory"].fill_(-100.0)
    return wf


@pytest.mark.parametrize("batch_size", [1, 3])
def test_sections_are_halved_where_the_target_falls(batch_size: int) -> None:
    """Between two kinks a twentieth of the path apart the target falls by 6, elsewhere not at all; of the last pixel it
    falls evenly."""

    def target(logits: Tensor, _classes: Tensor) -> Tensor:
        z = logits[:, 0]
        return torch.where(z > 1.5, z, (120 * (z - 0.3)).clamp(0, 6))

    x = torch.tensor([1.0, 0.9, 4.0]).view(3, 1, 1, 1)
    wf = one_unit()
    coarse = attribute(wf, x, 0, target=target, tolerance=None, batch_size=batch_size)
    fine = attribute(wf, x[:2], 0, target=target, batch_size=batch_size)
    assert (coarse.residual[:2].abs() > 0.05 * 6).all()
    assert fine.drop.tolist() == [6.0, 6.0] and fine.residual.abs().max() <= 0.01 * 6
    torch.testing.assert_close(fine.image().sum((1, 2)), fine.units["0.memory"].sum(1))
    # A section is 16 points: the whole, and in each of at most 7 halvings no more than the four beside a kink.
    assert (fine.points > 16).all() and (fine.points <= 16 * (1 + 7 * 4)).all()
    even = attribute(wf, x, 0, target=lambda logits, _: logits[:, 0], batch_size=batch_size)
    assert (even.points == 16).all() and torch.allclose(even.total, x.flatten().double())


def test_what_no_section_can_agree_with_is_a_residual() -> None:
    """A target with a jump has no gradient there: each halving walks the two halves that may hold it, down to 1/128."""
    found = attribute(one_unit(), torch.ones(1, 1, 1, 1), 0, target=lambda z, _: (z[:, 0] > 0.7).float() + 0 * z[:, 0])
    assert found.drop.item() == 1 and found.total.item() == 0 and found.residual.item() == -1
    assert found.points.item() == 16 * (1 + 7 * 2)


def test_the_model_is_left_as_it_was() -> None:
    wf = small()
    before, state = wf(X, forget=CLASSES), wf.memory_state()
    attribute(wf, X, CLASSES)
    assert torch.equal(wf(X, forget=CLASSES), before)
    assert all(torch.equal(state[name], memory) for name, memory in wf.named_memories())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in wf.modules())


def test_windows_are_found_in_the_image() -> None:
    """Cells of windows are a permutation of the grid, and one that moves rows."""
    torch.manual_seed(0)
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=5, img_size=56, embed_dim=24, depths=(2,), num_heads=(2,)
    )
    wf = with_memories(settle(network), torch.randn(2, 3, 56, 56))
    found = places(wf, (3, 56, 56))
    for block, shift in ((0, 0), (1, 3)):
        for name in ("qkv", "proj"):
            place = found[f"layers.0.blocks.{block}.attn.{name}.memory"][0]
            grid = torch.arange(14 * 14).view(14, 14).roll((-shift, -shift), (0, 1))
            windows = grid.view(2, 7, 2, 7).permute(0, 2, 1, 3).reshape(-1)
            assert place.grid == (14, 14) and torch.equal(place.cells, windows), (block, name)


@pytest.mark.parametrize(("grid", "size"), [((7, 7), (28, 28)), ((4, 3), (9, 13)), ((5, 5), (5, 5)), ((9, 9), (4, 4))])
def test_onto_image_keeps_each_cell_s_sum(grid, size) -> None:
    values = torch.eye(grid[0] * grid[1], dtype=torch.float64)
    image = onto_image(values, grid, size)
    torch.testing.assert_close(image.sum((1, 2)), torch.ones(len(values), dtype=torch.float64))
    # The sum of a cell lies where the cell is.
    rows = (image.sum(2) @ (torch.arange(size[0]) + 0.5).double()) / size[0]
    middle = (torch.arange(grid[0]).repeat_interleave(grid[1]) + 0.5).double() / grid[0]
    assert (rows - middle).abs().max() <= 0.5 / grid[0] + 0.5 / size[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"forget": -1}, "nothing is selected"),
        ({"forget": {1, 2}}, "whose logit is meant is uncertain"),
        ({"forget": CLASSES[:3]}, "is for 3 samples, but x has 4"),
        ({"forget": 1, "target": "logits"}, "target is 'logits'"),
        ({"forget": 1, "steps": 0}, "steps is 0"),
        ({"forget": 1, "classes": 7}, "outside of 0 to 4"),
        ({"forget": torch.tensor([1, 9, 0, 0])}, "outside of 0 to 4"),
    ],
)
def test_bad_input_is_worded(options, words) -> None:
    with pytest.raises(SelectionError, match=words):
        attribute(small(), X, **options)


def test_layers_that_are_not_called_are_refused() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.calls = nn.Linear(6, 6), nn.Linear(6, 6), True
            self.fc = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x.flatten(1))
            return self.fc(self.two(x) if self.calls else x)

    x = torch.randn(2, 1, 2, 3)
    wf = with_memories(Reads(), x)
    wf.model.calls = False
    with pytest.raises(ModelError, match="two"):
        attribute(wf, x, 1)


def test_other_threads_do_not_see_the_gates() -> None:
    wf = small()
    before, closed = wf(X, forget=-1), {name: torch.zeros(4, gate.shape[1]) for name, gate in wf.gates().items()}
    with ThreadPoolExecutor(1) as pool, gates_at(wf, closed):
        other = pool.submit(wf, X, forget=-1).result()
        own = wf(X, forget=-1)
    assert torch.equal(other, before) and not torch.allclose(own, before)


def test_a_compiled_model_is_refused() -> None:
    with pytest.raises(ModelError, match="is compiled"):
        attribute(torch.compile(small()), X, CLASSES)
