"""ModulatedModel: selections, threads, copies, checkpointing, bake, unload, the memory file, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import threading

import pytest
import torch
import torch.utils.checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from memmod import ModulateConfig, ModulatedLinear, ModulatedModel, ModulatedOutput, modulate
from memmod.errors import MemoryFileError, ModelError, SelectionError
from memmod.files.sealed import seal
from memmod.memory_file import read_card
from memmod.surgery.random_weights import randomise
from memmod.zoo import create_model

SHAPE = (1, 8, 8)
NAMES = tuple("abcdefghij")


def small(name: str = "resnet") -> nn.Module:
    return randomise(create_model(name, 10, SHAPE)).eval()


def modulated(name: str = "resnet", **options) -> ModulatedModel:
    wf = modulate(small(name), class_names=NAMES, config=ModulateConfig(**options))
    with torch.no_grad():
        for number, memory in enumerate(wf.memory_parameters()):
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(number)) + 1)
    return wf


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["resnet", "vgg", "vit"])
@pytest.mark.parametrize("granularity", ["unit", "input", "unit+input"])
@pytest.mark.parametrize("gate", ["sigmoid", "identity"])
def test_verify_bake_and_gradients(name: str, granularity: str, gate: str) -> None:
    wf = modulated(name, granularity=granularity, gate=gate)
    wf.verify()
    x = images()
    for forget in (3, {1, 4}):
        torch.testing.assert_close(wf.bake(forget)(x), wf(x, forget=forget), rtol=1e-3, atol=1e-4)
    wf(x, forget=[0, 1, 2, 3, {4, 5}, -1]).square().sum().backward()
    for key, memory in wf.named_memories():
        assert memory.grad[:6].abs().sum(dim=1).all() and not memory.grad[6:].any(), key


def test_gate_bias_false() -> None:
    wf = modulated(gate_bias=False)
    wf.verify()
    torch.testing.assert_close(wf.bake(3)(images()), wf(images(), forget=3), rtol=1e-3, atol=1e-4)


def test_selection_forms_agree() -> None:
    wf, x = modulated(), images(4)
    with torch.no_grad():
        expected = wf(x, forget=torch.full((4,), 2))
        for forget in (2, "c", {2}, {2, "c"}, torch.tensor(2), [2, "c", {2}, {"c", 2}]):
            torch.testing.assert_close(wf(x, forget=forget), expected)
        with wf.forgetting("c"):
            torch.testing.assert_close(wf(x), expected)
            torch.testing.assert_close(wf.model(x), expected)
            torch.testing.assert_close(wf(x, forget=-1), _plain(wf, x))
        torch.testing.assert_close(wf(x), _plain(wf, x))
        assert not torch.allclose(expected, _plain(wf, x))


def _plain(wf: ModulatedModel, x: torch.Tensor) -> torch.Tensor:
    with wf.forgetting(-1):
        return wf.model(x)


def test_bake_threshold_zeroes_units() -> None:
    wf = modulated()
    baked = wf.bake(3, threshold=0.5)
    name, gates = next(iter(wf.gates().items()))
    weight = baked.get_submodule(name.removesuffix(".memory")).weight
    closed = gates[3] < 0.5
    assert closed.any() and not weight[closed].any() and weight[~closed].flatten(1).any(1).all()
    changed = {k for k, v in baked.state_dict().items() if not torch.equal(v, wf.bake(-1).state_dict()[k])}
    assert len(changed) >= 9, "bake must change the weights"


def test_unload_gives_the_base_again() -> None:
    base = small()
    back = modulate(base).unload()
    assert type(back) is type(base)
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in base.named_modules()]
    for key, value in base.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    assert torch.equal(back(images()), base(images()))
    assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in base.parameters()]


def test_attributes_pass_through() -> None:
    wf = modulated("vit")
    assert wf.get_classifier() is wf.model.get_classifier()
    with pytest.raises(AttributeError):
        _ = wf.no_such_attribute
    with torch.no_grad():
        plain = wf.forward_features(images())
        with wf.forgetting(1):
            assert not torch.equal(wf.forward_features(images()), plain)


def test_base_stays_frozen_and_in_eval_mode() -> None:
    wf = modulated()
    wf.train()
    assert wf.training and not any(m.training for m in wf.model.modules())
    trainable = {n for n, p in wf.named_parameters() if p.requires_grad}
    assert trainable == {f"model.{n}" for n, _ in wf.named_memories()}


def test_low_precision_keeps_memories_wide() -> None:
    wf = modulated().to(torch.bfloat16)
    assert {m.dtype for m in wf.memory_parameters()} == {torch.float32}
    assert {p.dtype for n, p in wf.named_parameters() if "memory" not in n} == {torch.bfloat16}
    wf(images().bfloat16(), forget=1).float().sum().backward()
    assert all(m.grad.dtype == torch.float32 for m in wf.memory_parameters())
    assert {m.dtype for m in wf.half().memory_parameters()} == {torch.float32}


def test_threads_with_different_selections() -> None:
    wf, x = modulated(), images(3)
    with torch.no_grad():
        expected = [wf(x, forget=c) for c in range(8)]
    wrong = []

    def work(c: int) -> None:
        with torch.no_grad():
            for _ in range(25):
                if not torch.equal(wf(x, forget=c), expected[c]):
                    wrong.append(c)

    threads = [threading.Thread(target=work, args=(c,)) for c in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda wf: pickle.loads(pickle.dumps(wf))])
def test_copies_are_independent(duplicate) -> None:
    wf, x = modulated(), images(3)
    other = duplicate(wf)
    with torch.no_grad():
        expected = wf(x, forget=1)
        assert torch.equal(other(x, forget=1), expected)
        with wf.forgetting(1):
            assert not torch.equal(other(x), expected), "a copy must not see the original's selection"
        for memory in other.memory_parameters():
            memory.fill_(-9.0)
        assert torch.equal(wf(x, forget=1), expected)
    other.verify()


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant
        self.get_classifier = inner.get_classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner.stem(x)
        for block in self.inner.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return self.inner.fc(x.mean(dim=(2, 3)))


def _gradients(wf: ModulatedModel, run) -> list[torch.Tensor]:
    for memory in wf.memory_parameters():
        memory.grad = None
    run()
    return [memory.grad.clone() for memory in wf.memory_parameters()]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_with_its_own_selection(reentrant: bool) -> None:
    torch.manual_seed(0)
    base = small()
    plain = modulate(base)
    wf = modulate(Checkpointed(base, reentrant), example_input=images(2))
    x = images(4).requires_grad_()
    first, second = torch.tensor([0, 1, 2, -1]), torch.tensor([5, 5, 1, 0])

    def two_forwards(model: ModulatedModel) -> None:
        # Both graphs are alive when backward starts, and both scopes have ended.
        a, b = model(x, forget=first), model(x, forget=second)
        (a.square().sum() + b.pow(3).sum()).backward()

    for got, want in zip(
        _gradients(wf, lambda: two_forwards(wf)), _gradients(plain, lambda: two_forwards(plain)), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_outside_forward_fails_loudly(reentrant: bool) -> None:
    wf = modulate(Checkpointed(small(), reentrant), example_input=images(2))
    x = images(2).requires_grad_()
    with wf.forgetting(1):
        logits = wf.model(x)
        inside = wf.model(x)
        inside.sum().backward()
    with pytest.raises(SelectionError, match="keep `with model.forgetting"):
        logits.sum().backward()


@pytest.mark.slow
def test_compiles_without_a_break_and_without_recompiling_for_new_classes() -> None:
    from torch._dynamo.testing import CompileCounter

    wf, x = modulated("vit"), images(3)
    counter = CompileCounter()
    compiled = torch.compile(wf, backend=counter, fullgraph=True)
    with torch.no_grad():
        for c in range(4):
            selection = torch.tensor([c, -1, 9 - c])
            torch.testing.assert_close(compiled(x, forget=selection), wf(x, forget=selection))
            if c == 0:
                after_first = counter.frame_count
    assert counter.frame_count <= after_first + 1
    with torch.no_grad():
        compiled(x, forget=torch.tensor([7, 8, 9]))
    assert counter.frame_count <= after_first + 1


def test_batch_statistics_do_what_training_mode_does() -> None:
    base = small()
    wf = modulate(base)
    x = images(16)
    reference = copy.deepcopy(base)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 0.0
    with torch.no_grad():
        with wf.batch_statistics():
            got = wf(x)
        torch.testing.assert_close(got, reference(x), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(wf(x), got, atol=1e-2)
        with wf.batch_statistics():
            wf(x, forget=1)
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in wf.unload().state_dict().items())


def test_batch_statistics_with_zero_scale_and_single_values() -> None:
    base = small()
    with torch.no_grad():
        base.blocks[0].bn1.weight[3] = 0.0
    wf = modulate(base)
    seen = []
    layer = wf.model.blocks[0].conv1
    layer.register_forward_hook(lambda m, a, out: seen.append(out))
    with wf.batch_statistics():
        wf(images(4), forget=1).sum().backward()
    gate = wf.gates()["blocks.0.conv1.memory"][1, 3]
    torch.testing.assert_close(
        seen[0][:, 3], torch.full_like(seen[0][:, 3], (gate * base.blocks[0].bn1.bias[3]).item())
    )
    assert all(torch.isfinite(m.grad).all() for m in wf.memory_parameters())


def test_batch_statistics_reach_norms_that_were_not_folded() -> None:
    base = small()
    wf, folded = modulate(base, config=ModulateConfig(fold=False)), modulate(base)
    assert wf.has_batch_statistics
    x = images(8)
    with torch.no_grad(), wf.batch_statistics(), folded.batch_statistics():
        torch.testing.assert_close(wf(x, forget=-1), folded(x, forget=-1), rtol=1e-3, atol=1e-4)
    assert not any(m.training for m in wf.model.modules())
    wf.verify()


def test_unfolded_units_are_gated_behind_their_norm_and_bake() -> None:
    wf = modulated(fold=False)
    kinds = {type(m) for m in wf.model.modules()}
    assert ModulatedOutput in kinds
    torch.testing.assert_close(wf.bake(2)(images()), wf(images(), forget=2), rtol=1e-3, atol=1e-4)
    baked = wf.bake(2)
    assert [type(m) for m in baked.modules()] == [type(m) for m in small().modules()]


def test_memory_file_round_trip(tmp_path) -> None:
    base, path = small(), tmp_path / "memory.safetensors"
    wf = modulate(base, class_names=NAMES, config=ModulateConfig(skip=("stem.*",)))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.normal_()
    wf.save_memory(path, {"seed": 3, "metrics": {"worst": 0.01}})
    again = ModulatedModel.from_file(base, path)
    assert again.class_names == NAMES and again.config == wf.config
    assert [n for n, _ in again.named_memories()] == [n for n, _ in wf.named_memories()]
    assert torch.equal(again(images(), forget="b"), wf(images(), forget="b"))
    card = read_card(path)
    assert card["seed"] == 3 and card["metrics"] == {"worst": 0.01} and card["base_sha256"] == wf.base_sha256
    assert [p.name for p in tmp_path.iterdir()] == ["memory.safetensors"]


def test_memory_file_keeps_a_filter_as_names(tmp_path) -> None:
    base, path = small("vit"), tmp_path / "memory.safetensors"
    wf = modulate(base, config=ModulateConfig(filter=lambda name, module: "mlp" in name))
    wf.save_memory(path)
    again = ModulatedModel.from_file(base, path)
    assert [n for n, _ in again.named_memories()] == [n for n, _ in wf.named_memories()]
    assert all("mlp" in n for n, _ in again.named_memories())


def test_bad_memory_files(tmp_path) -> None:
    base, path = small(), tmp_path / "memory.safetensors"
    wf = modulate(base)
    wf.save_memory(path)
    content = path.read_bytes()

    def refused(text: str, model: nn.Module = base) -> None:
        with pytest.raises(MemoryFileError) as caught:
            ModulatedModel.from_file(model, path)
        assert text in str(caught.value)

    other = small()
    with torch.no_grad():
        other.fc.weight[0, 0] += 1
    refused("belongs to another base", other)
    for cut in (len(content) - 1, len(content) // 2, 4, 0):
        path.write_bytes(content[:cut])
        refused("cut short")
    path.write_bytes(b"PK\x03\x04" + content)
    refused("no safetensors file")
    path.write_bytes(content)

    tensors, card = load_file(path), read_card(path)

    def rewrite(changed: dict, metadata: dict | None = None) -> None:
        sealed = {"card": json.dumps(seal(card, changed))}
        save_file(changed, path, metadata=sealed if metadata is None else metadata)

    rewrite(tensors, {})
    refused("without a memmod card")
    rewrite(tensors, {"card": "{"})
    refused("is damaged")
    name = next(iter(tensors))
    rewrite({k: v for k, v in tensors.items() if k != name})
    refused(f"missing {name.rpartition('.')[0]}")
    rewrite(tensors | {"nowhere.memory": torch.zeros(2, 2)})
    refused("unknown nowhere.memory")
    rewrite(tensors | {name: tensors[name][:, 1:].contiguous()})
    refused(f"the memory {name} has shape")
    rewrite(tensors | {name: tensors[name][1:].contiguous()})
    refused("has shape (9, 16), but its card says 10 classes")
    for value in (float("nan"), float("inf")):
        rewrite(tensors | {name: torch.full_like(tensors[name], value)})
        refused("not finite")
    rewrite(tensors | {name: tensors[name].double().fill_(1e300)})
    refused("not finite torch.float32 numbers")
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        rewrite(tensors | {name: tensors[name].to(dtype)})
        refused(f"({dtype})")
    rewrite(tensors, {"card": json.dumps(card | {"version": 99})})
    refused("format version 99")
    path.unlink()
    refused("there is no memory file")


def test_save_memory_leaves_the_old_file_on_failure(tmp_path) -> None:
    path = tmp_path / "memory.safetensors"
    wf = modulated()
    wf.save_memory(path)
    before = path.read_bytes()
    with pytest.raises(MemoryFileError, match="must be JSON"):
        wf.save_memory(path, {"seed": object()})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class SequenceFirst(nn.Module):
    """Feeds a modulated layer rows in [L, B, E] order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(8, 6)
        self.mix = ModulatedLinear(6, 6, 10)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.patch(x.squeeze(1)).transpose(0, 1)
        return self.head(self.mix(rows).mean(0))


