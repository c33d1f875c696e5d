# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`rank` from a distance matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reidfast._arrays import FLOATS, describe, to_tensor
from reidfast._shards import Shards, agreement, raise_everywhere, shards_of
from reidfast.evaluation._backends.compiled import nan_distance
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.labels import read_labels
from reidfast.evaluation._core.matrix import count_matrix
from reidfast.evaluation._core.metrics import PROTOCOLS, Counted, Ranking, score
from reidfast.evaluation._core.options import ap_rule, check_count
from reidfast.evaluation._core.pairs import find_pairs, need_matches
from reidfast.evaluation._core.single_shot import SingleShot


def rank_distances(
    distances: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate a distance matrix: as `rank`, from distances made elsewhere (re-ranked ones, for instance).

    Args:
        distances: (Q, G), smaller is closer: torch tensor, numpy or cupy array, numpy.memmap, path of a .npy or
            .safetensors file; floating point or integer, any strides, inf allowed.
        query_pids: See `rank`.
        gallery_pids: See `rank`.
        query_camids: See `rank`.
        gallery_camids: See `rank`.
        protocol: See `rank`.
        average_precision: See `rank`.
        max_rank: Length of the CMC curve.
        validate: Look for NaN in CUDA distances, which synchronises. On the CPU that is always looked for.
        group: See `rank`; every process passes the columns of its shard.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a distance is NaN, or no query has a match.
        TypeError: distances are not numbers, or labels not integer.

    Notes:
        Equal to a stable sort of every row, ties included. Reads the matrix once, in place; integers are converted to
        float64 first. Memory: O(Q P).

    Example:
        >>> import numpy as np
        >>> rank_distances(np.array([[0.1, 0.2, 0.3]]), [7], [5, 7, 7]).ap
        array([0.58333333])
    """
    op = "rank_distances"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        rule = ap_rule(op, protocol, average_precision)
        max_rank = check_count(op, "max_rank", max_rank)
        d = _read_distances(op, distances, shards)
        labels = read_labels(op, d.shape[0], d.shape[1], query_pids, gallery_pids, query_camids, gallery_camids)
        if d.device.type == "cuda" and validate:
            wrong = torch.isnan(d).any(1)
            if bool(wrong.any()):
                raise nan_distance(op, int(torch.nonzero(wrong)[0]))
        labels.agree_on(facts)
        facts.add(protocol=protocol, average_precision=rule, max_rank=max_rank)
        facts.add(device=d.device.type, backend=plan.serving(d.device.type))
    with raise_everywhere(shards):
        backends = plan.choose(op, d.device, wide=True)
        pairs = find_pairs(labels, backends.host)
    need_matches(op, labels, pairs, shards)
    if shards.sum(d.dtype == torch.float64)[0]:
        d = d.double()
    thresholds, counts = count_matrix(op, d, labels, pairs, shards, backends)
    counted = Counted(thresholds.query, thresholds.distance, *shards.add(counts))
    curves = None
    if PROTOCOLS[protocol].single_shot:
        curves = SingleShot(labels, pairs, thresholds, shards, backends, max_rank).of_matrix(d)
    return score(d.shape[0], counted, rule, max_rank, curves)


def _read_distances(op: str, x: Any, shards: Shards) -> Tensor:
    d = to_tensor(op, "distances", x)
    if d.ndim != 2:
        raise ValueError(f"{op}: expected distances of shape (Q, G), got {tuple(d.shape)}")
    if d.dtype not in FLOATS:
        if d.dtype == torch.bool or d.is_complex():
            raise TypeError(f"{op}: expected distances of a floating-point or integer dtype, got {describe(d)}")
        d = d.double()
    if d.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: expected distances on the CPU or a CUDA device, got {d.device}")
    if d.shape[1] == 0 and shards.count == 1:
        raise ValueError(f"{op}: expected a gallery with at least one row, got distances of shape {tuple(d.shape)}")
    return d
