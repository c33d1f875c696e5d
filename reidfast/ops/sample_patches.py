# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Sampling of affine patches of a feature map."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from reidfast.ops._layout import empty_map, is_channels_last
from reidfast.ops._op import Op
from reidfast.ops._patches import backward_fake, check_patches, patch_size
from reidfast.ops.reference.sample_patches import sample_patches as _reference


def sample_patches(
    features: Tensor, theta: Tensor, size: int | tuple[int, int] | None = None, *, align_corners: bool = True
) -> Tensor:
    """Patches of every map, each cut out by an affine transform and sampled bilinearly.

        (x, y)           = theta[b, m] (u_j, v_i, 1)                  u, v in [-1, 1] over the patch, x, y over the map
        out[b, m, :, i, j] = bilinear interpolation of features[b] at (x, y), zeros outside

    Jaderberg et al., "Spatial Transformer Networks", NIPS 2015; as the patch generator of Yang et al., "Patch-based
    Discriminative Feature Learning for Unsupervised Person Re-identification", CVPR 2019, uses it. Equals one
    ``affine_grid`` and ``grid_sample`` (bilinear, zero padding) per patch. Derivation: docs/ops/sample_patches.md.

    Args:
        features: (B, C, H, W), float32, float64, float16 or bfloat16. Contiguous and channels_last maps are read in
            place.
        theta: (B, M, 2, 3), rows (a, b, t) of x and y. Dtype of features, or float32 beside half features.
        size: Patch size: an int, (h, w), or None for (H, W).
        align_corners: Whether -1 and 1 are the centres of the corner cells (True) or the outer edges of the map.

    Returns:
        (B, M, C, h, w) in features' dtype; each patch in the memory layout of features. Differentiable in features and
        theta. At integer positions the gradient of theta is that of the cell pair from floor(x) on, as in grid_sample.

    Raises:
        ValueError: Shapes, devices or size do not fit.
        TypeError: Not floating point, or a size that is no int.

    Notes:
        A patch partly outside the map gets zeros there and no gradient. NaN or infinity in theta gives NaN where it
        reaches a position.
        Positions and sums are float32 for half types. No repeated map and no grid: beyond the output, O(B M h w) for
        the samples and a tile per thread. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> x = torch.arange(4.0).view(1, 1, 2, 2)
        >>> centre = torch.tensor([[[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]])
        >>> sample_patches(x, centre, 1)
        tensor([[[[[1.5000]]]]])
    """
    height, width = patch_size("sample_patches", features, theta, size)
    out: Tensor = _OP(features, theta, height, width, align_corners)
    return out


def _fake(features: Tensor, theta: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    shape = (features.shape[0], theta.shape[1], features.shape[1], height, width)
    return empty_map(features, shape, channel=2, channels_last=is_channels_last(features))


_OP = Op(
    "sample_patches",
    reference=_reference,
    check=partial(check_patches, "sample_patches"),
    fake=_fake,
    backward_fake=backward_fake,
    tensors=2,
    gradients=(0, 1),
)
