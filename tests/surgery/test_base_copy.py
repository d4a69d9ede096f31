"""The copy that surgery works on: compiled, pruned, normed, feature-keeping and inference-mode bases, and refusals."""

from __future__ import annotations

import copy
import threading
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from memmod import ModulatedModel, modulate
from memmod.errors import ModelError
from memmod.evaluation.controls import random_gates
from memmod.files.state_hash import state_sha256
from memmod.surgery.random_weights import randomise

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8) if norm is None else norm
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)
        randomise(self).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.bn(self.conv(x))).mean((2, 3)))


def check(base: nn.Module, plain: nn.Module, tmp_path) -> ModulatedModel:
    """`base` is modulated like `plain`, the same network: gates act, it bakes, it unloads, it travels in a file."""
    state = {name: value.clone() for name, value in base.state_dict().items()}
    wf = modulate(base, example_input=X)
    assert wf.base_sha256 == state_sha256(base) == state_sha256(wf.unload())
    wf.verify(X)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(0)))
        expected = plain(X)
        torch.testing.assert_close(wf(X), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(wf.bake(2)(X), wf(X, forget=2), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wf.bake(2)(X), expected, atol=1e-3)
        torch.testing.assert_close(wf.unload()(X), expected)
    assert not any(type(m).__module__.startswith("memmod") for m in wf.bake(2).modules())
    path = tmp_path / "memory.safetensors"
    wf.save_memory(path)
    assert torch.equal(ModulatedModel.from_file(base, path, X)(X, forget=2), wf(X, forget=2))
    wf(X, forget=[0, 1, -1]).square().sum().backward()
    assert all(memory.grad[:2].any() for memory in wf.memory_parameters())
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    return wf


def whole(net: Net) -> nn.Module:
    return torch.compile(net, backend="eager")


def submodules(net: Net) -> nn.Module:
    net.conv = torch.compile(net.conv, backend="eager")
    net.block = torch.compile(net.block, backend="eager")
    net.block._orig_mod[0] = torch.compile(net.block._orig_mod[0], backend="eager")
    return net


def in_place(net: Net) -> nn.Module:
    net.compile(backend="eager")
    net.block.compile(backend="eager")
    return net


def forward_of_instance(net: Net) -> nn.Module:
    net.forward = torch.compile(net.forward, backend="eager")
    net.block[0].forward = torch.compile(net.block[0].forward, backend="eager")
    return net


@pytest.mark.parametrize("wrap", [whole, submodules, in_place, forward_of_instance])
@pytest.mark.parametrize("called", [False, True])
def test_compiled_bases(wrap, called: bool, tmp_path) -> None:
    plain = Net()
    base = wrap(copy.deepcopy(plain))
    if called:
        base(X)
    wf = check(base, plain, tmp_path)
    expected = modulate(plain, example_input=X)
    assert wf.base_sha256 == expected.base_sha256 == state_sha256(plain)
    assert [name for name, _ in wf.named_memories()] == [name for name, _ in expected.named_memories()]
    assert wf.summary().rows == expected.summary().rows
    assert type(wf.unload()) is Net and type(wf.bake(1)) is Net
    assert not any("_orig_mod" in name for name, _ in wf.named_modules())
    wf.save_memory(tmp_path / "memory.safetensors")
    assert ModulatedModel.from_file(plain, tmp_path / "memory.safetensors", X).base_sha256 == wf.base_sha256


def test_functions_on_the_instance_run_the_copy() -> None:
    base = Net()
    base.conv.forward = types.MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), base.conv)
    wf = modulate(base, example_input=X)
    torch.testing.assert_close(wf(X), base(X), rtol=1e-4, atol=1e-5)
    wf.verify(X)
    original = base.forward
    base.forward = lambda x: original(x)
    with pytest.raises(ModelError, match="Net keeps a function 'forward' that refers to the original"):
        modulate(base, example_input=X)


def pruned(net: Net) -> None:
    prune.l1_unstructured(net.conv, "weight", amount=0.5)
    prune.l1_unstructured(net.block[0], "bias", amount=0.5)


def pruned_head(net: Net) -> None:
    prune.random_unstructured(net.head, "weight", amount=0.5)


