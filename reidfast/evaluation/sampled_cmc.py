# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The single-gallery-shot curve as the peers estimate it: by drawing. For comparison with the expectation in `rank`."""

from __future__ import annotations

from typing import Any

import numpy as np

from reidfast._arrays import to_numpy, to_tensor
from reidfast.evaluation._core.labels import JUNK, read_labels
from reidfast.evaluation._core.metrics import Floats
from reidfast.evaluation._core.options import check_count


def sampled_cmc(
    distances: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    max_rank: int = 50,
    repeats: int = 10,
    seed: int = 0,
) -> Floats:
    """CMC of the cuhk03 protocol estimated from ``repeats`` random draws of one gallery image per identity.

    Draws in the order in which the peers draw (identities by their first appearance in the ranked list of each query),
    from numpy's legacy generator, so that ``seed`` gives the curve they give after ``np.random.seed(seed)`` where no
    distances are tied. `rank` with ``protocol="cuhk03"`` gives the expectation of this, without the noise.

    Args:
        distances: (Q, G), as in `rank_distances`.
        query_pids: See `rank`.
        gallery_pids: See `rank`.
        query_camids: See `rank`.
        gallery_camids: See `rank`.
        max_rank: Length of the curve.
        repeats: Draws per query.
        seed: Of the generator.

    Returns:
        float64 (max_rank,).

    Raises:
        ValueError: shapes do not fit, or no query has a match.
    """
    op = "sampled_cmc"
    d = to_tensor(op, "distances", distances).cpu()
    if d.ndim != 2:
        raise ValueError(f"{op}: expected distances of shape (Q, G), got {tuple(d.shape)}")
    labels = read_labels(op, d.shape[0], d.shape[1], query_pids, gallery_pids, query_camids, gallery_camids)
    max_rank, repeats = check_count(op, "max_rank", max_rank), check_count(op, "repeats", repeats)
    wanted, known = to_numpy(labels.query_pids), to_numpy(labels.gallery_pids)
    generator = np.random.RandomState(seed)
    curves = []
    for q in range(len(d)):
        drop = known == JUNK
        if labels.query_camids is not None and labels.gallery_camids is not None:
            own_camera = to_numpy(labels.gallery_camids == labels.query_camids[q])
            drop = drop | ((known == wanted[q]) & own_camera)
        row = d[q].double().numpy()
        order = np.argsort(row, kind="stable")
        order = order[~drop[order]]
        pids = known[order]
        if not (pids == wanted[q]).any():
            continue
        places: dict[int, list[int]] = {}
        for place, pid in enumerate(pids.tolist()):
            places.setdefault(pid, []).append(place)
        curve = np.zeros(max_rank)
        for _ in range(repeats):
            drawn = {pid: generator.choice(own_places) for pid, own_places in places.items()}
            match = drawn[int(wanted[q])]
            curve[sum(place < match for place in drawn.values()) :] += 1
        curves.append(curve / repeats)
    if not curves:
        raise ValueError(f"{op}: none of the {len(d)} queries has a match; check ids and cameras as for rank")
    return np.asarray(np.mean(curves, axis=0))
