# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The refining recurrent unit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from reidfast import ops
from reidfast.nn.rows import rows_product
from reidfast.ops._checks import check_choice

ACTIVATIONS = ("relu", "leaky_relu")


class RRUState(NamedTuple):
    """Where a recursion stopped, for the next chunk of the same tracks."""

    refined: Tensor  # (B, C, H, W): S_{t-1}
    motion: Tensor  # (B, hidden, H, W): W_motion X_{t-1}


class RRU(nn.Module):
    """Refines the feature map of each frame by what the frames before it showed.

        S_{-1} = X_{-1} = X_0
        r_t = ReLU(BN(W [S_{t-1} - X_t ; X_t - X_{t-1}]))              W: 2C -> hidden, 1x1
        spatial = V2 ReLU(V1 mean_c r_t)                               over the H*W cells: H*W -> 128 -> H*W
        channel = U mean_hw r_t                                        hidden -> C
        z = sigmoid(spatial x channel),   S_t = (1 - z) S_{t-1} + z X_t

    Liu, Yuan, Zhou, Li, Li, "Spatial and Temporal Mutual Promotion for Video-based Person Re-identification", AAAI
    2019; order of the difference, sizes and the batch norm's eps are those of the authors' code.

    The half of W that sees the motion does not depend on S: it is applied to all frames in one product before the
    recurrence. At the first frame the gate blends X_0 with itself, so S_0 = X_0 and nothing is computed; in training
    mode the batch norm's running statistics still see the zeros that the published code feeds it there.

    Args:
        channels: Channels of the feature maps, C.
        grid: Their height and width; the spatial attention is a network over the cells, so it is made for one grid.
            8 x 8 in the paper.
        hidden: Channels of r.
        spatial_hidden: Width of the spatial attention's hidden layer.
        activation: "relu"; "leaky_relu" (0.1) is the second variant of the code, which also has a batch norm in the
            spatial attention.
        flip_difference: X_t - S_{t-1} in place of S_{t-1} - X_t, as the paper writes it.

    Example:
        >>> rru = RRU(channels=16, grid=(8, 4)).eval()
        >>> clip = torch.randn(2, 6, 16, 8, 4)
        >>> refined, state = rru(clip)
        >>> refined.shape, bool((refined[:, 0] == clip[:, 0]).all())
        (torch.Size([2, 6, 16, 8, 4]), True)
    """

    def __init__(
        self,
        channels: int = 2048,
        grid: tuple[int, int] = (8, 8),
        *,
        hidden: int = 256,
        spatial_hidden: int = 128,
        activation: str = "relu",
        flip_difference: bool = False,
    ) -> None:
        super().__init__()
        check_choice("RRU", "activation", activation, ACTIVATIONS)
        if channels < 1 or len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"RRU: expected channels and grid (H, W) of at least 1, got {channels} and {grid}")
        self.channels, self.grid = channels, (int(grid[0]), int(grid[1]))
        self.activation, self.flip_difference = activation, flip_difference
        cells = self.grid[0] * self.grid[1]
        self.reduce = nn.Conv2d(2 * channels, hidden, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden, eps=1e-3)
        self.spatial_in = nn.Linear(cells, spatial_hidden, bias=False)
        self.spatial_norm = nn.BatchNorm1d(spatial_hidden, eps=1e-3) if activation == "leaky_relu" else None
        self.spatial_out = nn.Linear(spatial_hidden, cells, bias=False)
        self.channel = nn.Linear(hidden, channels, bias=False)

    def _activate(self, x: Tensor) -> Tensor:
        return functional.relu(x) if self.activation == "relu" else functional.leaky_relu(x, 0.1)

    def gates(self, reduced: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced difference before batch norm, (B, hidden, H, W) -> channel (B, C) and spatial (B, H, W) attention."""
        r = self._activate(self.norm(reduced))
        hidden = self.spatial_in(r.mean(1).flatten(1))
        if self.spatial_norm is not None:
            hidden = self.spatial_norm(hidden)
        spatial = self.spatial_out(self._activate(hidden))
        return self.channel(r.mean((2, 3))), spatial.unflatten(1, self.grid)

    def forward(self, maps: Tensor, state: RRUState | None = None) -> tuple[Tensor, RRUState]:
        """Refined maps of T frames, in time order.

        Args:
            maps: (B, T, C, H, W), T >= 1.
            state: State of the frames before, where this is a further chunk of the same tracks. None: tracks begin.

        Returns:
            Refined maps (B, T, C, H, W) (a view: time lies outermost in memory and channels innermost), and the state.
        """
        if maps.dim() != 5 or maps.shape[1] < 1 or maps.shape[2:] != (self.channels, *self.grid):
            height, width = self.grid
            raise ValueError(
                f"RRU: expected maps (B, T, {self.channels}, {height}, {width}) with T >= 1, got {tuple(maps.shape)}"
            )
        rows = maps.permute(1, 0, 3, 4, 2).contiguous()  # (T, B, H, W, C): a step reads one block, a cell is one row
        difference, motion = self.reduce.weight.flatten(1).split(self.channels, 1)
        if self.flip_difference:
            difference = -difference
        seen = rows_product(rows, motion).movedim(-1, 2).unbind()  # views (B, hidden, H, W)
        frames = rows.movedim(-1, 2).unbind()  # one gradient for all, where indexing would make one for each
        if state is None:
            if self.training:
                with torch.no_grad():
                    self.gates(torch.zeros_like(seen[0]))
            refined, before = frames[0], seen[0]
            out, first = [refined], 1
        else:
            refined, before = state
            out, first = [], 0
        for t in range(first, len(frames)):
            reduced = rows_product((refined - frames[t]).movedim(1, -1), difference).movedim(-1, 1)
            channel, spatial = self.gates(reduced + (seen[t] - before))
            refined = ops.gated_update(channel, spatial, refined, frames[t])
            out.append(refined)
            before = seen[t]
        whole = torch.stack([x.movedim(1, -1) for x in out])  # (T, B, H, W, C)
        return whole.permute(1, 0, 4, 2, 3), RRUState(refined, before)

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"channels={self.channels}, grid={self.grid}, activation={self.activation!r}"


def reference_rru(rru: RRU, maps: Tensor) -> Tensor:
    """The same step by step as the paper writes it, nothing taken out of the recurrence: maps (B, T, C, H, W)."""
    state, before, out = maps[:, 0], maps[:, 0], []
    for x in maps.unbind(1):
        difference = x - state if rru.flip_difference else state - x
        channel, spatial = rru.gates(rru.reduce(torch.cat([difference, x - before], 1)))
        z = torch.sigmoid(spatial[:, None] * channel[:, :, None, None])
        state, before = (1 - z) * state + z * x, x
        out.append(state)
    return torch.stack(out, 1)
