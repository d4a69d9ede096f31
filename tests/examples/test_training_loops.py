"""The examples of training loops: each reaches on digits what memmod's own trainer reaches with the same steps.

Their frameworks are heavy and not among the requirements of the other tests: `make examples` runs these.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from memmod import ModulatedModel, modulate
from memmod.data import Dataset, load_data
from memmod.evaluation import Accuracies, evaluate
from memmod.unlearning import Trainer, preset
from memmod.zoo import TrainConfig, create_model, train_model

STEPS = 200

pytestmark = pytest.mark.slow


@functools.cache
def digits() -> Dataset:
    return load_data("digits")


@functools.cache
def trained_base() -> nn.Module:
    base = create_model("resnet", 10, digits().input_shape)
    train_model(base, digits(), TrainConfig(epochs=10, batch_size=64))
    return base


@functools.cache
def reached_by_memmod() -> Accuracies:
    wf = modulate(trained_base())
    Trainer(wf, digits(), preset("fast", wf, steps=STEPS)).fit()
    return evaluate(wf, digits().test)


def check(wf: ModulatedModel, own: Accuracies) -> None:
    """As far as memmod's trainer, to a point: one test image of each class."""
    found = evaluate(wf, digits().test)
    with torch.no_grad():
        for memory in wf.memory_parameters():
            memory.fill_(20.0)
    before = evaluate(wf, digits().test)
    assert before.worst_forget > 0.8, "the base knows every class"
    assert found.mean_forget <= own.mean_forget + 0.01 and found.worst_forget <= 0.1
    assert found.mean_retain >= max(own.mean_retain, before.mean_retain - 0.01) - 0.01


def test_lightning(tmp_path) -> None:
    pytest.importorskip("lightning")
    from examples.lightning_unlearn import Unlearning, unlearn

    wf = modulate(trained_base())
    config = preset("fast", wf, steps=STEPS)
    trainer = unlearn(wf, digits(), config, default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    assert trainer.global_step == STEPS
    # A checkpoint of Lightning's goes into another model of the same base.
    (path,) = tmp_path.rglob("*.ckpt")
    again = Unlearning(modulate(trained_base()), config)
    again.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    memories = wf.memory_state()
    assert all(torch.equal(memory, memories[name]) for name, memory in again.wf.memory_state().items())
    check(wf, reached_by_memmod())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str, tmp_path) -> None:
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from examples.accelerate_unlearn import unlearn

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    wf = modulate(trained_base())
    wf = unlearn(wf, digits(), preset("fast", wf, steps=STEPS), accelerator)
    assert {memory.dtype for memory in wf.memory_parameters()} == {torch.float32}
    wf.save_memory(tmp_path / "memory.safetensors")
    again = ModulatedModel.from_file(trained_base(), tmp_path / "memory.safetensors")
    x = digits().test.batch(torch.arange(4))
    torch.testing.assert_close(again(x, forget=[1, -1, {2, 3}, 0]), wf(x, forget=[1, -1, {2, 3}, 0]))
    check(wf, reached_by_memmod())


def test_accelerate_loads_parameters_when_their_layer_is_called() -> None:
    accelerate = pytest.importorskip("accelerate")

    wf = modulate(trained_base())
    x = digits().test.batch(torch.arange(4))
    with torch.no_grad():
        expected = wf(x, forget=[1, -1, {2, 3}, 0])
        offloaded = accelerate.cpu_offload(wf, torch.device("cpu"))
        assert wf.device.type == "meta"
        torch.testing.assert_close(offloaded(x, forget=[1, -1, {2, 3}, 0]), expected)


def test_hugging_face_trainer(tmp_path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    from examples.hf_trainer_unlearn import train_base, unlearn

    AcceleratorState._reset_state(True)
    base = train_base(digits(), disable_tqdm=True, use_cpu=True)
    example = digits().train.batch(torch.arange(2))
    wf, own = (modulate(base, 10, example, class_names=digits().class_names) for _ in range(2))
    Trainer(own, digits(), preset("fast", own, steps=STEPS)).fit()
    config = preset("fast", wf, steps=STEPS)
    trainer = unlearn(
        wf, digits(), config, str(tmp_path), disable_tqdm=True, use_cpu=True, save_strategy="steps", save_steps=STEPS
    )
    assert trainer.state.global_step == STEPS
    assert type(wf(example)).__name__ == "ImageClassifierOutput" and wf.model.config.num_labels == 10
    # A checkpoint of the Trainer's goes into another model of the same base.
    from safetensors.torch import load_file

    state = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    again = modulate(base, 10, example)
    again.load_state_dict({name.removeprefix("wf."): value for name, value in state.items()})
    memories = wf.memory_state()
    assert all(torch.equal(memory, memories[name]) for name, memory in again.memory_state().items())
    check(wf, evaluate(own, digits().test))
