# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""rank and search from features: one tile routine, the same bits however the work is cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import close, labels, matrix_of, same

import reidfast
from reidfast.evaluation import rank, rank_distances, search
from reidfast.evaluation._backends import compiled
from reidfast.testing import peak_memory, reference

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
needs_native = pytest.mark.skipif(not reidfast.ops._library.loaded, reason="the compiled part is not there")


def exact_distances(q: np.ndarray, g: np.ndarray, metric: str) -> np.ndarray:
    """float64, by the formula of the docstring."""
    q, g = q.astype(np.float64), g.astype(np.float64)
    if metric == "dot":
        return -q @ g.T
    if metric == "cosine":
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(g, axis=1)
        return 1 - np.divide(q @ g.T, norms, out=np.zeros(norms.shape), where=norms > 0)
    square = ((q[:, None] - g[None]) ** 2).sum(-1)
    return np.sqrt(square) if metric == "euclidean" else square


def shown(q, g, metric):
    return matrix_of(*search(q, g, len(g), metric=metric))


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and not reidfast.ops._library.loaded:
        pytest.skip("the compiled part is not there")
    with reidfast.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("q,g,d", [(1, 1, 1), (7, 33, 3), (33, 520, 17), (130, 70, 513), (5, 1030, 1100)])
def test_distances_and_order(backend, metric, q, g, d):
    rng = np.random.default_rng(q)
    x, y = rng.normal(size=(q, d)).astype(np.float32), rng.normal(size=(g, d)).astype(np.float32)
    distances, indices = search(x, y, g, metric=metric)
    assert distances.dtype == np.float32 and indices.dtype == np.int64
    np.testing.assert_array_equal(np.sort(indices, 1), np.tile(np.arange(g), (q, 1)))
    assert (np.diff(distances, axis=1) >= 0).all()
    exact = exact_distances(x, y, metric)
    scale = {"cosine": 1.0, "dot": np.abs(exact).max(), "sqeuclidean": 4 * d, "euclidean": 2 * d**0.5}[metric]
    np.testing.assert_allclose(matrix_of(distances, indices), exact, atol=4e-6 * scale)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["euclidean", "sqeuclidean", "dot"]), st.sampled_from(["f2", "f4", "f8"]))
def test_small_integers_equal_brute_force(seed, metric, dtype):
    rng = np.random.default_rng(seed)
    q, g, d = int(rng.integers(1, 12)), int(rng.integers(1, 40)), int(rng.integers(1, 9))
    x, y = (rng.integers(-2, 3, (n, d)).astype(dtype) for n in (q, g))
    exact = exact_distances(x, y, metric).astype(np.float64 if dtype == "f8" else np.float32)
    distances, indices = search(x, y, g, metric=metric)
    np.testing.assert_array_equal(indices, np.argsort(exact, axis=1, kind="stable"))
    np.testing.assert_array_equal(matrix_of(distances, indices), exact)
    given_labels = labels(rng, q, g, 4)
    try:
        found = rank(x, y, *given_labels, metric=metric)
    except ValueError as error:
        assert "none of the" in str(error)
        return
    close(found, reference.rank_distances(exact, *given_labels))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "mars"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rank_is_rank_distances_of_what_search_shows(backend, metric, protocol, dtype):
    if backend == "reference" and dtype in (torch.float16, torch.float64) and protocol != "market1501":
        pytest.skip("plain torch is slow; one dtype will do")
    rng = np.random.default_rng(7)
    given_labels = labels(rng, 40, 600, 12)
    # Few distinct rows, so that ties abound.
    pool = torch.from_numpy(rng.normal(size=(90, 19)))
    x, y = (pool[torch.from_numpy(rng.integers(0, 90, n))].to(dtype) for n in (40, 600))
    distances, indices = search(x, y, 600, metric=metric)
    assert distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = rank(x, y, *given_labels, metric=metric, protocol=protocol)
    same(found, rank_distances(matrix_of(distances.numpy(), indices.numpy()), *given_labels, protocol=protocol))
    assert found.bounds[0] < found.bounds[1]  # there were ties to get wrong


