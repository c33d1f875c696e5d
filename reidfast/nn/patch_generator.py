# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The patch generation network of PAUL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reidfast.ops import pool_patches, sample_patches


class PatchGenerator(nn.Module):
    """Predicts M affine patches of a feature map, and pools or samples them.

    A localisation network (3x3 convolution to twice the channels, batch norm, ReLU, 3x3 max pool, global average pool,
    two linear layers) gives theta (B, M, 2, 3). The last layer starts with zero weights and, as its bias, M horizontal
    stripes from top to bottom: theta_m = [[1, 0, 0], [0, 1/M, (2m + 1)/M - 1]].

    Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019,
    section 3.1; sizes, initial values and ``align_corners=True`` (the behaviour of PyTorch 0.4.1) are those of the
    authors' code. 77,625,892 parameters at the defaults.

    Args:
        channels: Of the feature map, C.
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
        m = self.patches
        theta = torch.zeros(m, 2, 3, dtype=torch.float64)
        theta[:, 0, 0] = 1
        theta[:, 1, 1] = 1 / m
        theta[:, 1, 2] = (2 * torch.arange(m, dtype=torch.float64) + 1) / m - 1
        return theta.float()

    def transforms(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W), at least 3 x 3 -> theta (B, M, 2, 3)."""
        if features.dim() != 4 or features.shape[1] != self.conv.in_channels or min(features.shape[2:]) < 3:
            raise ValueError(
                f"PatchGenerator: expected features (B, {self.conv.in_channels}, H, W) with H, W >= 3, "
                f"got {tuple(features.shape)}"
            )
        x = self.pool(torch.relu(self.bn(self.conv(features)))).mean((-2, -1))
        return self.fc2(torch.relu(self.fc1(x))).view(-1, self.patches, 2, 3)

    def sample(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> the patches themselves, (B, M, C, h, w)."""
        theta = self.transforms(features)
        return sample_patches(features, theta, self.size, align_corners=self.align_corners)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) -> mean of every patch, (B, M, C), without making the patches."""
        return pool_patches(features, self.transforms(features), self.size, align_corners=self.align_corners)
