# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""reidfast.evaluation on a CUDA device: the CPU's ranks, certified ones equal to float32's, cupy without copies.

The comparisons also run with both sides on the CPU, so that the checks themselves are checked everywhere.
"""

import numpy as np
import pytest
import torch

from reidfast.evaluation import jaccard_graph, rank, rank_distances, rank_reranked, rerank, roc, search
from reidfast.testing import make_embeddings

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
SIZES = [(7, 33, 3), (130, 1000, 64), (257, 4100, 300)]


def people(queries, gallery, dim, seed=0, offset=0.6):
    x, ids = make_embeddings(queries + gallery, dim, per_identity=8, spread=0.7, seed=seed)
    x = x + offset / dim**0.5
    cameras = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(x)))
    at = queries
    return x[:at], x[at:], (ids[:at], ids[at:], cameras[:at], cameras[at:])


def same(a, b):
    for name in a._fields[:-1]:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def with_ties(gallery, ids, seed=3):
    """Rows of other identities that repeat a match, exactly or nearly."""
    rng = np.random.default_rng(seed)
    gallery = gallery.clone()
    for i in rng.permutation(len(gallery))[: len(gallery) // 4]:
        j = int(rng.integers(len(gallery)))
        if ids[i] != ids[j]:
            gallery[i] = gallery[j] * (1 + float(rng.choice([0.0, 1e-7, -3e-7, 1e-5])))
    return gallery


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries,gallery,dim", SIZES)
def test_rank_of_whole_numbers_is_exact(device, metric, queries, gallery, dim):
    """Products of small integers have no rounding, so ranks and ties are the CPU's, whatever the kernel."""
    if metric == "cosine":
        pytest.skip("roots are rounded")
    generator = torch.Generator().manual_seed(dim)
    x, y = (torch.randint(-2, 3, (n, dim), generator=generator).float() for n in (queries, gallery))
    _, _, labels = people(queries, gallery, 4)
    same(rank(x.to(device), y.to(device), *labels, metric=metric), rank(x, y, *labels, metric=metric))


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries,gallery,dim", SIZES[1:])
@pytest.mark.parametrize("first_pass", ["tf32_low", "bf16_low"])
def test_certified_ranks_are_those_of_float32(monkeypatch, metric, queries, gallery, dim, first_pass):
    from reidfast.evaluation._backends import certified

    monkeypatch.setattr(certified, "FIRST_PASS", first_pass)
    x, y, labels = people(queries, gallery, dim)
    x, y = x.cuda(), with_ties(y, labels[1]).cuda()
    exact, certified = (rank(x, y, *labels, metric=metric, precision=p) for p in ("float32", "certified"))
    same(certified, exact)
    assert exact.ambiguous == 0 < certified.ambiguous < 0.7 and exact.bounds[0] <= exact.bounds[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision,limit", [("float32", 1e-4), ("tf32x3", 1e-4), ("certified", 1e-4), ("bf16", 2e-2)])
def test_precisions_are_close_to_the_cpu(precision, limit):
    x, y, labels = people(200, 3000, 256)
    want = rank(x, y, *labels)
    got = rank(x.cuda(), y.cuda(), *labels, precision=precision)
    assert abs(got.mean_ap - want.mean_ap) < limit and np.array_equal(got.valid, want.valid)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_a_pair_has_one_distance_wherever_it_stands(metric):
    """Tile position, shards and the number of queries change no bit of a float32 distance."""
    x, y, labels = people(300, 2000, 200)
    x, y = x.cuda(), y.cuda()
    d, index = search(x, y, 100, metric=metric)
    some, other = search(x[37:41], y, 100, metric=metric)
    assert torch.equal(d[37:41], some) and torch.equal(index[37:41], other)
    parts = search(x, [y[:1], y[1:700], y[700:]], 100, metric=metric)
    assert torch.equal(d, parts[0]) and torch.equal(index, parts[1])
    whole = search(x, y, len(y), metric=metric)  # beyond the kernel's lists: tiles of distances, sorted
    assert torch.equal(whole[0][:, :100], d) and torch.equal(whole[1][:, :100], index)
    matrix = torch.empty(len(x), len(y), device="cuda").scatter_(1, whole[1], whole[0])
    same(rank(x, y, *labels, metric=metric), rank_distances(matrix, *labels))
    parts = [y[:1], y[1:700], y[700:]]
    same(rank(x, parts, *labels, metric=metric), rank(x, y, *labels, metric=metric))


@pytest.mark.gpu
def test_search_leaves_out():
    x, y, _ = people(50, 400, 32)
    exclude = [np.arange(i % 5) * 7 for i in range(50)]
    d, index = search(x.cuda(), y.cuda(), 20, exclude=exclude)
    want, where = search(x, y, 20, exclude=exclude)
    torch.testing.assert_close(d.cpu(), want, rtol=0, atol=1e-5)
    assert all(not set(index[i].tolist()) & set(exclude[i].tolist()) for i in range(50))
    assert float((index.cpu() == where).double().mean()) > 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["zhong", "torchreid", "fastreid", "transreid"])
