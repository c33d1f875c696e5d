# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Quality-weighted pooling of sets of frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reidfast.ops._checks import beside, check_choice, check_float, check_int64, check_same_device, found
from reidfast.ops._op import Op
from reidfast.ops.reference.set_pool import set_pool as _reference

WEIGHTINGS = ("linear", "sigmoid", "softmax")


def set_pool(features: Tensor, scores: Tensor, offsets: Tensor | None = None, *, weighting: str = "linear") -> Tensor:
    """Weighted mean of the frames of each set, the weights made from one score per frame.

        linear:   w_i = s_i / sum_j s_j                               any sign; sum 0 gives zeros
        sigmoid:  w_i = sigmoid(z_i) / sum_j sigmoid(z_j)             as softmax(logsigmoid(z)): finite for every z
        softmax:  w_i = exp(z_i) / sum_j exp(z_j)
        out_s   = sum over i in set s of w_i x_i

    Sigmoid is the quality-aware network's group L1 normalisation (Liu, Yan, Ouyang, "Quality Aware Network for Set to
    Set Recognition", CVPR 2017); softmax is temporal attention (Li et al., "Diversity Regularized Spatiotemporal
    Attention for Video-based Person Re-identification", CVPR 2018). Derivation of the gradients: docs/ops/set_pool.md.

    Args:
        features: Ragged: (T, D), all frames of all sets one after another. Dense: (..., N, D), N frames in each set.
            float32, float64, float16 or bfloat16. Any strides; rows whose D values are adjacent are not copied.
        scores: One per frame: (T,) or (..., N). Any of these dtypes; float64 beside another one makes all float64.
        offsets: (S+1,) int64 on features' device: set s is the frames offsets[s] to offsets[s+1]; first 0, last T,
            never decreasing. None: dense.
        weighting: "linear", "sigmoid" or "softmax".

    Returns:
        (S, D) or (..., D) in features' dtype. Differentiable in features and scores.

    Raises:
        ValueError: Shapes, devices or weighting do not fit; on the CPU also offsets that do not run from 0 to T without
            decreasing.
        TypeError: Not floating point, or offsets not int64.

    Notes:
        An empty set gives zeros and passes no gradient. NaN in a score or a frame stays within its set.
        Half types accumulate in float32. One pass over features forward, one backward; beyond the outputs O(T) memory.
        Deterministic, on the CPU for any number of threads. Double backward raises.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]])
        >>> set_pool(x, torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 2, 2, 3]))
        tensor([[2.5000, 3.0000],
                [0.0000, 0.0000],
                [5.0000, 5.0000]])
    """
    result: Tensor = _OP(features, scores, offsets, weighting)
    return result


def _check(features: Tensor, scores: Tensor, offsets: Tensor | None, weighting: str) -> tuple[Any, ...]:
    check_float("set_pool", "features", features)
    check_float("set_pool", "scores", scores)
    check_choice("set_pool", "weighting", weighting, WEIGHTINGS)
    if features.dim() < 2 or scores.shape != features.shape[:-1]:
        raise ValueError(
            f"set_pool: expected features (T, D) with scores (T,), or features (..., N, D) with scores (..., N), "
            f"got features {tuple(features.shape)} and scores {tuple(scores.shape)}"
        )
    check_same_device("set_pool", "scores", scores, "features", features)
    if offsets is not None:
        check_int64("set_pool", "offsets", offsets)
        check_same_device("set_pool", "offsets", offsets, "features", features)
        if features.dim() != 2 or offsets.dim() != 1 or offsets.shape[0] < 1:
            raise ValueError(
                f"set_pool: expected features (T, D) beside offsets (S+1,) with S >= 0, "
                f"got features {tuple(features.shape)} and offsets {found(offsets)}"
            )
    features, scores = beside(features, scores)
    return features, scores, offsets, weighting


def _fake(features: Tensor, scores: Tensor, offsets: Tensor | None, weighting: str) -> Tensor:
    if offsets is None:
        return features.new_empty((*features.shape[:-2], features.shape[-1]))
    return features.new_empty((offsets.shape[0] - 1, features.shape[1]))


def _backward_fake(
    grad: Tensor,
    features: Tensor,
    scores: Tensor,
    offsets: Tensor | None,
    weighting: str,
    needs_features: bool,
    needs_scores: bool,
) -> tuple[Tensor | None, Tensor | None]:
    grad_features = features.new_empty(features.shape) if needs_features else None
    return grad_features, scores.new_empty(scores.shape) if needs_scores else None


_OP = Op(
    "set_pool",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=3,
    gradients=(0, 1),
)
