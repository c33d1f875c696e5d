# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""rerank, rank_reranked, jaccard_graph against dense numpy in float64."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from reidfast.evaluation import jaccard_graph, rank_distances, rank_reranked, rerank, rerank_distances, search
from reidfast.evaluation._backends.compiled import Compiled
from reidfast.evaluation._backends.torch_tiles import TorchTiles
from reidfast.evaluation._core.rerank_variants import VARIANTS, RerankVariant, half_neighbours
from reidfast.ops._backends import use_backend
from reidfast.testing import make_embeddings, peak_memory
from reidfast.testing.reference import dense_jaccard, dense_rerank, dense_rerank_distances

S = slice(0, 50), slice(50, None)


def waves(shape, a, b):
    """Test vectors: sin(a n + b), rows of unit length."""
    x = np.sin(a * np.arange(np.prod(shape)) + b).reshape(shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def people(rows, dim, seed=0, per_identity=6, scale=1.3):
    x, labels = make_embeddings(rows, dim, per_identity=per_identity, spread=0.9, seed=seed)
    return scale * x.numpy(), labels.numpy()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_published_vectors():
    x = waves((12, 4), 1.7, 0.2)
    wanted = [
        [0.702962, 0.768410, 0.907804, 0.967435, 0.946948, 0.849242, 0.689809, 0.623465, 0.461461],
        [0.499407, 0.565262, 0.749279, 0.901421, 1, 0.949696, 0.863133, 0.797821, 0.642109],
        [0.264599, 0.310289, 0.546556, 0.742643, 0.941550, 1, 0.953500, 0.909582, 0.812705],
    ]
    np.testing.assert_allclose(rerank(x[:3], x[3:], k1=4, k2=2).dense(), wanted, atol=2e-6)
    first = [0.714923, 0.860260, 0.976471, 1, 0.979295, 0.850497, 0.691920, 0.507507, 0.298024]
    np.testing.assert_allclose(rerank(x[:3], x[3:], k1=4, k2=1).dense()[0], first, atol=2e-6)
    x = waves((60, 8), 1.3, 0.7)
    d = rerank(x[:10], x[10:]).dense()
    assert d.sum() == pytest.approx(323.350220, abs=1e-3)
    np.testing.assert_allclose(d[0, :6], [0.984954, 0.562469, 0.462604, 0.999793, 0.489090, 0.564341], atol=2e-6)
    assert d[0].argsort()[:8].tolist() == [19, 48, 22, 16, 45, 13, 42, 25]
    assert d[9].argsort()[:8].tolist() == [28, 25, 31, 2, 34, 5, 22, 19]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1,k2,lambda_", [(20, 6, 0.3), (7, 3, 0.0), (5, 1, 1.0), (4, 12, 0.5), (1, 1, 0.3)])
@pytest.mark.parametrize("queries,rows,dim", [(40, 203, 16), (3, 30, 5)])
def test_matches_dense(variant, k1, k2, lambda_, queries, rows, dim):
    x, _ = people(rows, dim)
    exact = dense_rerank(*np.split(x.astype(np.float64), [queries]), k1, k2, lambda_, VARIANTS[variant])
    got = rerank(x[:queries], x[queries:], k1=k1, k2=k2, lambda_=lambda_, variant=variant).dense()
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=1e-5)


@pytest.mark.parametrize("variant", ["zhong", "torchreid", "transreid"])
def test_cosine(variant):
    x, _ = people(150, 12, scale=3.0)
    options = RerankVariant(**{**VARIANTS[variant].__dict__, "metric": "cosine"})
    exact = dense_rerank(x[:30].astype(np.float64), x[30:].astype(np.float64), 10, 4, 0.3, options)
    got = rerank(x[:30], x[30:], k1=10, k2=4, variant=variant, metric="cosine").dense()
    np.testing.assert_allclose(got, exact, atol=1e-5)


