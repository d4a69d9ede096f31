"""The models that `memmod coverage` tries: of timm, torchvision and Hugging Face transformers, with random weights."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memmod.errors import ModelError
from memmod.surgery.config import ModulateConfig

KINDS = ("timm", "torchvision", "hf")
# Logits, or concepts where a model has no classifier.
CLASSES = 10
# Sides of images in pixels that are tried before a model's own.
SIDES = (96,)

# Of each module of timm its smallest member that is no test model, and how it is made smaller where it is large.
_SMALLEST = """
beit_base_patch16_224 lambda_resnet26t repvgg_a0 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32
convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deepseek_vit_412m:depth=2
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_lite0 efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m:depth=2 ghostnet_050 hardcorenas_a hgnetv2_b0 hiera_tiny_224
sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 poolformer_s12 gmlp_ti16_224 lcnet_035
mobilenetv5_base mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap:depth=4 nasnetalarge nest_tiny
nextvit_small nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m:depth=4 rdnet_tiny regnetx_002
repghostnet_050 repvit_m0_9 res2net50_48w_2s resnest14d resnet10t resnetv2_18 rexnetr_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11:mlp_ratio=0.25
visformer_tiny
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16_224:depth=4
vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41 xcit_nano_12_p16_224
"""
# Image models of transformers without a classifier, and which of their outputs is verified.
_EMBEDDINGS = {
    "CLIPModel": "image_embeds",
    "CLIPVisionModelWithProjection": "image_embeds",
    "Dinov2Model": "pooler_output",
    "SiglipModel": "image_embeds",
    "SiglipVisionModel": "pooler_output",
    "ViTModel": "pooler_output",
}
# Classifiers of transformers whose logits have another name.
_LOGITS = {"PPLCNetForImageClassification": "last_hidden_state"}
# A language model with a vision tower; a wrapper around timm's models, which are tried themselves.
_LEFT_OUT = ("shieldgemma2", "timm_wrapper")


@dataclass(frozen=True)
class Candidate:
    """A model to try.

    Args:
        kind: one of `KINDS`.
        name: as its library knows it.
        family: timm's module, torchvision's module, or the model type of transformers.
        options: what it is made with, beside the number of classes and the side of its images.
        output: `ModulateConfig.output`, for models without a classifier.
    """

    kind: str
    name: str
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    @property
    def config(self) -> ModulateConfig:
        """How it is modulated."""
        return ModulateConfig(output=self.output, logits=_LOGITS.get(self.name))


def candidates(kinds: tuple[str, ...] = KINDS) -> list[Candidate]:
    """Every model of these kinds, of the libraries that are installed.

    Raises:
        ModelError: an unknown kind, or "hf" without transformers.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ModelError(f"unknown kind {kind!r} of models; it must be one of {', '.join(KINDS)}")
    listed = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}
    return [candidate for kind in kinds for candidate in listed[kind]()]


def has_transformers() -> bool:
    """Whether Hugging Face transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


def _timm() -> Iterator[Candidate]:
    import timm
    from timm.models import _registry

    chosen = dict(entry.partition(":")[::2] for entry in _SMALLEST.split())
    by_family = {_registry._model_to_module[name]: name for name in chosen if timm.is_model(name)}
    for family in timm.list_modules():
        # A module that this table does not know yet: a name that says it is small, else the first.
        name = by_family.get(family) or _smallest_by_name(timm.list_models(module=family))
        key, _, value = chosen.get(name, "").partition("=")
        yield Candidate("timm", name, family, {key: json.loads(value)} if key else {})


def _smallest_by_name(names: list[str]) -> str:
    for word in ("atto", "nano", "xxs", "pico", "tiny", "xs", "small"):
        for name in names:
            if word in name:
                return name
    return names[0]


def _torchvision() -> Iterator[Candidate]:
    from torchvision import models

    for name in models.list_models(module=models):
        yield Candidate("torchvision", name, models.get_model_builder(name).__module__.rpartition(".")[2])


def _transformers() -> Iterator[Candidate]:
    if not has_transformers():
        raise ModelError("models of Hugging Face need the package transformers: pip install memmod-torch[hf]")
    from transformers.models.auto import modeling_auto

    for family, classes in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        if family not in _LEFT_OUT:
            for name in (classes,) if isinstance(classes, str) else classes:
                yield Candidate("hf", name, family)
    for name, output in _EMBEDDINGS.items():
        yield Candidate("hf", name, name, output=output)


def build(candidate: Candidate, side: int | None) -> tuple[nn.Module, Any]:
    """The model, and an example of 3 samples as it takes it.

    Args:
        side: of the images in pixels; None: the model's own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"timm": _build_timm, "torchvision": _build_torchvision, "hf": _build_transformers}[candidate.kind](
            candidate, side
        )


