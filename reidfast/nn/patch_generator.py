# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Patches of a feature map: PAUL's patch generation network, and patches that are fixed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from reidfast.ops import pool_patches, sample_patches


def horizontal_stripes(patches: int) -> Tensor:
    """Transforms (M, 2, 3) of M stripes from top to bottom: theta_m = [[1, 0, 0], [0, 1/M, (2m + 1)/M - 1]]."""
    theta = torch.zeros(patches, 2, 3, dtype=torch.float64)
    theta[:, 0, 0] = 1
    theta[:, 1, 1] = 1 / patches
    theta[:, 1, 2] = (2 * torch.arange(patches, dtype=torch.float64) + 1) / patches - 1
    return theta.float()


def random_boxes(patches: int, seed: int = 0) -> Tensor:
    """Transforms (M, 2, 3) of M boxes inside the map: height U(0.2, 0.5) and width U(0.5, 1) of it, anywhere inside."""
    draws = torch.rand(patches, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    width, height = 0.5 + 0.5 * draws[:, 0], 0.2 + 0.3 * draws[:, 1]
    theta = torch.zeros(patches, 2, 3, dtype=torch.float64)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2] = (1 - width) * (2 * draws[:, 2] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * draws[:, 3] - 1)
    return theta.float()


class FixedPatches(nn.Module):
    """The same M patches of every feature map, in ``PatchGenerator``'s place; nothing is learned.

    Args:
        patches: How many, M.
        kind: "stripes", M horizontal ones from top to bottom, or "random", M boxes drawn once.
        size: As in ``PatchGenerator``.
        align_corners: As in ``reidfast.ops.sample_patches``.
        seed: Seed of random boxes.

    Example:
        >>> FixedPatches(6)(torch.randn(2, 8, 24, 8)).shape
        torch.Size([2, 6, 8])
    """

    theta: Tensor

    def __init__(
        self,
        patches: int = 6,
        *,
        kind: Literal["stripes", "random"] = "stripes",
        size: int | tuple[int, int] | None = None,
        align_corners: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in ("stripes", "random"):
            raise ValueError(f"FixedPatches: expected kind stripes or random, got {kind!r}")
        self.patches, self.kind, self.size, self.align_corners = patches, kind, size, align_corners
        self.register_buffer("theta", horizontal_stripes(patches) if kind == "stripes" else random_boxes(patches, seed))

    def transforms(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> theta (B, M, 2, 3)."""
        return self.theta.expand(len(features), -1, -1, -1)

    def sample(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> the patches themselves, (B, M, C, h, w)."""
        return sample_patches(features, self.transforms(features), self.size, align_corners=self.align_corners)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> mean of every patch, (B, M, C)."""
        return pool_patches(features, self.transforms(features), self.size, align_corners=self.align_corners)

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"{self.patches}, kind={self.kind!r}"


class PatchGenerator(nn.Module):
    """Predicts M affine patches of a feature map, and pools or samples them.

    A localisation network (3x3 convolution to twice the channels, batch norm, ReLU, 3x3 max pool, global average pool,
    two linear layers) gives theta (B, M, 2, 3). The last layer starts with zero weights and, as its bias, M horizontal
    stripes from top to bottom: theta_m = [[1, 0, 0], [0, 1/M, (2m + 1)/M - 1]].

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019,
    section 3.1; sizes, initial values and ``align_corners=True`` (the behaviour of PyTorch 0.4.1) are those of the
    authors' code. 77,625,892 parameters at the defaults.

    Args:
        channels: Channels of the feature map, C.
        patches: How many, M.
        hidden: Width of the linear layer before the last.
        size: Size (h, w) of a patch; None takes the map's own, as the authors do.
        align_corners: As in ``reidfast.ops.sample_patches``.

    Example:
        >>> generator = PatchGenerator(channels=8, patches=6).eval()
        >>> generator(torch.randn(2, 8, 24, 8)).shape
        torch.Size([2, 6, 8])
    """

    def __init__(
        self,
        channels: int = 2048,
        patches: int = 6,
        *,
        hidden: int = 512,
        size: int | tuple[int, int] | None = None,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.patches, self.size, self.align_corners = patches, size, align_corners
        self.conv = nn.Conv2d(channels, 2 * channels, 3)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, patches * 6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming (fan-out) convolution, batch norm (1, 0), default linear layer, stripes."""
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.bn.reset_parameters()
        self.fc1.reset_parameters()
        nn.init.zeros_(self.fc2.weight)
        with torch.no_grad():
            self.fc2.bias.copy_(self.stripes().flatten())

    def stripes(self) -> Tensor:
        """The initial transforms, (M, 2, 3) float32: M horizontal stripes from top to bottom."""
        return horizontal_stripes(self.patches)

    def transforms(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W), at least 3 x 3 -> theta (B, M, 2, 3), under autocast too in the weights' dtype."""
        if features.dim() != 4 or features.shape[1] != self.conv.in_channels or min(features.shape[2:]) < 3:
            raise ValueError(
                f"PatchGenerator: expected features (B, {self.conv.in_channels}, H, W) with H, W >= 3, "
                f"got {tuple(features.shape)}"
            )
        x = self.pool(torch.relu(self.bn(self.conv(features)))).mean((-2, -1))
        x = torch.relu(self.fc1(x))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would move patches by some hundredths of a cell
            return self.fc2(x.to(self.fc2.weight.dtype)).view(-1, self.patches, 2, 3)

    def sample(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> the patches themselves, (B, M, C, h, w)."""
        theta = self.transforms(features)
        return sample_patches(features, theta, self.size, align_corners=self.align_corners)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> mean of every patch, (B, M, C), without making the patches."""
        return pool_patches(features, self.transforms(features), self.size, align_corners=self.align_corners)
