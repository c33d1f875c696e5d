# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Means of affine patches of a feature map."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from reidfast.ops._op import Op
from reidfast.ops._patches import backward_fake, check_patches, patch_size
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
        TypeError: Not floating point, or a size that is no int.

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
    height, width = patch_size("pool_patches", features, theta, size)
    out: Tensor = _OP(features, theta, height, width, align_corners)
    return out


def _fake(features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    return features.new_empty((features.shape[0], theta.shape[1], features.shape[1]))


_OP = Op(
    "pool_patches",
    reference=_reference,
    check=partial(check_patches, "pool_patches"),
    fake=_fake,
    backward_fake=backward_fake,
    tensors=2,
    gradients=(0, 1),
)
