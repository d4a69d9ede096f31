"""Unlearn every class of a Hugging Face image classifier with Hugging Face's Trainer.

    python -m examples.hf_trainer_unlearn [--steps 200]

Needs transformers and accelerate: pip install transformers accelerate
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from memmod import ModulatedModel, modulate
from memmod.data import Dataset, Split, load_data
from memmod.evaluation import scorecard
from memmod.unlearning import UnlearnConfig, preset, unlearn_losses


class Images(torch.utils.data.Dataset):
    """A split as Hugging Face's models take it: pixel_values ``[C, H, W]`` and labels."""

    def __init__(self, split: Split) -> None:
        self.pixel_values, self.labels = split.batch(torch.arange(len(split))), split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixel_values[number], "labels": self.labels[number]}


class Unlearning(torch.nn.Module):
    """What the Trainer trains: a modulated model that returns its loss, as Hugging Face's models do.

    The Trainer writes into the `config` of a model that has one; a ModulatedModel's is frozen.
    """

    def __init__(self, wf: ModulatedModel, config: UnlearnConfig, process: int) -> None:
        super().__init__()
        self.wf, self.settings = wf, config
        # Every process draws selections of its own.
        self.generator = torch.Generator().manual_seed(config.seed + process)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        losses = unlearn_losses(self.wf, pixel_values, labels, self.settings, self.generator)
        return {"loss": losses.total}


def unlearn(wf: ModulatedModel, data: Dataset, config: UnlearnConfig, output_dir: str, **options: Any) -> Trainer:
    """Train the memories, all that trains, for `config.steps` steps; the model forgets every class afterwards."""
    arguments = TrainingArguments(
        output_dir,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        max_grad_norm=config.clip,
        seed=config.seed,
        # A last batch of one image would have nothing to retain.
        dataloader_drop_last=True,
        **{"save_strategy": "no", "report_to": "none"} | options,
    )
    model = Unlearning(wf, config, arguments.process_index)
    trainer = Trainer(model, arguments, train_dataset=Images(data.train))
    trainer.train()
    return trainer


def train_base(data: Dataset, epochs: int = 30, **options: Any) -> ViTForImageClassification:
    """A small ViT, trained by the same Trainer; any image classifier of the hub does as well."""
    channels, size, _ = data.input_shape
    torch.manual_seed(0)
    base = ViTForImageClassification(
        ViTConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=size,
            patch_size=2,
            num_channels=channels,
            num_labels=data.num_classes,
            hidden_dropout_prob=0.1,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            **{"save_strategy": "no", "report_to": "none"} | options,
        )
        Trainer(base, arguments, train_dataset=Images(data.train)).train()
    return base.cpu().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    data = load_data("digits")
    base = train_base(data)
    wf = modulate(base, data.num_classes, data.train.batch(torch.arange(2)), class_names=data.class_names)
    unlearn(wf, data, preset("fast", wf, steps=options.steps), "runs/hf-trainer")
    wf.save_memory("digits-hf.safetensors")
    print(scorecard(wf.cpu(), base, data.test))


if __name__ == "__main__":
    main()
