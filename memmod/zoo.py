"""Base models: small networks for 8×8 and 28×28 images, any timm model by name, and their files."""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from memmod.data import Dataset
from memmod.errors import DataError, ModelError
from memmod.files.atomic import write_atomically
from memmod.files.saveable_state import saveable_state
from memmod.files.sealed import TENSORS_SHA256, check_card, check_tensors, read_tensors, seal
from memmod.files.strict_json import Origin, as_json, check, dump, parse, without_nan
from memmod.training import TrainConfig, accuracies, augment, default_training, train_model

__all__ = [
    "SMALL",
    "SmallResNet",
    "SmallVGG",
    "TrainConfig",
    "accuracies",
    "augment",
    "base_meta",
    "create_model",
    "default_training",
    "load_base",
    "save_base",
    "train_model",
]

logger = logging.getLogger(__name__)

# Of base.json.
FORMAT_VERSION = 2
SMALL = ("resnet", "vgg", "vit")
"""Networks of memmod's own, for images of 8 to 64 pixels."""


def create_model(
    name: str, num_classes: int, input_shape: tuple[int, int, int], pretrained: bool = False, seed: int = 0
) -> nn.Module:
    """A classifier by name, with weights drawn from `seed`.

    Args:
        name: "resnet", "vgg" or "vit" (small, for images of 8 to 64 pixels), else a timm model ("resnet18" or, where
            the name is taken, "timm:NAME").
        num_classes: logits.
        input_shape: ``(C, H, W)`` of an image.
        pretrained: load timm's pretrained weights.

    Raises:
        ModelError: an unknown name, or an image shape that the model does not take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in SMALL:
            if pretrained:
                raise ModelError(f"{name!r} has no pretrained weights: train it, or name a timm model")
            return _small(name, num_classes, input_shape)
        return _timm(name.removeprefix("timm:"), num_classes, input_shape, pretrained)


def _small(name: str, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    channels, height, width = input_shape
    if height != width or not 8 <= height <= 64:
        raise ModelError(f"{name!r} takes square images of 8 to 64 pixels, not {height} × {width}: name a timm model")
    if name == "vit":
        return _small_vit(num_classes, channels, height)
    model = SmallResNet(channels, num_classes) if name == "resnet" else SmallVGG(channels, num_classes)
    model.default_cfg = {"input_size": tuple(input_shape), "num_classes": num_classes}
    return model


def _timm(name: str, num_classes: int, input_shape: tuple[int, int, int], pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*SMALL, *timm.list_models()], n=4)
        raise ModelError(
            f"unknown model {name!r}; it must be one of {', '.join(map(repr, SMALL))} or a timm model"
            + (f", such as {', '.join(map(repr, near))}" if near else " (timm.list_models())")
        )
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": input_shape[0], "pretrained": pretrained}
    try:
        model = timm.create_model(name, img_size=input_shape[1:], **options)
    except TypeError:
        # Most convolutional networks take any size and have no such argument.
        model = timm.create_model(name, **options)
    model.default_cfg = {**(getattr(model, "default_cfg", None) or {}), "input_size": tuple(input_shape)}
    model.pretrained_cfg = model.default_cfg
    return model


def _small_vit(num_classes: int, channels: int, size: int) -> nn.Module:
    """A ViT (arXiv 2010.11929) of 4 × 4 patches: 64 wide and 4 deep at 8 pixels, else 96 wide and 5 deep."""
    from timm.models.vision_transformer import VisionTransformer

    if size % 4:
        raise ModelError(f"'vit' cuts images into 4 × 4 patches; a side of {size} pixels is not a multiple of 4")
    model = VisionTransformer(
        img_size=size,
        patch_size=size // 4,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=64 if size <= 8 else 96,
        depth=4 if size <= 8 else 5,
        num_heads=4,
        mlp_ratio=2.0,
        class_token=True,
        **({"proj_drop_rate": 0.1, "attn_drop_rate": 0.1} if size <= 8 else {}),
    )
    model.default_cfg = {"input_size": (channels, size, size), "num_classes": num_classes}
    return model


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class SmallResNet(nn.Module):
    """A residual network of 16, 32 and 64 channels for small images ``[B, C, H, W]``; logits ``[B, num_classes]``."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 64, 2))
        self.fc = nn.Linear(64, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class SmallVGG(nn.Module):
    """A plain stack of convolutions with BatchNorm (arXiv 1409.1556) for small images.

    Images ``[B, channels, H, W]``, 8 to 64 pixels wide; logits ``[B, num_classes]``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (32, 64, 96):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))


def save_base(folder: str | os.PathLike[str], model: nn.Module, meta: dict[str, Any]) -> None:
    """Write a base to a folder: base.safetensors and base.json, which holds the hashes of the weights and of itself.

    Args:
        meta: at least "model" (its name), "num_classes", "input_shape", "class_names"; what else it holds is kept.

    Raises:
        DataError: `meta` is not JSON, or lacks what it must hold.
        ModelError: an entry of the state that safetensors does not keep.
    """
    origin = Origin("the meta of the base", DataError, "nothing was written; mend it and save again")
    state = saveable_state(model)
    card = seal({**as_json(meta, origin), "version": FORMAT_VERSION}, state)
    _check_base_card(card, origin)
    write_atomically(Path(folder) / "base.safetensors", serialise(state))
    write_atomically(Path(folder) / "base.json", dump(card))


def load_base(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode, meta) of a folder that `save_base` wrote.

    Raises:
        DataError: a file is missing, cut short or changed, or the weights are of another network.
    """
    folder = Path(folder)
    weights, card = folder / "base.safetensors", folder / "base.json"
    if not os.path.isfile(weights) or not os.path.isfile(card):
        raise DataError(f"there is no trained base in {folder} (base.safetensors, base.json): run `memmod train` first")
    meta = _read_base_card(card)
    origin = Origin(str(weights), DataError, "take an undamaged copy, or train the base again")
    state = read_tensors(weights, origin)[1]
    check_tensors(meta, state, origin)
    try:
        model = create_model(meta["model"], meta["num_classes"], tuple(meta["input_shape"]))
    # A timm model's constructor raises what it likes for numbers that it does not take.
    except Exception as error:
        raise DataError(f"the network of {card} cannot be made ({error}): train the base again") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"the weights in {weights} are not those of {meta['model']!r}: {error}") from error
    return model.eval(), meta


def _read_base_card(path: Path) -> dict[str, Any]:
    origin = Origin(str(path), DataError, "take an undamaged copy, or train the base again")
    try:
        meta = parse(path.read_bytes(), origin)
    except OSError as error:
        origin.refuse(f"cannot be read ({error})", error)
    version = _check_base_card(meta, origin)
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this memmod reads up to {FORMAT_VERSION}: upgrade memmod"
        )
    check_card(meta, origin)
    if TENSORS_SHA256 not in meta:
        logger.warning(f"{path} holds no hash of the weights, as an older memmod wrote it: damage cannot be noticed")
    return meta


def _check_base_card(card: Any, origin: Origin) -> int:
    from memmod.files.schemas import BaseCard

    return check(card, BaseCard, origin).version


def base_meta(name: str, dataset: Dataset, config: TrainConfig, metrics: dict[str, Any]) -> dict[str, Any]:
    """What `save_base` records of a trained base.

    Args:
        name: the network's, as `create_model` takes it.
        config: how it was trained.
        metrics: what was measured of it, by name.
    """
    return {
        "model": name,
        "data": dataset.name,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "input_shape": list(dataset.input_shape),
        "training": asdict(config),
        "metrics": without_nan(metrics),
    }
