"""memmod coverage: what is tried of a model fails where it does not hold; models that die are rows; a table is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import memmod.runs.coverage as coverage
import memmod.runs.coverage_check as coverage_check
from memmod import ModulatedLinear, ModulatedModel
from memmod.cli.main import app
from memmod.errors import ModelError, RunError
from memmod.runs.coverage import CoverageStep, Tried, as_markdown, run_coverage
from memmod.runs.coverage_check import CheckFailed, check_model
from memmod.runs.coverage_models import CLASSES, SIDES, Candidate, build, candidates, has_transformers
from memmod.surgery.config import ModulateConfig
from memmod.surgery.example import Example

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.squeeze, self.head = nn.Conv2d(4, 8, 3), nn.Conv1d(16, 16, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        return self.head((y.flatten(2) + self.squeeze(y.flatten(2).transpose(1, 2)).transpose(1, 2)).mean(2))


def test_what_is_found_of_a_model() -> None:
    check = check_model(Net(), X)
    assert (check.layers, check.reasons) == (1, {"Conv1d is not supported": 1})
    assert check.gated_share == 288 / (288 + 256)
    assert 0 < check.verify_seconds < check.seconds


def test_weights_that_leave_nothing_of_the_samples_are_drawn_anew() -> None:
    def scaled(factor: float) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 5))
        with torch.no_grad():
            net[0].weight.mul_(factor)
        return net

    assert check_model(scaled(1e-12), X).layers == 3
    # Small weights are the model's own as long as the samples can be told apart.
    example = Example.of(X)
    kept, drawn = (coverage_check._drawn(scaled(factor), example) for factor in (1e-3, 1e-12))
    assert kept[0].weight.std() < 1e-3 and drawn[0].weight.std() > 0.1


def test_normalised_embeddings_have_a_step() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(4, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"embeds": nn.functional.normalize(self.out(self.conv(x).relu().mean((2, 3))))}

    assert check_model(Embeds(), X, 4, ModulateConfig(output="embeds")).layers == 2


class Deaf(ModulatedLinear):
    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        self.modulation(index)
        return nn.functional.linear(x, self.weight, self.bias)


def _other_base(monkeypatch) -> None:
    right = coverage_check.modulate
    monkeypatch.setattr(coverage_check, "modulate", lambda base, *rest: right(_changed(base), *rest))


def _changed(base: nn.Module) -> nn.Module:
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.conv.weight.mul_(1.5)
    return other


def _after_backward(monkeypatch, change: Callable[[Tensor], object]) -> None:
    """Changes the gradients of every memory once they are there."""
    backward, made = Tensor.backward, coverage_check.modulate
    models: list[ModulatedModel] = []

    def modulate(*args) -> ModulatedModel:
        models.append(made(*args))
        return models[-1]

    def changed(self: Tensor, *args, **kwargs) -> None:
        backward(self, *args, **kwargs)
        for memory in models[-1].memory_parameters():
            change(memory.grad)

    monkeypatch.setattr(coverage_check, "modulate", modulate)
    monkeypatch.setattr(Tensor, "backward", changed)


def _no_gradient(monkeypatch) -> None:
    _after_backward(monkeypatch, lambda grad: grad[3].zero_())


def _unselected_gradient(monkeypatch) -> None:
    _after_backward(monkeypatch, lambda grad: grad.add_(1.0))


def _other_bake(monkeypatch) -> None:
    right = ModulatedModel.bake
    monkeypatch.setattr(ModulatedModel, "bake", lambda self, forget: right(self, -1 if forget == 1 else forget))


@pytest.mark.parametrize(
    ("plant", "stage", "text"),
    [
        (_other_base, "nothing forgotten", "with nothing forgotten the output is not the base's"),
        (_no_gradient, "step", "conv.memory: a selected class has no gradient"),
        (_unselected_gradient, "step", "a class that no sample selects has a gradient"),
        (_other_bake, "bake", "the baked model differs from the gated one"),
    ],
)
def test_what_does_not_hold_is_named(plant: Callable, stage: str, text: str, monkeypatch) -> None:
    plant(monkeypatch)
    with pytest.raises(CheckFailed, match=text) as caught:
        check_model(Net(), X)
    assert caught.value.stage == stage


def test_a_model_that_cannot_be_gated_or_verified() -> None:
    with pytest.raises(CheckFailed, match="modulate: ModelError: Sequential has no linear or conv layer"):
        check_model(nn.Sequential(nn.Flatten(), nn.ReLU()), X, 3)
    deaf = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), Deaf(8, 8, 5), nn.Linear(8, 5))
    with pytest.raises(CheckFailed, match="verify: ModelError: 2 are gated, but their gates do not change the logits"):
        check_model(deaf, X)


def test_every_timm_module_and_torchvision_model_is_there() -> None:
    found = candidates(("timm", "torchvision"))
    of_timm = {c.family: c.name for c in found if c.kind == "timm"}
    assert sorted(of_timm) == sorted(timm.list_modules())
    for family, name in of_timm.items():
        assert name in timm.list_models(module=family), family
    names = [c.name for c in found if c.kind == "torchvision"]
    assert len(names) == len(set(names)) >= 80 and {"resnet18", "vit_b_16", "swin_v2_t", "googlenet"} <= set(names)


# In tests/surgery/test_architectures.py are seventeen more, compared more closely.
COVERED = (
    *("lcnet_035", "regnetx_002", "repghostnet_050", "resnet10t", "edgenext_xx_small", "shvit_s1"),
    *("mobilevitv2_050", "starnet_s050", "mambaout_femto", "fasternet_t0", "mnasnet0_5", "shufflenet_v2_x0_5"),
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COVERED)
def test_small_models_pass(name: str) -> None:
    candidate = next(c for c in candidates(("timm", "torchvision")) if c.name == name)
    model, example = build(candidate, SIDES[0])
    check = check_model(model, example)
    assert check.gated_share > 0.6 and (check.gated_share == 1.0 or check.reasons)


HUGGING_FACE = (
    *("ViTForImageClassification", "MobileNetV1ForImageClassification", "PPLCNetForImageClassification"),
    *("PerceiverForImageClassificationFourier", "CLIPModel", "CLIPVisionModelWithProjection", "SiglipModel"),
)


# `make examples` has transformers.
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_pass(name: str) -> None:
    pytest.importorskip("transformers")
    candidate = next(c for c in candidates(("hf",)) if c.name == name)
    model, example = build(candidate, 96)
    classes = None if candidate.output is None else CLASSES
    assert check_model(model, example, classes, candidate.config).gated_share > 0.9


ROW = Tried("timm", "a", "family", "passes", weights=2.5, layers=3, gated_share=1.0, side=96, seconds=60.0)


def test_the_table() -> None:
    rows = [
        ROW,
        replace(ROW, name="b", gated_share=0.8, side=None, reasons={"Conv1d is not supported": 2, "a | b": 1}),
        replace(
            ROW, name="e", gated_share=0.7, reasons={"read in a.0 of it": 1, "read in b.0.c of it": 2, "x in it": 1}
        ),
        replace(ROW, name="c", outcome="fails", detail="verify: x\nmore <b>", gated_share=0.0),
        replace(ROW, name="d", outcome="left out", detail="more than 1 M weights", gated_share=0.0, layers=0),
    ]
    text = as_markdown(rows, ["timm", "torchvision"])
    assert "| timm: the smallest model of each module | 4 | 3 | 0.800 | 0.833 | 0.700 |" in text
    assert "| torchvision: every classification model | 0 | 0 | 0.000 | 0.000 | 0.000 |" in text
    assert "| a | family | 2.5 M | 96 | 3 | 1.000 |  |" in text
    assert "| b | family | 2.5 M | own | 3 | 0.800 | 2 × Conv1d is not supported; 1 × a \\| b |" in text
    assert "| c | family | 2.5 M |  |  |  | fails: verify: x more &lt;b> |" in text
    assert "left out: more than 1 M weights" in text and "in 5 minutes on one core" in text
    assert "| 0.700 | 3 × read of it; 1 × x in it |" in text


def test_what_passes_is_kept_and_what_fails_is_tried_again(tmp_path, monkeypatch) -> None:
    tried: list[str] = []

    def in_own_process(candidate: Candidate, *_limits: float) -> Tried:
        tried.append(candidate.name)
        outcome = "passes" if candidate.name == "resnet18" else "fails"
        return replace(ROW, kind=candidate.kind, name=candidate.name, outcome=outcome)

    monkeypatch.setattr(coverage, "_in_own_process", in_own_process)
    options = {"kinds": ["torchvision"], "only": ["resnet18", "alexnet"]}
    steps: list[CoverageStep] = []
    rows = run_coverage(tmp_path / "c.md", tmp_path / "kept", on_step=steps.append, **options)
    assert tried == ["alexnet", "resnet18"] and [(s.number, s.count, s.tried) for s in steps] == [
        (1, 2, rows[0]),
        (2, 2, rows[1]),
    ]
    assert run_coverage(tmp_path / "c.md", tmp_path / "kept", **options) == rows
    assert tried == ["alexnet", "resnet18", "alexnet"]
    assert (tmp_path / "c.md").read_text() == as_markdown(rows, ["torchvision"])


@pytest.mark.slow
def test_a_model_that_takes_its_process_down_is_a_row(tmp_path) -> None:
    smallest = next(c for c in candidates(("torchvision",)) if c.name == "squeezenet1_1")
    passed = coverage._in_own_process(smallest, 150, 6, 300)
    assert passed.outcome == "passes" and passed.gated_share == 1.0 and passed.side == SIDES[0]
    late = coverage._in_own_process(smallest, 150, 6, 0.01)
    assert (late.outcome, late.detail) == ("fails", "took more than 0.01 s")
    large = coverage._in_own_process(smallest, 0.5, 6, 300)
    assert (large.outcome, large.detail) == ("left out", "more than 0.5 M weights")
    unknown = coverage._in_own_process(replace(smallest, name="nothing"), 150, 6, 300)
    assert unknown.outcome == "fails" and "Unknown model nothing" in unknown.detail
    starved = coverage._in_own_process(smallest, 150, 1e-6, 300)
    assert starved.outcome == "fails" and starved.detail


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kinds": ["keras"]}, ModelError, "unknown kind 'keras' of models; it must be one of timm, torchvision, hf"),
        ({"kinds": ["torchvision"], "only": ["vgg12"]}, ModelError, "'vgg12' are no models of torchvision"),
        ({"memory": 0}, RunError, "memory is 0; it must be more than 0"),
        ({"timeout": float("nan")}, RunError, "timeout is nan; it must be more than 0"),
    ],
)
def test_what_is_refused(options: dict, error: type[Exception], text: str, tmp_path) -> None:
    with pytest.raises(error) as caught:
        run_coverage(tmp_path / "c.md", tmp_path / "kept", **options)
    assert text in str(caught.value)


@pytest.mark.skipif(has_transformers(), reason="transformers is installed")
def test_hugging_face_without_transformers() -> None:
    with pytest.raises(ModelError, match=r"need the package transformers: pip install memmod-torch\[hf\]"):
        candidates(("hf",))


def test_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(coverage, "_in_own_process", lambda candidate, *_: replace(ROW, name=candidate.name))
    place = ["--out", str(tmp_path / "c.md"), "--kept", str(tmp_path / "kept")]
    done = CliRunner().invoke(app, ["coverage", "--kinds", "torchvision", "--model", "resnet18", *place])
    assert done.exit_code == 0 and "1 of 1 models pass or were left out" in done.output
    monkeypatch.setattr(
        coverage, "_in_own_process", lambda candidate, *_: replace(ROW, outcome="fails", detail="verify: why")
    )
    failed = CliRunner().invoke(app, ["coverage", "--kinds", "torchvision", "--model", "vgg11", *place])
    assert failed.exit_code == 1 and "verify: why" in failed.output and (tmp_path / "c.md").exists()
    assert CliRunner().invoke(app, ["coverage", "--kinds", "keras", *place]).exit_code == 1
