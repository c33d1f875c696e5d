# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Consistency of two attention maps along the height of the body, whatever the height at which it stands."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reidfast.ops._checks import check_choice

SPANS = ("crop", "mask", "none")


class RowProfile(NamedTuple):
    """A map summarised by rows.

    Attributes:
        values: Row maxima brought to [0, 1], (B, h); zeros where the map is constant.
        first: First row of the span, (B,) int64.
        last: Last row of the span, (B,) int64.
        constant: Maps without a span, because nothing varies over their rows, (B,) bool.
    """

    values: Tensor
    first: Tensor
    last: Tensor
    constant: Tensor


class Consistency(NamedTuple):
    """What `ConsistencyLoss` gives.

    Attributes:
        loss: Scalar.
        distances: ||u_1 - u_2|| of every pair, (B,); 0 where one map is constant.
        defined: Pairs whose two maps have a span, (B,) bool.
    """

    loss: Tensor
    distances: Tensor
    defined: Tensor


def min_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of (B, N) brought to [0, 1], and which rows are constant (B,): those become zeros, without gradient.

    A row is constant where its range is below 1e-6 of its largest magnitude, in float32 some ten roundings; above that
    the division is exact, so that the scale of the values does not matter.
    """
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    size = high - low
    constant = size <= 1e-6 * values.detach().abs().amax(1, keepdim=True)
    scaled = (values - low) / torch.where(constant, torch.ones_like(size), size)
    return torch.where(constant, torch.zeros_like(scaled), scaled), constant.squeeze(1)


def row_profile(maps: Tensor, threshold: float = 0.5) -> RowProfile:
    """Largest value of each row of maps (B, h, w), brought to [0, 1], and its span.

    The span runs from the first to the last row with a value of at least ``threshold``, rows below it in between
    included. Gradient: through the largest cell of a row (shared by equal ones) and the normalisation; the span is a
    constant.
    """
    values, constant = min_max(maps.amax(2))
    inside = values.detach() >= threshold
    rows = values.shape[1]
    first = inside.int().argmax(1)
    last = rows - 1 - inside.flip(1).int().argmax(1)
    none = ~inside.any(1)  # constant rows
    return RowProfile(values, first.masked_fill(none, 0), last.masked_fill(none, rows - 1), constant)


def resize_span(values: Tensor, first: Tensor, last: Tensor, rows: int) -> Tensor:
    """Rows ``first .. last`` of each profile (B, h), stretched linearly to ``rows``.

    As `interpolate` with align_corners False, for a window of its own in every sample, with no loop and no
    synchronisation.
    """
    count = (last - first + 1).unsqueeze(1).to(values.dtype)
    at = (torch.arange(rows, device=values.device, dtype=values.dtype) + 0.5) * count / rows - 0.5
    at = at.clamp(min=0)
    low = at.long()
    top = (last - first).unsqueeze(1)
    low = torch.minimum(low, top)
    high = torch.minimum(low + 1, top)
    part = at - low
    start = first.unsqueeze(1)
    return torch.lerp(values.gather(1, start + low), values.gather(1, start + high), part.clamp(max=1))


class ConsistencyLoss(nn.Module):
    """Pairs of one person should be attended at the same heights of the body.

        v_b[r] = max over columns of M_b[r]                                  min-max normalised to [0, 1]
        u_b    = v_b from the first to the last row with v_b >= t, stretched linearly to h rows
        L      = (1 / positive pairs) sum over them of ||u_1 - u_2||

    Zheng, Karanam, Wu, Radke, "Re-Identification with Consistent Attentive Siamese Networks", CVPR 2019. The choices
    below are ours where the sources are silent: docs/methods/casn.md.

    Args:
        threshold: t.
        span: "crop": cut the span out and stretch it, so that a person standing higher or lower in the picture gives
            the same profile; "mask": zero outside of the span, nothing stretched; "none": the whole profile.
        margin: For pairs of different persons a term max(0, margin - ||u_1 - u_2||), averaged over them; None: none.

    Notes:
        A constant map has no profile: such a pair counts with 0 in the mean and gets no gradient.

    Example:
        >>> top, bottom = torch.zeros(1, 6, 4), torch.zeros(1, 6, 4)
        >>> top[0, 0:3] = torch.tensor([1.0, 0.6, 1.0])[:, None]
        >>> bottom[0, 3:6] = torch.tensor([1.0, 0.6, 1.0])[:, None]
        >>> ConsistencyLoss()(top, bottom, torch.tensor([True])).loss
        tensor(0.)
    """

    def __init__(self, *, threshold: float = 0.5, span: str = "crop", margin: float | None = None) -> None:
        super().__init__()
        check_choice("ConsistencyLoss", "span", span, SPANS)
        if not 0 < threshold <= 1:
            raise ValueError(f"ConsistencyLoss: expected threshold in (0, 1], got {threshold}")
        if margin is not None and margin <= 0:
            raise ValueError(f"ConsistencyLoss: expected a margin > 0 or None, got {margin}")
        self.threshold, self.span, self.margin = threshold, span, margin

    def profile(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """U of maps (B, h, w): (B, h), and which maps are constant (B,)."""
        p = row_profile(maps, self.threshold)
        if self.span == "none":
            return p.values, p.constant
        if self.span == "mask":
            row = torch.arange(p.values.shape[1], device=maps.device)
            inside = (row >= p.first.unsqueeze(1)) & (row <= p.last.unsqueeze(1))
            return p.values * inside, p.constant
        return resize_span(p.values, p.first, p.last, p.values.shape[1]), p.constant

    def forward(self, first: Tensor, second: Tensor, same: Tensor) -> Consistency:
        """Loss of pairs.

        Args:
            first: Attention of one side, (B, h, w).
            second: Attention of the other side, (B, h, w).
            same: Whether the two show one person, (B,) bool.
        """
        if first.dim() != 3 or first.shape != second.shape or same.shape != first.shape[:1]:
            raise ValueError(
                f"ConsistencyLoss: expected two (B, h, w) and same (B,), "
                f"got {tuple(first.shape)}, {tuple(second.shape)} and {tuple(same.shape)}"
            )
        wide = torch.promote_types(first.dtype, torch.float32)
        u1, none1 = self.profile(first.to(wide))
        u2, none2 = self.profile(second.to(wide))
        defined = ~(none1 | none2)
        distances = torch.linalg.vector_norm(torch.where(defined.unsqueeze(1), u1 - u2, 0), dim=1)
        loss = (distances * same).sum() / same.sum().clamp(min=1)
        if self.margin is not None:
            short = (self.margin - distances).relu() * (~same & defined)
            loss = loss + short.sum() / (~same).sum().clamp(min=1)
        return Consistency(loss, distances, defined)

    def extra_repr(self) -> str:
        """What the printed module adds."""
        return f"threshold={self.threshold}, span={self.span!r}, margin={self.margin}"
