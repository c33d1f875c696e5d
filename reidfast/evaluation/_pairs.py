# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which gallery rows share a query's identity: found from the ids alone, before any distance is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.evaluation._dispatch import Dispatch
from reidfast.evaluation._inputs import Labels

Ints = NDArray[np.int64]
JUNK = -1  # gallery pid that counts for nobody
HOST_ONLY = "works on ids and distances of the host"


def expand(starts: Ints, counts: Ints) -> Ints:
    """starts[i], starts[i] + 1, ... (counts[i] of them) for every i, one after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)


def offsets(counts: Ints) -> Ints:
    """CSR offsets [n + 1] of counts [n]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


@dataclass
class Pairs:
    """Pairs (query, gallery row) of one identity, as CSR over queries, gallery rows ascending within a query.

    A *column* is the position of a gallery row among those that count (pid other than -1); ``kept`` maps columns to
    rows, None where every row counts.
    """

    kept: Ints | None
    columns: int
    ptr: Ints
    column: Ints
    valid: NDArray[np.bool_]
    query: Ints
    gallery_order: Ints
    group_start: Ints
    group_size: Ints

    @property
    def matches(self) -> Ints:
        """Valid matches of every query."""
        return np.bincount(self.query[self.valid], minlength=len(self.ptr) - 1).astype(np.int64)

    def row(self, column: Ints) -> Ints:
        return column if self.kept is None else self.kept[column]


def find_pairs(labels: Labels) -> Pairs:
    """All pairs of one identity; valid = not seen by the query's own camera."""
    junk = labels.gallery == JUNK
    kept = np.flatnonzero(~junk) if junk.any() else None
    ids = labels.gallery if kept is None else labels.gallery[kept]
    cameras = labels.query_cameras, labels.gallery_cameras
    if cameras[1] is not None and kept is not None:
        cameras = cameras[0], cameras[1][kept]
    # columns of data sets are read-only, of which torch would warn
    columns = (None if x is None else np.require(x, requirements="W") for x in (labels.query, ids, *cameras))
    found = FIND_PAIRS.on["cpu"](*(None if x is None else torch.from_numpy(x) for x in columns))
    ptr, column, valid, query, order, start, size = (x.numpy() for x in found)
    return Pairs(kept, len(ids), ptr, column, valid, query, order, start, size)


def _find_pairs(
    query_ids: Tensor, gallery_ids: Tensor, query_cameras: Tensor | None, gallery_cameras: Tensor | None
) -> tuple[Tensor, ...]:
    """ptr, column, valid, query, gallery_order, group_start and group_size of `Pairs`."""
    wanted, ids = query_ids.numpy(), gallery_ids.numpy()
    order = np.argsort(ids, kind="stable")
    in_order = ids[order]
    start = np.searchsorted(in_order, wanted, "left")
    size = np.searchsorted(in_order, wanted, "right") - start
    column = order[expand(start, size)]
    query = np.repeat(np.arange(len(wanted), dtype=np.int64), size)
    if query_cameras is None or gallery_cameras is None:
        valid = np.ones(len(column), bool)
    else:
        valid = gallery_cameras.numpy()[column] != query_cameras.numpy()[query]
    return tuple(torch.from_numpy(x) for x in (offsets(size), column, valid, query, order, start, size))


FIND_PAIRS = Dispatch("find_pairs", reference=_find_pairs, triton_reason=HOST_ONLY, native_cuda=False)


@dataclass
class Blocks:
    """Queries of neighbouring identities with all gallery rows of those identities: the tiles that hold the pairs."""

    order: Ints  # queries, sorted by identity
    block_ptr: Ints  # [blocks + 1] into order
    column_ptr: Ints  # [blocks + 1] into rows
    rows: Ints  # gallery rows of a block
    pair_ptr: Ints  # [len(order) + 1] into slots
    slots: Ints  # position of a pair's gallery row within its block's rows
    pair: Ints  # which pair of `Pairs` a slot is


def pair_blocks(
    pairs: Pairs, query_ids: Ints, queries: tuple[int, int], rows: tuple[int, int], height: int, width: int
) -> Blocks:
    """The pairs between queries [begin, end) and gallery rows [begin, end), gathered in blocks.

    A block takes identities until it has ``height`` queries or ``width`` gallery rows. Queries and rows are numbered
    from the beginning of their range.
    """
    q0, q1 = queries
    ids = query_ids[q0:q1]
    order = np.argsort(ids, kind="stable")
    order = order[pairs.group_size[q0:q1][order] > 0]
    # One entry per run of queries with one identity, runs longer than a block cut.
    same = ids[order]
    first = np.flatnonzero(np.r_[True, same[1:] != same[:-1]]) if len(order) else np.empty(0, np.int64)
    run = np.diff(np.r_[first, len(order)])
    pieces = -(-run // height)
    first = np.repeat(first, pieces) + expand(np.zeros_like(pieces), pieces) * height
    run = np.diff(np.r_[first, len(order)])
    # Gallery rows of every run that lie in the range, as positions in gallery_order.
    start, size = pairs.group_start[q0:q1][order[first]], pairs.group_size[q0:q1][order[first]]
    flat = expand(start, size)
    owner = np.repeat(np.arange(len(first)), size)
    row = pairs.row(pairs.gallery_order[flat])
    inside = (row >= rows[0]) & (row < rows[1])
    position: Ints = np.cumsum(inside) - inside  # of a flat entry among those inside
    inside_start = np.r_[position, inside.sum()][offsets(size)[:-1]] if len(first) else np.empty(0, np.int64)
    kept_size = np.bincount(owner[inside], minlength=len(first)).astype(np.int64)

    # Greedy: a new block where the next run no longer fits.
    starts = []
    q_in, g_in = 0, 0
    for i, (n, g) in enumerate(zip(run.tolist(), kept_size.tolist(), strict=True)):
        if i == 0 or q_in + n > height or g_in + g > width:
            starts.append(i)
            q_in = g_in = 0
        q_in, g_in = q_in + n, g_in + g
    bounds = np.r_[np.array(starts, np.int64), len(first)]
    run_ptr, size_ptr = offsets(run), offsets(kept_size)
    block_ptr, column_ptr = run_ptr[bounds], size_ptr[bounds]
    block_of_run = np.repeat(np.arange(len(starts)), np.diff(bounds))

    # Pairs of every query in order: the run's rows inside the range.
    run_of_query = np.repeat(np.arange(len(first)), run)
    count = kept_size[run_of_query]
    base = size_ptr[run_of_query] - column_ptr[block_of_run[run_of_query]] if len(first) else count
    slots = expand(base, count)
    # flat entries of a run count up as its pairs do, so the n-th entry of a run is the n-th pair of its queries.
    nth = np.flatnonzero(inside) - np.repeat(offsets(size)[:-1], kept_size)
    pair = np.repeat(pairs.ptr[q0 + order], count) + nth[expand(inside_start[run_of_query], count)]
    return Blocks(order, block_ptr, column_ptr, row[inside] - rows[0], offsets(count), slots, pair)