def _images(channels: int, *size: int) -> Tensor:
    return torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(0))


def _build_timm(candidate: Candidate, side: int | None) -> tuple[nn.Module, Any]:
    import timm

    options: dict[str, Any] = {"num_classes": CLASSES, **candidate.options}
    if side is None:
        model = timm.create_model(candidate.name, **options)
    else:
        try:
            model = timm.create_model(candidate.name, img_size=side, **options)
        except TypeError:
            # Most convolutional networks take any size and have no such argument.
            model = timm.create_model(candidate.name, **options)
    channels, *size = model.pretrained_cfg["input_size"]
    return model, _images(channels, *(size if side is None else (side, side)))


def _build_torchvision(candidate: Candidate, side: int | None) -> tuple[nn.Module, Any]:
    from torchvision import models

    options = {"image_size": side} if candidate.name.startswith("vit_") and side is not None else {}
    if candidate.name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    model = models.get_model(candidate.name, weights=None, num_classes=CLASSES, **options)
    own = 299 if candidate.name == "inception_v3" else 224
    return model, _images(3, side or own, side or own)


def _build_transformers(candidate: Candidate, side: int | None) -> tuple[nn.Module, Any]:
    import transformers

    cls = getattr(transformers, candidate.name)
    config = cls.config_class()
    config.num_labels = CLASSES
    for part in (config, *(getattr(config, name, None) for name in ("vision_config", "text_config"))):
        if isinstance(getattr(part, "num_hidden_layers", None), int) and not hasattr(part, "depths"):
            part.num_hidden_layers = 2
        if side is not None and hasattr(part, "image_size"):
            part.image_size = side
    if hasattr(config, "num_cross_attention_heads"):
        # Perceiver's channels depend on its preprocessor: 261 or 322 have no eighth.
        config.num_cross_attention_heads = 1
    model = cls(config)
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    size = size if isinstance(size, (list, tuple)) else (side or size, side or size)
    return model, _inputs(candidate.name, config, vision, size)


def _inputs(name: str, config: Any, vision: Any, size: tuple[int, int]) -> dict[str, Tensor]:
    if name == "ImageGPTForImageClassification":
        return {"input_ids": torch.randint(0, 512, (3, 64), generator=torch.Generator().manual_seed(0))}
    channels = getattr(vision, "num_channels", 3)
    if name == "PerceiverForImageClassificationLearned":
        size = (224, 224)
    if name.startswith("Siglip2"):
        side = int(vision.num_patches**0.5)
        patches = torch.randn(
            3, side * side, channels * vision.patch_size**2, generator=torch.Generator().manual_seed(0)
        )
        shapes = torch.tensor([[side, side]] * 3)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(3, side * side, dtype=torch.int64),
            "spatial_shapes": shapes,
        }
    inputs = {"pixel_values": _images(channels, *size)}
    if name in ("CLIPModel", "SiglipModel"):
        tokens = torch.randint(3, 99, (3, 8), generator=torch.Generator().manual_seed(0))
        if name == "CLIPModel":
            # Its text embedding is read at the end of the text.
            tokens[:, -1] = config.text_config.eos_token_id
        inputs["input_ids"] = tokens
    return inputs
