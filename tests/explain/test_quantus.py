"""Pixel flipping as quantus (arXiv 2202.06861) does it: the same probabilities in the same order.

quantus is no requirement of the tests: it brings OpenCV with its windows, which a machine without a screen often cannot
load. With `pip install --no-deps quantus`, opencv-python-headless, pandas, scikit-image and cachetools this runs.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memmod.explain.faithfulness import FaithfulnessConfig, curves
from tests.explain.helpers import with_memories

quantus = pytest.importorskip("quantus", reason="quantus is not installed")


@pytest.mark.slow
def test_deletion_is_pixel_flipping() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    x, maps, classes = torch.rand(2, 1, 4, 4), torch.randn(2, 4, 4), torch.tensor([0, 2])
    x[:, 0, 0, 0] = 0.0
    # Its black is an image's lowest value, which is 0 here.
    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline="black", disable_warnings=True, abs=False, normalise=False
    )
    expected = metric(
        model=network,
        x_batch=x.numpy(),
        y_batch=classes.numpy(),
        a_batch=maps.unsqueeze(1).numpy(),
        softmax=True,
        device="cpu",
    )
    wf = with_memories(network, x)
    found = curves(wf, x, classes, maps, 0.0, FaithfulnessConfig(steps=4, blur=1)).deletion
    # It leaves out the image before any pixel is gone.
    torch.testing.assert_close(found[:, 1:], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)
