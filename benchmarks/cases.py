"""What is measured: linear layers of ViTs and MLPs, conv layers of ResNets and small networks, whole networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

CLASSES = 10
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = 197
VIT_WIDTHS = {"T": 192, "S": 384, "B": 768}
DEPTHWISE = ((144, 56), (384, 14), (960, 7))


@dataclass(frozen=True)
class Case:
    """One layer on one input. Linear: x ``[batch, *tokens, inputs]``; conv: x ``[batch, inputs, side, side]``.

    `devices` are those on which it is measured.
    """

    group: str
    name: str
    batch: int
    inputs: int
    outputs: int
    tokens: int = 1
    kernel: int = 0
    side: int = 0
    stride: int = 1
    groups: int = 1
    dtype: str = "fp32"
    quick: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def x_shape(self) -> tuple[int, ...]:
        if self.kernel:
            return (self.batch, self.inputs, self.side, self.side)
        return (self.batch, self.tokens, self.inputs) if self.tokens > 1 else (self.batch, self.inputs)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs // self.groups) + (self.kernel, self.kernel) * bool(self.kernel)

    def __str__(self) -> str:
        return _label(self)


@dataclass(frozen=True)
class NetworkCase:
    """One network of `memmod.zoo` on images ``[batch, 3, side, side]``; the layout is chosen where `convolutional`."""

    group: str
    name: str
    model: str
    side: int
    batch: int
    convolutional: bool = True
    dtype: str = "fp32"
    quick: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __str__(self) -> str:
        return _label(self)


def _label(case: Case | NetworkCase) -> str:
    return f"{case.group}:{case.name}" + f" {case.dtype}" * (case.dtype != "fp32")


def _vit(dtype: str) -> list[Case]:
    cases = []
    for size, width in VIT_WIDTHS.items():
        for part, inputs, outputs in (
            ("qkv", width, 3 * width),
            ("proj", width, width),
            ("fc1", width, 4 * width),
            ("fc2", 4 * width, width),
        ):
            quick = dtype == "fp32" and (size, part) in (("T", "fc1"), ("S", "qkv"))
            cases.append(Case("linear ViT", f"ViT-{size} {part}", 8, inputs, outputs, TOKENS, dtype=dtype, quick=quick))
    return cases


def _rows() -> list[Case]:
    rows = [
        Case("linear T=1", f"{width}² rows {batch}", batch, width, width, quick=(batch, width) == (1024, 1024))
        for width in (256, 1024)
        for batch in (128, 1024, 4096)
    ]
    rows.append(Case("linear small", "32² rows 8", 8, 32, 32, quick=True))
    rows.append(Case("linear small", "digits ViT fc1", 128, 64, 128, 17))
    rows.append(Case("linear small", "digits ViT qkv", 128, 64, 192, 17))
    return rows


def _convs() -> list[Case]:
    cases = []
    for width, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        cases.append(
            Case("conv 3x3", f"ResNet-18 {width}@{side}", 8, width, width, kernel=3, side=side, quick=width == 128)
        )
    for width, side in ((64, 8), (128, 4), (256, 2)):
        cases.append(Case("conv 3x3", f"ResNet-18 {width}@{side} (32x32)", 64, width, width, kernel=3, side=side))
    for width, side, quick in (
        (16, 28, True),
        (32, 14, False),
        (64, 7, False),
        (16, 8, True),
        (32, 4, False),
        (64, 2, False),
    ):
        image = "28x28" if side in (28, 14, 7) else "8x8"
        cases.append(
            Case("conv 3x3 small", f"{width}@{side} ({image})", 128, width, width, kernel=3, side=side, quick=quick)
        )
    for inputs, outputs, side in ((256, 64, 56), (64, 256, 56), (1024, 256, 14)):
        cases.append(
            Case("conv 1x1", f"{inputs}→{outputs}@{side}", 8, inputs, outputs, kernel=1, side=side, quick=side == 14)
        )
    return cases + [_depthwise("conv depthwise", width, side, 8) for width, side in DEPTHWISE]


def _depthwise(group: str, width: int, side: int, batch: int) -> Case:
    name = f"MobileNetV2 {width}@{side}" + f" batch {batch}" * (batch > 8)
    return Case(group, name, batch, width, width, kernel=3, side=side, groups=width)


def _on_gpu(cases: list[Case]) -> list[Case]:
    """The cases in every dtype, for a GPU alone."""
    return [
        replace(case, dtype=dtype, devices=("cuda",), quick=case.quick and dtype == "bf16")
        for dtype in DTYPES
        for case in cases
    ]


def _large_linear() -> list[Case]:
    cases = [
        Case("linear large", f"ViT-B {part} batch 64", 64, inputs, outputs, TOKENS, quick=part == "fc1")
        for part, inputs, outputs in (("proj", 768, 768), ("fc1", 768, 3072), ("fc2", 3072, 768))
    ]
    return cases + [
        Case("linear large", f"{width}² rows 8192", 8192, width, width) for width in (512, 1024, 2048, 4096)
    ]


def _few_rows() -> list[Case]:
    # Serving: the weight alone decides.
    return [
        Case("linear few rows", f"{inputs}→{outputs} rows {rows}", rows, inputs, outputs, quick=rows == 4)
        for inputs, outputs in ((1024, 1024), (4096, 1024), (4096, 4096))
        for rows in (1, 4, 16)
    ]


def _large_conv() -> list[Case]:
    cases = [
        Case("conv large", f"ResNet-18 {width}@{side} batch 64", 64, width, width, kernel=3, side=side)
        for width, side in ((64, 56), (128, 28), (256, 14), (512, 7))
    ]
    cases[1] = replace(cases[1], quick=True)
    for inputs, outputs, side in ((256, 64, 56), (64, 256, 56), (1024, 256, 14)):
        cases.append(
            Case("conv large", f"{inputs}→{outputs}@{side} batch 64", 64, inputs, outputs, kernel=1, side=side)
        )
    # The library's product, and the tail behind it.
    depthwise = [_depthwise("conv depthwise large", width, side, 64) for width, side in DEPTHWISE]
    return cases + [replace(case, quick=case.side == 56) for case in depthwise]


LINEAR = tuple(_vit("fp32") + _vit("bf16") + _rows() + _on_gpu(_large_linear() + _few_rows()))
CONV = tuple(_convs() + _on_gpu(_large_conv()))
NETWORKS = (
    NetworkCase("ResNet-18", "32x32 batch 64", "timm:resnet18", 32, 64, quick=True),
    NetworkCase("ResNet-18", "224x224 batch 8", "timm:resnet18", 224, 8),
    NetworkCase("ResNet-50", "224x224 batch 8", "timm:resnet50", 224, 8),
    NetworkCase("EfficientNet-Lite0", "224x224 batch 8", "timm:efficientnet_lite0", 224, 8),
    NetworkCase("ConvNeXt-T", "224x224 batch 4", "timm:convnext_tiny", 224, 4),
    NetworkCase("ViT-T", "224x224 batch 8", "timm:vit_tiny_patch16_224", 224, 8, convolutional=False),
    NetworkCase("ViT-S", "224x224 batch 4", "timm:vit_small_patch16_224", 224, 4, convolutional=False),
    NetworkCase("Swin-T", "224x224 batch 4", "timm:swin_tiny_patch4_window7_224", 224, 4, convolutional=False),
    NetworkCase("ResNet-18", "224x224 batch 64", "timm:resnet18", 224, 64, devices=("cuda",)),
    NetworkCase("ViT-S", "224x224 batch 64", "timm:vit_small_patch16_224", 224, 64, False, devices=("cuda",)),
)
SERVED = tuple(replace(case, quick=False) for case in NETWORKS)
