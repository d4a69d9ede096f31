"""FSDP2 casts every parameter for a forward, memories too: layers cast them up again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from memmod import ModulatedConv2d, ModulatedLinear, ModulatedMultiheadAttention, ModulatedOutput
from tests.unlearning.problem import modulated

LAYERS = {
    "linear": (lambda: ModulatedLinear(5, 4, 3, granularity="unit+input"), (6, 5)),
    "conv": (lambda: ModulatedConv2d(2, 4, 3, 3, granularity="unit+input"), (6, 2, 5, 5)),
    "output": (lambda: ModulatedOutput(4, 3, nn.Conv2d(2, 4, 1)), (6, 2, 5, 5)),
}
CLASSES = torch.tensor([0, -1, 2, 1, 1, -1])


def as_bf16(value: torch.Tensor) -> torch.Tensor:
    """Values that bf16 holds: then casting them down and up changes nothing."""
    return value.bfloat16().float()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, dtype: torch.dtype) -> None:
    build, shape = LAYERS[kind]
    layer, x = build(), torch.randn(shape)
    with torch.no_grad():
        for memory in layer.parameters():
            memory.copy_(as_bf16(torch.randn(memory.shape)))
    plain = build()
    plain.load_state_dict(layer.state_dict())
    plain.to(dtype)
    fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32))
    y, expected = layer(x, CLASSES), plain(x.to(dtype), CLASSES)
    assert y.dtype is dtype and torch.equal(y, expected)
    y.float().square().sum().backward()
    expected.float().square().sum().backward()
    for (name, memory), (_, alike) in zip(layer.memories(), plain.memories(), strict=True):
        found = memory.grad.full_tensor()
        assert found.dtype is torch.float32 and alike.grad.dtype is torch.float32
        # FSDP casts the gradient of its copy down
        assert torch.equal(found, alike.grad.to(dtype).float()), name
        assert found.any()


@pytest.mark.usefixtures("alone")
def test_attention() -> None:
    attention, x = ModulatedMultiheadAttention(8, 2, 3, batch_first=True), torch.randn(6, 5, 8)
    fully_shard(attention, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    for key in (x, x.clone()):
        y, _ = attention(x, key, key, index=CLASSES)
        assert y.dtype is torch.bfloat16
        y.float().sum().backward()
    assert attention.in_proj.memory.grad.full_tensor().any()


@pytest.mark.usefixtures("alone")
def test_a_whole_model_and_its_bound() -> None:
    wf, x = modulated(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(1)))
    exact = wf(x.double().float(), forget=CLASSES).detach()
    fully_shard(wf, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    logits = wf(x, forget=CLASSES)
    # Three layers, each of which rounds weights, gates and outputs to 8 bits.
    assert (logits - exact).abs().max() <= 3 * 3 * 2**-8 * exact.abs().max()
    logits.square().sum().backward()
    for memory in wf.memory_parameters():
        assert memory.dtype is torch.float32 and memory.grad.full_tensor().any()


@pytest.mark.usefixtures("alone")
def test_nothing_selected_under_fsdp_is_a_gradient_of_zero() -> None:
    wf, x = modulated(), torch.randn(6, 1, 8, 8)
    expected = wf(x).detach()
    fully_shard(wf.model.features)
    fully_shard(wf)
    for forget in (None, -1):
        wf.zero_grad(set_to_none=True)
        logits = wf(x, forget=forget)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        logits.square().sum().backward()
        for name, memory in wf.named_memories():
            assert not memory.grad.full_tensor().any(), name
    with torch.no_grad():
        assert torch.equal(wf(x), wf(x, forget=-1)) and not wf(x).requires_grad
