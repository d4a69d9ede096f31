"""The command line: what each command writes and prints, and that everything that goes wrong is one worded message."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from memmod.cli import main as cli
from memmod.cli.main import app, default_folder, parse_classes
from memmod.errors import RunError, SelectionError
from memmod.files.checkpoint import Checkpoint
from memmod.model import ModulatedModel
from memmod.report.library import bundle
from memmod.zoo import load_base
from tests.helpers import assert_no_worse

COMMANDS = (
    "demo",
    "train",
    "unlearn",
    "evaluate",
    "retrain",
    "audit",
    "compare",
    "erase",
    "frontier",
    "bake",
    "export",
    "coverage",
    "info",
)
TINY = ("--steps", "4", "--eval-every", "2", "--batch-size", "16", "--max-set-size", "2")


def invoke(*args: object):
    # Made when the module was imported, for whatever terminal there was then.
    cli.console.width = 200
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def succeed(*args: object) -> str:
    result = invoke(*args)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def fail(*args: object) -> str:
    """The message of a command that ends with exit code 1; no traceback, one line."""
    result = invoke(*args)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("memmod: ")]
    assert "Traceback" not in result.output
    return message


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a base and an unlearned run of the smallest size."""
    folder = tmp_path_factory.mktemp("runs")
    succeed("train", "--epochs", 1, "--seed", 3, "--out", folder / "base")
    succeed("unlearn", "--base", folder / "base", "--out", folder / "unlearned", "--seed", 5, *TINY)
    return folder


@pytest.fixture
def copy(runs, tmp_path) -> Path:
    """The same folder, to be damaged."""
    shutil.copytree(runs, tmp_path / "runs")
    config = tmp_path / "runs" / "unlearned" / "config.json"
    config.write_text(config.read_text().replace(str(runs), str(tmp_path / "runs")))
    return tmp_path / "runs"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    output = succeed(command, "--help")
    assert "Examples" in output and f"$ memmod {command}" in output


