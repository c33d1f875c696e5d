# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Memory layout of feature maps, as csrc/torch/feature_map.h sees it; the fakes need the same answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether every cell's channels of (B, C, ...) are adjacent, cells in order, and ``x`` is not also contiguous."""
    return x.numel() > 0 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def empty_map(x: Tensor, shape: Sequence[int], *, channel: int, channels_last: bool) -> Tensor:
    """An empty tensor of ``shape``, contiguous or with dimension ``channel`` stored last."""
    if not channels_last:
        return x.new_empty(tuple(shape))
    stored = [*shape[:channel], *shape[channel + 1 :], shape[channel]]
    return x.new_empty(stored).movedim(-1, channel)
