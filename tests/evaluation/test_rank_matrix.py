# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The compiled steps of rank_distances against the same in plain torch and numpy, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reidfast.evaluation._backends import compiled
from reidfast.evaluation._backends.compiled import Compiled
from reidfast.evaluation._backends.torch_tiles import TorchTiles

pytestmark = pytest.mark.skipif(not compiled.loaded(), reason="the compiled part is not built")


def agree(step, *args):
    for ours, wanted in zip(getattr(Compiled(), step)(*args), getattr(TorchTiles(), step)(*args), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


def problem(rng, gallery, pairs, queries=5, values=None, dtype=torch.float32, junk=0):
    """Distances, pairs of every query, which of them count, and columns that count for nobody."""
    if values is None:
        d = rng.permutation(queries * gallery).reshape(queries, gallery)
    else:
        d = rng.integers(0, values, (queries, gallery))
    drop = np.sort(rng.choice(gallery, junk, replace=False))
    rest = np.setdiff1d(np.arange(gallery), drop)
    rows = [np.sort(rng.choice(rest, min(pairs, len(rest)), replace=False)) for _ in range(queries)]
    ptr = np.cumsum([0] + [len(r) for r in rows])
    rows = np.concatenate(rows)
    valid = rng.random(len(rows)) < 0.8
    return torch.from_numpy(d).to(dtype), *(torch.from_numpy(x) for x in (ptr, rows, valid, drop))


@pytest.mark.parametrize("pairs", [0, 1, 14, 15, 16, 20, 31, 32, 40, 70, 130])
@pytest.mark.parametrize("gallery", [3, 16, 255, 256, 257, 1000, 5000])
def test_rank_matrix(pairs, gallery):
    rng = np.random.default_rng(pairs * 10_000 + gallery)
    agree("rank_matrix", "op", *problem(rng, gallery, pairs, junk=gallery // 10))
    agree("rank_matrix", "op", *problem(rng, gallery, pairs, values=50))
    agree("rank_matrix", "op", *problem(rng, gallery, pairs, values=20 * gallery))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(dtype):
    rng = np.random.default_rng(1)
    d, *rest = problem(rng, 300, 12, values=200, dtype=dtype, junk=5)
    agree("rank_matrix", "op", d, *rest)
    agree("rank_matrix", "op", d.T.contiguous().T, *rest)
    agree("rank_matrix", "op", d.float().T.contiguous().T, *rest)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 0.0, -0.0])
def test_special_values(value):
    rng = np.random.default_rng(2)
    d, *rest = problem(rng, 500, 10)
    d[torch.rand(d.shape, generator=torch.Generator().manual_seed(0)) < 0.1] = value
    agree("rank_matrix", "op", d, *rest)


@pytest.mark.parametrize("column", [0, 255, 256, 699])
def test_nan_names_its_row(column):
    d, ptr, rows, valid, drop = problem(np.random.default_rng(3), 700, 10)
    d[3, column] = torch.nan
    for backend in (Compiled(), TorchTiles()):
        with pytest.raises(ValueError, match="op: expected distances without NaN, got NaN, first in query row 3"):
            backend.rank_matrix("op", d, ptr, rows, valid, drop)
    d[1, rows[ptr[1]]] = torch.nan  # in a match
    with pytest.raises(ValueError, match="first in query row 1"):
        Compiled().rank_matrix("op", d, ptr, rows, valid, drop)


def test_same_for_every_number_of_threads():
    args = problem(np.random.default_rng(4), 3000, 20, queries=200, values=10_000)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(Compiled().rank_matrix("op", *args))
    torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_out_of_range_is_refused():
    def native(*args):
        return Compiled().rank_matrix("op", *args)

    d, ptr, rows, valid, drop = problem(np.random.default_rng(5), 50, 3)
    with pytest.raises(RuntimeError, match="out of range"):
        native(d, ptr, rows + 100, valid, drop)
    with pytest.raises(RuntimeError, match="out of range"):
        native(d, ptr, rows, valid, torch.tensor([50]))
    with pytest.raises(RuntimeError, match="does not fit"):
        native(d[:2], ptr, rows, valid, drop)


@pytest.mark.parametrize("pairs", [3, 64, 65, 200])
def test_sort_pairs(pairs):
    rng = np.random.default_rng(pairs)
    ptr = torch.arange(0, 6 * pairs, pairs)
    values = torch.from_numpy(rng.integers(0, 40, 5 * pairs)).float()
    agree("sort_pairs", ptr, torch.from_numpy(rng.random(5 * pairs) < 0.7), values)


@pytest.mark.parametrize(
    "low,high", [(0, 30), (-5, 20), (-(2**62), 2**62), (2**63 - 40, 2**63 - 1), (-(2**63), 2**63 - 1)]
)
@pytest.mark.parametrize("cameras", [False, True])
def test_find_pairs(low, high, cameras):
    rng = np.random.default_rng(6)
    pool = rng.integers(low, high, 25, endpoint=True, dtype=np.int64)
    query, gallery = pool[rng.integers(0, 25, 40)], pool[rng.integers(5, 25, 300)]
    query[0] = low
    seen = (rng.integers(0, 3, 40), rng.integers(0, 3, 300)) if cameras else (None, None)
    agree("find_pairs", *(None if x is None else torch.from_numpy(x) for x in (query, gallery, *seen)))


def test_find_pairs_empty():
    none, some = torch.empty(0, dtype=torch.int64), torch.arange(3)
    for query, gallery in ((none, some), (some, none), (none, none)):
        agree("find_pairs", query, gallery, None, None)