@needs_native
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [5, 512, 1300])
def test_same_bits_however_the_work_is_cut(monkeypatch, metric, dim):
    rng = np.random.default_rng(dim)
    x, y = (rng.normal(size=(n, dim)).astype(np.float32) for n in (300, 2100))
    given_labels = labels(rng, 300, 2100, 40)
    expected, table = rank(x, y, *given_labels, metric=metric), shown(x, y, metric)
    threads = torch.get_num_threads()
    try:
        for n_threads, queries, gallery in [(1, 4096, 1024), (2, 1, 1), (2, 129, 513), (1, 200, 4000), (2, 4096, 2048)]:
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(compiled, "BLOCK_QUERIES", queries)
            monkeypatch.setattr(compiled, "BLOCK_GALLERY", gallery)
            same(rank(x, y, *given_labels, metric=metric), expected)
            np.testing.assert_array_equal(shown(x, y, metric), table)
    finally:
        torch.set_num_threads(threads)


@needs_native
@pytest.mark.parametrize("cuts", [[1], [700], [513, 514], [3, 3, 2099], [1024]])
def test_same_bits_for_every_split_of_the_gallery(cuts):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 700)).astype(np.float32) for n in (70, 2100))
    given_labels = labels(rng, 70, 2100, 15)
    parts = np.split(y, cuts)
    same(rank(x, parts, *given_labels), rank(x, y, *given_labels))
    for a, b in zip(search(x, parts, 37), search(x, y, 37), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_native
@pytest.mark.parametrize("dim", [3, 129, 700])
def test_same_bits_wherever_a_row_stands(dim):
    rng = np.random.default_rng(dim)
    x, y = (rng.normal(size=(n, dim)).astype(np.float32) for n in (133, 1500))
    table = shown(x, y, "cosine")
    for shift in (1, 7, 64, 511):
        moved = shown(x, np.roll(y, shift, 0), "cosine")
        np.testing.assert_array_equal(np.roll(moved, -shift, 1), table)
        moved = shown(np.roll(x, shift, 0), y, "cosine")
        np.testing.assert_array_equal(np.roll(moved, -shift, 0), table)


def test_identical_rows_have_identical_distances(backend):
    rng = np.random.default_rng(0)
    row, others = rng.normal(size=(1, 600)), rng.normal(size=(1200, 600))
    others[::7] = row
    d = shown(rng.normal(size=(3, 600)).astype(np.float32), others.astype(np.float32), "euclidean")
    assert (d[:, ::7] == d[:, :1]).all()


def test_zero_vectors_and_extreme_norms(backend):
    x = np.array([[0, 0], [1e-30, 0], [1e30, 1e30], [3, 4]], np.float32)
    d = shown(x, x, "cosine")
    np.testing.assert_array_equal(d[0], 1)
    np.testing.assert_array_equal(d[:, 0], 1)
    np.testing.assert_allclose(d[1:, 1:], exact_distances(x[1:] / np.abs(x[1:]).max(1)[:, None],
                               x[1:] / np.abs(x[1:]).max(1)[:, None], "cosine"), atol=1e-6)  # fmt: skip
    tiny = shown(np.array([[1e-170, 0.0], [0, 1e170]]), np.array([[1e-170, 1e-170]]), "cosine")
    np.testing.assert_allclose(tiny, 1 - 0.5**0.5)


def test_near_duplicates_stay_non_negative(backend):
    x = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    for metric in ("euclidean", "sqeuclidean"):
        d = shown(x, x + np.float32(1e-6), metric)
        assert (d >= 0).all() and np.isfinite(d).all()


@pytest.mark.parametrize("k", [1, 2, 31, 200, 600])
def test_search_keeps_the_first_k(backend, k):
    rng = np.random.default_rng(k)
    x, y = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (9, 600))
    distances, indices = search(x, y, k, metric="sqeuclidean")
    order = np.argsort(exact_distances(x, y, "sqeuclidean"), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, order)
    assert distances.shape == (9, k)


