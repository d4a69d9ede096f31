"""What becomes of each layer, and why: folding, own forwards, norms behind, in-place neighbours, what is left alone."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memmod import ModulateConfig, ModulatedConv2d, ModulatedLinear, ModulatedOutput, modulate
from memmod.errors import ModelError
from memmod.nn.modulated import Modulated
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """conv, norm and a head; `body` says how they are put together."""

    def __init__(self, body, norm: nn.Module | None = None, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.conv = conv or nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = norm or nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        randomise(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x).mean((2, 3)))


def inplace_then_norm(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y += x
    return net.bn(y)


def written_then_norm(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y[:, 0] = 1.0
    return net.bn(y)


def actions(wf) -> dict[str, str]:
    return {row.name: row.action for row in wf.summary().rows}


def check(base: nn.Module, wf) -> None:
    """Nothing forgotten changes nothing; gates act; bake equals the gated forward."""
    torch.testing.assert_close(wf(X, forget=-1), base(X), rtol=1e-4, atol=1e-5)
    wf.verify(X)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(wf.bake(2)(X), wf(X, forget=2), rtol=1e-4, atol=1e-5)
    assert not any(type(m).__module__.startswith("memmod") for m in wf.bake(2).modules())
    wf(X, forget=torch.tensor([0, 1, -1])).square().sum().backward()
    assert all(m.grad[:2].any() for m in wf.memory_parameters())


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.bn(net.conv(x)),
        lambda net, x: net.bn(net.conv(x)).relu_(),
        lambda net, x: x + net.bn(nn.Identity()(net.conv(x))),
    ],
)
def test_folds(body) -> None:
    base = Net(body)
    wf = modulate(base, example_input=X)
    assert actions(wf) == {"bn": "folded", "conv": "gated", "head": "skipped"}
    assert type(wf.model.bn) is nn.Identity
    check(base, wf)


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: (lambda y: y + net.bn(y))(net.conv(x)),
        inplace_then_norm,
        written_then_norm,
        lambda net, x: net.bn(net.conv(net.conv(x))),
        lambda net, x: net.bn(net.conv(x)) + net.bn(x),
        lambda net, x: net.bn(net.conv(x) * 2),
        lambda net, x: net.bn(net.conv(x).relu()),
        lambda net, x: (lambda y: net.bn(y) + y.flatten(1).mean(1)[:, None, None, None])(net.conv(x)),
    ],
    ids=["y+bn(y)", "y+=x", "y[:]=", "conv twice", "bn twice", "y*2", "relu between", "view read"],
)
def test_does_not_fold_what_is_not_one_affine_map(body) -> None:
    base = Net(body)
    wf = modulate(base, example_input=X)
    assert "folded" not in actions(wf).values()
    check(base, wf)


def test_a_conv_whose_output_is_returned_is_not_folded() -> None:
    class Two(Net):
        def forward(self, x: Tensor):
            y = self.conv(x)
            return self.head(self.bn(y).mean((2, 3))), y

    base = Two(None)
    wf = modulate(base, example_input=X)
    assert "folded" not in actions(wf).values()
    assert torch.equal(wf(X, forget=-1)[1], base(X)[1])


def test_norm_activation_stays() -> None:
    base = Net(lambda net, x: net.bn(net.conv(x)), norm=timm.layers.BatchNormAct2d(4))
    wf = modulate(base, example_input=X)
    assert [row.action for row in wf.summary().rows if row.name == "bn"] == ["folded", "fused"]
    assert isinstance(wf.model.bn, nn.ReLU) and type(wf.bake(0).bn) is nn.ReLU
    check(base, wf)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), timm.layers.LayerNorm2d(4), timm.layers.GroupNormAct(4, 2)],
    ids=lambda norm: type(norm).__name__,
)
def test_other_norms_are_gated_behind(norm: nn.Module) -> None:
    base = Net(lambda net, x: net.bn(net.conv(x)), norm=norm)
    wf = modulate(base, example_input=X)
    assert actions(wf) == {"conv": "gated behind", "head": "skipped"}
    assert isinstance(wf.model.bn, ModulatedOutput) and type(wf.model.conv) is nn.Conv2d
    check(base, wf)


def test_gates_behind_a_norm_survive_new_statistics() -> None:
    base = Net(lambda net, x: net.bn(net.conv(x)))
    behind, folded = (modulate(base, example_input=X, config=ModulateConfig(fold=fold)) for fold in (False, True))
    for wf in (behind, folded):
        with torch.no_grad():
            for memory in wf.memory_parameters():
                memory.fill_(-40.0)
            closed = wf(X, forget=1)
            torch.testing.assert_close(closed, base.head.bias.expand_as(closed))
            with wf.batch_statistics():
                torch.testing.assert_close(wf(X, forget=1), closed)


@pytest.mark.parametrize(
    "conv",
    [
        timm.layers.StdConv2d(4, 4, 3, padding=1),
        timm.layers.ScaledStdConv2d(4, 4, 3, padding=1),
        timm.layers.StdConv2dSame(4, 4, 3),
        timm.layers.create_conv2d(4, 4, 3, padding="same"),
    ],
    ids=lambda conv: type(conv).__name__,
)
@pytest.mark.parametrize("granularity", ["unit", "unit+input"])
def test_layers_with_their_own_forward(conv: nn.Module, granularity: str) -> None:
    base = Net(lambda net, x: net.conv(x).relu(), norm=nn.Identity(), conv=conv)
    wf = modulate(base, example_input=X, config=ModulateConfig(granularity=granularity))
    assert isinstance(wf.model.conv, ModulatedOutput) == (type(conv) is not nn.Conv2d)
    check(base, wf)
    if granularity == "unit" and type(conv) is not nn.Conv2d:
        assert isinstance(wf.bake(1).conv, nn.Conv2d), "a standardised weight becomes an ordinary one"


def test_parametrised_and_hooked_layers_keep_what_they_do() -> None:
    base = Net(lambda net, x: net.conv(x), norm=nn.Identity())
    nn.utils.parametrizations.weight_norm(base.conv)
    wf = modulate(base, example_input=X)
    assert isinstance(wf.model.conv, ModulatedOutput)
    check(base, wf)
    hooked = Net(lambda net, x: net.bn(net.conv(x)))
    hooked.conv.register_forward_hook(lambda m, a, out: out * 3)
    wf = modulate(hooked, example_input=X)
    assert "folded" not in actions(wf).values()
    check(hooked, wf)


def test_in_place_neighbours() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        y += x
        return net.bn(y)

    base = Net(body, norm=nn.ReLU(inplace=True))
    wf = modulate(base, example_input=X)
    assert wf.model.conv.keep == "gated"
    check(base, wf)
    base = Net(lambda net, x: net.bn(net.conv(x)), norm=nn.Hardswish(inplace=True))
    wf = modulate(base, example_input=X)
    assert wf.model.conv.keep == "output" and not wf.model.bn.inplace
    assert wf.unload().bn.inplace and wf.bake(1).bn.inplace and base.bn.inplace
    check(base, wf)


class Bias(nn.Module):
    """A linear layer that computes a bias for all samples from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(2, 4)
        self.register_buffer("table", torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.table).mean(0)[:, None, None]


