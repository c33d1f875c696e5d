# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""From the features of the frames of a tracklet to one: attention over time, and the ways it is compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidfast import ops
from reidfast.ops._checks import check_choice

POOLS = ("average", "max", "lstm", "gru")


class TemporalAttention(nn.Module):
    """The temporal attention of DRSTA: for each part, a softmax over the frames of a linear score.

        t[b, :, k] = softmax over n of v_k . x[b, n, k]
        out[b, k]  = sum_n t[b, n, k] x[b, n, k]

    Li, Bak, Carr, Wang, "Diversity Regularized Spatiotemporal Attention for Video-based Person Re-identification",
    CVPR 2018. A constant added to the score, as in the paper, cancels in the softmax: there is none here. The weights
    start at zero, which is the mean over frames. Through ``reidfast.ops.set_pool``.

    Args:
        parts: K.
        dim: Size of a part's feature, D.
        standardize: Scores of features of unit length lie in a narrow band at first; this factor widens them.

    Example:
        >>> attend = TemporalAttention(parts=6, dim=128)
        >>> attend(torch.randn(2, 6, 6, 128)).shape
        torch.Size([2, 6, 128])
    """

    def __init__(self, parts: int, dim: int, *, standardize: float = 1.0) -> None:
        super().__init__()
        self.standardize = standardize
        self.weight = nn.Parameter(torch.zeros(parts, dim))

    def scores(self, x: Tensor) -> Tensor:
        """Features (B, N, K, D) -> scores (B, K, N), any frame's among those of its part."""
        if x.dim() != 4 or x.shape[2:] != self.weight.shape:
            parts, dim = self.weight.shape
            raise ValueError(f"TemporalAttention: expected features (B, N, {parts}, {dim}), got {tuple(x.shape)}")
        return self.standardize * torch.einsum("bnkd,kd->bkn", x, self.weight)

    def weights(self, x: Tensor) -> Tensor:
        """Features (B, N, K, D) -> what each frame counts, (B, N, K); sums to 1 over N."""
        return self.scores(x).softmax(-1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, N, K, D) -> (B, K, D)."""
        return ops.set_pool(x.transpose(1, 2), self.scores(x), weighting="softmax")


class TimePoolState(NamedTuple):
    """What a track has given so far: a sum or a maximum, the number of frames, and a recurrent network's state."""

    pooled: Tensor
    frames: int
    memory: Tensor | tuple[Tensor, Tensor] | None = None


class TimePool(nn.Module):
    """Mean or maximum over the frames of a track, or the mean over time of what an LSTM or GRU says.

    The comparisons that papers on tracklets make; the mean of the recurrent network's outputs is that of McLaughlin,
    Martinez del Rincon, Miller, "Recurrent Convolutional Network for Video-based Person Re-identification", CVPR 2016.
    A track may come in chunks (`step`, `finish`): memory does not grow with its length.

    Args:
        kind: "average", "max", "lstm" or "gru".
        dim: Size of the features.
        hidden: Hidden size of the recurrent network; None: dim.

    Example:
        >>> TimePool("gru", 16, hidden=8)(torch.randn(2, 5, 16)).shape
        torch.Size([2, 8])
    """

    def __init__(self, kind: str, dim: int, *, hidden: int | None = None) -> None:
        super().__init__()
        check_choice("TimePool", "kind", kind, POOLS)
        self.kind = kind
        self.network: nn.LSTM | nn.GRU | None = None
        self.dim = dim
        if kind in ("lstm", "gru"):
            self.dim = hidden or dim
            self.network = (nn.LSTM if kind == "lstm" else nn.GRU)(dim, self.dim, batch_first=True)

    def step(self, x: Tensor, state: TimePoolState | None = None) -> TimePoolState:
        """Take in the next frames, (B, T, D), of the same tracks."""
        frames, memory = x.shape[1], None
        if self.network is not None:
            x, memory = self.network(x, None if state is None else state.memory)
        if self.kind == "max":
            pooled = x.amax(1) if state is None else torch.maximum(state.pooled, x.amax(1))
        else:
            pooled = x.sum(1) if state is None else state.pooled + x.sum(1)
        return TimePoolState(pooled, frames + (0 if state is None else state.frames), memory)

    def finish(self, state: TimePoolState) -> Tensor:
        """The result (B, dim) of all frames."""
        return state.pooled if self.kind == "max" else state.pooled / state.frames

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, D), T >= 1 -> (B, dim)."""
        return self.finish(self.step(x))

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"kind={self.kind!r}"
