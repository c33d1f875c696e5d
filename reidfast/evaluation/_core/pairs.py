# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Which gallery rows share a query's identity: known from the labels alone, before any distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reidfast._shards import Shards
from reidfast.evaluation._core.labels import JUNK, Labels


def expand(starts: Tensor, counts: Tensor) -> Tensor:
    """starts[i], starts[i] + 1, ... (counts[i] of them) for every i, one after the other."""
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.arange(total) + torch.repeat_interleave(starts - (ends - counts), counts)


def offsets(counts: Tensor) -> Tensor:
    """CSR offsets [n + 1] of counts [n]."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def csr_slice(ptr: Tensor, begin: int, end: int) -> tuple[Tensor, slice]:
    """Offsets of rows [begin, end) counted from their first entry, and where their entries are."""
    return ptr[begin : end + 1] - ptr[begin], slice(int(ptr[begin]), int(ptr[end]))


@dataclass
class Pairs:
    """Pairs (query, gallery row) of one identity, as CSR over queries, gallery rows ascending within a query.

    A *column* is the position of a gallery row among those that count (pid other than -1); ``rows`` maps columns to
    gallery rows, None where every row counts.
    """

    rows: Tensor | None
    columns: int
    ptr: Tensor
    column: Tensor
    valid: Tensor  # bool: not seen by the query's own camera
    query: Tensor
    gallery_order: Tensor
    group_start: Tensor
    group_size: Tensor

    @property
    def matches(self) -> Tensor:
        """Valid matches of every query."""
        return torch.bincount(self.query[self.valid], minlength=len(self.ptr) - 1)

    def row(self, column: Tensor) -> Tensor:
        """Gallery rows of columns."""
        return column if self.rows is None else self.rows[column]


class FindsPairs(Protocol):
    """A backend that finds pairs."""

    def find_pairs(
        self, query_pids: Tensor, gallery_pids: Tensor, query_camids: Tensor | None, gallery_camids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Ptr, column, valid, query, gallery_order, group_start and group_size of `Pairs`."""
        ...


def find_pairs(labels: Labels, host: FindsPairs) -> Pairs:
    """All pairs of one identity."""
    junk = labels.gallery_pids == JUNK
    rows = (~junk).nonzero()[:, 0] if bool(junk.any()) else None
    pids, camids = labels.gallery_pids, labels.gallery_camids
    if rows is not None:
        pids, camids = pids[rows], None if camids is None else camids[rows]
    return Pairs(rows, len(pids), *host.find_pairs(labels.query_pids, pids, labels.query_camids, camids))


def need_matches(op: str, labels: Labels, pairs: Pairs, shards: Shards) -> None:
    """There are queries, and one of them has a match somewhere."""
    n = len(labels.query_pids)
    if n == 0:
        raise ValueError(f"{op}: expected at least one query, got none")
    shared, valid = shards.sum(len(pairs.column), int(pairs.valid.sum()))
    if valid:
        return
    if shared:
        raise ValueError(
            f"{op}: none of the {n} queries has a match: {shared} gallery rows share an identity with a query, all of "
            "them seen by the query's own camera; leave out query_camids and gallery_camids to turn that rule off"
        )
    examples = [", ".join(map(str, x.unique()[:3].tolist())) for x in (labels.query_pids, labels.gallery_pids)]
    raise ValueError(
        f"{op}: none of the {n} queries has a match: query_pids (e.g. {examples[0]}) and gallery_pids (e.g. "
        f"{examples[1]}) have no identity in common; pass pids of one numbering that overlap"
    )


@dataclass
class PairBlocks:
    """Queries of neighbouring identities with all gallery rows of those identities: the tiles that hold the pairs."""

    order: Tensor  # queries, sorted by identity
    block_ptr: Tensor  # [blocks + 1] into order
    column_ptr: Tensor  # [blocks + 1] into rows
    rows: Tensor  # gallery rows of a block
    pair_ptr: Tensor  # [len(order) + 1] into slots
    slots: Tensor  # position of a pair's gallery row within its block's rows
    pair: Tensor  # which pair of `Pairs` a slot is


def pair_blocks(
    pairs: Pairs, query_pids: Tensor, queries: tuple[int, int], rows: tuple[int, int], height: int, width: int
) -> PairBlocks:
    """The pairs between queries [begin, end) and gallery rows [begin, end), gathered in blocks.

    A block takes identities until it has ``height`` queries or ``width`` gallery rows. Queries and rows are numbered
    from the beginning of their range.
    """
    q0, q1 = queries
    pids, group_start, group_size = query_pids[q0:q1], pairs.group_start[q0:q1], pairs.group_size[q0:q1]
    order = pids.argsort(stable=True)
    order = order[group_size[order] > 0]
    # One entry per run of queries with one identity, runs longer than a block cut.
    of_query = pids[order]
    is_first = torch.ones(len(order), dtype=torch.bool)
    is_first[1:] = of_query[1:] != of_query[:-1]
    first, end = is_first.nonzero()[:, 0], torch.tensor([len(order)])
    pieces = (torch.cat([first, end]).diff() + height - 1) // height
    first = torch.repeat_interleave(first, pieces) + expand(torch.zeros_like(pieces), pieces) * height
    run = torch.cat([first, end]).diff()
    # Gallery rows of every run that lie in the range, as positions in gallery_order.
    start, size = group_start[order[first]], group_size[order[first]]
    flat = expand(start, size)
    owner = torch.repeat_interleave(torch.arange(len(first)), size)
    row = pairs.row(pairs.gallery_order[flat])
    inside = (row >= rows[0]) & (row < rows[1])
    size_ptr = offsets(size)
    inside_start = offsets(inside.long())[size_ptr[:-1]]  # entries inside before a run's first
    inside_size = torch.bincount(owner[inside], minlength=len(first))

    # Greedy: a new block where the next run no longer fits.
    starts = []
    q_in, g_in = 0, 0
    for i, (n, g) in enumerate(zip(run.tolist(), inside_size.tolist(), strict=True)):
        if i == 0 or q_in + n > height or g_in + g > width:
            starts.append(i)
            q_in = g_in = 0
        q_in, g_in = q_in + n, g_in + g
    bounds = torch.tensor([*starts, len(first)])
    run_ptr, inside_ptr = offsets(run), offsets(inside_size)
    block_ptr, column_ptr = run_ptr[bounds], inside_ptr[bounds]
    block_of_run = torch.repeat_interleave(torch.arange(len(starts)), bounds.diff())

    # Pairs of every query in order: the run's rows inside the range.
    run_of_query = torch.repeat_interleave(torch.arange(len(first)), run)
    count = inside_size[run_of_query]
    slots = expand(inside_ptr[run_of_query] - column_ptr[block_of_run[run_of_query]], count)
    # Flat entries of a run count up as its pairs do, so the n-th entry of a run is the n-th pair of its queries.
    nth = inside.nonzero()[:, 0] - torch.repeat_interleave(size_ptr[:-1], inside_size)
    pair = torch.repeat_interleave(pairs.ptr[q0 + order], count) + nth[expand(inside_start[run_of_query], count)]
    return PairBlocks(order, block_ptr, column_ptr, row[inside] - rows[0], offsets(count), slots, pair)