@pytest.mark.parametrize(
    "change",
    [
        pruned,
        pruned_head,
        lambda net: nn.utils.weight_norm(net.conv),
        lambda net: nn.utils.weight_norm(net.head),
        lambda net: nn.utils.spectral_norm(net.conv),
        lambda net: parametrizations.weight_norm(net.block[0]),
        lambda net: parametrizations.spectral_norm(net.conv),
        lambda net: parametrizations.orthogonal(net.conv),
    ],
    ids=["pruned", "pruned head", "weight_norm", "weight_norm head", "spectral_norm", *["parametrised"] * 3],
)
@pytest.mark.parametrize("norm", [None, nn.ReLU()], ids=["norm", "no norm"])
def test_weights_that_are_computed(change, norm, tmp_path) -> None:
    base = Net(norm)
    change(base)
    base.eval()
    base(X)
    wf = check(base, base, tmp_path)
    assert not any(row.action == "skipped" and row.name != "head" for row in wf.summary().rows)


class Keeping(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x)
        self.all = {"maps": [self.features.relu()]}
        return self.head(self.block(self.bn(self.features)).mean((2, 3)))


def test_kept_features(tmp_path) -> None:
    base = Keeping()
    base(X)
    assert base.features.grad_fn is not None
    wf = check(base, base, tmp_path)
    wf(X, forget=1)
    assert torch.equal(wf.bake(1)(X), wf.bake(1)(X)) and torch.equal(wf.unload()(X), base(X))
    assert random_gates(wf).base_sha256 == wf.base_sha256


def test_copies_share_what_the_original_shares() -> None:
    base = Keeping()
    base.again = base.conv
    base(X)
    wf = modulate(base, example_input=X)
    assert wf.model.again is wf.model.conv and wf.model.conv is not base.conv


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (threading.Lock(), "a lock (TypeError"),
        ({"file": open("/dev/null")}, "a TextIOWrapper (TypeError"),  # noqa: SIM115
        (dict, None),
        ((name for name in "ab"), "a generator (TypeError"),
    ],
    ids=["lock", "file", "class", "generator"],
)
def test_what_cannot_be_copied_is_named(value, text: str | None) -> None:
    base = Net()
    base.block[1].handle = value
    if text is None:
        modulate(base, example_input=X)
        return
    with pytest.raises(ModelError) as caught:
        modulate(base, example_input=X)
    assert "module 'block.1' (ReLU) cannot be copied: its attribute 'handle' holds " + text in str(caught.value)


def test_everything_works_inside_inference_mode(tmp_path) -> None:
    plain, path = Net(), tmp_path / "memory.safetensors"
    with torch.inference_mode():
        base = copy.deepcopy(plain)
        for name, parameter in list(base.named_parameters()):
            layer = base.get_submodule(name.rpartition(".")[0])
            setattr(layer, name.rpartition(".")[2], nn.Parameter(parameter.clone()))
        x = X.clone()
        wf = modulate(base, example_input=x)
        wf.verify(x)
        wf.verify()
        wf.save_memory(path)
        again = ModulatedModel.from_file(base, path, x)
        baked, back = wf.bake(1), wf.unload()
        assert torch.equal(again(x, forget=1), wf(x, forget=1))
    assert base.conv.weight.is_inference()
    for model in (wf, again, baked, back):
        assert not any(tensor.is_inference() for tensor in model.state_dict().values())
    assert state_sha256(back) == state_sha256(plain) == wf.base_sha256
    wf(X, forget=1).sum().backward()
    back(X).sum().backward()
    assert all(m.grad.any() for m in wf.memory_parameters()) and back.conv.weight.grad.any()
    assert torch.equal(modulate(base, example_input=x)(X), wf(X))


def test_modules_that_change_their_input_in_inference_mode() -> None:
    class Adding(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.add_(1.0).sub_(1.0))

    with torch.inference_mode():
        x = X.clone()
    modulate(Adding(), example_input=x).verify(x)


def scripted_part() -> nn.Module:
    base = Net()
    base.block = torch.jit.script(base.block)
    return base


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.jit.script(Net().block), "is Sequential compiled by TorchScript"),
        (lambda: torch.jit.trace(Net(), X), "is Net compiled by TorchScript"),
        (scripted_part, "module 'block' (RecursiveScriptModule) is Sequential compiled by TorchScript"),
        (lambda: Net().forward, "the model is a method, not a torch.nn.Module"),
        (lambda: whole(whole(Net())), "the model is a function"),
        (lambda: Net().state_dict(), "the model is a OrderedDict"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_python_module(make, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        modulate(make(), example_input=X)
    assert text in str(caught.value)


def test_fx_graphs() -> None:
    base = Net()
    graph = torch.fx.symbolic_trace(base)
    wf = modulate(graph, example_input=X)
    wf.verify(X)
    assert [name for name, _ in wf.named_memories()] == ["conv.memory", "block.0.memory"]
    exported = torch.export.export(base, (X,)).module()
    with pytest.raises(ModelError, match="a weight that conv2d reads without a layer"):
        modulate(exported, 5, X)
