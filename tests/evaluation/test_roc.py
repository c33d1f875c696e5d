# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""roc against all pairs, sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranking_cases import labels, matrix_of

import reidfast
from reidfast.evaluation import roc, search

POINTS = (0.0, 1e-3, 0.01, 0.1, 0.5, 1.0)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("values", [3, 1000])
def test_equals_sorted_pairs(backend, dtype, metric, values):
    if backend == "native" and not reidfast.ops._library.loaded:
        pytest.skip("the compiled part is not there")
    rng = np.random.default_rng(values)
    x, y = (rng.integers(-values, values + 1, (n, 6)).astype(dtype) for n in (40, 130))
    given = labels(rng, 40, 130, 5)
    with reidfast.use_backend(backend):
        found = roc(x, [y[:100], y[100:]], *given, metric=metric, points=POINTS)
        d = matrix_of(*search(x, y, 130, metric=metric))
    same_id = given.query_pids[:, None] == given.gallery_pids
    junk = (given.gallery_pids == -1) | (same_id & (given.query_camids[:, None] == given.gallery_camids))
    positive, negative = np.sort(d[same_id & ~junk]), np.sort(d[~same_id & ~junk])
    assert (found.positives, found.negatives) == (len(positive), len(negative))
    for i, point in enumerate(POINTS):
        allowed = int(np.floor(point * len(negative)))
        threshold = negative[allowed] if allowed < len(negative) else np.inf
        assert found.thresholds[i] == threshold
        assert found.tpr[i] == np.mean(positive < threshold)
        assert found.fpr[i] == np.mean(negative < threshold) <= point


def test_queries_without_a_match_count():
    x = np.eye(3, dtype=np.float32)
    assert roc(x, x, [1, 2, 9], [1, 2, 3]).negatives == 7


@pytest.mark.parametrize(
    "change,words",
    [
        ({"points": [2.0]}, r"rates in \[0, 1\], got \[2.0\]"),
        ({"points": []}, "rates in"),
        ({"points": [np.nan]}, "rates in"),
        ({"gallery_pids": [5, 6, 7]}, "no identity in common"),
        ({"query": np.full((3, 3), np.nan, np.float32)}, "NaN or inf, first in query row 0"),
    ],
)
def test_rejects(change, words):
    x = torch.eye(3)
    arguments = {"query": x, "gallery": x, "query_pids": [1, 2, 3], "gallery_pids": [1, 2, 3]}
    with pytest.raises(ValueError, match="^roc: .*" + words):
        roc(**arguments | change)
