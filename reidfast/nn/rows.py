# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Products of feature maps whose channels lie innermost."""

from __future__ import annotations

from torch import Tensor, float32
from torch.nn import functional


def rows_product(rows: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution of maps (..., H, W, C) in which each cell is a row: (D, C) weights -> (..., H, W, D).

    What `functional.linear` gives. Single precision on a CPU goes through oneDNN as a convolution of H images of 1 x W:
    on processors for which the BLAS at hand is not made, that is the faster of the two (docs/methods/rru_stim.md).
    """
    if rows.device.type != "cpu" or rows.dtype != float32 or rows.dim() < 3:
        return functional.linear(rows, weight)
    images = rows.reshape(-1, 1, rows.shape[-2], rows.shape[-1]).movedim(-1, 1)
    out = functional.conv2d(images, weight[:, :, None, None])
    return out.movedim(1, -1).reshape(*rows.shape[:-1], len(weight))
