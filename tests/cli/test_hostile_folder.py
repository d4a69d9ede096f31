"""A folder as nobody would want it, through every command: right, or worded before the first step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from memmod.cli import main as cli
from memmod.zoo import load_base
from tests.data.test_image_files import png

CLASSES = ("[bold]", "cat", "cat [old]", "Ünï :dog: 猫, 2")
UNLEARN = ("--steps", 2, "--eval-every", 2, "--batch-size", 8, "--max-set-size", 1)


def invoke(*args: object, code: int = 0) -> str:
    cli.console.width = 200
    result = CliRunner().invoke(cli.app, list(map(str, args)), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result.output


def pixels(seed: int, height: int = 24, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def fill(folder: Path, seed: int) -> None:
    """Eight images that are served, each of another kind, and what has to be left out."""
    folder.mkdir(parents=True)
    picture = Image.fromarray(pixels(seed))
    picture.save(folder / "plain.jpg")
    picture.save(folder / "with space [x].png")
    picture.quantize(16).save(folder / "palette.png")
    picture.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (24, 24))] * 2)
    Image.fromarray(pixels(seed)[..., 0].astype(np.uint16) * 257).save(folder / "16 bits.png")
    Image.fromarray(pixels(seed, 1, 1)).save(folder / "tiny.webp")
    Image.fromarray(pixels(seed, 3000, 1)).save(folder / "thin.bmp")
    picture.save(os.path.join(folder, os.fsdecode(b"odd\xe9.png")))
    (folder / "._plain.jpg").write_bytes(b"\0\5\x16\7")
    (folder / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (9, 9)).save(folder / ".ipynb_checkpoints" / "plain-checkpoint.jpg")
    (folder / "notes [b].txt").write_text("no image")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "photos [1]"
    for number, name in enumerate(CLASSES):
        fill(folder / "Training" / name, 10 * number)
        fill(folder / "Testing" / name, 10 * number + 1)
    return folder


def test_through_every_command(photos: Path) -> None:
    base, unlearned = photos.parent / "runs [new]" / "base [/b]", photos.parent / "runs [new]" / "un :cat: [red]"
    data = ("--data", f"folder:{photos}", "--image-size", 32)
    output = invoke("train", *data, "--epochs", 1, "--out", base)
    assert "32 files or folders" not in output and "24 files or folders were not read" in " ".join(output.split())
    assert f"The base is in {base}\n" in output and "8 .txt" in output and "16 hidden" in output
    assert load_base(base)[1]["class_names"] == list(CLASSES)
    output = invoke("unlearn", "--base", base, "--out", unlearned, *UNLEARN)
    assert f"The memories are in {unlearned}\n" in output
    output = invoke("evaluate", unlearned, "--sets", "2", "--sets-per-size", 1)
    assert str(unlearned) in output and f"Written to {unlearned}/scorecard.json" in output
    lines = [line.strip("│┃ ").split(" │")[0].strip() for line in output.splitlines()]
    assert set(CLASSES) <= set(lines)
    card = json.loads((unlearned / "scorecard.json").read_text())
    assert card["class_names"] == list(CLASSES) and card["images"] == 32
    output = invoke("bake", unlearned, "--forget", "cat [old]", "--forget", CLASSES[3], "--out", base / "b.safetensors")
    assert f"forgotten: cat [old], {CLASSES[3]}" in output and str(base / "b.json") in output
    assert load_file(base / "b.safetensors").keys() == load_file(base / "base.safetensors").keys()
    assert "unknown class name '[red]'" in invoke("bake", unlearned, "--forget", "[red]", code=1)


def write_damaged(kind: str, path: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut short":
        Image.fromarray(pixels(0, 60, 60)).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == "huge":
        path.write_bytes(png(30_000, 30_000, b""))
    elif kind == "float":
        Image.new("F", (8, 8), 0.5).save(path, "TIFF")
    elif kind == "text":
        path.write_text("no image")
    elif kind == "link":
        path.symlink_to(path.parent / "nowhere.png")


@pytest.mark.parametrize("split", ["Training", "Testing"])
@pytest.mark.parametrize("kind", ["empty", "cut short", "huge", "float", "text", "link"])
def test_what_cannot_be_read_is_named_before_the_first_step(
    photos: Path, tmp_path: Path, kind: str, split: str
) -> None:
    path = photos / split / "cat [old]" / f"{kind} [x].png"
    write_damaged(kind, path)
    try:
        output = invoke(
            "train", "--data", f"folder:{photos}", "--image-size", 32, "--epochs", 1, "--out", tmp_path / "run", code=1
        )
    finally:
        path.unlink()
    assert f"{path} " in output and ("take it away" in output or "save it as" in output)
    assert "training" not in output and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["unlearn", "evaluate", "bake"])
def test_later_commands_check_too(photos: Path, tmp_path: Path, command: str) -> None:
    base, unlearned = tmp_path / "base", tmp_path / "unlearned"
    invoke("train", "--data", f"folder:{photos}", "--image-size", 32, "--epochs", 1, "--out", base)
    arguments = {
        "unlearn": ("unlearn", "--base", base, "--out", tmp_path / "new", *UNLEARN),
        "evaluate": ("evaluate", unlearned),
        "bake": ("bake", unlearned, "--forget", "cat", "--out", tmp_path / "b.safetensors"),
    }[command]
    if command != "unlearn":
        invoke("unlearn", "--base", base, "--out", unlearned, *UNLEARN)
    path = photos / ("Training" if command == "unlearn" else "Testing") / "cat" / "zero.png"
    path.touch()
    try:
        assert f"{path} is empty" in invoke(*arguments, code=1)
    finally:
        path.unlink()
    assert not (tmp_path / "new").exists() and not (tmp_path / "b.safetensors").exists()
    assert not (unlearned / "scorecard.json").exists()


def test_odd_names_are_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    odd = os.path.join(photos, "Training", os.fsdecode(b"odd\xe9"))
    os.mkdir(odd)
    data = ("train", "--data", f"folder:{photos}", "--image-size", 32, "--epochs", 1, "--out")
    try:
        assert "'odd\\udce9'" in invoke(*data, tmp_path / "run", code=1)
    finally:
        os.rmdir(odd)
    assert "odd\\udce9" in invoke(*data, os.path.join(tmp_path, os.fsdecode(b"odd\xe9")), code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_class_of_too_few_images_is_named_at_train(photos: Path, tmp_path: Path) -> None:
    extra = [photos / split / "[one]" / "x.png" for split in ("Training", "Testing")]
    for path in extra:
        path.parent.mkdir()
        Image.fromarray(pixels(5)).save(path)
    try:
        output = invoke(
            "train", "--data", f"folder:{photos}", "--image-size", 32, "--epochs", 1, "--out", tmp_path / "run", code=1
        )
    finally:
        for path in extra:
            path.unlink()
            path.parent.rmdir()
    assert "fewer than 2 images of class 1 ('[one]')" in output
    assert not (tmp_path / "run").exists()
