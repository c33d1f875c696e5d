# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""ResNet with torchvision's parameter names, and the last stride of 1 that re-ID uses.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, table 1; the stride
of a bottleneck sits in its 3x3 convolution, as in torchvision. Last stride 1: Sun et al., "Beyond Part Models", ECCV
2018, arXiv:1711.09349.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["RESNET_LAYERS", "ResNet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, channels, H / stride, W / stride]`."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the channels, and the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, 4 * channels, H / stride, W / stride]`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


RESNET_LAYERS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Backbone):
    """ResNet without its classifier.

    Args:
        block: `BasicBlock` (18, 34 layers) or `Bottleneck` (50, 101).
        layers: Blocks in each of the four stages.
        last_stride: Stride of `layer4`: 1 (stride 16 in all, a 16 x 8 map of 256 x 128 pixels; the usage of re-ID, and
            the default here) or 2 (torchvision's network). It enters the 3x3 convolution and the shortcut of the first
            block and changes no parameter's shape.
        stem_relu: False leaves out the ReLU after the first batch norm, as reid-strong-baseline's published code does.
    """

    classifier_prefixes = ("fc.", "classifier.")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        *,
        last_stride: int = 1,
        stem_relu: bool = True,
    ):
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"resnet: expected last_stride 1 or 2, got {last_stride}")
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True) if stem_relu else nn.Identity()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(block, 64, 64, layers[0], 1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, layers[1], 2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, layers[2], 2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, layers[3], last_stride)
        self.out_channels = self.feature_size = 512 * block.expansion
        self.stride = 16 * last_stride
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, 512 * expansion, H / stride, W / stride]` of `images [B, 3, H, W]`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels) for _ in range(blocks - 1)))


for _name, (_block, _layers) in RESNET_LAYERS.items():
    register_model(_name, partial(ResNet, _block, _layers))
