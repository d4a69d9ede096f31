"""Which tensor of a model's output are its logits: found once, stored in the config, used everywhere."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memmod.surgery.fold
from memmod import ModulateConfig, ModulatedModel, modulate
from memmod.data import Split
from memmod.errors import ModelError
from memmod.evaluation.controls import without_gates
from memmod.outputs import logits_of
from memmod.surgery.random_weights import randomise

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """Features [B, 8] and scores [B, 5], returned as `make` says."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.make = make
        self.conv = nn.Conv2d(4, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)
        randomise(self).eval()

    def forward(self, x: Tensor) -> Any:
        features = self.bn(self.conv(x)).mean((2, 3))
        return self.make(features, self.fc(features))


@dataclass
class Output:
    features: Tensor
    logits: Tensor
    loss: Tensor | None = None


@dataclass(slots=True)
class Slots:
    features: Tensor
    scores: Tensor


Named = namedtuple("Named", "features logits")


class Plain:
    def __init__(self, features: Tensor, logits: Tensor) -> None:
        self.features, self.logits = features, logits


FORMS = {
    "tensor": (lambda f, s: s, None),
    "dict": (lambda f, s: {"features": f, "logits": s}, "logits"),
    "dict by the head": (lambda f, s: {"features": f, "scores": s}, "scores"),
    "tuple": (lambda f, s: (f, s), "1"),
    "tuple, logits first": (lambda f, s: (s, f), "0"),
    "list": (lambda f, s: [f, s], "1"),
    "reshaped": (lambda f, s: (f, s.unsqueeze(1).squeeze(1)), "1"),
    "with probabilities": (lambda f, s: (s.softmax(1), s), "1"),
    "dataclass": (Output, "logits"),
    "slots": (Slots, "scores"),
    "named tuple": (Named, "logits"),
    "object": (Plain, "logits"),
    "namespace": (lambda f, s: SimpleNamespace(loss=None, features=f, logits=s), "logits"),
    "nested": (lambda f, s: {"aux": f, "out": {"logits": s}}, "out.logits"),
    "two called logits": (lambda f, s: {"aux": {"logits": f}, "logits": s}, "logits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_and_used(form: str, tmp_path) -> None:
    make, path = FORMS[form]
    base = Pair(make)
    wf = modulate(base, example_input=X, class_names=list("abcde"))
    assert (wf.num_classes, wf.config.logits) == (5, path)
    assert {row.name: row.reason for row in wf.summary().rows}["fc"] == "the classifier head"
    wf.verify(X)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
        expected = wf.logits(base(X))
        assert expected.shape == (3, 5)
        torch.testing.assert_close(wf.logits(wf(X)), expected, rtol=1e-4, atol=1e-5)
        forgotten = wf.logits(wf(X, forget=1))
        assert not torch.allclose(forgotten, expected, atol=1e-3)
        torch.testing.assert_close(wf.logits(wf.bake(1)(X)), forgotten, rtol=1e-4, atol=1e-5)
    wf.save_memory(tmp_path / "memory.safetensors")
    again = ModulatedModel.from_file(base, tmp_path / "memory.safetensors", X)
    assert again.config == wf.config
    assert torch.equal(again.logits(again(X, forget=1)), forgotten)


class Images(Split):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices]


def test_controls_read_the_same_entry() -> None:
    images = 3 * torch.randn(64, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    base = Pair(lambda f, s: (f, s))
    split = Images(images, base(images)[1].argmax(1))
    for path, right in (("1", True), ("0", False)):
        original, _ = without_gates(base, split, [(int(split.labels[0]),)], 8, logits_path=path)
        assert ((original.mean_forget, original.mean_retain) == (1.0, 1.0)) == right


@pytest.mark.parametrize(("chosen", "path"), [(1, "1"), ("1", "1")])
def test_an_entry_can_be_chosen(chosen, path: str) -> None:
    base = Pair(lambda f, s: (f, s.log_softmax(1)))
    with pytest.raises(ModelError) as caught:
        modulate(base, example_input=X)
    assert "'0' (3, 8), '1' (3, 5); choose one with ModulateConfig(logits='1')" in str(caught.value)
    wf = modulate(base, example_input=X, config=ModulateConfig(logits=chosen))
    assert wf.config.logits == path and wf.num_classes == 5
    wf.verify(X)
    assert modulate(base, 5, X).config.logits == "1"


@pytest.mark.parametrize(
    ("make", "path", "text"),
    [
        (lambda f, s: (f, s), "scores", "'scores', but the model's output has no such entry: it holds '0' (3, 8)"),
        (lambda f, s: s, "logits", "no such entry: it holds one tensor (3, 5)"),
        (
            lambda f, s: {"logits": s[:, :, None, None]},
            None,
            "no logits [B, num_classes]: it is torch.float32 of shape",
        ),
        (lambda f, s: s[:, :, None, None], None, "no logits [B, num_classes]"),
        (lambda f, s: s.argmax(1), None, "it is torch.int64 of shape (3,)"),
        (lambda f, s: {"logits": s.t()}, None, "the logits have shape (5, 3) for 3 samples"),
        (lambda f, s: {"out": None}, None, "it returned no tensor"),
        (lambda f, s: s * float("nan"), None, "the logits of the example are not finite"),
    ],
)
def test_what_is_no_certain_logits(make, path, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        modulate(Pair(make), example_input=X, config=ModulateConfig(logits=path))
    assert text in str(caught.value)


def test_a_structure_that_holds_itself() -> None:
    output: dict[str, Any] = {"logits": torch.zeros(2, 3)}
    output["self"] = output
    assert logits_of(output).shape == (2, 3)


def test_the_place_is_a_string_or_an_int() -> None:
    with pytest.raises(TypeError, match=r"logits is 1\.5"):
        ModulateConfig(logits=1.5)
    assert ModulateConfig.from_dict(ModulateConfig(logits=0).to_dict()).logits == "0"


def test_a_pair_that_folds_wrongly_is_noticed_inside_a_dataclass(monkeypatch) -> None:
    right = memmod.surgery.fold.folded_conv

    def wrong(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
        folded = right(conv, norm)
        folded.weight.data.mul_(2)
        return folded

    monkeypatch.setattr(memmod.surgery.fold, "folded_conv", wrong)
    base = Pair(Output)
    wf = modulate(base, example_input=X)
    assert "folded" not in wf.summary().counts()
    torch.testing.assert_close(wf(X).logits, base(X).logits)


class TwoTowers(nn.Module):
    """Embeddings of images and texts and their scores, with the names that CLIP and its kin return them by."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7))
        self.text = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 7))
        randomise(self).eval()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        image, text = self.vision(pixel_values), self.text(input_ids)
        scores = image @ text.t()
        return {
            "logits_per_image": scores,
            "logits_per_text": scores.t(),
            "text_embeds": text,
            "image_embeds": image,
        }


def towers_input(images: int, texts: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(images, 6, generator=generator),
        "input_ids": torch.randn(texts, 4, generator=generator),
    }


@pytest.mark.parametrize("chosen", [None, "logits_per_image", "logits_per_text"])
@pytest.mark.parametrize("num_classes", [None, 3, 10])
def test_scores_of_a_batch_against_itself_are_no_logits(chosen: str | None, num_classes: int | None) -> None:
    with pytest.raises(ModelError) as caught:
        modulate(TwoTowers(), num_classes, towers_input(3, 3), config=ModulateConfig(logits=chosen))
    assert f"TwoTowers has no classifier: {chosen or 'logits_per_image'!r} (3, 3) scores every sample" in str(
        caught.value
    )
    assert "_embeds')" in str(caught.value)


def test_scores_against_a_fixed_list_of_texts_are_logits() -> None:
    x = towers_input(3, 5)
    wf = modulate(TwoTowers(), 5, x, config=ModulateConfig(skip=("text.*",)))
    assert wf.config.logits == "logits_per_image"
    wf.verify(x)


@pytest.mark.parametrize("num_classes", [4, 7])
def test_an_output_without_a_classifier_can_be_named(num_classes: int, tmp_path) -> None:
    base, x = TwoTowers(), towers_input(3, 3)
    config = ModulateConfig(output="image_embeds", skip=("text.*",))
    wf = modulate(base, num_classes, x, config=config)
    assert (wf.num_classes, wf.config.output, wf.config.logits) == (num_classes, "image_embeds", None)
    actions = {row.name: row.action for row in wf.summary().rows}
    assert actions["vision.0"] == actions["vision.2"] == "gated", "the projection is no head"
    wf.verify(x)
    assert torch.equal(wf.verified_output(wf(**x)), wf(**x)["image_embeds"])
    with pytest.raises(ModelError, match="has no logits: it was modulated with ModulateConfig\\(output='image_embeds'"):
        wf.logits(wf(**x))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
    forgotten = wf(**x, forget=1)["image_embeds"]
    assert not torch.allclose(forgotten, base(**x)["image_embeds"], atol=1e-3)
    torch.testing.assert_close(wf.bake(1)(**x)["image_embeds"], forgotten, rtol=1e-4, atol=1e-5)
    wf.save_memory(tmp_path / "memory.safetensors")
    again = ModulatedModel.from_file(base, tmp_path / "memory.safetensors", x)
    assert again.config == wf.config and torch.equal(again(**x, forget=1)["image_embeds"], forgotten)


@pytest.mark.parametrize("name", ["image_embeds", "pooler_output", "hidden_state"])
def test_an_only_embedding_is_no_logits(name: str) -> None:
    base = Pair(lambda f, s: {name: s, "last_hidden_state": f[:, None, :]})
    with pytest.raises(ModelError, match=f"Pair has no classifier: it returns embeddings, '{name}' \\(3, 5\\)"):
        modulate(base, example_input=X)
    wf = modulate(base, 3, X)
    assert (wf.num_classes, wf.config.output) == (3, name)
    assert {row.name: row.action for row in wf.summary().rows}["fc"] == "gated"
    wf.verify(X)
    said = modulate(base, example_input=X, config=ModulateConfig(logits=name))
    assert (said.num_classes, said.config.logits) == (5, name)


def test_an_embedding_beside_scores_is_not_chosen() -> None:
    wf = modulate(Pair(lambda f, s: {"embedding": f, "scores": s.log_softmax(1)}), example_input=X)
    assert (wf.config.logits, wf.num_classes) == ("scores", 5)


def test_an_output_of_any_rank() -> None:
    maps = Pair(lambda f, s: [f[:, :, None, None].expand(-1, -1, 2, 2) * 1.0, s])
    wf = modulate(maps, 4, X, config=ModulateConfig(output=0, skip=("fc",)))
    assert wf.config.output == "0" and wf.verified_output(wf(X)).shape == (3, 8, 2, 2)
    wf.verify(X)


@pytest.mark.parametrize(
    ("options", "num_classes", "text"),
    [
        ({"output": "maps"}, 4, "ModulateConfig.output is 'maps', but the model's output has no such entry"),
        ({"output": 1}, None, "ModulateConfig.output is '1', which is no classifier's: pass num_classes"),
        (
            {"output": 2},
            4,
            "ModulateConfig.output is '2', which is torch.int64 of shape (3,); name one of real numbers",
        ),
        ({"output": 3}, 4, "the output '3' has shape (5, 3) for 3 samples; memmod needs [B, ...]"),
    ],
)
def test_outputs_that_cannot_be_verified(options: dict, num_classes: int | None, text: str) -> None:
    base = Pair(lambda f, s: [f, s, s.argmax(1), s.t()])
    with pytest.raises(ModelError) as caught:
        modulate(base, num_classes, X, config=ModulateConfig(**options))
    assert text in str(caught.value)


def test_logits_and_output_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="logits is '1' and output '0': give logits for a classifier"):
        ModulateConfig(logits=1, output=0)
    with pytest.raises(TypeError, match="output is True"):
        ModulateConfig(output=True)
    assert ModulateConfig.from_dict(ModulateConfig(output=0).to_dict()).output == "0"
    old = ModulateConfig().to_dict()
    del old["output"]
    assert ModulateConfig.from_dict(old) == ModulateConfig()
