# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The single-gallery-shot curve as the peers estimate it: by drawing. For comparison with the expectation in `rank`."""

from __future__ import annotations

from typing import Any

import numpy as np

from reidfast.evaluation._inputs import check_count, read_labels, to_tensor
from reidfast.evaluation._metrics import Floats
from reidfast.evaluation._pairs import JUNK


def sampled_cmc(
    distances: Any,
    query_ids: Any,
    gallery_ids: Any,
    query_cameras: Any = None,
    gallery_cameras: Any = None,
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
        query_ids: See `rank`.
        gallery_ids: See `rank`.
        query_cameras: See `rank`.
        gallery_cameras: See `rank`.
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
    labels = read_labels(op, d.shape[0], d.shape[1], query_ids, gallery_ids, query_cameras, gallery_cameras)
    max_rank, repeats = check_count(op, "max_rank", max_rank), check_count(op, "repeats", repeats)
    generator = np.random.RandomState(seed)
    curves = []
    for q in range(len(d)):
        drop = labels.gallery == JUNK
        if labels.query_cameras is not None and labels.gallery_cameras is not None:
            own = labels.gallery_cameras == labels.query_cameras[q]
            drop = drop | ((labels.gallery == labels.query[q]) & own)
        row = d[q].double().numpy()
        order = np.argsort(row, kind="stable")
        order = order[~drop[order]]
        pids = labels.gallery[order]
        if not (pids == labels.query[q]).any():
            continue
        places: dict[int, list[int]] = {}
        for place, pid in enumerate(pids.tolist()):
            places.setdefault(pid, []).append(place)
        curve = np.zeros(max_rank)
        for _ in range(repeats):
            drawn = {pid: generator.choice(own_places) for pid, own_places in places.items()}
            match = drawn[int(labels.query[q])]
            curve[sum(place < match for place in drawn.values()) :] += 1
        curves.append(curve / repeats)
    if not curves:
        raise ValueError(f"{op}: none of the {len(d)} queries has a match; check ids and cameras as for rank")
    return np.asarray(np.mean(curves, axis=0))
