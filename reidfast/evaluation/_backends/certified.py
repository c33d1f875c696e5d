# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The bound behind ``rank(precision="certified")``: how far a low-precision distance can be from the float32 one.

With c the mean of the gallery, x' = x - c, and x~ = x' rounded to TensorFloat-32 or bfloat16, the first pass computes
q~.g~ on tensor cores. For every pair

    q.g = q.c + g.c - |c|^2 + q'.g'
    |q'.g' - q~.g~|  <=  |q'| |g' - g~| + |q' - q~| |g~|              Cauchy-Schwarz, with the norms of this very row
    accumulation     <=  lo |q~| |g~|,   lo = CHUNK 2^-22 + chunks 2^-23
    the float32 routine's own error  <=  hi |q| |g|,   hi = (CHUNK + chunks) 2^-24

lo allows for tensor cores that truncate: every term that is aligned to the largest of its group loses less than one
unit of the 23rd bit of the sum of magnitudes, and so does every intermediate sum; 2^-22 is twice the former. hi is the
bound of a chain of fused multiply-adds, cut into chunks. Both are worst cases over the order of the sum. Rounding of
the distance itself is bounded by a few units of 2^-24 of (|q| + |c|)(|g| + |c|) or, for Euclidean distances, of
(|q| + |c|)^2 + (|g| + |c|)^2. Centring makes |x'| and with it the bound smaller; for any c it holds.

A pair whose interval [d - e, d + e] holds no threshold of its query is decided by the first pass. The others are
computed again by the float32 routine, so ranks, ties and bounds are those of ``precision="float32"``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_UNIT = 2.0**-24
_SQEUCLIDEAN_FORMS = (1, 2)  # numbers of the metrics, as in _core/options.py
_COSINE = 0
# Which first pass to take: TensorFloat-32 leaves about a tenth as many pairs to check as bfloat16 does and costs twice
# as much; each re-checked pair costs a read of its gallery row.
FIRST_PASS = "tf32_low"


@dataclass
class Terms:
    """The first pass in numbers: d = q[0] + g[0] + slope q~.g~, e = q[1] + g[1] + q[2] g[2] + q[3] g[3] + q[4] g[4]."""

    q: Tensor  # float32 [5, rows of q]
    g: Tensor
    slope: float


def round_up(x: Tensor) -> Tensor:
    """float64 >= 0 to a float32 that is no smaller."""
    return (x * (1 + 2.0**-20)).float()


def error_terms(q: Tensor, g: Tensor, centre: Tensor, dim: int, chunk: int, metric: int) -> Terms:
    """Terms from the statistics (float64 [5, rows]) of low-precision rows.

    Args:
        q: |x|^2, |x'|^2, |x~|^2, |x' - x~|^2, x.c of every query.
        g: The same of the gallery.
        centre: c.
        dim: Columns that are summed.
        chunk: Columns per partial sum, in both passes.
        metric: 0 cosine (rows are normalised), 1 Euclidean, 2 squared Euclidean, 3 dot.
    """
    chunks = math.ceil(dim / chunk)
    lo = min(chunk, dim) * 4 * _UNIT + chunks * 2 * _UNIT
    hi = (min(chunk, dim) + chunks) * _UNIT * 1.01
    square = float(centre.double().square().sum())
    (size_q, own_q, _, lost_q, along_q), (size_g, own_g, low_g, lost_g, along_g) = q, g
    root = torch.sqrt
    m_q, m_g = root(size_q) + math.sqrt(square), root(size_g) + math.sqrt(square)
    if metric in _SQEUCLIDEAN_FORMS:
        slope = -2.0
        alpha, beta = own_q, own_g
        slack_q, slack_g = 16 * _UNIT * m_q.square(), 16 * _UNIT * m_g.square()
    else:
        slope = -1.0
        alpha, beta = square - along_q + float(metric == _COSINE), -along_g
        slack_q, slack_g = torch.full_like(m_q, 16 * _UNIT), torch.zeros_like(m_g)
        if metric != _COSINE:
            slack_q = slack_q * 0 + 1e-30
    terms_q = [alpha.float(), round_up(slack_q), round_up(root(own_q)), round_up(root(lost_q)), round_up(m_q)]
    # |q~| of the accumulation's bound is at most |q'| + |q' - q~|, and so is part of the two terms below.
    residual = root(lost_g) + lo * root(low_g)
    low_norm = (1 + lo) * root(low_g)
    rounding = (hi + 32 * _UNIT / abs(slope)) * m_g
    bilinear = [round_up(abs(slope) * t) for t in (residual, low_norm, rounding)]
    return Terms(torch.stack(terms_q), torch.stack([beta.float(), round_up(slack_g), *bilinear]), slope)