def test_rerank(device, variant):
    x, y, labels = people(120, 900, 64)
    want = rerank(x, y, variant=variant).dense()
    got = rerank(x.to(device), y.to(device), variant=variant)
    dense = got.dense()
    assert dense.device.type == device
    # The nearest of two rounded alike may differ, and with it a neighbourhood: few entries, and small differences.
    gap = (dense.cpu() - want).abs()
    assert float((gap > 1e-4).double().mean()) < 2e-3
    scores = rank_reranked(x.to(device), y.to(device), *labels, variant=variant)
    assert abs(scores.mean_ap - rank_distances(want, *labels).mean_ap) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_jaccard_graph(device):
    x, _, _ = people(600, 1, 64)
    want, got = jaccard_graph(x, k1=20), jaccard_graph(x.to(device), k1=20)
    gap = np.abs((want - got).toarray())
    assert (gap > 1e-4).mean() < 1e-3


@pytest.mark.gpu
def test_roc():
    x, y, labels = people(100, 900, 32)
    got, want = roc(x.cuda(), y.cuda(), *labels), roc(x, y, *labels)
    np.testing.assert_allclose(got.tpr, want.tpr, atol=2e-3)


@pytest.mark.gpu
def test_cupy_in_and_out_without_copies():
    cupy = pytest.importorskip("cupy", reason="needs cupy")
    from reidfast._arrays import to_tensor

    x, y, labels = people(60, 500, 32)
    q, g = (cupy.from_dlpack(t.cuda()) for t in (x, y))
    assert to_tensor("rank", "gallery", g).data_ptr() == g.data.ptr
    d, index = search(q, g, 5)
    assert isinstance(d, cupy.ndarray) and isinstance(index, cupy.ndarray)
    want = search(x.cuda(), y.cuda(), 5)
    assert bool((cupy.asnumpy(d) == want[0].cpu().numpy()).all())
    ids = [cupy.asarray(t.numpy()) for t in labels]
    same(rank(q, g, *ids), rank(x.cuda(), y.cuda(), *labels))
    same(rank(q, g, *ids, precision="certified"), rank(q, g, *ids))
    distances = cupy.asarray(1 - x.numpy() @ y.numpy().T)
    same(rank_distances(distances, *ids), rank_distances(cupy.asnumpy(distances), *labels))
    assert isinstance(rerank(q, g).dense(), cupy.ndarray)


@pytest.mark.gpu
def test_memory_does_not_grow_with_queries_times_gallery():
    x, y, labels = people(4000, 60_000, 64)
    x, y = x.cuda(), y.cuda()
    for precision in ("float32", "certified"):
        rank(x[:200], y[:2000], *(labels[0][:200], labels[1][:2000]), precision=precision)  # tuners choose
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rank(x, y, *labels, precision=precision)
        assert torch.cuda.max_memory_allocated() - before < 0.35 * 4 * 4000 * 60_000
