# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The expected CMC when one gallery image per identity is drawn at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reidfast._shards import Shards, raise_everywhere
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.labels import Labels
from reidfast.evaluation._core.pairs import Pairs, csr_slice
from reidfast.evaluation._core.plan import Plan
from reidfast.evaluation._core.thresholds import Thresholds

STEP_BYTES = 64 << 20  # whole rows of distances, and counts of identities, kept at a time


class _Identities:
    """Gallery identities numbered 0 .. n-1 over all shards, for drawing one image of each."""

    def __init__(self, labels: Labels, pairs: Pairs, shards: Shards) -> None:
        own = labels.gallery_pids if pairs.rows is None else labels.gallery_pids[pairs.rows]
        pids, index, counts = torch.unique(own, return_inverse=True, return_counts=True)
        self.pids, place = torch.unique(shards.concatenate(pids), return_inverse=True)
        sizes = torch.zeros(len(self.pids), dtype=torch.int64)
        self.sizes = sizes.index_add_(0, place, shards.concatenate(counts)).int()
        self.index = torch.searchsorted(self.pids, pids)[index].int()  # of this shard's columns
        place = torch.searchsorted(self.pids, labels.query_pids).clamp_max(max(0, len(self.pids) - 1))
        self.own = torch.where(self.pids[place] == labels.query_pids, place, -1).int()


class SingleShot:
    """Curves of all queries, from rows of distances to this shard's columns.

    Each process counts what lies before each match in its own shard. Several tell each other the counts that are not
    zero, and share out the rest by queries.
    """

    def __init__(
        self, labels: Labels, pairs: Pairs, thresholds: Thresholds, shards: Shards, plan: Plan, max_rank: int
    ) -> None:
        self.pairs, self.thresholds, self.shards, self.plan, self.max_rank = pairs, thresholds, shards, plan, max_rank
        self.who = _Identities(labels, pairs, shards)
        columns = shards.starts(pairs.columns)[1]
        wide = 8 * columns + 12 * len(self.who.pids) * int(thresholds.ptr.diff().max())
        least = 1 if shards.count > 1 else 128
        self.step = max(least, STEP_BYTES // max(1, wide) // 128 * 128)  # the same in all processes

    def of_features(self, features: FeaturePair) -> Tensor:
        """float64 (Q, max_rank)."""
        parts = [torch.empty(0, self.max_rank, dtype=torch.float64)]
        for start, query in features.query_chunks():

            def rows(q0: int, q1: int, start: int = start, query: Tensor = query) -> Tensor:
                part = query[q0 - start : q1 - start]
                return self.plan.features.dense_rows(features, self.pairs, q0, part, len(query))

            parts.append(self._curves(rows, start, start + len(query)))
        return self._everywhere(torch.cat(parts))

    def of_matrix(self, distances: Tensor) -> Tensor:
        """float64 (Q, max_rank)."""

        def rows(q0: int, q1: int) -> Tensor:
            part = distances[q0:q1].to(self.thresholds.distance.dtype)
            return part if self.pairs.rows is None else part[:, self.pairs.rows.to(part.device)]

        return self._everywhere(self._curves(rows, 0, len(distances)))

    def _everywhere(self, curves: Tensor) -> Tensor:
        return curves if self.shards.count == 1 else self.shards.add(curves)

    def _curves(self, rows: Callable[[int, int], Tensor], begin: int, end: int) -> Tensor:
        out = torch.zeros(end - begin, self.max_rank, dtype=torch.float64)
        host, shards, who = self.plan.host, self.shards, self.who
        for number, q0 in enumerate(range(begin, end, self.step)):
            q1 = min(end, q0 + self.step)
            ptr, span = csr_slice(self.thresholds.ptr, q0, q1)
            values = self.thresholds.distance[span]
            columns = self.thresholds.column[span] - self.thresholds.first
            with raise_everywhere(shards):
                d = rows(q0, q1).cpu().contiguous()
            closer = host.single_shot_closer(d, ptr, values, columns, who.index, len(who.pids), who.own[q0:q1])
            if shards.count > 1:
                closer = self._summed(closer, number % shards.count == shards.index)
            if number % shards.count == shards.index:
                out[q0 - begin : q1 - begin] = host.single_shot_chance(closer, ptr, who.sizes, self.max_rank)
        return out

    def _summed(self, closer: Tensor, wanted: bool) -> Tensor:
        """The counts of all shards; zeros where they are not ``wanted``."""
        flat = closer.reshape(-1)
        place = flat.nonzero()[:, 0]
        places, counts = self.shards.concatenate(place), self.shards.concatenate(flat[place])
        total = torch.zeros_like(flat)
        return (total.index_add_(0, places, counts) if wanted else total).reshape(closer.shape)
