# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The GPU's counting kernel, run on the CPU by the emulation: the same integers as the CPU's counts, always."""

import numpy as np
import pytest
import torch
from cuda_emu import emulated

import reidfast
from reidfast.evaluation import rank, rank_distances
from reidfast.evaluation._backends import compiled
from reidfast.evaluation._backends.compiled import DeviceKernels
from reidfast.evaluation._backends.torch_tiles import TorchTiles


@pytest.fixture
def on_the_kernel(monkeypatch):
    """Evaluation as on a CUDA device: plain torch around the counting kernel."""
    kernels = DeviceKernels(emulated("count_below"), *[None] * 4)
    monkeypatch.setattr(compiled, "device_kernels", lambda device: kernels)
    with reidfast.use_backend("reference"):
        yield


def problem(queries, gallery, most, dtype, seed, *, levels=None):
    """Distances, ascending thresholds taken from them, columns left out; ``levels`` makes ties."""
    g = torch.Generator().manual_seed(seed)
    d = torch.rand(queries, gallery, generator=g)
    d = (torch.round(d * levels) / levels if levels else d).to(dtype)
    if gallery > 5:
        d[:, 3] = torch.nan
    per_query, lists, same, drop = [], [], [], torch.arange(1, gallery, 7)
    for q in range(queries):
        size = int(torch.randint(0, most + 1, (1,), generator=g)) if q else most
        free = torch.randperm(gallery, generator=g)
        free = free[(free % 7 != 1) & (free != 3)]
        columns = free[:size]
        value = d[q, columns].to(torch.float64 if dtype == torch.float64 else torch.float32)
        order = np.lexsort((columns.numpy(), value.numpy()))
        per_query.append(len(columns))
        lists.append((value[order], columns[order]))
        same.append(torch.cat([columns, free[size : size + 2]]))
    ptr = torch.tensor([0, *np.cumsum(per_query)])
    same_ptr = torch.tensor([0, *np.cumsum([len(s) for s in same])])
    values, columns = (torch.cat(x) for x in zip(*lists, strict=True))
    return d, ptr, values, columns, same_ptr, torch.cat(same), drop


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queries,gallery,most", [(1, 1, 0), (3, 9, 2), (4, 700, 40), (2, 35_000, 5)])
def test_counts_equal_plain_torch(queries, gallery, most, dtype, levels):
    problem_ = problem(queries, gallery, most, dtype, gallery, levels=levels)
    d, ptr, values, columns, same_ptr, same, drop = problem_
    want = torch.zeros(3, len(values), dtype=torch.int64)
    nan = d.isnan().any(0).nonzero()[:, 0]  # counts for nobody, like what is dropped; the CPU would refuse it
    everything = (d.nan_to_num(), *problem_[1:-1], torch.cat([drop, nan]).sort().values)
    TorchTiles().count_matrix("op", *everything, want)
    got = torch.zeros_like(want)
    padded = torch.nn.functional.pad(d, (0, 3), value=-1.0)[:, :gallery]  # a stride of its own
    width = int(ptr.diff().max()) if len(values) else 0
    emulated("count_below")(padded, 0, ptr, values, columns, width, same_ptr, same, drop, got)
    assert torch.equal(got, want)
    if most > 10 and levels:
        assert bool(want[1].any()) and bool(want[2].any())


def test_parts_of_the_gallery_add_up():
    d, ptr, values, columns, same_ptr, same, drop = problem(3, 500, 12, torch.float32, 5, levels=20)
    whole, parts = (torch.zeros(3, len(values), dtype=torch.int64) for _ in range(2))
    count = emulated("count_below")
    count(d, 0, ptr, values, columns, 12, same_ptr, same, drop, whole)
    for first, last in ((0, 123), (123, 124), (124, 500)):
        count(d[:, first:last], first, ptr, values, columns, 12, same_ptr, same, drop, parts)
    assert torch.equal(whole, parts)


def labels(queries, gallery, seed=0):
    g = np.random.default_rng(seed)
    gallery_pids = g.integers(-1, 9, gallery)
    return g.integers(0, 9, queries), gallery_pids, g.integers(0, 3, queries), g.integers(0, 3, gallery)


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
def test_rank_distances_on_the_kernel(on_the_kernel, protocol):
    d = torch.round(torch.rand(12, 400) * 64) / 64
    got = rank_distances(d, *labels(12, 400), protocol=protocol)
    with reidfast.use_backend("native"):
        want = rank_distances(d, *labels(12, 400), protocol=protocol)
    np.testing.assert_allclose(got.cmc, want.cmc, rtol=0, atol=1e-13)  # cuhk03: sums of probabilities
    assert np.array_equal(got.ap, want.ap, equal_nan=True)
    assert got.bounds == want.bounds and np.array_equal(got.first_match, want.first_match)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rank_on_the_kernel(on_the_kernel, metric, monkeypatch):
    g = torch.Generator().manual_seed(1)
    query, gallery = (torch.randint(-3, 4, (n, 16), generator=g).float() for n in (13, 1100))
    got = rank(query, gallery, *labels(13, 1100), metric=metric)
    monkeypatch.setattr(compiled, "device_kernels", lambda device: None)
    want = rank(query, gallery, *labels(13, 1100), metric=metric)
    assert np.array_equal(got.cmc, want.cmc) and np.array_equal(got.ap, want.ap, equal_nan=True)
    assert got.bounds == want.bounds and np.array_equal(got.first_match, want.first_match)


def test_refuses_lists_that_do_not_fit():
    d, ptr, values, columns, same_ptr, same, drop = problem(3, 50, 4, torch.float32, 5)
    counts = torch.zeros(3, len(values), dtype=torch.int64)
    count = emulated("count_below")
    with pytest.raises(RuntimeError, match="thresholds do not fit 3 queries"):
        count(d, 0, ptr[:-1].contiguous(), values, columns, 4, same_ptr, same, drop, counts)
    with pytest.raises(RuntimeError, match="expected contiguous int64 same"):
        count(d, 0, ptr, values, columns, 4, same_ptr, same.int(), drop, counts)
