# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Several attention maps over a feature map, what they pool, and how much they overlap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_same_device, promote
from reidfast.ops._layout import empty_map, is_channels_last
from reidfast.ops._op import Op
from reidfast.ops.reference.diverse_attention import diverse_attention as _reference


class DiverseAttention(NamedTuple):
    """What ``diverse_attention`` returns."""

    pooled: Tensor  # (B, K, D)
    attention: Tensor  # (B, K, L), rows sum to 1
    overlap: Tensor  # (B,)


def diverse_attention(features: Tensor, logits: Tensor) -> DiverseAttention:
    """K softmax attention maps over the cells of a feature map: pooled features, the maps, and their overlap.

        A[b, k]      = softmax over l of logits[b, k]
        pooled[b, k] = sum over l of A[b, k, l] features[b, :, l]
        overlap[b]   = || R R^T - I ||_F^2,  R = sqrt(A[b])           = sum over i != j of (sum_l sqrt(A_il A_jl))^2

    Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification",
    CVPR 2018; sum_l sqrt(A_il A_jl) is one minus the squared Hellinger distance of two maps. The gradient is taken
    with respect to the logits, where it needs no division by R and is finite for attention of zero. Derivation:
    docs/ops/diverse_attention.md.

    Args:
        features: (B, D, L) or (B, D, H, W), float32, float64, float16 or bfloat16. Contiguous and channels_last maps
            are read in place.
        logits: (B, K, L) or (B, K, H, W), any of these dtypes; the wider of the two serves both.

    Returns:
        DiverseAttention with pooled (B, K, D) and attention (B, K, L) in that dtype, overlap (B,) in float32
        (float64 for float64). Differentiable in features and logits through all three.

    Raises:
        ValueError: Shapes or devices do not fit.
        TypeError: Not floating point.

    Notes:
        overlap is 0 for maps that share no cell (and for K = 1), K (K - 1) for equal maps. A logit of -inf switches
        its cell off; a row of -inf gives NaN, as torch.softmax does.
        Reads the map once forward, once backward; beyond the outputs O(B K L) memory. Accumulates in float32 for half
        types. Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
        >>> out = diverse_attention(x, torch.tensor([[[0.0, 0.0], [0.0, -200.0]]]))
        >>> out.pooled
        tensor([[[1.5000, 4.0000],
                 [1.0000, 3.0000]]])
        >>> out.overlap
        tensor([1.0000])
    """
    return DiverseAttention(*_OP(features, logits))


def _check(features: Tensor, logits: Tensor) -> tuple[Any, ...]:
    check_float("diverse_attention", "features", features)
    check_float("diverse_attention", "logits", logits)
    x, z = features.shape, logits.shape
    if len(x) not in (3, 4) or len(z) != len(x) or x[0] != z[0] or x[2:] != z[2:]:
        raise ValueError(
            f"diverse_attention: expected features (B, D, L) with logits (B, K, L), or features (B, D, H, W) with "
            f"logits (B, K, H, W), got features {tuple(x)} and logits {tuple(z)}"
        )
    check_same_device("diverse_attention", "logits", logits, "features", features)
    return promote(features, logits)


def _fake(features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, d, k = features.shape[0], features.shape[1], logits.shape[1]
    cells = logits.shape[2] if logits.dim() == 3 else logits.shape[2] * logits.shape[3]
    wide = torch.promote_types(features.dtype, torch.float32)
    overlap = features.new_empty((b,), dtype=wide)
    return features.new_empty((b, k, d)), features.new_empty((b, k, cells)), overlap


def _backward_fake(
    grad_pooled: Tensor | None,
    grad_attention: Tensor | None,
    grad_overlap: Tensor | None,
    features: Tensor,
    logits: Tensor,
    needs_features: bool,
    needs_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    last = is_channels_last(features)
    grad_features = empty_map(features, features.shape, channel=1, channels_last=last) if needs_features else None
    return grad_features, logits.new_empty(logits.shape) if needs_logits else None


_OP = Op(
    "diverse_attention",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=2,
    gradients=(0, 1),
    outputs=3,
    lower=(0, 1),
    triton="diverse_attention",
)