@pytest.mark.parametrize("variant", ["zhong", "torchreid"])
def test_from_distances(variant):
    x, _ = people(160, 10)
    d = ((x[:, None] - x[None]) ** 2).sum(-1).astype(np.float32)
    blocks = d[:25, 25:], d[:25, :25], d[25:, 25:]
    exact = dense_rerank_distances(*(b.astype(np.float64) for b in blocks), 9, 4, 0.3, VARIANTS[variant])
    result = rerank_distances(*blocks, k1=9, k2=4, variant=variant)
    np.testing.assert_allclose(result.dense(), exact, atol=1e-5)
    assert (result.dense_rows(3, 9).numpy() == result.dense()[3:9]).all()


def test_asymmetric_distances_are_read_by_column():
    rng = np.random.default_rng(0)
    blocks = [rng.random(s).astype(np.float32) for s in ((8, 20), (8, 8), (20, 20))]
    exact = dense_rerank_distances(*(b.astype(np.float64) for b in blocks), 6, 3, 0.4, VARIANTS["torchreid"])
    got = rerank_distances(*blocks, k1=6, k2=3, lambda_=0.4, variant="torchreid").dense()
    np.testing.assert_allclose(got, exact, atol=1e-5)


@pytest.mark.parametrize("variant", ["openunreid", "zhong", "torchreid"])
@pytest.mark.parametrize("k1,k2", [(30, 6), (8, 1)])
def test_graph_matches_dense(variant, k1, k2):
    x, _ = people(180, 64, per_identity=9)
    exact = dense_jaccard(x.astype(np.float64), k1, k2, VARIANTS[variant])
    graph = jaccard_graph(x, k1=k1, k2=k2, variant=variant)
    entries = graph.tocoo()
    dense = np.ones(graph.shape, np.float32)
    dense[entries.row, entries.col] = entries.data
    np.testing.assert_allclose(dense, exact, atol=1e-5)
    assert graph.has_sorted_indices and graph.dtype == np.float32
    assert (graph.diagonal() == 0).all() and (entries.row == entries.col).sum() == len(x)
    assert (entries.data < 1).all()
    if k1 == 8:
        assert graph.nnz < len(x) ** 2 // 2


