# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Counting in distances that are there already."""

from __future__ import annotations

import torch
from torch import Tensor

from reidfast._shards import Shards, raise_everywhere
from reidfast.evaluation._core.labels import JUNK, Labels
from reidfast.evaluation._core.pairs import Pairs
from reidfast.evaluation._core.plan import Plan
from reidfast.evaluation._core.thresholds import Thresholds


def count_matrix(
    op: str, distances: Tensor, labels: Labels, pairs: Pairs, shards: Shards, plan: Plan
) -> tuple[Thresholds, Tensor]:
    """Thresholds of distances (Q, G), and below, equal, before of each [3, n] in this shard."""
    rows = pairs.row(pairs.column)
    nobody = torch.empty(0, dtype=torch.int64)
    drop = nobody if pairs.rows is None else (labels.gallery_pids == JUNK).nonzero()[:, 0]
    backend = plan.on(distances.device)
    if shards.count == 1 and distances.device.type == "cpu":
        ptr, order, values, counts = backend.rank_matrix(op, distances, pairs.ptr, rows, pairs.valid, drop)
        return Thresholds.of_pairs(pairs, ptr, order, values), counts
    values = distances[pairs.query.to(distances.device), rows.to(distances.device)]
    values = (values if values.dtype == torch.float64 else values.float()).cpu()
    thresholds = Thresholds.sort(pairs, values, shards, plan.host)
    # Within this shard a tie is broken by row; a match of another shard stands before or after all of it.
    column = thresholds.local_rows(pairs, distances.shape[1])
    counts = torch.zeros(3, len(thresholds.query), dtype=torch.int64)
    with raise_everywhere(shards):
        lists = (thresholds.ptr, thresholds.distance, column, pairs.ptr, rows, drop)
        backend.count_matrix(op, distances, *lists, counts)
    return thresholds, counts