def test_rows_that_are_not_samples() -> None:
    base = Net(lambda net, x: net.bn(net.conv(x)), norm=Bias())
    wf = modulate(base, example_input=X)
    reasons = {row.name: row.reason for row in wf.summary().rows}
    assert "rows are not samples" in reasons["bn.mlp"]
    check(base, wf)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class Functional(nn.Module):
    """Reads one layer's weight and one loose parameter without calling a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.loose = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.fc.weight, self.fc.bias), self.loose)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1d(x.flatten(2)).view_as(x)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (SqueezeExcite(), {"bn.fc": "inside squeeze-excite"}),
        (Functional(), {"bn.fc": "read without calling it (linear in bn)", "bn.loose": "a weight that linear reads"}),
        (Line(), {"bn.conv1d": "Conv1d is not supported"}),
    ],
)
def test_what_is_left_alone_has_its_reason(part: nn.Module, expected: dict[str, str]) -> None:
    base = Net(lambda net, x: net.bn(net.conv(x)), norm=part)
    wf = modulate(base, example_input=X)
    rows = {row.name: row for row in wf.summary().rows}
    for name, text in expected.items():
        assert rows[name].action == "skipped" and text in rows[name].reason
        assert text in str(wf.summary())
    check(base, wf)


def test_skip_and_filter() -> None:
    base = randomise(create_model("vit", 10, (1, 8, 8)))
    wf = modulate(base, config=ModulateConfig(skip=("blocks.0.*", "patch_embed*")))
    gated = [row.name for row in wf.summary().rows if row.action == "gated"]
    assert gated and not any(name.startswith(("blocks.0.", "patch_embed")) for name in gated)
    wf = modulate(base, config=ModulateConfig(filter=lambda name, module: isinstance(module, nn.Conv2d)))
    assert [row.name for row in wf.summary().rows if row.action == "gated"] == ["patch_embed.proj"]


@pytest.mark.slow
def test_filter_reaches_the_projections_of_replaced_attention() -> None:
    import torchvision

    base = randomise(torchvision.models.vit_b_16(image_size=32, num_classes=5)).eval()
    x = torch.randn(2, 3, 32, 32)
    wf = modulate(base, example_input=x, config=ModulateConfig(skip=("*.in_proj",)))
    kinds = {name: type(module) for name, module in wf.model.named_modules()}
    assert all(kind is nn.Linear for name, kind in kinds.items() if name.endswith("in_proj"))
    assert all(kind is ModulatedLinear for name, kind in kinds.items() if name.endswith("out_proj"))
    torch.testing.assert_close(wf(x, forget=-1), base(x), rtol=1e-3, atol=1e-3)
    assert not any(type(m).__module__.startswith("memmod") for m in wf.bake(1).modules())


class TwoHeads(nn.Module):
    """Logits are the mean of two heads, one of them a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.map_head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return (self.head(x.mean((2, 3))) + self.map_head(x).relu().flatten(2).mean(2)) / 2


