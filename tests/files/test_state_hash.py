"""The base's hash: unchanged for plain tensors, by content for everything else, an error that names the entry."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memmod import ModulatedModel, modulate
from memmod.errors import ModelError
from memmod.files.state_hash import state_sha256

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Holding(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        if isinstance(value, Tensor):
            self.register_buffer("held", value)
        self.value = value


class Extra(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 6), nn.Linear(6, 4)
        self.value = value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).relu())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        torch.ones(1).expand(5),
        torch.tensor(3.0),
        torch.empty(0, 3),
        torch.tensor([True, False]),
        torch.arange(5),
        torch.randn(3).bfloat16(),
        torch.randn(4).to(torch.float8_e4m3fn),
        torch.randn(3, dtype=torch.complex64),
    ],
    ids=lambda t: f"{t.dtype} {tuple(t.shape)}",
)
def test_plain_tensors_hash_by_name_dtype_shape_and_bytes(tensor: Tensor) -> None:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    expected = hashlib.sha256(f"held|{tensor.dtype}|{tuple(tensor.shape)}|".encode() + data).hexdigest()
    assert state_sha256(Holding(tensor)) == expected


def test_views_hash_as_their_values() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    assert state_sha256(Holding(z.conj())) == state_sha256(Holding(z.conj().resolve_conj()))
    assert state_sha256(Holding(z.conj().imag)) == state_sha256(Holding(z.conj().resolve_conj().imag.clone()))
    assert state_sha256(Holding(z.conj())) != state_sha256(Holding(z))


def quantised(scale: float = 0.1, zero: int = 0) -> Tensor:
    return torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), scale, zero, torch.qint8)


def by_channel(scale: float = 0.1) -> Tensor:
    scales, zeros = torch.tensor([scale, 0.2]), torch.tensor([0, 0])
    return torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "others"),
    [
        (lambda: torch.eye(3).to_sparse(), [torch.eye(3), 2 * torch.eye(3).to_sparse(), torch.eye(4).to_sparse()]),
        (lambda: torch.eye(3).to_sparse_csr(), [torch.eye(3).to_sparse_csc(), 2 * torch.eye(3).to_sparse_csr()]),
        (lambda: torch.eye(4).to_sparse_bsr((2, 2)), [torch.eye(4).to_sparse_bsc((2, 2))]),
        (quantised, [quantised(scale=0.2), quantised(zero=1)]),
        (by_channel, [by_channel(scale=0.3)]),
        (lambda: torch.eye(3).to_mkldnn(), [(2 * torch.eye(3)).to_mkldnn()]),
        (lambda: torch.full((4,), 3, dtype=torch.uint16), [torch.full((4,), 4, dtype=torch.uint16)]),
    ],
    ids=["coo", "csr", "bsr", "quantised", "by channel", "mkldnn", "uint16"],
)
def test_unusual_tensors(make, others: list[Tensor]) -> None:
    assert state_sha256(Holding(make())) == state_sha256(Holding(make()))
    hashes = {state_sha256(Holding(tensor)) for tensor in (make(), *others)}
    assert len(hashes) == 1 + len(others)


@pytest.mark.parametrize("name", ["uint1", "uint4", "int4", "float4_e2m1fn_x2", "float8_e8m0fnu"])
def test_small_dtypes(name: str) -> None:
    def of(fill: int) -> str:
        return state_sha256(Holding(torch.full((4,), fill, dtype=torch.uint8).view(getattr(torch, name))))

    assert of(1) == of(1) != of(0)


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ({"steps": 3, "mean": torch.ones(2)}, {"steps": 3, "mean": torch.zeros(2)}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        (b"12", b"13"),
        ("12", b"12"),
        (["a", "bc"], ["ab", "c"]),
        ([1, [2]], [[1], 2]),
        (torch.ones(2), torch.zeros(2)),
        (1, 1.0),
        (None, False),
        ({1, 2}, {1, 3}),
        (torch.float32, torch.float16),
    ],
    ids=repr,
)
def test_extra_state(value, other, tmp_path) -> None:
    torch.manual_seed(0)
    base = Extra(value)
    different = copy.deepcopy(base)
    different.value = other
    assert state_sha256(base) == state_sha256(copy.deepcopy(base)) != state_sha256(different)
    wf = modulate(base, example_input=X)
    wf.save_memory(tmp_path / "memory.safetensors")
    assert ModulatedModel.from_file(base, tmp_path / "memory.safetensors").base_sha256 == wf.base_sha256
    with pytest.raises(ValueError, match="belongs to another base"):
        ModulatedModel.from_file(different, tmp_path / "memory.safetensors")


def test_the_order_of_keys_does_not_count() -> None:
    assert state_sha256(Extra({"a": 1, "b": 2})) != state_sha256(Extra({"a": 1, "b": 3}))
    first, second = Extra({"a": 1, "b": 2}), Extra({"b": 2, "a": 1})
    second.load_state_dict(first.state_dict() | {"_extra_state": {"b": 2, "a": 1}})
    assert state_sha256(first) == state_sha256(second)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamically_quantised_layers() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6), nn.ReLU(), nn.Linear(6, 4))
    base = torch.ao.quantization.quantize_dynamic(plain.eval(), {nn.Linear})
    assert state_sha256(base) == state_sha256(copy.deepcopy(base)) != state_sha256(plain)
    with torch.no_grad():
        plain[3].weight[0, 0] += 1
    assert state_sha256(base) != state_sha256(torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}))
    wf = modulate(base, 4, X)
    assert {row.name: row.reason for row in wf.summary().rows if row.action == "skipped"} == {
        "3": "its weight is quantised",
        "5": "its weight is quantised",
    }
    torch.testing.assert_close(wf(X), base(X))
    with pytest.raises(ModelError, match="the model itself mixes the samples of a batch"):
        wf.verify(X)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Linear(6, 4)), "is not initialised yet"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4, device="meta")), "'1.bias' is on the meta device"),
        (lambda: Extra(object()), "the entry '_extra_state' of the model's state dict holds a object"),
        (lambda: Extra({"a": [lambda: 3]}), "holds a function"),
    ],
)
def test_entries_without_content_are_named(make, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        modulate(make(), example_input=X)
    assert text in str(caught.value)


def test_tensors_that_cannot_be_read_are_named() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2), torch.randn(3)])
    with pytest.raises(ModelError, match="the entry 'held' of the model's state dict"):
        state_sha256(Holding(nested))
