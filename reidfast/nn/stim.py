# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Spatial-temporal clues integration: from the feature maps of a clip to one vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast.nn.rows import rows_product


class STIMState(NamedTuple):
    """Where a clip stopped, for its next chunk."""

    recent: Tensor  # (B, hidden, up to 2, H, W): the last reduced frames, whose neighbours are still to come
    total: Tensor  # (B, dim): sum over the frames that are done
    frames: int  # how many came so far


class STIM(nn.Module):
    """Mean over time and cells of two convolutions over space and time.

        Y = ReLU(BN(conv3d_3x3x3(ReLU(BN(conv3d_1x1x1(S))))))          C -> hidden -> dim
        out = mean over t, h, w of Y

    Liu, Yuan, Zhou, Li, Li, "Spatial and Temporal Mutual Promotion for Video-based Person Re-identification", AAAI
    2019; sizes of the authors' code. Any grid, any number of frames.

    Args:
        channels: Channels of the feature maps, C.
        dim: Size of the result.
        hidden: Channels after the first convolution.

    Example:
        >>> stim = STIM(channels=16, dim=8).eval()
        >>> stim(torch.randn(2, 6, 16, 8, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(self, channels: int = 2048, dim: int = 256, *, hidden: int = 256) -> None:
        super().__init__()
        self.channels, self.dim = channels, dim
        self.reduce = nn.Conv3d(channels, hidden, 1, bias=False)
        self.reduce_norm = nn.BatchNorm3d(hidden)
        self.mix = nn.Conv3d(hidden, dim, 3, padding=1, bias=False)
        self.mix_norm = nn.BatchNorm3d(dim)

    def _reduced(self, maps: Tensor) -> Tensor:
        """Maps (B, T, C, H, W) -> (B, hidden, T, H, W)."""
        if maps.dim() != 5 or maps.shape[2] != self.channels:
            raise ValueError(f"STIM: expected maps (B, T, {self.channels}, H, W), got {tuple(maps.shape)}")
        weight = self.reduce.weight
        rows = maps.permute(1, 0, 3, 4, 2)
        if rows.is_contiguous():  # as RRU returns them
            x = rows_product(rows, weight.flatten(1)).permute(1, 4, 0, 2, 3)
        else:
            x = functional.conv2d(maps.flatten(0, 1), weight.squeeze(2)).unflatten(0, maps.shape[:2]).transpose(1, 2)
        return functional.relu(self.reduce_norm(x))

    def _mixed(self, x: Tensor, pad: tuple[int, int]) -> Tensor:
        """(B, hidden, T, H, W), zero frames before and after -> (B, dim): sum over frames of the cells' mean."""
        # oneDNN does not write its gradient of bfloat16 weights where the convolution itself pads two frames
        unwritten = x.shape[2] == 2 and x.dtype == torch.bfloat16
        if pad == (1, 1) and not unwritten:
            y = self.mix(x)
        else:
            y = functional.conv3d(functional.pad(x, (0, 0, 0, 0, *pad)), self.mix.weight, padding=(0, 1, 1))
        return functional.relu(self.mix_norm(y)).mean((3, 4)).sum(2)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, T, C, H, W), T >= 1 -> (B, dim)."""
        x = self._reduced(maps)
        return self._mixed(x, (1, 1)) / x.shape[2]

    def step(self, maps: Tensor, state: STIMState | None = None) -> STIMState:
        """Take in the next chunk (B, T, C, H, W) of the same clips; evaluation mode, where batch norm knows no batch.

        What it holds does not grow with the number of frames: `finish(step(b, step(a)))` is `forward` of both chunks.
        """
        x = self._reduced(maps)
        frames = x.shape[2]
        if state is not None:
            x = torch.cat([state.recent, x], 2)
        total = x.new_zeros((len(x), self.dim)) if state is None else state.total
        begins = state is None or state.frames == 1
        done = x.shape[2] - 1 if begins else x.shape[2] - 2  # frames whose successor is here now
        if done > 0:
            total = total + self._mixed(x, (1, 0) if begins else (0, 0))
        return STIMState(x[:, :, -2:], total, frames + (0 if state is None else state.frames))

    def finish(self, state: STIMState) -> Tensor:
        """The result (B, dim) of all chunks."""
        if state.frames == 1:
            return self._mixed(state.recent, (1, 1))
        return (state.total + self._mixed(state.recent, (0, 1))) / state.frames