@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "mars"])
def test_rank_reranked_is_rank_of_dense(lambda_, protocol, monkeypatch):
    x, y = people(700, 24, per_identity=7)
    y[300] = -1  # junk in the gallery
    cameras = np.random.default_rng(1).integers(0, 4, len(x))
    module = importlib.import_module("reidfast.evaluation.rank_reranked")
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)  # 128 queries at a time, and a rest below 33
    labels = (y[:280], y[280:], cameras[:280], cameras[280:])
    wanted = rank_distances(rerank(x[:280], x[280:], lambda_=lambda_).dense(), *labels, protocol=protocol)
    got = rank_reranked(x[:280], x[280:], *labels, lambda_=lambda_, protocol=protocol)
    for name in ("cmc", "ap", "inp", "first_match", "valid", "skipped"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    assert (got.mean_ap, got.mean_inp, got.bounds) == (wanted.mean_ap, wanted.mean_inp, wanted.bounds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree(variant):
    x, y = people(260, 20)
    with use_backend("reference"):
        wanted = rerank(x[:50], x[50:], k1=9, k2=4, variant=variant)
        graph = jaccard_graph(x, k1=9, variant=variant)
        blocks = [np.abs(x[a] @ x[b].T) for a, b in ((S[0], S[1]), (S[0], S[0]), (S[1], S[1]))]
        from_blocks = rerank_distances(*blocks, k1=9, k2=4, variant=variant).dense()
        with pytest.raises(ValueError, match="finite gallery features.*row 1"):
            rerank(x[:50], np.where(np.arange(210)[:, None] == 1, np.nan, x[50:]))
    got = rerank(x[:50], x[50:], k1=9, k2=4, variant=variant)
    np.testing.assert_array_equal(got.indices, wanted.indices)
    np.testing.assert_allclose(got.dense(), wanted.dense(), atol=2e-6 if variant != "transreid" else 1e-3)
    np.testing.assert_allclose(jaccard_graph(x, k1=9, variant=variant).toarray(), graph.toarray(), atol=2e-3)
    native = rerank_distances(*blocks, k1=9, k2=4, variant=variant).dense()
    np.testing.assert_allclose(native, from_blocks, atol=2e-6 if variant != "transreid" else 1e-3)


def test_lambda_one_is_search_order():
    x, _ = people(200, 16)
    d = rerank(x[:50], x[50:], lambda_=1).dense()
    _, indices = search(x[:50], x[50:], 20, metric="sqeuclidean")
    assert (np.argsort(d, axis=1, kind="stable")[:, :20] == indices).all()


def test_threads_and_blocks_change_nothing(threads, monkeypatch):
    x, _ = people(2300, 40)
    threads(1)
    one = rerank(x[:600], x[600:])
    threads(2)
    two = rerank(x[:600], x[600:])
    for name in ("indptr", "indices", "jaccard", "largest"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    np.testing.assert_array_equal(one.dense(), two.dense())
    np.testing.assert_array_equal(one.dense_rows(100, 300).numpy(), one.dense()[100:300])
    assert one.sparse_jaccard().shape == (600, 1700)


def test_duplicates_and_zero_rows():
    x, _ = people(40, 8)
    x = np.concatenate([x, x[:10], x[:10], np.zeros((3, 8), np.float32)])
    d = rerank(x[:20], x[20:], k1=6, k2=3).dense()
    exact = dense_rerank(x[:20].astype(np.float64), x[20:].astype(np.float64), 6, 3, 0.3, VARIANTS["zhong"])
    np.testing.assert_allclose(d, exact, atol=1e-5)
    same = np.ones((12, 4), np.float32)
    assert (rerank(same[:4], same[4:], k1=3, k2=2).dense() >= 0).all()
    assert np.isfinite(rerank(same[:4], same[4:], k1=3, k2=2, metric="cosine").dense()).all()
    assert (jaccard_graph(same, k1=3, k2=2).diagonal() == 0).all()


def test_kinds_of_input(tmp_path):
    x, _ = people(90, 12)
    wanted = rerank(x[:20], x[20:]).dense()
    t = torch.from_numpy(x)
    as_torch = rerank(t[:20], t[20:]).dense()
    assert isinstance(as_torch, torch.Tensor) and (as_torch.numpy() == wanted).all()
    np.testing.assert_allclose(rerank(t[:20].double(), t[20:].double()).dense(), wanted, atol=1e-5)
    np.testing.assert_allclose(rerank(t[:20].half(), t[20:].half()).dense(), wanted, atol=0.05)
    np.testing.assert_array_equal(rerank(np.asfortranarray(x[:20]), [x[20:50], x[50:]]).dense(), wanted)
    np.save(tmp_path / "gallery.npy", x[20:])
    np.testing.assert_array_equal(rerank(x[:20], tmp_path / "gallery.npy").dense(), wanted)


def test_no_queries_and_few_items():
    x, _ = people(10, 4)
    assert rerank(x[:0], x).dense().shape == (0, 10)
    assert rerank(x[:1], x[1:2], k1=20).dense().shape == (1, 1)
    assert jaccard_graph(x[:0]).shape == (0, 0)
    assert jaccard_graph(x[:1]).nnz == 1


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"variant": "jhong"}, ValueError, "variant one of.*'zhong'"),
        ({"variant": 3}, TypeError, "variant as a str"),
        ({"metric": "dot"}, ValueError, "expected metric 'cosine'"),
        ({"k1": 0}, ValueError, "k1 >= 1"),
        ({"k2": 2.5}, TypeError, "k2 to be an integer"),
        ({"lambda_": 1.5}, ValueError, r"lambda_ in \[0, 1\]"),
        ({"gallery": np.ones((3, 5), np.float32)}, ValueError, "D=4"),
        ({"gallery": np.ones((0, 4), np.float32)}, ValueError, "at least one row"),
        ({"gallery": np.array([[1, 2, np.nan, 3]], np.float32)}, ValueError, "finite gallery features.*row 0"),
        ({"query": np.ones((2, 4), np.int64)}, TypeError, "dtype float16"),
        ({"query": np.full((2, 4), 1e30, np.float32)}, ValueError, "query features.*too large"),
    ],
)
def test_rejects(change, error, words):
    arguments = {"query": np.ones((2, 4), np.float32), "gallery": np.ones((3, 4), np.float32), **change}
    query, gallery = arguments.pop("query"), arguments.pop("gallery")
    with pytest.raises(error, match=words):
        rerank(query, gallery, **arguments)


