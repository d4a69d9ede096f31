"""Unlearn every class of a digits classifier in a loop of your own, with Hugging Face's accelerate.

    python -m examples.accelerate_unlearn [--steps 200] [--mixed-precision bf16]

Needs accelerate: pip install accelerate
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from memmod import ModulatedModel, modulate
from memmod.data import Dataset, load_data
from memmod.evaluation import scorecard
from memmod.unlearning import UnlearnConfig, preset, unlearn_losses
from memmod.zoo import TrainConfig, create_model, train_model


def unlearn(wf: ModulatedModel, data: Dataset, config: UnlearnConfig, accelerator: Accelerator) -> ModulatedModel:
    """Train the memories for `config.steps` steps; returns the model, which forgets every class, unwrapped."""
    images = TensorDataset(data.train.batch(torch.arange(len(data.train))), data.train.labels)
    draws = torch.Generator().manual_seed(config.seed)
    # A last batch of one image would have nothing to retain.
    loader = DataLoader(images, config.batch_size, shuffle=True, drop_last=True, generator=draws)
    optimiser = torch.optim.Adam(wf.memory_parameters(), config.lr)
    wrapped, optimiser, loader = accelerator.prepare(wf, optimiser, loader)
    wf = accelerator.unwrap_model(wrapped)
    # Every process draws selections of its own.
    generator = torch.Generator().manual_seed(config.seed + accelerator.process_index)
    step = 0
    while step < config.steps:
        for x, labels in loader:
            losses = unlearn_losses(wf, x, labels, config, generator, forward=wrapped)
            optimiser.zero_grad()
            accelerator.backward(losses.total)
            accelerator.clip_grad_norm_(wf.memory_parameters(), config.clip)
            optimiser.step()
            step += 1
            if step == config.steps:
                break
    return accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no")
    options = parser.parse_args()
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    data = load_data("digits")
    base = create_model("resnet", data.num_classes, data.input_shape)
    train_model(base, data, TrainConfig(epochs=10, batch_size=64))
    wf = modulate(base, class_names=data.class_names)
    wf = unlearn(wf, data, preset("fast", wf, steps=options.steps), accelerator)
    if accelerator.is_main_process:
        wf.save_memory("digits-accelerate.safetensors")
        print(scorecard(wf.cpu(), base.cpu(), data.test))


if __name__ == "__main__":
    main()
