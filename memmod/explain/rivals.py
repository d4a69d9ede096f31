"""Maps ``[B, H, W]`` of where a class's logit comes from, by name: memmod's, those of other methods, trivial ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from memmod.explain import captum_maps, trivial_maps
from memmod.explain.attribution import attribute
from memmod.explain.detail import detailed_map
from memmod.model import ModulatedModel

# Of (the network, images [B, C, H, W], class numbers int64 [B]): [B, H, W], higher where more of the logit comes from.
Map = Callable[[ModulatedModel, Tensor, Tensor], Tensor]


def gate_path(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """The attribution along the path of each sample's class's gates, by pixels: ``[B, H, W]``."""
    return attribute(wf, x, classes).image()


def gate_path_and_pixels(wf: ModulatedModel, x: Tensor, classes: Tensor) -> Tensor:
    """The detailed map of that attribution: ``[B, H, W]``."""
    return detailed_map(wf, x, classes, attribute(wf, x, classes))


MAPS: dict[str, Map] = {
    "gate path": gate_path,
    "gate path and pixels": gate_path_and_pixels,
    "Grad-CAM, last block": captum_maps.grad_cam,
    "Grad-CAM, all layers": captum_maps.layer_grad_cam,
    "integrated gradients": captum_maps.integrated_gradients,
    "occlusion": captum_maps.occlusion,
    "brightness": trivial_maps.brightness,
    "smooth random": trivial_maps.smooth_random,
    "random": trivial_maps.random,
}