def test_rejects_distances_that_do_not_fit():
    with pytest.raises(ValueError, match=r"q_q \(Q, Q\)"):
        rerank_distances(np.ones((2, 3)), np.ones((3, 3)), np.ones((3, 3)))


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("square", [False, True])
def test_settle_sorts_what_rounding_swapped(metric, square):
    """Lists whose close entries stand in the wrong order come back in the order of float64, by both implementations."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((6, 24))
    x = np.repeat(centre, 8, 0) + 1e-4 * rng.standard_normal((48, 24))  # neighbours at distances of 1e-7
    x = torch.from_numpy((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    exact = exact / 2 if metric == "cosine" else exact
    exact.fill_diagonal_(-1)
    wanted = exact.argsort(dim=1, stable=True)[:, :7].int()
    shuffled = exact + torch.from_numpy(rng.uniform(0, 1e-7, exact.shape))
    shuffled.fill_diagonal_(-1)
    near, ids = shuffled.sort(1)
    near = near[:, :9].clamp_min(0).float()
    near = near * near if square else near
    args = x[:20], x[20:], ids[:, :9].int().contiguous(), near.contiguous(), 7, metric, square
    assert not torch.equal(args[2][:, :7], wanted)
    for backend in (TorchTiles(), Compiled()):
        got, distances = backend.settle(*args)
        assert torch.equal(got, wanted), backend.name
        base = distances.double().sqrt() if square else distances.double()
        torch.testing.assert_close(base, exact.gather(1, wanted.long()).clamp_min(0), atol=1e-7, rtol=1e-5)


def test_kept_distances_are_those_made_again():
    """From a certain size on base distances are kept: the same bits as without, as for several processes."""
    x, _ = people(1200 + 1300, 40, seed=5)
    q, g = torch.from_numpy(x[:1200]), torch.from_numpy(x[1200:])
    for metric in ("sqeuclidean", "cosine"):
        result = rerank(q, g, metric=metric)
        assert [d.shape for d in result._product] in ([], [(1200, 1300)])
        some = result.dense_rows(40, 90)
        first = result.dense()  # takes what was kept
        assert not result._product
        assert torch.equal(some, first[40:90])
        before = first.clone()
        again = result.dense()
        assert again.data_ptr() != first.data_ptr()
        assert torch.equal(again, before) and torch.equal(first, before)
    assert not rerank(q[:32], g)._product


def test_distances_handed_in_are_left_alone():
    rng = np.random.default_rng(3)
    blocks = [np.abs(rng.normal(size=s)).astype(np.float32) for s in ((9, 30), (9, 9), (30, 30))]
    before = [b.copy() for b in blocks]
    result = rerank_distances(*blocks, k1=5, k2=2)
    np.testing.assert_array_equal(result.dense(), result.dense())
    for block, old in zip(blocks, before, strict=True):
        np.testing.assert_array_equal(block, old)


def test_half_neighbourhoods():
    numpy_form, matlab_form = RerankVariant(), RerankVariant(half="matlab")
    for k in range(1, 60):
        assert half_neighbours(numpy_form, k) == int(np.around(k / 2)) + 1
    assert [half_neighbours(matlab_form, k) for k in (20, 4, 7, 6, 5)] == [11, 3, 4, 4, 3]


def test_memory_grows_with_items_not_pairs():
    """6,000 items: one float32 matrix of all pairs is 144 MB, of queries and gallery 20 MB."""
    setup = """
    from reidfast.evaluation import rank_reranked, rerank
    x = torch.nn.functional.normalize(torch.randn(6000, 32))
    ids = torch.arange(6000) % 300
    rank_reranked(x[:40], x[40:80], ids[:40], ids[:40])
    """
    peak = peak_memory(setup, "rank_reranked(x[:900], x[900:], ids[:900], ids[900:])")
    assert peak < 90e6, peak
