# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""reidfast.ops.triton.ranking restated in plain torch, for sizes that the interpreter cannot reach.

The float32 routine sums in float64 and rounds each chunk, so that a pair has one value whatever is computed beside it.
The low-precision product is off by as much as the error bound of `certified` grants its accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE, CHUNK, ALIGN, MAX_K = 128, 256, 64, 128
ADVERSE = 0.999  # of the granted error, with a random sign


def round_tf32(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    rounded = ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13) << 13
    return torch.where(torch.isfinite(x), rounded.view(torch.float32), x)


@dataclass
class Packed:
    data: Tensor
    stats: Tensor
    n: int
    kind: str

    def part(self, first: int, n: int) -> Packed:
        high = -(-n // TILE) * TILE
        rows = slice(first, first + high)
        return Packed(self.data[:, rows], self.stats[:, rows], max(0, min(n, self.n - first)), self.kind)


@dataclass
class Table:
    ptr: Tensor
    values: Tensor
    columns: Tensor
    q_id: Tensor
    counts: Tensor


def pack(x, rows, cosine, kind, centre=None, pad=1):
    x = x if rows is None else x[rows]
    wide = x.float().double()
    square = wide.square().sum(1)
    if cosine:
        wide = wide / torch.where(square > 0, square, 1).sqrt()[:, None]
    n, pad = len(x), -(-pad // TILE) * TILE
    high, columns = max(1, -(-n // pad)) * pad, -(-x.shape[1] // ALIGN) * ALIGN
    value = torch.zeros(high, columns)
    value[:n, : x.shape[1]] = wide.float()
    padded = torch.zeros(high, dtype=torch.float64)
    padded[:n] = square
    if kind == "float32":
        return Packed(value[None], padded[None], n, kind)
    if kind == "tf32x3":
        big = round_tf32(value)
        return Packed(torch.stack([big, round_tf32(value - big)]), padded[None], n, kind)
    if kind == "bf16":
        low = value.bfloat16()
        return Packed(low[None], low.double().square().sum(1)[None], n, kind)
    exact = value.double()
    exact[:n, : x.shape[1]] -= centre.double()
    low = round_tf32(exact.float()) if kind == "tf32_low" else exact.float().bfloat16()
    squares = [t.square().sum(1) for t in (value.double(), exact, low.double(), exact - low.double())]
    along = value.double()[:, : x.shape[1]] @ centre.double()
    return Packed(low[None], torch.stack([*squares, along]), n, kind)


def products(q, g, q_row=slice(None), g_row=slice(None)):
    planes = [(0, 0)] if len(q.data) == 1 else [(1, 0), (0, 1), (0, 0)]
    total = None
    for a, b in planes:
        x, y = q.data[a][q_row].double(), g.data[b][g_row].double()
        for k in range(0, x.shape[1], CHUNK):
            part = (x[:, k : k + CHUNK] @ y[:, k : k + CHUNK].T).float()
            total = part if total is None else total + part
    return total


def to_distances(c, q_square, g_square, metric):
    if metric == 0:
        return 1 - c
    if metric == 3:
        return 0 - c
    s = ((q_square.float()[:, None] + g_square.float()) - 2 * c).clamp_min(0)
    return s.double().sqrt().float() if metric == 1 else s


def distances(q, g, metric, q_row=slice(None), g_row=slice(None)):
    return to_distances(products(q, g, q_row, g_row), q.stats[0][q_row], g.stats[0][g_row], metric)


def dense(q, g, metric):
    return distances(q, g, metric, slice(q.n), slice(g.n))


def pair_tiles(q, g, metric, q_index, g_index, q_tile, g_tile):
    at = torch.arange(TILE)
    tiles = [
        distances(q, g, metric, q_index[i + at], g_index[j + at])
        for i, j in zip(q_tile.tolist(), g_tile.tolist(), strict=True)
    ]
    return torch.stack(tiles)


def add_counts(d, column, table, row):
    """d [columns] of one query, those that must not count left out."""
    begin, end = int(table.ptr[row]), int(table.ptr[row + 1])
    t = table.values[begin:end, None]
    own = table.columns[begin:end, None]
    same = d == t
    table.counts[:, begin:end] += torch.stack([(d < t).sum(1), same.sum(1), (same & (column < own)).sum(1)])


def count(q, g, metric, table, g_id, first):
    d = dense(q, g, metric)
    column = torch.arange(g.n) + first
    for row in range(q.n):
        keep = (g_id[: g.n] != table.q_id[row]) & ~d[row].isnan()
        add_counts(d[row][keep], column[keep], table, row)


def low_count(q, g, metric, q_terms, g_terms, slope, table, g_id):
    c = products(q, g)[: q.n, : g.n]
    chunks = -(-q.data.shape[2] // CHUNK)
    granted = CHUNK * 2.0**-22 + chunks * 2.0**-23
    size = q.stats[2].sqrt()[: q.n, None] * g.stats[2].sqrt()[: g.n]
    c = c + (ADVERSE * granted * size * torch.sign(torch.randn(c.shape))).float()
    a, b = q_terms[:, : q.n, None], g_terms[:, None, : g.n]
    d = (a[0] + b[0]) + slope * c
    e = a[1] + b[1] + a[2] * b[2] + a[3] * b[3] + a[4] * b[4]
    low, high = d - e, d + e
    if metric == 1:
        low, high = low.clamp_min(0).sqrt() * 0.9999997, high.clamp_min(0).sqrt() * 1.0000003
    elif metric == 2:
        low, high = low.clamp_min(0), high.clamp_min(0)
    rows, columns = [], []
    for row in range(q.n):
        begin, end = int(table.ptr[row]), int(table.ptr[row + 1])
        t = table.values[begin:end, None]
        keep = g_id[: g.n] != table.q_id[row]
        unsure = ((low[row] <= t) & (high[row] >= t)).any(0) & keep
        columns.append(unsure.nonzero().flatten())
        rows.append(torch.full_like(columns[-1], row))
        table.counts[0, begin:end] += ((high[row] < t) & keep & ~unsure).sum(1)
    return torch.cat(rows), torch.cat(columns)


def recheck(q, g, metric, row, column, table, first):
    for i in row.unique().tolist():
        here = column[row == i]
        d = distances(q, g, metric, slice(i, i + 1), here)[0]
        add_counts(d, here + first, table, i)
