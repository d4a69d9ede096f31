"""timm's layer decay and weight decay on a modulated model: a memory has its layer's depth, and none decays."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.layer_groups import LAST, inside
from memmod.zoo import create_model

# Patterns of one group, of several, with suffixes of 0 and of timm's "as the one before"; windows; parts behind norms.
NETWORKS = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3},
    "convnext_atto": {},
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (1, 1, 2, 1)},
}


def modulated(name: str, **options) -> tuple[nn.Module, ModulatedModel]:
    base = timm.create_model(name, num_classes=4, **options).eval()
    side = options.get("img_size", 64)
    return base, modulate(base, 4, torch.randn(2, 3, side, side))


def scales(wf: nn.Module, groups: list[dict]) -> dict[str, float]:
    """The scale of the learning rate of every parameter that trains, by name."""
    names = {id(parameter): name for name, parameter in wf.named_parameters()}
    return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_memory_has_the_depth_of_its_layer(name: str) -> None:
    base, wf = modulated(name, **NETWORKS[name])
    depths = group_parameters(base, base.group_matcher(coarse=False), reverse=True)
    found = scales(wf, param_groups_layer_decay(wf, layer_decay=0.5))
    expected = {}
    for memory, _ in wf.named_memories():
        layer = memory.removesuffix(".memory")
        expected[f"model.{memory}"] = 0.5 ** (max(depths.values()) - depths[f"{layer}.weight"])
    assert found == expected
    assert len(set(found.values())) > 3


def test_coarse_groups_reach_the_base() -> None:
    base, wf = modulated("resnet18")
    fine, coarse = (group_parameters(wf, wf.group_matcher(coarse=kind), reverse=True) for kind in (False, True))
    of_base = group_parameters(base, base.group_matcher(coarse=True), reverse=True)
    assert max(coarse.values()) == max(of_base.values()) < max(fine.values())
    assert coarse["model.layer2.1.conv1.memory"] == of_base["layer2.1.conv1.weight"]


def test_names_of_a_compiled_part() -> None:
    _, wf = modulated("resnet18")
    before = group_parameters(wf, wf.group_matcher(), reverse=True)
    wf.model.layer2 = torch.compile(wf.model.layer2)
    after = group_parameters(wf, wf.group_matcher(), reverse=True)
    assert after["model.layer2._orig_mod.1.conv1.memory"] == before["model.layer2.1.conv1.memory"]


def test_matchers_that_are_functions() -> None:
    place = inside("model.", lambda name: 7 if name == "fc.memory" else (1, name.count(".")))
    assert place("model.fc.memory") == (7,) and place("model.a.b.memory") == (1, 2)


def test_patterns_mean_what_timm_says() -> None:
    place = inside(
        "model.", {"stem": "^conv|bn", "none": None, "blocks": [(r"^b\.(\d+)(?:\.(\d))?", None), ("d", (0,))]}
    )
    names = ("model.conv", "model.bn1", "model.b.12.3.memory", "model.b.12", "model.d", "model.head", "model.xconv")
    assert list(map(place, names)) == [(0.0,), (0.0,), (2.0, 12.0, 3.0), (2.0, 12.0), (2.0, 0.0), LAST, LAST]


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_only_bases_that_have_a_matcher_give_one(name: str) -> None:
    base = create_model(name, 10, (1, 8, 8))
    assert hasattr(modulate(base), "group_matcher") == hasattr(base, "group_matcher") == (name == "vit")


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_memories_do_not_decay(layer_decay: float | None) -> None:
    base = create_model("vit", 10, (1, 8, 8))
    wf = modulate(base)
    optimiser = create_optimizer_v2(wf, "adamw", lr=0.1, weight_decay=0.5, layer_decay=layer_decay)
    groups = optimiser.param_groups
    memories = set(map(id, wf.memory_parameters()))
    assert {id(p) for group in groups for p in group["params"]} == memories
    assert {group["weight_decay"] for group in groups} == {0.0}
    # Without the list they would.
    assert {g["weight_decay"] for g in param_groups_layer_decay(wf, weight_decay=0.5)} == {0.5}
    assert wf.no_weight_decay() >= {f"model.{name}" for name in base.no_weight_decay()}
    assert "model.cls_token" in wf.no_weight_decay()


def test_names_that_the_base_holds_as_an_attribute() -> None:
    base = create_model("resnet", 10, (1, 8, 8))
    base.no_weight_decay = {"fc.weight"}
    assert "model.fc.weight" in modulate(base).no_weight_decay()


def test_both_memories_of_a_layer_are_exempt() -> None:
    wf = modulate(create_model("resnet", 10, (1, 8, 8)), config=ModulateConfig(granularity="unit+input"))
    assert wf.no_weight_decay() == {f"model.{name}" for name, _ in wf.named_memories()}
    assert any(name.endswith("input_memory") for name in wf.no_weight_decay())
