# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""MobileNetV2.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
arXiv:1801.04381, table 2.

Parameters are called `features.N.conv.K.*` with K counting every layer of a block, as in the checkpoints that leave
the blocks flat; torchvision's own nesting (`features.N.conv.0.0.*`) is translated when it is loaded.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["MobileNetV2"]

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter by depth-wise 3x3, project by a linear 1x1; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        expand = (
            []
            if expansion == 1
            else [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        )
        self.conv = nn.Sequential(
            *expand,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        return x + self.conv(x) if self.residual else self.conv(x)


@register_model("mobilenet_v2")
class MobileNetV2(Backbone):
    """MobileNetV2 without its classifier; 1280 channels, stride 32, so 256 x 128 pixels become an 8 x 4 map.

    Args:
        width: Multiplier of the channels, rounded to multiples of 8 as published.
        last_stride: 1 keeps the last stage at stride 16 (a 16 x 8 map), 2 is the published network.
    """

    def __init__(self, *, width: float = 1.0, last_stride: int = 2):
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"mobilenet_v2: expected last_stride 1 or 2, got {last_stride}")
        channels = _round_to_8(32 * width)
        layers: list[nn.Module] = [_conv_bn_relu6(3, channels, 3, 2)]
        for expansion, base, blocks, first_stride in STAGES:
            outputs = _round_to_8(base * width)
            first_stride = last_stride if base == 160 else first_stride
            for block in range(blocks):
                layers.append(InvertedResidual(channels, outputs, first_stride if block == 0 else 1, expansion))
                channels = outputs
        self.out_channels = self.feature_size = _round_to_8(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(channels, self.out_channels, 1, 1))
        self.features = nn.Sequential(*layers)
        self.stride = 16 * last_stride
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, 1280, H / stride, W / stride]` of `images [B, 3, H, W]`."""
        return self.features(images)

    @staticmethod
    def translate_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's nested blocks to flat ones; flat ones stay."""
        nested = re.compile(r"features\.(\d+)\.conv\.(\d)\.(\d)\.")
        depth = {int(m[1]): 0 for m in map(nested.match, state) if m}
        for key in state:
            if (m := nested.match(key)) and int(m[1]) in depth:
                depth[int(m[1])] = max(depth[int(m[1])], int(m[2]) + 1)
        if not depth:
            return state
        renamed = {}
        for key, value in state.items():
            if m := nested.match(key):
                key = key.replace(m[0], f"features.{m[1]}.conv.{3 * int(m[2]) + int(m[3])}.", 1)
            elif (m := re.match(r"features\.(\d+)\.conv\.(\d)\.", key)) and int(m[1]) in depth:
                outer = depth[int(m[1])]
                key = key.replace(m[0], f"features.{m[1]}.conv.{3 * outer + int(m[2]) - outer}.", 1)
            renamed[key] = value
        return renamed


def _conv_bn_relu6(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def _round_to_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
