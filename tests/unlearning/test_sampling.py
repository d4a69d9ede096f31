"""Which images the steps draw."""

from __future__ import annotations

import torch

from memmod.unlearning.sampling import Sampler

# classes 0, 1, 2 with 3, 300 and 30 images, in a shuffled order
COUNTS = (3, 300, 30)
LABELS = torch.cat([torch.full((count,), c) for c, count in enumerate(COUNTS)])
LABELS = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]


def test_the_forget_half_is_balanced_and_the_rest_as_the_data():
    images = Sampler(LABELS, 3).mixed(6000, torch.Generator().manual_seed(0))
    forget, rest = LABELS[images[:3000]].bincount() / 3000, LABELS[images[3000:]].bincount() / 3000
    torch.testing.assert_close(forget, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    torch.testing.assert_close(rest, torch.tensor(COUNTS) / sum(COUNTS), atol=0.03, rtol=0)


def test_every_image_can_be_drawn():
    images = Sampler(LABELS, 3).mixed(20000, torch.Generator().manual_seed(0))
    assert images[:10000].unique().numel() == images[10000:].unique().numel() == len(LABELS)


def test_one_class_serves_the_batch():
    sampler, generator = Sampler(LABELS, 3), torch.Generator().manual_seed(0)
    seen, others = set(), {c: set() for c in range(3)}
    for _ in range(300):
        c, images = sampler.one_class(4, 28, generator)
        assert (LABELS[images[:4]] == c).all() and (LABELS[images[4:]] != c).all()
        seen.add(c)
        others[c].update(images[4:].tolist())
    assert seen == {0, 1, 2}
    assert [len(others[c]) for c in range(3)] == [sum(COUNTS) - count for count in COUNTS]