def test_heads_are_found_by_the_logits() -> None:
    base = randomise(TwoHeads()).eval()
    wf = modulate(base, example_input=X)
    assert wf.num_classes == 5
    assert {row.name for row in wf.summary().rows if row.reason == "the classifier head"} == {"head", "map_head"}
    check(base, wf)


def test_concepts_of_a_model_without_a_head() -> None:
    base = randomise(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())).eval()
    x = torch.randn(3, 16)
    with pytest.raises(ValueError, match="head"):
        modulate(base, 3, x)
    wf = modulate(nn.Sequential(base, nn.Softmax(1), nn.LayerNorm(8)), example_input=x)
    assert wf.num_classes == 8


def test_existing_modulated_layers_are_kept() -> None:
    base = Net(
        lambda net, x: net.conv(x).relu(), norm=nn.Identity(), conv=ModulatedConv2d(4, 4, 3, 5, padding=1, init=1.0)
    )
    wf = modulate(base, example_input=X)
    assert [type(m) for m in wf.model.modules() if isinstance(m, Modulated)] == [ModulatedConv2d]
    assert (wf.model.conv.memory == 1.0).all()
    wf.verify(X)
    other = Net(lambda net, x: net.conv(x), norm=nn.Identity(), conv=ModulatedConv2d(4, 4, 3, 6, padding=1))
    with pytest.raises(ValueError, match="has memories for 6 classes, but the model has 5"):
        modulate(other, example_input=X)


def test_config_is_checked_and_travels() -> None:
    with pytest.raises(ValueError, match="granularity is 'x'"):
        ModulateConfig(granularity="x")
    config = ModulateConfig(granularity="input", skip=("a",), filter=lambda n, m: True)
    assert ModulateConfig.from_dict(config.to_dict()) == ModulateConfig(granularity="input", skip=("a",))
    with pytest.raises(ValueError, match="unknown fields of ModulateConfig: colour"):
        ModulateConfig.from_dict({"colour": 1})


def test_every_stored_field_of_a_config_is_checked() -> None:
    # Files that are older than these lack them.
    later = ("logits", "output", "fuse", "behind")
    stored = ModulateConfig(logits="out.logits", fuse=False, behind=True).to_dict()
    assert ModulateConfig.from_dict({k: v for k, v in stored.items() if k not in later}) == ModulateConfig()
    assert {f.name for f in dataclasses.fields(ModulateConfig)} == {*stored, "filter"}
    for name, value in stored.items():
        without = {key: v for key, v in stored.items() if key != name}
        if name not in later:
            with pytest.raises(ModelError, match=f"missing required field `{name}`"):
                ModulateConfig.from_dict(without)
        words = isinstance(value, str) or name == "output"
        for other in (7 if name in later else None, [1], {}, 10**400, 7 if words else "x"):
            if (name, other) != ("init", 7):
                with pytest.raises(ModelError, match=f"at \\$.{name}"):
                    ModulateConfig.from_dict(without | {name: other})
    for change in ({"granularity": "x"}, {"gate": "x"}):
        with pytest.raises(ValueError, match="is 'x'"):
            ModulateConfig.from_dict(stored | change)
    with pytest.raises(ModelError, match="init"):
        ModulateConfig.from_dict(stored | {"init": 1e300})


@pytest.mark.parametrize("wrap", [lambda wf: wf, lambda wf: nn.Sequential(wf, nn.Identity())], ids=["itself", "inside"])
def test_a_modulated_model_is_not_modulated_again(wrap) -> None:
    wf = modulate(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Linear(8, 4)), example_input=torch.randn(2, 12))
    with pytest.raises(ModelError, match="is a ModulatedModel.*modulate the base"):
        modulate(wrap(wf), example_input=torch.randn(2, 12))
