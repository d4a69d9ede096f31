"""Programs of torch.export: equal to the model for every selection, and run by torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from memmod import ModulateConfig, export, modulate
from memmod.errors import ExportError, SelectionError
from tests.export.helpers import NAMES, SHAPE, images, modulated, small_cnn

# Sums in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}

ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "memmod":
            raise ImportError("memmod is not there")
sys.meta_path.insert(0, Refuse())
import torch
try:
    import memmod
except ImportError:
    pass
else:
    raise SystemExit("memmod could be imported")
path, given, out = sys.argv[1:]
card = {"memmod.json": ""}
program = torch.export.load(path, extra_files=card)
assert not [node for node in program.graph.nodes if "memmod" in str(node.target)]
model = program.module()
x, *selections = torch.load(given)
torch.save([model(x, forget=forget) for forget in selections], out)
print(card["memmod.json"])
assert not [name for name in sys.modules if name.partition(".")[0] == "memmod"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("sets", [False, True])
def test_a_process_without_memmod_runs_it(sets: bool, tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    written = export.program(wf, tmp_path / "m.pt2", sets=sets)
    x = images(4)
    singles = [torch.tensor([-1] * 4), torch.tensor([0, 3, -1, 4]), torch.tensor([2, 2, 2, 2])]
    sets_of = [torch.tensor([[0, 3], [1, 1], [-1, -1], [4, -1]]), torch.tensor([[2], [-1], [0], [1]])]
    selections = sets_of if sets else singles
    torch.save([x, *selections], tmp_path / "given.pt")
    command = [sys.executable, "-c", ALONE, str(written.path), str(tmp_path / "given.pt"), str(tmp_path / "found.pt")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == written.card
    found = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        for forget, logits in zip(selections, found, strict=True):
            assert not logits.requires_grad
            torch.testing.assert_close(logits, wf(x, forget=forget), **ROUNDING)
    assert (found[0] - found[1]).abs().max() > 1e-2


def test_the_card_says_how_to_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wf = modulated(small_cnn())
    written = export.program(wf, tmp_path / "m.pt2")
    card = written.card
    assert card["class_names"] == list(NAMES)
    assert card["base_sha256"] == wf.base_sha256
    assert card["inputs"] == {"input": {"shape": ["batch", *SHAPE], "dtype": "float32"}}
    assert card["selection"]["shape"] == ["batch"] and card["selection"]["nothing"] == -1
    monkeypatch.chdir(tmp_path)
    names = {"input": images(2)}
    exec("\n".join(card["call"]), names)
    with torch.no_grad():
        torch.testing.assert_close(names["logits"], wf(images(2), forget=[3, -1]), **ROUNDING)
    wrong = names["model"](images(3), forget=torch.tensor([1, 5, -2]))
    assert wrong[1:].isnan().all() and not wrong[0].isnan().any()
    with pytest.raises(AssertionError, match=r"forget.size\(\)\[0\] == inputs_0.size\(\)\[0\]"):
        names["model"](images(3), forget=torch.tensor([1, 2]))


@pytest.mark.slow
def test_a_baked_program_has_no_selection(tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    written = export.program(wf, tmp_path / "m.pt2", forget={"bee", 3}, threshold=0.3)
    assert written.card["forgotten"] == [{"class": 1, "name": "bee"}, {"class": 3, "name": "dog"}]
    assert written.card["selection"] is None and written.card["threshold"] == 0.3
    model, x = torch.export.load(written.path).module(), images(5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), wf.bake({1, 3}, 0.3)(x), **ROUNDING)
    with pytest.raises(ValueError, match="forget"):
        model(x, forget=torch.tensor([1] * 5))


@pytest.mark.slow
def test_images_of_any_size(tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    written = export.program(wf, tmp_path / "m.pt2", any_size=True)
    assert written.card["inputs"]["input"]["shape"] == ["batch", 3, "height", "width"]
    model, forget = torch.export.load(written.path).module(), torch.tensor([4, -1])
    with torch.no_grad():
        for height, width in ((12, 12), (9, 31), (40, 7)):
            x = images(2, height, width)
            torch.testing.assert_close(model(x, forget=forget), wf(x, forget=forget), **ROUNDING)


def test_a_size_that_the_model_fixes_is_refused(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, len(NAMES)))
    with pytest.raises(ExportError, match="does not take images of any size .*: leave any_size out"):
        export.program(modulated(flat), tmp_path / "m.pt2", any_size=True)
    assert not list(tmp_path.iterdir())


class Named(nn.Module):
    """Takes keyword arguments and returns a dict, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_cnn()

    def forward(self, pixel_values=None, scale=None):
        return {"features": pixel_values, "logits": self.net(pixel_values) * scale[:, None]}