def test_search_excludes(backend):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (6, 12))
    lists = [[0, 3], [], [11], list(range(12)), [5, 5], [1]]
    d = exact_distances(x, y, "dot")
    for q, rows in enumerate(lists):
        d[q, rows] = np.inf
    order = np.argsort(d, axis=1, kind="stable")
    expected = np.where(np.isinf(np.take_along_axis(d, order, 1)), -1, order)
    padded = np.full((6, 12), -1)
    for q, rows in enumerate(lists):
        padded[q, : len(rows)] = rows
    for exclude in (lists, padded, torch.from_numpy(padded)):
        distances, indices = search(x, y, 12, metric="dot", exclude=exclude)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(np.isinf(distances), indices == -1)
    _, indices = search(y, y, 1, metric="sqeuclidean", exclude=np.arange(12))
    assert (indices[:, 0] != np.arange(12)).all()


def test_search_answers_in_kind():
    x, y = np.random.rand(3, 4), np.random.rand(5, 4)
    assert all(isinstance(r, np.ndarray) for r in search(x, torch.from_numpy(y), 2))
    assert all(isinstance(r, torch.Tensor) for r in search(torch.from_numpy(x), y, 2))
    assert all(r.shape == (0, 2) for r in search(np.zeros((0, 4)), y, 2))


class OnlyDLPack:
    """What cupy, jax and the like share: the DLPack protocol and nothing else."""

    def __init__(self, x):
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def __dlpack__(self, **kwargs):
        return self.x.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def save_safetensors(path, name, x, kind):
    header = {name: {"dtype": kind, "shape": list(x.shape), "data_offsets": [0, x.nbytes]}}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + x.tobytes())


def test_features_of_every_kind(tmp_path):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 21)).astype(np.float32) for n in (9, 70))
    given_labels = labels(rng, 9, 70, 4)
    expected = rank(x, y, *given_labels)
    np.save(tmp_path / "g.npy", y)
    np.save(tmp_path / "g1.npy", y[:30])
    save_safetensors(tmp_path / "g2.safetensors", "features", y[30:], "F32")
    readonly = y.copy()
    readonly.setflags(write=False)
    kinds = {
        "torch": torch.from_numpy(y),
        "needs grad": torch.from_numpy(y).requires_grad_(),
        "dlpack": OnlyDLPack(y),
        "readonly": readonly,
        "fortran": np.asfortranarray(y),
        "transposed": torch.from_numpy(y.T.copy()).T,
        "every other": np.repeat(y, 2, axis=0)[::2],
        "memmap": np.load(tmp_path / "g.npy", mmap_mode="r"),
        "path": tmp_path / "g.npy",
        "str": str(tmp_path / "g.npy"),
        "shards": [tmp_path / "g1.npy", tmp_path / "g2.safetensors"],
        "mixed shards": [y[:1], torch.from_numpy(y[1:69]), np.zeros((0, 21), np.float32), y[69:]],
    }
    for gallery in kinds.values():
        same(rank(x, gallery, *given_labels), expected)
    same(rank([x[:4], x[4:]], kinds["shards"], *given_labels), expected)
    wide = rank(x.astype(np.float64), y, *given_labels)
    same(wide, rank(x, y.astype(np.float64), *given_labels))
    same(rank([x[:4], x[4:].astype(np.float64)], y, *given_labels), wide)


