# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Means of affine patches of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast.ops._backends import Dispatch
from reidfast.ops._extension import extension
from reidfast.ops._layout import empty_map, is_channels_last
from reidfast.ops._patches import check_patches
from reidfast.ops.reference.pool_patches import pool_patches as _reference


def pool_patches(
    features: Tensor, theta: Tensor, size: int | tuple[int, int] | None = None, *, align_corners: bool = True
) -> Tensor:
    """The mean of each affine patch of every map, without making the patch.

        out[b, m] = mean over (i, j) of sample_patches(features, theta, size)[b, m, :, i, j]
                  = sum over cells l of w[b, m, l] features[b, :, l]

    w holds the bilinear weights of all h w samples, scattered to the cells: one small product replaces h w samples per
    channel. Yang et al., "Patch-based Discriminative Feature Learning for Unsupervised Person Re-identification",
    CVPR 2019 (sampling followed by global average pooling). Derivation: docs/ops/pool_patches.md.

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16. Contiguous and channels_last maps are read in
            place.
        theta: (B, M, 2, 3), rows (a, b, t) of x and y. Dtype of features, or float32 beside half features.
        size: Size (h, w) of the patches that are averaged: an int, (h, w), or None for (H, W).
        align_corners: Whether -1 and 1 are the centres of the corner cells (True) or the outer edges of the map.

    Returns:
        (B, M, C) in features' dtype. Differentiable in features and theta, with grid_sample's floor convention at
        integer positions.

    Raises:
        ValueError: Shapes, devices or size do not fit.
        TypeError: Not floating point, theta of another dtype, or a size that is no int.

    Notes:
        Samples outside the map count as zeros in the mean. NaN or infinity in theta gives NaN for that patch.
        Reads the map once forward, once backward; beyond the outputs O(B M H W) memory. Accumulates in float32 for half
        types. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> x = torch.arange(6.0).view(1, 1, 3, 2)
        >>> whole = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]])
        >>> pool_patches(x, whole)
        tensor([[[2.5000]]])
    """
    height, width = check_patches("pool_patches", features, theta, size)
    return _OP.on[features.device.type](features, theta, height, width, align_corners)


_OP = Dispatch("pool_patches", reference=_reference)

if extension is not None:

    @torch.library.register_fake("reidfast::pool_patches")
    def _(features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
        return features.new_empty((features.shape[0], theta.shape[1], features.shape[1]))

    @torch.library.register_fake("reidfast::pool_patches_backward")
    def _(
        grad: Tensor,
        features: Tensor,
        theta: Tensor,
        height: int,
        width: int,
        align_corners: bool,
        needs: list[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        last = is_channels_last(features)
        grad_features = empty_map(features, features.shape, channel=1, channels_last=last) if needs[0] else None
        return grad_features, theta.new_empty(theta.shape) if needs[1] else None