def test_verify_names_a_layer_in_sequence_first_order() -> None:
    # 9 rows of length: 9 × B rows are a multiple of every B in use.
    wf = modulate(SequenceFirst(), example_input=torch.randn(3, 1, 9, 8))
    with pytest.raises(ModelError, match="the rows of mix are not sample-major"):
        wf.verify(torch.randn(3, 1, 9, 8))


def test_rows_that_are_no_multiple_of_the_batch() -> None:
    wf = modulate(SequenceFirst(), example_input=torch.randn(2, 1, 8, 8))
    with pytest.raises(ModelError, match="last in layer 'mix'"):
        wf.verify(torch.randn(2, 1, 8, 8))
    with pytest.raises(SelectionError, match="multiple"):
        wf(torch.randn(3, 1, 8, 8), forget=torch.tensor([0, 1, 2]))


def test_verify_names_a_layer_that_changes_nothing() -> None:
    base = small()
    with torch.no_grad():
        base.blocks[1].bn2.weight.zero_()
        base.blocks[1].bn2.bias.zero_()
    with pytest.raises(ModelError, match=r"blocks\.1\.conv1, blocks\.1\.conv2 are gated, but"):
        modulate(base).verify()


def test_verify_names_a_layer_that_was_not_called() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, extra: bool = False) -> torch.Tensor:
            x = self.a(x)
            return self.head(self.b(x).tanh() if extra else x)

    wf = modulate(Optional(), example_input=(torch.randn(2, 4), True))
    with pytest.raises(ModelError, match="b carry a memory but were not called"):
        wf.verify(torch.randn(2, 4))


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (
            lambda: nn.Sequential(nn.Flatten(), nn.ReLU()),
            {"num_classes": 3},
            "no linear or conv layer that can be gated",
        ),
        (small, {"num_classes": 7}, "num_classes is 7, but the model's head (fc) gives 10 logits"),
        (small, {"example_input": torch.randn(2, 3, 8, 8)}, "rejects the example input of shape (2, 3, 8, 8)"),
        (small, {"example_input": torch.randn(1, *SHAPE)}, "at least 2 samples are needed"),
        (small, {"example_input": "x"}, "holds no batch of tensors"),
        (small, {"class_names": ["a"]}, "1 class_names for 10 classes"),
        (small, {"class_names": ["a"] * 10}, "repeats 'a'"),
        (lambda: nn.Sequential(nn.Linear(4, 3)), {}, "does not say its input size"),
    ],
)
def test_refused_models(make, options: dict, text: str) -> None:
    options = {"example_input": images(2)} | options if options.get("num_classes") else options
    with pytest.raises(ModelError) as caught:
        modulate(make(), **options)
    assert text in str(caught.value)


def test_model_level_selection_errors() -> None:
    wf = modulated()
    with pytest.raises(SelectionError, match="for 4 samples .* the input has 6"):
        wf(images(6), forget=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(SelectionError, match="class 10 was selected"):
        wf(images(2), forget=torch.tensor([0, 10]))
    with pytest.raises(SelectionError, match="one selection into the weights"):
        wf.bake([0, 1])
    assert wf.state.index is None, "a refused call must not leave its selection behind"
