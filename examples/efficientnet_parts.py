"""How exactly the parts of EfficientNet-Lite0's logits add up to what forgetting takes, on crops of photographs.

    python -m examples.efficientnet_parts --images 1000            # all units closed at random, as a whole
    python -m examples.efficientnet_parts --images 32 --closed .05 # a share of the units closed
    python -m examples.efficientnet_parts --images 32 --whole-path # 16 points on the whole path alone

The table of docs/explain.md holds what it prints.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torchvision import transforms

from examples.efficientnet_lite0 import efficientnet_lite0, modulated, photographs
from memmod.explain import attribute

SIDE = 64
BATCH = 32


def crops(count: int) -> Tensor:
    """Random crops of the photographs, in turn, scaled to [-1, 1]: ``[count, 3, SIDE, SIDE]``; always the same."""
    crop = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, (0.3, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    images = list(photographs().values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.stack([crop(images[number % len(images)]) for number in range(count)])


def close_at_random(memories: list[Tensor], share: float | None) -> None:
    """Draw memories: gates of all openings, or so large a share of the units closed and the others open."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for memory in memories:
            if share is None:
                memory.copy_(1.5 + 1.5 * torch.randn(memory.shape, generator=generator))
            else:
                memory.copy_(torch.where(torch.rand(memory.shape, generator=generator) < share, -4.0, 6.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--closed", type=float, help="share of the units; default: gates of all openings")
    parser.add_argument("--whole-path", action="store_true", help="16 points on the whole path, no section halved")
    options = parser.parse_args()
    x = crops(options.images)
    wf = modulated(efficientnet_lite0(), x[:2])
    close_at_random(list(wf.memory_parameters()), options.closed)
    missed, points = [], []
    for part in x.split(BATCH):
        with torch.no_grad():
            seen = wf.logits(wf(part, forget=-1)).argmax(1)
        found = attribute(wf, part, seen, **({"tolerance": None} if options.whole_path else {}))
        missed.append((found.residual / found.drop).abs())
        points.append(found.points)
    share, count = torch.cat(missed), torch.cat(points)
    print(
        f"{len(share)} images: {count.double().mean():.0f} points an image, at most {count.max()}; missed "
        f"{share.median():.4f} (median), {share.max():.4f} (worst); within 1 %: {(share <= 0.01).double().mean():.1%}"
    )


if __name__ == "__main__":
    main()
