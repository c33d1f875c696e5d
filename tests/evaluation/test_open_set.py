# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""open_set and calibrate_threshold against loops over dense distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reidfast.evaluation import calibrate_threshold, open_set
from reidfast.testing import make_embeddings


def by_loop(d, qi, gi, qc, gc, point, max_rank):
    hits, alarms = [], []
    for i in range(len(d)):
        keep = gi != -1
        if qc is not None:
            keep &= ~((gi == qi[i]) & (gc == qc[i]))
        order = np.argsort(np.where(keep, d[i], np.inf), kind="stable")[: keep.sum()]
        if (gi[order] == qi[i]).any():
            near = [g for g in order[:max_rank] if gi[g] == qi[i]]
            hits.append(d[i, near[0]] if near else np.inf)
        else:
            alarms.append(d[i, order[0]])
    alarms = np.sort(alarms)
    place = int(point * len(alarms) + 1e-9)
    threshold = alarms[place] if place < len(alarms) else np.inf
    return np.mean(np.array(hits) < threshold), np.mean(alarms < threshold), threshold


@pytest.mark.parametrize("max_rank", [1, 3])
@pytest.mark.parametrize("cameras", [False, True])
def test_matches_loop(max_rank, cameras):
    x, y = make_embeddings(260, 16, per_identity=5, spread=0.8)
    y = y.numpy()
    qi, gi = y[:80].copy(), y[80:].copy()
    qi[:30] += 1000  # nobody in the gallery
    gi[::17] = -1
    rng = np.random.default_rng(0)
    qc, gc = (rng.integers(0, 3, n) for n in (80, 180)) if cameras else (None, None)
    d = (1 - x[:80].double() @ x[80:].double().T).numpy()
    points = [0.0, 0.1, 0.29, 1.0]
    got = open_set(x[:80], x[80:], qi, gi, qc, gc, points=points, max_rank=max_rank)
    assert got.known + got.unknown == 80 and got.unknown >= 30
    for i, point in enumerate(points):
        wanted = by_loop(d, qi, gi, qc, gc, point, max_rank)
        np.testing.assert_allclose((got.dir[i], got.far[i], got.thresholds[i]), wanted, atol=1e-6)
    assert (got.far <= got.points).all() and got.dir[-1] == got.closed_set > 0


def test_calibration():
    d = np.arange(100)[::-1] / 100
    assert calibrate_threshold(d, 0.0) == 0.0
    assert calibrate_threshold(torch.from_numpy(d), 0.29) == 0.29
    assert calibrate_threshold(d, 1.0) == np.inf
    assert (d < calibrate_threshold(d, 0.07)).mean() == 0.07
    for bad, words in ((([], 0.1), "at least one"), (([np.nan], 0.1), "no NaN"), ((d, 1.1), r"far in \[0, 1\]")):
        with pytest.raises(ValueError, match=words):
            calibrate_threshold(*bad)


def test_rejects():
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="none that is unknown"):
        open_set(x, x, [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="none that is known"):
        open_set(x, x, [5, 6, 7], [0, 1, 2])
    with pytest.raises(ValueError, match=r"points in \[0, 1\]"):
        open_set(x, x, [5, 1, 2], [0, 1, 2], points=[2.0])