def test_safetensors_bfloat16(tmp_path):
    y = torch.randn(8, 6).bfloat16()
    save_safetensors(tmp_path / "g.safetensors", "x", y.view(torch.uint16).numpy(), "BF16")
    for a, b in zip(search(y[:2], tmp_path / "g.safetensors", 8), search(y[:2], y, 8), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_written_by_safetensors_itself(tmp_path):
    st_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    y = np.random.rand(8, 6).astype(np.float16)
    st_numpy.save_file({"features": y, "other": y[:1]}, tmp_path / "g.safetensors")
    np.testing.assert_array_equal(search(y, tmp_path / "g.safetensors", 3)[1], search(y, y, 3)[1])


def bad_file(tmp_path, kind):
    path = tmp_path / f"bad.{kind.split()[0]}"
    if kind == "npy truncated":
        np.save(path, np.zeros((50, 4), np.float32))
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "npy pickled":
        np.save(path, np.array([{}, []], object), allow_pickle=True)
    elif kind == "safetensors truncated":
        save_safetensors(path, "features", np.zeros((50, 4), np.float32), "F32")
        path.write_bytes(path.read_bytes()[:-4])
    elif kind == "safetensors ambiguous":
        header = {k: {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]} for k in "ab"}
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    else:
        path.write_bytes(b"not at all")
    return path


@pytest.mark.parametrize(
    "kind", ["npy truncated", "npy pickled", "npy noise", "safetensors truncated", "safetensors ambiguous",
             "safetensors noise"],
)  # fmt: skip
def test_bad_files_are_named(tmp_path, kind):
    path = bad_file(tmp_path, kind)
    with pytest.raises(ValueError, match=f"^search: gallery: .*bad.{kind.split()[0]}"):
        search(np.zeros((2, 4), np.float32), path, 1)


def poison(n, d, row, value=np.nan):
    x = np.ones((n, d), np.float32)
    x[row, d - 1] = value
    return x


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"query": np.ones(4, np.float32)}, ValueError, r"query of shape \(n, D\), got \(4,\); pass one query as x"),
        ({"gallery": np.ones((3, 5), np.float32)}, ValueError, "gallery with D=4 .* got D=5"),
        ({"gallery": np.ones((0, 4), np.float32)}, ValueError, "at least one row"),
        ({"query": np.ones((2, 0), np.float32)}, ValueError, "D >= 1"),
        ({"query": np.ones((2, 4), np.int64)}, TypeError, "query of dtype float16.*got int64; convert"),
        ({"gallery": np.ones((3, 4), bool)}, TypeError, "gallery of dtype float16.*got bool"),
        ({"gallery": np.ones((3, 4), complex)}, TypeError, "gallery of dtype float16"),
        ({"gallery": [np.ones((2, 4), np.float32), np.ones((1, 3), np.float32)]}, ValueError, r"shard.*D=4"),
        ({"query": object()}, TypeError, "torch tensor, a numpy or cupy array"),
        ({"query": torch.ones(2, 4, device="meta")}, ValueError, "CPU or a CUDA device, got meta"),
        ({"query": poison(2, 4, 1)}, ValueError, "NaN or inf, first in query row 1"),
        ({"gallery": poison(3, 4, 2, np.inf)}, ValueError, "NaN or inf, first in gallery row 2"),
        ({"gallery": poison(3, 4, 1, 1e30), "metric": "euclidean"}, ValueError, "first in gallery row 1; scale"),
        ({"metric": "l2"}, ValueError, "'cosine', 'euclidean', 'sqeuclidean', 'dot', got 'l2'"),
        ({"precision": "fp8"}, ValueError, "'float32', 'tf32x3', 'certified', 'bf16', got 'fp8'"),
        ({"precision": "certified"}, NotImplementedError, "not served on cpu"),
        ({"query_pids": [1, 2, 3]}, ValueError, r"query_pids of shape \(2,\) to match query with 2 rows"),
        ({"query_pids": [-1, 2]}, ValueError, "pid -1"),
        ({"query_camids": [1, 2]}, ValueError, "without gallery_camids"),
        ({"gallery_pids": [4, 5, -1]}, ValueError, "no identity in common"),
        ({"gallery_pids": [-1, -1, -1]}, ValueError, "no identity in common"),
        ({"query": np.ones((0, 4), np.float32), "query_pids": []}, ValueError, "at least one query"),
    ],
)  # fmt: skip
def test_rejects(change, error, words):
    arguments = {
        "query": np.ones((2, 4), np.float32), "gallery": np.ones((3, 4), np.float32), "query_pids": [1, 2],
        "gallery_pids": [1, 2, 3],
    }  # fmt: skip
    with pytest.raises(error, match="^rank: .*" + words):
        rank(**arguments | change)


