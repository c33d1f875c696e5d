# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Inception-v3 with torchvision's parameter names.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
arXiv:1512.00567, as in TensorFlow's release, whose weights torchvision carries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["InceptionAux", "InceptionV3"]

# The backbones' input is normalised by ImageNet's mean and deviation, this network's by 0.5 and 0.5.
SCALE = tuple(std / 0.5 for std in (0.229, 0.224, 0.225))
SHIFT = tuple((mean - 0.5) / 0.5 for mean in (0.485, 0.456, 0.406))


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm with eps 0.001, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H', W']`."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _tall(inputs: int, outputs: int, size: int) -> ConvUnit:
    return ConvUnit(inputs, outputs, (size, 1), padding=(size // 2, 0))


def _wide(inputs: int, outputs: int, size: int) -> ConvUnit:
    return ConvUnit(inputs, outputs, (1, size), padding=(0, size // 2))


class MixedA(nn.Module):
    """1x1, 5x5, double 3x3 and pooling, side by side, on the 35x35 grid."""

    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = ConvUnit(inputs, 64)
        self.branch5x5_1 = ConvUnit(inputs, 48)
        self.branch5x5_2 = ConvUnit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvUnit(inputs, 64)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, padding=1)
        self.branch_pool = ConvUnit(inputs, pooled)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 224 + pooled, H, W]`."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)


class MixedB(nn.Module):
    """35x35 to 17x17."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = ConvUnit(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvUnit(inputs, 64)
        self.branch3x3dbl_2 = ConvUnit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvUnit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 480 + inputs, H / 2, W / 2]`."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(nn.Module):
    """7x7 convolutions as a row and a column each, on the 17x17 grid."""

    def __init__(self, inputs: int, middle: int):
        super().__init__()
        self.branch1x1 = ConvUnit(inputs, 192)
        self.branch7x7_1 = ConvUnit(inputs, middle)
        self.branch7x7_2 = _wide(middle, middle, 7)
        self.branch7x7_3 = _tall(middle, 192, 7)
        self.branch7x7dbl_1 = ConvUnit(inputs, middle)
        self.branch7x7dbl_2 = _tall(middle, middle, 7)
        self.branch7x7dbl_3 = _wide(middle, middle, 7)
        self.branch7x7dbl_4 = _tall(middle, middle, 7)
        self.branch7x7dbl_5 = _wide(middle, 192, 7)
        self.branch_pool = ConvUnit(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 768, H, W]`."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(F.avg_pool2d(x, 3, 1, 1))], 1)


class MixedD(nn.Module):
    """17x17 to 8x8."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1 = ConvUnit(inputs, 192)
        self.branch3x3_2 = ConvUnit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvUnit(inputs, 192)
        self.branch7x7x3_2 = _wide(192, 192, 7)
        self.branch7x7x3_3 = _tall(192, 192, 7)
        self.branch7x7x3_4 = ConvUnit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 512 + inputs, H / 2, W / 2]`."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(nn.Module):
    """3x3 convolutions as a row beside a column, on the 8x8 grid."""

    def __init__(self, inputs: int):
        super().__init__()
        self.branch1x1 = ConvUnit(inputs, 320)
        self.branch3x3_1 = ConvUnit(inputs, 384)
        self.branch3x3_2a = _wide(384, 384, 3)
        self.branch3x3_2b = _tall(384, 384, 3)
        self.branch3x3dbl_1 = ConvUnit(inputs, 448)
        self.branch3x3dbl_2 = ConvUnit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _wide(384, 384, 3)
        self.branch3x3dbl_3b = _tall(384, 384, 3)
        self.branch_pool = ConvUnit(inputs, 192)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 2048, H, W]`."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(F.avg_pool2d(x, 3, 1, 1)),
        ]
        return torch.cat(parts, 1)


class InceptionAux(nn.Module):
    """The auxiliary classifier on the 17x17 grid.

    Args:
        num_classes: Identities.
        channels: Channels of the map.
    """

    def __init__(self, num_classes: int, channels: int = 768):
        super().__init__()
        self.conv0 = ConvUnit(channels, 128)
        self.conv1 = ConvUnit(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)
        nn.init.trunc_normal_(self.conv1.conv.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.trunc_normal_(self.fc.weight, std=0.001, a=-0.002, b=0.002)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of a map `[B, C, H, W]` of at least 17 x 17 cells."""
        if min(x.shape[2:]) < 17:
            raise ValueError(
                f"InceptionAux: expected a map of at least 17 x 17 cells (299 x 299 pixels), got "
                f"{x.shape[2]} x {x.shape[3]}; use larger images, or leave the auxiliary classifier out"
            )
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(x.mean((2, 3)))


@register_model("inception_v3")
class InceptionV3(Backbone):
    """Inception-v3 without its classifiers; 299 x 299 pixels become an 8 x 8 map of 2048 channels.

    Many convolutions pad nothing, so that a map does not have H / 32 rows but a few less (256 x 128 pixels: 6 x 2);
    `reidfast.models.feature_grid` tells. Images come normalised by ImageNet's mean and deviation, as everywhere in this
    package, and are brought to (x - 0.5) / 0.5 here.
    """

    classifier_prefixes = ("fc.", "AuxLogits.")
    out_channels = feature_size = 2048
    stride = 32
    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = MixedE(2048)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.1, a=-0.2, b=0.2)

    def forward_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The map `[B, 2048, h, w]` and the one below it that the auxiliary classifier sees, `[B, 768, h', w']`."""
        x = images * self.scale + self.shift
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        below = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(below))), below

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, 2048, h, w]` of `images [B, 3, H, W]` of at least 75 x 75 pixels."""
        return self.forward_maps(images)[0]
