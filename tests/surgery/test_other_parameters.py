"""Every parameter with two dimensions or more is in some row of the summary, under the name that it has in the base."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.beit import Beit
from timm.models.sequencer import Sequencer2d
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from memmod import ModulatedModel, modulate
from memmod.surgery.random_weights import randomise


class Everything(nn.Module):
    """Parameters of every kind that memmod does not gate, and some that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.position = nn.Parameter(torch.randn(1, 4, 6))
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.table = nn.Embedding(4, 6)
        self.scale = nn.Parameter(torch.rand(1, 1, 6) + 0.5)
        self.unused = nn.Parameter(torch.randn(3, 3))
        self.rnn = nn.LSTM(6, 3, batch_first=True, bidirectional=True)
        self.line = nn.Conv1d(6, 6, 1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.other_attention = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)
        self.loose = nn.Parameter(torch.randn(6, 6))
        self.never = nn.ModuleDict({"head": nn.Linear(6, 2), "table": nn.Embedding(2, 2), "line": nn.Conv1d(2, 2, 1)})
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale + self.position + self.table(torch.arange(4))
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1)
        x = self.line(self.rnn(x)[0].mT).mT
        x = x + self.attention(x, x, x)[0]
        x = x + self.other_attention(x, x, x)[0]
        return self.head(F.linear(x, self.loose).mean(1))


def swin_v2() -> nn.Module:
    return SwinTransformer(
        *([4, 4], 8, [1, 1], [1, 2], [2, 2]),
        num_classes=5,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def image(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
MODELS = {
    "everything": (Everything, X),
    "sequencer2d": (
        lambda: Sequencer2d(
            5, layers=(1, 1), patch_sizes=(7, 2), embed_dims=(8, 8), hidden_sizes=(4, 4), mlp_ratios=(2, 2)
        ),
        image(28),
    ),
    "swin_v2": (swin_v2, image(16)),
    "beit": (lambda: Beit(16, 4, num_classes=5, embed_dim=8, depth=1, num_heads=2, use_rel_pos_bias=True), image(16)),
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5), image(32)),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=5, init_weights=False), image(64)),
    "convnextv2": (lambda: timm.create_model("convnextv2_atto", num_classes=5), image(32)),
}
SLOW = ("googlenet", "convnextv2")


def told(base: nn.Module, wf: ModulatedModel) -> dict[str, int]:
    """The base's parameters with two dimensions or more that a row tells of, and how many elements they have."""
    actions = {row.name: row.action for row in wf.summary().rows}

    def is_told(name: str) -> bool:
        parts = name.split(".")
        places = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        # A replaced module's own parameters went into its projections; its parts have rows of their own.
        return any(
            place in actions and (actions[place] != "replaced" or place == ".".join(parts[:-1])) for place in places
        )

    return {name: p.numel() for name, p in base.named_parameters() if p.dim() > 1 and is_told(name)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS])
def test_every_parameter_is_in_some_row(name: str) -> None:
    build, x = MODELS[name]
    torch.manual_seed(0)
    base = randomise(build()).eval()
    wf = modulate(base, example_input=x)
    of_base = {key: p.numel() for key, p in base.named_parameters() if p.dim() > 1}
    found = told(base, wf)
    assert found == of_base and sum(found.values()) == sum(of_base.values())
    names = [row.name for row in wf.summary().rows if row.kind == "Parameter"]
    assert len(names) == len(set(names)) and not any("memory" in other for other in names)
    wf.verify(x)


def test_the_reasons() -> None:
    torch.manual_seed(0)
    base = randomise(Everything()).eval()
    rows = {row.name: row for row in modulate(base, example_input=X).summary().rows}
    expected = {
        "position": "no layer's weight: add in the model takes it",
        "token": "no layer's weight: expand in the model takes it",
        "scale": "no layer's weight: mul in the model takes it",
        "unused": "no function of the example run took it",
        "loose": "a weight that linear reads without a layer",
        "table": "an embedding: its rows are looked up",
        "never.table": "an embedding: its rows are looked up",
        "never.head": "not called in the example run",
        "rnn": "LSTM is not supported",
    }
    assert {name: rows[name].reason for name in expected} == expected
    assert {rows[name].action for name in expected} == {"skipped"}
    assert not {"first.parametrizations.weight.original1", "attention.in_proj.weight"} & rows.keys()
