"""Unlearn every class of a digits classifier in Lightning.

    python -m examples.lightning_unlearn [--steps 200]

Needs lightning: pip install lightning
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from memmod import ModulatedModel, modulate
from memmod.data import Dataset, load_data
from memmod.evaluation import scorecard
from memmod.unlearning import UnlearnConfig, preset, unlearn_losses
from memmod.zoo import TrainConfig, create_model, train_model


class Unlearning(lightning.LightningModule):
    """Trains the memories of a modulated model; its base stays as it is."""

    def __init__(self, wf: ModulatedModel, config: UnlearnConfig) -> None:
        super().__init__()
        self.wf, self.config = wf, config
        self.generator = torch.Generator().manual_seed(config.seed)

    def on_fit_start(self) -> None:
        # Every process draws selections of its own.
        self.generator.manual_seed(self.config.seed + self.global_rank)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _number: int) -> torch.Tensor:
        losses = unlearn_losses(self.wf, *batch, self.config, self.generator)
        self.log_dict({f"loss/{name}": value for name, value in losses._asdict().items()})
        return losses.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.wf.memory_parameters(), self.config.lr)


def unlearn(wf: ModulatedModel, data: Dataset, config: UnlearnConfig, **trainer_options) -> lightning.Trainer:
    """Train the memories for `config.steps` steps; the model forgets every class afterwards."""
    images = TensorDataset(data.train.batch(torch.arange(len(data.train))), data.train.labels)
    generator = torch.Generator().manual_seed(config.seed)
    # A last batch of one image would have nothing to retain.
    loader = DataLoader(images, config.batch_size, shuffle=True, drop_last=True, generator=generator)
    trainer = lightning.Trainer(
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.clip,
        **{"log_every_n_steps": 1} | trainer_options,
    )
    trainer.fit(Unlearning(wf, config), loader)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    data = load_data("digits")
    base = create_model("resnet", data.num_classes, data.input_shape)
    train_model(base, data, TrainConfig(epochs=10, batch_size=64))
    wf = modulate(base, class_names=data.class_names)
    unlearn(wf, data, preset("fast", wf, steps=options.steps))
    wf.save_memory("digits-lightning.safetensors")
    print(scorecard(wf, base, data.test))


if __name__ == "__main__":
    main()