@pytest.mark.slow
def test_help_lists_every_command_and_loads_nothing_heavy():
    assert all(command in succeed("--help") for command in COMMANDS)
    program = (
        "import sys; from memmod.cli.main import app; app(['unlearn', '--help'], standalone_mode=False); "
        "heavy = {'timm', 'torchvision', 'sklearn', 'jinja2'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)


def test_train_writes_a_base_and_its_settings(runs):
    config = json.loads((runs / "base" / "config.json").read_text())
    assert config["command"] == "train"
    assert config["settings"]["seed"] == 3 and config["settings"]["epochs"] == 1
    metrics = json.loads((runs / "base" / "metrics.json").read_text())
    model, meta = load_base(runs / "base")
    assert meta["model"] == "resnet" and meta["metrics"] == metrics
    assert metrics["accuracy"] > 0.2
    assert not model.training


def test_unlearn_writes_memories_that_fit_the_base(runs):
    config = json.loads((runs / "unlearned" / "config.json").read_text())
    assert config["settings"] | {"seed": 5, "steps": 4, "preset": "default", "model": "resnet"} == config["settings"]
    metrics = json.loads((runs / "unlearned" / "metrics.json").read_text())
    assert metrics["history"][-1]["step"] == 4
    wf = ModulatedModel.from_file(load_base(runs / "base")[0], runs / "unlearned" / "memory.safetensors")
    assert wf.class_names == tuple("0123456789")
    assert any((memory != 2.0).any() for memory in wf.memory_parameters())
    assert sorted(p.name for p in (runs / "unlearned").iterdir() if p.suffix == ".safetensors") == [
        "memory.safetensors"
    ]


def test_resume_goes_on_bit_identically(runs, tmp_path, monkeypatch):
    save, saved = Checkpoint.save, []

    def killed(self, path):
        save(self, path)
        saved.append(path)
        raise RunError("killed")

    command = ("unlearn", "--base", runs / "base", "--out", tmp_path / "run", "--seed", 5, *TINY)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        assert "killed" in fail(*command)
    assert len(saved) == 1 and not (tmp_path / "run" / "memory.safetensors").exists()
    assert "already exists" in fail(*command)
    succeed(*command, "--resume")
    found, expected = (load_file(folder / "memory.safetensors") for folder in (tmp_path / "run", runs / "unlearned"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_resume_of_a_finished_run_changes_nothing(copy):
    before = {path.name: path.read_bytes() for path in (copy / "unlearned").iterdir()}
    options = ("--base", copy / "base", "--out", copy / "unlearned", "--seed", 5)
    succeed("unlearn", *options, *TINY, "--resume")
    assert before == {path.name: path.read_bytes() for path in (copy / "unlearned").iterdir()}


def test_overwrite_starts_anew(copy):
    options = ("--base", copy / "base", "--out", copy / "unlearned", "--preset", "fast", *TINY)
    succeed("unlearn", *options, "--overwrite")
    settings = json.loads((copy / "unlearned" / "config.json").read_text())["settings"]
    assert settings["preset"] == "fast" and settings["seed"] == 0


def test_evaluate_prints_a_table_and_writes_json(copy):
    output = succeed("evaluate", copy / "unlearned", "--sets", "2", "--sets-per-size", 2)
    for text in ("memmod", "original", "logit mask", "random gates", "random sets of 2", "statistics taken anew"):
        assert text in output
    card = json.loads((copy / "unlearned" / "scorecard.json").read_text())
    assert [method["method"] for method in card["methods"]] == ["memmod", "original", "logit mask", "random gates"]
    assert len(card["methods"][0]["acc_forget"]) == 10
    assert len(card["sets"]["2"][0]["selections"]) == 2
    assert card["restandardised"]["method"] == "re-standardised"


def test_evaluate_prints_json_alone(copy):
    result = invoke("evaluate", copy / "unlearned", "--sets", "", "--no-statistics", "--json")
    assert result.exit_code == 0
    card = json.loads(result.stdout)
    assert card["sets"] == {} and card["restandardised"] is None


def test_bake_writes_a_state_dict_that_loads_as_its_card_says(copy, monkeypatch):
    output = succeed("bake", copy / "unlearned", "--forget", "3,5", "--threshold", 0.9, "--out", copy / "b.safetensors")
    card = json.loads((copy / "b.json").read_text())
    assert [entry["class"] for entry in card["forgotten"]] == [3, 5]
    assert len(card["test_accuracies"]) == 4
    assert 0 < card["zeroed_gates"] <= card["gates"]
    assert f"{card['zeroed_gates']} of {card['gates']} gates are below 0.9" in output
    monkeypatch.chdir(copy)
    names: dict = {}
    exec("\n".join(card["load"]), names)
    base, meta = load_base(copy / "base")
    wf = ModulatedModel.from_file(base, copy / "unlearned" / "memory.safetensors")
    x = torch.randn(8, *meta["input_shape"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, plain, before = names["model"](x), wf.bake({3, 5}, threshold=0.9)(x), base(x)
        oracle = wf.bake({3, 5}, threshold=0.9).double()(x.double())
    assert_no_worse({"logits": found}, {"logits": plain}, {"logits": oracle})
    assert (found - before).abs().max() > 1e-2 * oracle.abs().max()


def test_bake_does_not_write_over_a_file(copy):
    succeed("bake", copy / "unlearned", "--forget", 3)
    assert "baked-3.safetensors" in fail("bake", copy / "unlearned", "--forget", "3")
    succeed("bake", copy / "unlearned", "--forget", "3", "--overwrite")


@pytest.mark.slow
def test_export_writes_a_program_and_says_how_to_call_it(copy):
    output = succeed("export", copy / "unlearned", "--format", "torch-export")
    path = copy / "unlearned" / "exported.pt2"
    assert f"model = torch.export.load({path.name!r}).module()" in output and str(path) in output
    wf = ModulatedModel.from_file(load_base(copy / "base")[0], copy / "unlearned" / "memory.safetensors")
    x, forget = torch.randn(3, 1, 8, 8), torch.tensor([3, -1, 9])
    with torch.no_grad():
        found = torch.export.load(path).module()(x, forget=forget)
        torch.testing.assert_close(found, wf(x, forget=forget), rtol=1e-4, atol=1e-4)
    assert "already there" in fail("export", copy / "unlearned", "--format", "torch-export")


def test_export_writes_weights_for_the_base(copy):
    succeed("export", copy / "unlearned", "--format", "safetensors", "--forget", "3,5", "--threshold", 0.9)
    base = load_base(copy / "base")[0]
    wf = ModulatedModel.from_file(base, copy / "unlearned" / "memory.safetensors")
    base.load_state_dict(load_file(copy / "unlearned" / "exported-3-5.safetensors"))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(base(x), wf.bake({3, 5}, 0.9)(x), rtol=1e-4, atol=1e-4)


def test_export_refuses_what_no_file_can_hold(copy):
    run, before = copy / "unlearned", sorted(p.name for p in (copy / "unlearned").iterdir())
    assert "name the classes to forget for good" in fail("export", run, "--format", "safetensors")
    assert "leave sets and sizes out" in fail("export", run, "--format", "safetensors", "--forget", 3, "--sets")
    assert "must end in .onnx" in fail("export", run, "--out", copy / "m.pt2")
    assert "leave threshold out" in fail("export", run, "--format", "torch-export", "--threshold", 0.5)
    assert "name 1 to 9" in fail("export", run, "--format", "torch-export", "--forget", "0,1,2,3,4,5,6,7,8,9")
    assert invoke("export", run, "--format", "coreml").exit_code == 2
    assert sorted(p.name for p in run.iterdir()) == before


def test_the_package_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "memmod", "train", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "memmod train" in result.stdout


def test_info_names_every_backend():
    output = succeed("info")
    assert all(name in output for name in ("reference", "cpu", "triton", "cuda", "torch"))


def test_classes_by_name_and_number():
    names = ["cat", "3", "a, b", "dog"]
    assert parse_classes(["cat,dog"], names) == (0, 3)
    assert parse_classes(["a, b", "0"], names) == (0, 2)
    assert parse_classes(["3"], names) == (1,)
    for text, message in (("owl", "unknown class name 'owl'"), ("4", "out of range"), ("-1", "names no class")):
        with pytest.raises(SelectionError, match=message):
            parse_classes([text], names)


def test_default_folders_are_plain_names():
    assert default_folder("digits", "timm:resnet18") == Path("runs/digits-timm-resnet18")
    assert default_folder("folder:/a/my photos/", "vit") == Path("runs/my-photos-vit")


# What goes wrong: exit code 1 and one worded message.


def test_existing_run_folder(runs):
    assert "already exists" in fail("train", "--epochs", 1, "--out", runs / "base")
    assert "already exists" in fail("unlearn", "--base", runs / "base", "--out", runs / "unlearned")


def test_resume_with_other_settings(runs):
    options = ("--base", runs / "base", "--out", runs / "unlearned", *TINY, "--resume")
    assert "other settings: seed was 5, now 6;" in fail("unlearn", *options, "--seed", 6)


def test_unknown_names(runs, tmp_path):
    assert "unknown class name 'owl'" in fail("bake", runs / "unlearned", "--forget", "owl")
    assert "class 10 is out of range" in fail("bake", runs / "unlearned", "--forget", 10)
    assert "unknown model 'resmet'" in fail("train", "--model", "resmet", "--out", tmp_path / "run")
    assert "unknown data set 'digit'" in fail("train", "--data", "digit", "--out", tmp_path / "run")
    options = ("unlearn", "--base", runs / "base", "--out", tmp_path / "run")
    assert "unknown preset 'best'" in fail(*options, "--preset", "best")
    assert "unknown objective 'ce'" in fail(*options, "--objective", "ce")
    assert "no linear or conv layer that can be gated" in fail(*options, "--skip", "*")
    assert not (tmp_path / "run").exists()


def test_missing_data(tmp_path):
    message = fail("train", "--data", "mnist", "--data-root", tmp_path, "--out", tmp_path / "run")
    assert str(tmp_path) in message and "--download" in message
    assert "no data folder" in fail("train", "--data", f"folder:{tmp_path / 'photos'}", "--out", tmp_path / "run")


def test_data_of_other_classes(runs, tmp_path):
    for number, name in enumerate(("cat", "dog")):
        for split in ("train", "test"):
            folder = tmp_path / "animals" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8), (40 * i, 90 * number, 9)).save(folder / f"{i}.png")
    message = fail(
        "unlearn", "--base", runs / "base", "--data", f"folder:{tmp_path / 'animals'}", "--out", tmp_path / "r"
    )
    assert "other class names" in message and "'cat'" in message


def test_missing_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = fail("unlearn", "--data", "mnist", "--model", "vit")
    assert "runs/mnist-vit" in message and "memmod train" in message


def test_base_of_another_model(runs):
    assert "is a 'resnet', not the 'vit'" in fail("unlearn", "--base", runs / "base", "--model", "vit")


def test_run_folders_of_the_wrong_kind(runs, tmp_path):
    assert "no run folder" in fail("evaluate", tmp_path / "absent")
    assert "not a run folder of memmod" in fail("evaluate", tmp_path)
    assert "name one of `memmod unlearn`" in fail("evaluate", runs / "base")
    assert "memmod train" in fail("unlearn", "--base", runs / "unlearned")


def test_unfinished_run(copy):
    (copy / "unlearned" / "memory.safetensors").unlink()
    assert "holds no memory.safetensors" in fail("evaluate", copy / "unlearned")


def test_memory_of_another_base(copy):
    succeed("train", "--epochs", 1, "--seed", 4, "--out", copy / "other")
    assert "another base" in fail("evaluate", copy / "unlearned", "--base", copy / "other")
    succeed("train", "--epochs", 1, "--seed", 4, "--out", copy / "base", "--overwrite")
    assert "another base" in fail("bake", copy / "unlearned", "--forget", 3)


@pytest.mark.parametrize("size", [0, 7, 300])
def test_memory_file_cut_short(copy, size):
    path = copy / "unlearned" / "memory.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in fail("evaluate", copy / "unlearned")


def test_base_cut_short(copy):
    path = copy / "base" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged or cut short" in fail("unlearn", "--base", copy / "base", "--out", copy / "new")


def test_bake_refuses_what_it_cannot_write(runs, tmp_path):
    every = ",".join(map(str, range(10)))
    assert "10 of 10 classes" in fail(
        "bake", runs / "unlearned", "--forget", every, "--out", tmp_path / "b.safetensors"
    )
    assert ".safetensors" in fail("bake", runs / "unlearned", "--forget", 1, "--out", tmp_path / "b.bin")
    assert list(tmp_path.iterdir()) == []


def test_device_that_is_not_there(runs, tmp_path):
    message = fail("unlearn", "--base", runs / "base", "--out", tmp_path / "r", "--device", "abacus")
    assert "the device 'abacus' cannot be used" in message


@pytest.mark.parametrize("device", ["meta", "cuda:99"])
def test_training_on_a_device_that_computes_nothing_is_refused_before_a_folder_is_made(runs, tmp_path, device):
    for command in (
        ("train", "--epochs", 1, "--out", tmp_path / "r"),
        ("erase", runs / "unlearned", "--forget", 3, "--out", tmp_path / "r"),
        ("retrain", runs / "base", "--without", 3, "--oracles", tmp_path / "r"),
        ("unlearn", "--base", runs / "base", "--out", tmp_path / "r"),
        ("audit", runs / "unlearned", "--forget", 3, "--oracles", tmp_path / "r"),
    ):
        assert f"the device '{device}' cannot be used" in fail(*command, "--device", device)
    assert not (tmp_path / "r").exists()


def test_a_device_is_no_setting_of_a_training(runs):
    for folder in ("base", "unlearned"):
        settings = json.loads((runs / folder / "config.json").read_text())["settings"]
        assert ("device" in settings) == (folder == "unlearned")
    succeed("train", "--epochs", 1, "--seed", 3, "--out", runs / "base", "--device", "cpu", "--resume")


def test_random_weights_are_no_base(tmp_path):
    assert "epochs is 0" in fail("train", "--epochs", 0, "--out", tmp_path / "run")


def test_unwritable_folder_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fail("train", "--epochs", 1, "--out", tmp_path / "file" / "run")


@pytest.mark.parametrize(
    "args",
    [
        ("paint",),
        ("train", "--colour", "red"),
        ("train", "--epochs", "many"),
        ("unlearn", "--steps", "0"),
        ("unlearn", "--resume", "--overwrite"),
        ("train", "--resume", "--overwrite"),
        ("evaluate",),
        ("evaluate", "run", "--sets", "two"),
        ("bake", "run"),
        ("frontier", "run", "--forget", "3", "--budgets", "half"),
        ("frontier", "run", "--forget", "3", "--judges", "1"),
        ("bake", "run", "--forget", "3", "--threshold", "1.5"),
    ],
)
def test_usage_errors_exit_with_2(args):
    assert invoke(*args).exit_code == 2


@pytest.mark.slow
def test_demo_writes_runs_and_report_and_can_be_repeated(tmp_path, monkeypatch):
    from memmod.cli import demo

    small = demo.Settings(epochs=1, steps=2, set_sizes=())
    monkeypatch.setattr(demo, "Settings", lambda: small)
    out = tmp_path / "demo"
    output = succeed("demo", "--out", out)
    assert str(out / "report.html") in output
    html = (out / "report.html").read_text(encoding="utf-8").replace(bundle(), "")
    assert all(f'-title">{title}</h2>' in html for title in ("ResNet", "ViT"))
    assert len(re.findall("<img ", html)) == 9 + 17
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"resnet", "vit", "seconds"}
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr(demo, "MODELS", {"resnet": "ResNet"})
    (out / "report.html").write_text("old")
    succeed("demo", "--out", out)
    assert "<h2" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "notes.txt").read_text() == "mine"
    succeed("bake", out / "resnet-unlearned", "--forget", "7")


def test_demo_does_not_touch_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "not a run folder of memmod" in fail("demo", "--out", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
