# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""OSNet, the omni-scale network.

Zhou, Yang, Cavallaro, Xiang, "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019, arXiv:1905.00953.

Parameter names are those of torchreid's checkpoints (KaiyangZhou/deep-person-reid), so that its zoo loads.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["OSNET_CHANNELS", "OSNet"]

OSNET_CHANNELS: dict[str, tuple[int, int, int, int]] = {
    "osnet_x1_0": (64, 256, 384, 512),
    "osnet_x0_75": (48, 192, 288, 384),
    "osnet_x0_5": (32, 128, 192, 256),
    "osnet_x0_25": (16, 64, 96, 128),
}


class ConvUnit(nn.Module):
    """Convolution without bias, normalisation, and (unless `linear`) ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        linear: bool = False,
        instance: bool = False,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.InstanceNorm2d(outputs, affine=True) if instance else nn.BatchNorm2d(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        x = self.bn(self.conv(x))
        return x if self.linear else F.relu(x, inplace=True)


class LightConv(nn.Module):
    """The paper's Lite 3x3: a linear 1x1 convolution, a depth-wise 3x3 one, batch norm, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        return F.relu(self.bn(self.conv2(self.conv1(x))), inplace=True)


class ChannelGate(nn.Module):
    """The unified aggregation gate: one weight per channel from the pooled map, shared by the four streams."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        weights = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class OSBlock(nn.Module):
    """A residual bottleneck of four streams whose receptive fields are 3, 5, 7 and 9, summed through the gate."""

    def __init__(self, inputs: int, outputs: int, *, instance: bool = False):
        super().__init__()
        channels = outputs // 4
        self.conv1 = ConvUnit(inputs, channels)
        self.conv2a = LightConv(channels)
        self.conv2b = nn.Sequential(*(LightConv(channels) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv(channels) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv(channels) for _ in range(4)))
        self.gate = ChannelGate(channels)
        self.conv3 = ConvUnit(channels, outputs, linear=True)
        self.downsample = ConvUnit(inputs, outputs, linear=True) if inputs != outputs else None
        self.IN = nn.InstanceNorm2d(outputs, affine=True) if instance else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H, W]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        streams = (
            self.gate(self.conv2a(x))
            + self.gate(self.conv2b(x))
            + self.gate(self.conv2c(x))
            + self.gate(self.conv2d(x))
        )
        out = self.conv3(streams) + shortcut
        return F.relu(out if self.IN is None else self.IN(out), inplace=True)


class OSNet(Backbone):
    """OSNet of any width; stride 16, so 256 x 128 pixels become a 16 x 8 map, unless `last_stride` is 1.

    Args:
        channels: Width of the stem and of the three stages; `OSNET_CHANNELS` lists the published ones.
        feature_size: D of the fully connected layer behind the pooled map; None leaves it out, D is then the map's C.
        instance_norm: Instance norm in the stem and at the end of the blocks of the first stage (OSNet-IBN).
        last_stride: 2 is the published network; 1 leaves its last halving out (stride 8 in all, the same weights).
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = OSNET_CHANNELS["osnet_x1_0"],
        *,
        feature_size: int | None = 512,
        instance_norm: bool = False,
        last_stride: int = 2,
    ):
        super().__init__()
        if last_stride not in (1, 2):
            raise ValueError(f"osnet: expected last_stride 1 or 2, got {last_stride}")
        stem, first, second, third = channels
        self.conv1 = ConvUnit(3, stem, 7, 2, instance=instance_norm)
        self.conv2 = nn.Sequential(
            OSBlock(stem, first, instance=instance_norm), OSBlock(first, first, instance=instance_norm), _halve(first)
        )
        self.conv3 = nn.Sequential(OSBlock(first, second), OSBlock(second, second), _halve(second, last_stride))
        self.conv4 = nn.Sequential(OSBlock(second, third), OSBlock(third, third))
        self.conv5 = ConvUnit(third, third)
        self.fc = None
        if feature_size is not None:
            self.fc = nn.Sequential(nn.Linear(third, feature_size), nn.BatchNorm1d(feature_size), nn.ReLU())
        self.out_channels, self.stride = third, 8 * last_stride
        self.feature_size = third if feature_size is None else feature_size
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, C, H / stride, W / stride]` of `images [B, 3, H, W]`."""
        x = F.max_pool2d(self.conv1(images), 3, 2, 1)
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))

    def pool(self, features: Tensor) -> Tensor:
        """Feature `[B, D]`: mean over the cells, linear, batch norm, ReLU, as torchreid answers in evaluation mode."""
        pooled = super().pool(features)
        return pooled if self.fc is None else self.fc(pooled)


def _halve(channels: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(ConvUnit(channels, channels), nn.AvgPool2d(2) if stride == 2 else nn.Identity())


for _name, _channels in OSNET_CHANNELS.items():
    register_model(_name, partial(OSNet, _channels))
register_model("osnet_ibn_x1_0", partial(OSNet, OSNET_CHANNELS["osnet_x1_0"], instance_norm=True))