@pytest.mark.parametrize("shards", [False, True])
def test_first_bad_row_is_named_wherever_it_stands(backend, shards):
    y = np.random.rand(1500, 4).astype(np.float32)
    y[[1100, 1400], 2] = np.inf
    gallery = np.split(y, [600, 1000]) if shards else y
    with pytest.raises(ValueError, match="first in gallery row 1100$"):
        search(y[:3], gallery, 5)
    ids = np.arange(1500)
    ids[1100] = -1  # junk rows are not looked at
    with pytest.raises(ValueError, match="first in gallery row 1400$"):
        rank(y[:3], gallery, [1, 2, 3], ids)


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"k": 4}, ValueError, "at most the gallery's 3 rows, got k=4"),
        ({"k": 0}, ValueError, "k >= 1"),
        ({"k": 1.0}, TypeError, "k to be an integer"),
        ({"exclude": [0]}, ValueError, r"exclude of shape \(2,\)"),
        ({"exclude": [0, 3]}, ValueError, "from -1 to 2, got 3"),
        ({"exclude": [[0], [1], [2]]}, ValueError, "one entry per query, 2, got 3"),
        ({"exclude": [0.5, 1.0]}, TypeError, "integer dtype"),
    ],
)
def test_search_rejects(change, error, words):
    x = np.ones((3, 4), np.float32)
    with pytest.raises(error, match="^search: .*" + words):
        search(**{"query": x[:2], "gallery": x, "k": 1} | change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the answer of a machine without CUDA")
def test_validate_is_accepted_on_the_cpu():
    x = np.random.rand(4, 3)
    same(rank(x, x, [1, 1, 2, 2], [1, 2, 1, 2], validate=True), rank(x, x, [1, 1, 2, 2], [1, 2, 1, 2]))
    with pytest.raises(ValueError, match="gallery row 2"):
        rank(x, poison(4, 3, 2), [1, 1, 2, 2], [1, 2, 1, 2], validate=True)


@needs_native
def test_memory_does_not_grow_with_queries_times_gallery(tmp_path):
    # A matrix would take 960 MB; features 51 MB.
    setup = """
        import numpy as np
        from reidfast.evaluation import rank, search
        rng = np.random.default_rng(0)
        q, g = rng.normal(size=(12000, 160)).astype(np.float32), rng.normal(size=(20000, 160)).astype(np.float32)
        qi, gi = rng.integers(0, 4000, 12000), rng.integers(0, 4000, 20000)
        rank(q[:200], g[:600], qi[:200], gi[:600])
    """
    assert peak_memory(setup, "rank(q, g, qi, gi)") < 60e6
    assert peak_memory(setup, "search(q, g, 5)") < 60e6


@needs_native
def test_memory_of_rank_distances():
    setup = """
        import numpy as np
        from reidfast.evaluation import rank_distances
        rng = np.random.default_rng(0)
        d = rng.random((2000, 20000), dtype=np.float32)
        qi, gi = rng.integers(0, 2000, 2000), rng.integers(0, 2000, 20000)
        rank_distances(d[:50], qi[:50], gi)
    """
    assert peak_memory(setup, "rank_distances(d, qi, gi)") < 16e6  # the matrix: 160 MB


@pytest.mark.data
def test_real_features(reidfast_data):
    z = np.load(reidfast_data / "features" / "osnet_x0_25_msmt17__market751_holdout.npz", allow_pickle=False)
    names = ("query", "gallery", "query_pid", "gallery_pid", "query_cam", "gallery_cam")
    found = rank(*(z[name] for name in names))
    assert 100 * found.cmc[0] == pytest.approx(72.3, abs=0.5)
    assert 100 * found.mean_ap == pytest.approx(48.5, abs=0.5)
    distances, indices = search(z["query"], z["gallery"], len(z["gallery"]))
    same(found, rank_distances(matrix_of(distances, indices), *(z[name] for name in names[2:])))
