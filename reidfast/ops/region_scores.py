# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Mean attention inside boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast.ops._checks import check_float, check_int64, check_same_device
from reidfast.ops._op import Op
from reidfast.ops.reference.region_scores import region_scores as _reference


def region_scores(attention: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    """Mean of an attention map over the cells of each box, by a summed-area table.

        cells(p) = {(y, x): x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2}, or, where that is empty, the one cell holding
                   the box's centre (the nearest border cell when the centre is off the map)
        out_p    = mean of attention[image_index_p] over cells(p)

    The score by which neural person search machines choose the region they shrink to (Liu et al., "Neural Person Search
    Machines", ICCV 2017). Derivation: docs/ops/region_scores.md.

    Args:
        attention: Maps, (B, H, W), float32, float64, float16 or bfloat16. Any strides.
        boxes: (P, 4) as x1, y1, x2, y2 in cell units: cell (y, x) covers [x, x+1] x [y, y+1]. Any floating-point dtype.
            No gradient.
        image_index: Which map a box belongs to, (P,) int64, in [0, B).

    Returns:
        (P,) in attention's dtype. Differentiable in attention.

    Raises:
        ValueError: Shapes or devices do not fit, a map without cells beside boxes; on the CPU also image_index outside
            [0, B).
        TypeError: Not floating point, or image_index not int64.

    Notes:
        A box with a NaN coordinate scores NaN and passes no gradient. A NaN or infinity in a map reaches only the boxes
        that hold it. The table is wider than the data (double, for float64 long double), so no digits cancel. Memory
        O(B*H*W + P). Deterministic, on the CPU for any number of threads. On CUDA an image_index outside [0, B) gives
        NaN. Double backward raises.

    Example:
        >>> attention = torch.arange(16.0).view(1, 4, 4)
        >>> region_scores(attention, torch.tensor([[1.0, 0.0, 4.0, 2.0]]), torch.tensor([0]))
        tensor([4.])
    """
    out: Tensor = _OP(attention, boxes.detach() if boxes.requires_grad else boxes, image_index)
    return out


def _check(attention: Tensor, boxes: Tensor, image_index: Tensor) -> tuple[Any, ...]:
    check_float("region_scores", "attention", attention)
    check_float("region_scores", "boxes", boxes)
    check_int64("region_scores", "image_index", image_index)
    if attention.dim() != 3:
        raise ValueError(f"region_scores: expected attention of shape (B, H, W), got {tuple(attention.shape)}")
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"region_scores: expected boxes of shape (P, 4), got {tuple(boxes.shape)}")
    if image_index.dim() != 1 or image_index.shape[0] != boxes.shape[0]:
        raise ValueError(
            f"region_scores: expected image_index of shape (P,) with P={boxes.shape[0]} to match boxes, "
            f"got {tuple(image_index.shape)}"
        )
    if boxes.shape[0] and not (attention.shape[1] and attention.shape[2]):
        raise ValueError(
            f"region_scores: expected attention with at least one cell beside boxes, got {tuple(attention.shape)}"
        )
    check_same_device("region_scores", "boxes", boxes, "attention", attention)
    check_same_device("region_scores", "image_index", image_index, "attention", attention)
    if boxes.dtype != torch.float32 and boxes.dtype != torch.float64:
        boxes = boxes.float()
    return attention, boxes, image_index


def _fake(attention: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
    return attention.new_empty(boxes.shape[0])


def _backward_fake(grad: Tensor, boxes: Tensor, image_index: Tensor, batch: int, height: int, width: int) -> Tensor:
    return grad.new_empty((batch, height, width))


_OP = Op(
    "region_scores",
    reference=_reference,
    check=_check,
    fake=_fake,
    backward_fake=_backward_fake,
    tensors=3,
    gradients=(0,),
    masked=False,
    save=lambda inputs, outputs: (inputs[1:], tuple(inputs[0].shape)),
)