@pytest.mark.slow
def test_keyword_arguments_and_outputs_that_hold_more(tmp_path: Path) -> None:
    example = {"pixel_values": torch.randn(3, *SHAPE), "scale": torch.rand(3) + 1}
    wf = modulated(Named(), example)
    written = export.program(wf, tmp_path / "m.pt2", example_input=example)
    assert list(written.card["inputs"]) == ["pixel_values", "scale"]
    model, forget, scale = torch.export.load(written.path).module(), torch.tensor([4, -1, 0, 2]), torch.rand(4)
    with torch.no_grad():
        expected = wf(pixel_values=images(4), scale=scale, forget=forget)["logits"]
        found = model(images(4), scale, forget=forget)
    torch.testing.assert_close(found, expected, **ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "unit+input"},
        {"granularity": "input"},
        {"gate": "identity"},
        {"gate_bias": False},
        {"fold": False},
    ],
)
def test_every_kind_of_gate(options: dict, tmp_path: Path) -> None:
    assert export.program(modulated(small_cnn(), **options), tmp_path / "m.pt2").max_deviation < 1e-5


@pytest.mark.slow
def test_low_precision_is_compared_by_its_own_rounding(tmp_path: Path) -> None:
    wf = modulated(small_cnn()).bfloat16()
    model = torch.export.load(export.program(wf, tmp_path / "m.pt2").path).module()
    with torch.no_grad():
        assert model(images(2).bfloat16(), forget=torch.tensor([1, -1])).dtype == torch.bfloat16


def test_the_file_does_not_hold_the_example(tmp_path: Path) -> None:
    example = images(2)
    written = export.program(modulated(small_cnn()), tmp_path / "m.pt2", example_input=example)
    assert example[0].numpy().tobytes()[:64] not in written.path.read_bytes()
    (x,), named = torch.export.load(written.path).example_inputs
    assert x.shape == example.shape and not x.any() and not named["forget"].any()


@pytest.mark.slow
def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    wf.model = torch.compile(wf.model)
    with wf.forgetting(2):
        written = export.program(wf, tmp_path / "m.pt2")
    assert all(memory.requires_grad for memory in wf.memory_parameters())
    with torch.no_grad():
        model, nothing = torch.export.load(written.path).module(), torch.tensor([-1, -1])
        torch.testing.assert_close(model(images(2), forget=nothing), wf(images(2)), **ROUNDING)


class Encoder(nn.Module):
    """Has no classifier; a BatchNorm is folded in its gated copy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))

    def forward(self, x):
        return {"image_embeds": self.net(x).mean((2, 3))}


def test_a_model_without_logits_is_refused_and_baked_instead(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, config = Encoder().eval(), ModulateConfig(output="image_embeds")
    wf = modulate(base, 3, images(2), config)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.normal_()
    with pytest.raises(ExportError, match="Encoder has no classifier"):
        export.program(wf, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
    baked = wf.bake(1, architecture="base")
    assert baked.state_dict().keys() == base.state_dict().keys()
    with torch.no_grad():
        expected, found = wf(images(2), forget=1)["image_embeds"], baked(images(2))["image_embeds"]
    torch.testing.assert_close(found, expected)
    assert (found - base(images(2))["image_embeds"]).abs().max() > 1e-2


def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wf = modulated(small_cnn())
    cases = [
        ({"threshold": 0.3}, SelectionError, "name what to forget, or leave threshold out"),
        ({"forget": 2, "sets": True}, SelectionError, "leave one out"),
        ({"forget": [1, 2]}, SelectionError, "this one has 2 samples"),
        ({"forget": "cow"}, SelectionError, "unknown class name 'cow'"),
        ({"example_input": (images(2), 3)}, ExportError, "input_1 is a int in the example"),
    ]
    for options, error, words in cases:
        with pytest.raises(error, match=words):
            export.program(wf, tmp_path / "m.pt2", **options)
    with pytest.raises(ExportError, match="must end in .pt2"):
        export.program(wf, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memmod.export import aten, graph

    def closed(memory, index, gate):
        return aten._gates_of(memory, index, gate) * 0.9

    wf = modulated(small_cnn())
    monkeypatch.setattr(aten, "_gates", closed)
    with pytest.raises(ExportError, match="the exported program differs from the model by"):
        export.program(wf, tmp_path / "m.pt2")
    monkeypatch.undo()
    monkeypatch.setattr(
        graph._Gated, "forward", lambda self, *inputs, forget: self.wf(*inputs, forget=forget.clamp(-1, 4))
    )
    with pytest.raises(ExportError, match="does not answer class 5, which is out of range, with NaN"):
        export.program(wf, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
