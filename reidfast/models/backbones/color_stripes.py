# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A descriptor without weights: colour histograms of horizontal stripes.

The idea is that of the hand-made re-ID descriptors (Gray, Tao, "Viewpoint Invariant Pedestrian Recognition with an
Ensemble of Localized Features", ECCV 2008: stripes of colour histograms); kept as an honest floor for trained networks
and for demonstrations that ship no weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.models.registry import register_model

from .base import Backbone

__all__ = ["ColorStripes"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@register_model("color_stripes")
class ColorStripes(Backbone):
    """Soft histograms of hue and of lightness in horizontal stripes, square-rooted (Hellinger).

    Each pixel votes for its hue with its chroma and for its lightness, into the two nearest bins; columns near the
    middle weigh more than those at the border, where the background is. The square root of a histogram makes the
    cosine between features a Hellinger affinity.

    Args:
        stripes: Number of horizontal stripes.
        hues: Bins around the colour circle.
        lights: Bins of lightness between black and white.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, stripes: int = 12, hues: int = 12, lights: int = 6):
        super().__init__()
        if min(stripes, hues, lights) < 1 or lights < 2:
            raise ValueError(
                f"color_stripes: expected stripes >= 1, hues >= 1, lights >= 2, got {stripes}, {hues}, {lights}"
            )
        self.stripes, self.hues, self.lights = stripes, hues, lights
        self.out_channels = hues + lights
        self.feature_size = stripes * self.out_channels
        self.stride = 1
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward_map(self, images: Tensor) -> Tensor:
        """Votes `[B, hues + lights, H, W]` of every pixel of `images [B, 3, H, W]`."""
        red, green, blue = (images * self.std + self.mean).clamp(0, 1).unbind(1)
        # a hexagonal colour plane: its angle is the hue, its radius the chroma
        across, up = red - (green + blue) / 2, (green - blue) * 3**0.5 / 2
        chroma = torch.hypot(across, up)
        hue = torch.atan2(up, across) / (2 * torch.pi) * self.hues
        light = (red + green + blue) / 3 * (self.lights - 1)
        return torch.cat([_votes(hue, self.hues, True) * chroma.unsqueeze(1), _votes(light, self.lights, False) / 4], 1)

    def pool(self, features: Tensor) -> Tensor:
        """Feature `[B, stripes * (hues + lights)]`: weighted stripe means, square-rooted, of unit length."""
        width = features.shape[3]
        middle = (torch.arange(width, device=features.device, dtype=features.dtype) + 0.5) / width - 0.5
        weights = torch.exp(-0.5 * (middle / 0.2) ** 2)
        columns = (features * weights).sum(3) / weights.sum()
        stripes = torch.nn.functional.adaptive_avg_pool1d(columns, self.stripes)  # [B, bins, stripes]
        return torch.nn.functional.normalize(stripes.clamp_min(0).sqrt(), dim=1).flatten(1)


def _votes(position: Tensor, bins: int, circular: bool) -> Tensor:
    """Linear votes `[B, bins, H, W]` of positions `[B, H, W]` given in bins."""
    centres = torch.arange(bins, device=position.device, dtype=position.dtype).view(1, -1, 1, 1)
    distance = (position.unsqueeze(1) - centres).abs()
    if circular:
        distance = distance.remainder(bins)
        distance = torch.minimum(distance, bins - distance)
    return (1 - distance).clamp_min(0)
