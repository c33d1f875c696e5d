# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What every backbone offers: a feature map, and one pooled re-ID feature."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """A network from images `[B, 3, H, W]` to a feature map and to one feature per image.

    Images are RGB in [0, 1], normalised by ImageNet's mean and standard deviation.

    Attributes:
        out_channels: C of the map `[B, C, h, w]` that `forward_map` returns.
        feature_size: D of the feature `[B, D]` that `forward` returns.
        stride: H / h, for heights and widths that it divides.
        classifier_prefixes: Beginnings of the keys of public checkpoints that hold an identity or ImageNet classifier,
            which a backbone has not.
        drops_classifier: See `register_model`.
    """

    out_channels: int
    feature_size: int
    stride: int
    classifier_prefixes: tuple[str, ...] = ("classifier.",)
    drops_classifier = True

    def forward_map(self, images: Tensor) -> Tensor:
        """Feature map `[B, C, h, w]` of `images [B, 3, H, W]`."""
        raise NotImplementedError

    def pool(self, features: Tensor) -> Tensor:
        """Feature `[B, D]` of a map `[B, C, h, w]`: the mean over its cells."""
        return features.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Feature `[B, D]` of `images [B, 3, H, W]`; raw, not normalised to unit length."""
        return self.pool(self.forward_map(images))

    @staticmethod
    def translate_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of other public versions of the same network to this one's; the default changes nothing."""
        return state
