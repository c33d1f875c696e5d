# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Distances of the valid matches, sorted: what non-matches are counted against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reidfast._shards import Shards
from reidfast.evaluation._core.pairs import Pairs, offsets


class SortsPairs(Protocol):
    """A backend that sorts the pairs of every query."""

    def sort_pairs(self, pair_ptr: Tensor, valid: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the valid pairs of every query, and their order: ascending values, equal ones by position."""
        ...


@dataclass
class Thresholds:
    """Valid matches of all shards, sorted by (query, distance, global column).

    ``first`` is the global number of this shard's first column.
    """

    query: Tensor
    distance: Tensor
    column: Tensor
    ptr: Tensor
    first: int = 0

    @classmethod
    def of_pairs(cls, pairs: Pairs, ptr: Tensor, order: Tensor, distance: Tensor) -> Thresholds:
        """Of the valid pairs of one process, sorted already."""
        return cls(pairs.query[order], distance, pairs.column[order], ptr)

    @classmethod
    def sort(cls, pairs: Pairs, distances: Tensor, shards: Shards, host: SortsPairs) -> Thresholds:
        """Of all processes, from the distance of every pair of this one, in host memory."""
        if shards.count == 1:
            ptr, order = host.sort_pairs(pairs.ptr, pairs.valid, distances)
            return cls.of_pairs(pairs, ptr, order, distances[order])
        first, _ = shards.starts(pairs.columns)
        query = shards.concatenate(pairs.query[pairs.valid])
        column = shards.concatenate(pairs.column[pairs.valid] + first)
        distance = shards.concatenate(distances[pairs.valid])
        order = column.argsort(stable=True)
        order = order[distance[order].argsort(stable=True)]
        order = order[query[order].argsort(stable=True)]
        ptr = offsets(torch.bincount(query, minlength=len(pairs.ptr) - 1))
        return cls(query[order], distance[order], column[order], ptr, first)

    def local_rows(self, pairs: Pairs, rows: int) -> Tensor:
        """The matches' rows in this shard of ``rows`` rows; -1 before it, ``rows`` behind."""
        local = self.column - self.first
        inside = (local >= 0) & (local < pairs.columns)
        out = torch.where(local < 0, -1, rows)
        out[inside] = pairs.row(local[inside])
        return out
