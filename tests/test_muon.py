"""Muon: beside torch's own, and beside singular value decompositions."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from memmod.errors import RunError
from memmod.muon import Muon, hidden_weights, orthogonal
from memmod.training import TrainConfig, fit
from memmod.zoo import create_model
from tests.unlearning.problem import dataset

SHAPES = ((8, 24), (24, 8), (16, 16))


def weights(shapes: tuple[tuple[int, ...], ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def steps(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_orthogonal_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    x = weights((shape,))[0].detach()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = u.T @ orthogonal(x) @ v.T
    assert (found.diag() > 0.6).all() and (found.diag() < 1.3).all()
    torch.testing.assert_close(found, found.diag().diag(), atol=1e-3, rtol=0)


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_steps_are_those_of_torch() -> None:
    own, theirs = weights(SHAPES), weights(SHAPES)
    start = [p.detach().clone() for p in own]
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    steps(Muon(own, **options), own)
    steps(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options), theirs)
    for before, mine, other in zip(start, own, theirs, strict=True):
        moved = (other - before).norm()
        # torch iterates in bfloat16.
        assert (mine - other).norm() < 0.03 * moved


def test_the_size_of_an_update_is_adamws() -> None:
    (p,) = weights(((64, 128),))
    before = p.detach().clone()
    steps(Muon([p], lr=1e-2), [p], count=1)
    assert ((p - before).square().mean().sqrt() / 1e-2).item() == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix(layout: torch.memory_format) -> None:
    (kernel,) = weights(((8, 4, 3, 3),))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    kernel = nn.Parameter(kernel.detach().contiguous(memory_format=layout))
    first, second = Muon([kernel], lr=0.1), Muon([matrix], lr=0.1)
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        kernel.grad, matrix.grad = gradient.contiguous(memory_format=layout), gradient.flatten(1)
        first.step()
        second.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_no_gradient_no_step() -> None:
    (p,) = weights(((3, 4),))
    before = p.detach().clone()
    assert Muon([p], lr=0.1).step(lambda: 5.0) == 5.0
    assert torch.equal(p, before)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices, not for a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_which_weights_it_is_for() -> None:
    network = create_model("resnet", 10, (1, 28, 28))
    found = hidden_weights(network)
    assert "stem.0.weight" not in found and "fc.weight" not in found
    assert {"blocks.0.conv1.weight", "blocks.2.shortcut.0.weight"} <= set(found)
    network.blocks[0].requires_grad_(False)
    assert not any(name.startswith("blocks.0.") for name in hidden_weights(network))
    parts = nn.Sequential(
        nn.Linear(2, 4), nn.Conv2d(4, 4, 3, groups=4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 3)
    )
    assert hidden_weights(parts) == ["3.weight"]
    assert hidden_weights(nn.Linear(2, 2)) == []


def test_a_training_takes_it_for_hidden_weights_alone() -> None:
    def trained(optimiser: str) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
        fit(network, dataset(), TrainConfig(batch_size=16), steps=1, optimiser=optimiser)
        return network

    adamw, muon = trained("adamw"), trained("muon")
    same = {name for name, p in adamw.named_parameters() if torch.equal(p, muon.get_parameter(name))}
    assert same == {name for name, _ in adamw.named_parameters()} - {"3.weight"}
    assert inspect.signature(fit).parameters["optimiser"].default == "adamw"


def test_an_unknown_optimiser() -> None:
    with pytest.raises(RunError, match="optimiser is 'sgd'; it must be one of adamw, muon"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), dataset(), TrainConfig(), steps=1, optimiser="sgd")
