"""The README: its Python runs as written, and what its commands name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from typer.main import get_command

from memmod.cli.main import app
from memmod.data import NAMES
from memmod.surgery.random_weights import randomise

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks_of(kind: str) -> list[str]:
    """The blocks of Python of one kind, by the word behind the language: none for those that run from top to bottom,
    else "timm" and "hf" for those that stand alone and start from a model of one's own."""
    return re.findall(rf"```python{f' {kind}' if kind else ''}\n(.*?)```", README, re.S)


def run_alone(kind: str) -> None:
    blocks = blocks_of(kind)
    assert blocks
    for block in blocks:
        exec(compile(block, f"README.md, {kind}", "exec"), {})


def test_every_block_is_run():
    kinds = set(re.findall(r"^```python ?(\w*)$", README, re.M))
    assert kinds == {"", "timm", "hf"}


@pytest.mark.slow
def test_a_timm_model_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(randomise(timm.create_model("resnet18", num_classes=10)).state_dict(), "my-resnet18.safetensors")
    run_alone("timm")


@pytest.mark.slow
def test_hugging_face_models_of_ones_own(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"image_size": 32, "patch_size": 8}
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**small, num_labels=3))
    randomise(vit).save_pretrained("my-vit")
    clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**small, projection_dim=8))
    randomise(clip).save_pretrained("my-clip")
    run_alone("hf")
    without = transformers.AutoModelForImageClassification.from_pretrained("my-vit-without")
    assert type(without) is type(vit) and without.state_dict().keys() == vit.state_dict().keys()


@pytest.mark.slow
def test_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of("")
    assert len(blocks) >= 4
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, snippet {number + 1}", "exec"), names)
    assert (tmp_path / "digits.safetensors").exists()


def test_commands_and_options_exist():
    commands = get_command(app).commands
    lines = re.findall(r"^memmod (\w+)(.*)$", README, re.M)
    assert {name for name, _ in lines} >= {"train", "unlearn", "evaluate", "bake"}
    for name, options in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", options)) <= known


def test_make_targets_exist():
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_is_described(name):
    assert f"`{name}`" in README
