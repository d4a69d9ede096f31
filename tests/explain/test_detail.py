"""The detailed map: integrated gradients that add up, and both parts in equal shares."""

from __future__ import annotations

import pytest
import torch

from memmod.explain import attribute
from memmod.explain.blur import blurred
from memmod.explain.detail import detailed_map, pixels
from memmod.explain.rivals import MAPS
from memmod.explain.targets import logit
from tests.explain.helpers import Small, settle, with_memories

X = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(5))
CLASSES = torch.tensor([0, 3, 1, 4])


def small():
    torch.manual_seed(0)
    return with_memories(settle(Small()), X)


def test_pixels_add_up_to_the_logit_above_that_of_the_darkest_image() -> None:
    wf = small()
    dark = X.amin((2, 3), keepdim=True).expand_as(X)
    with torch.no_grad():
        expected = logit(wf(X, forget=-1), CLASSES) - logit(wf(dark, forget=-1), CLASSES)
    # A network of kinks: midpoints converge slowly.
    torch.testing.assert_close(pixels(wf, X, CLASSES, steps=128).sum((1, 2)), expected, rtol=0.02, atol=0.02)


def test_pixels_are_captum_s_integrated_gradients() -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    wf = small()
    own, other = pixels(wf, X, CLASSES, steps=32), MAPS["integrated gradients"](wf, X, CLASSES)
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_both_parts_weigh_the_same() -> None:
    wf = small()
    found = attribute(wf, X, CLASSES)
    path = blurred(found.image()[:, None], 7, 1.4)[:, 0]
    parts = [maps / maps.flatten(1).std(1).view(4, 1, 1) for maps in (path, pixels(wf, X, CLASSES).double())]
    torch.testing.assert_close(detailed_map(wf, X, CLASSES, found), parts[0] + parts[1])
