# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Problems and comparisons that several test files of evaluation share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from reidfast.evaluation import Ranking


@dataclass
class Labelled:
    query_pids: Any
    gallery_pids: Any
    query_camids: Any = None
    gallery_camids: Any = None

    def __iter__(self):
        given = [self.query_pids, self.gallery_pids]
        if self.query_camids is not None:
            given += [self.query_camids, self.gallery_camids]
        return iter(given)


def labels(rng: np.random.Generator, q: int, g: int, ids: int, cameras: int = 2, junk: bool = True) -> Labelled:
    low = -1 if junk else 0
    if cameras == 0:
        return Labelled(rng.integers(0, ids, q), rng.integers(low, ids, g))
    return Labelled(
        rng.integers(0, ids, q), rng.integers(low, ids, g), rng.integers(0, cameras, q), rng.integers(0, cameras, g)
    )


@st.composite
def tied_distances(draw):
    """Small problems whose distances take few values, so that nearly all are tied."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    q, g = int(rng.integers(1, 9)), int(rng.integers(1, 25))
    values = int(rng.integers(1, 8))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    distances = (rng.integers(-values, values, (q, g)) / 4).astype(dtype)
    if rng.random() < 0.1:
        distances[rng.random((q, g)) < 0.2] = np.inf
    return distances, labels(rng, q, g, int(rng.integers(1, 5)), int(rng.integers(0, 4)))


def same(a: Ranking, b: Ranking) -> None:
    """Bit for bit."""
    for name, x, y in zip(a._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def close(a: Ranking, b: Ranking, tolerance: float = 1e-13) -> None:
    """Integers equal, floats within rounding of sums taken in another order."""
    for name, x, y in zip(a._fields, a, b, strict=True):
        if np.asarray(x).dtype.kind in "ib":
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance, err_msg=name)


def matrix_of(distances: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """What search(k=G) shows, as a matrix."""
    out = np.full(distances.shape, np.nan, distances.dtype)
    np.put_along_axis(out, indices, distances, 1)
    return out
