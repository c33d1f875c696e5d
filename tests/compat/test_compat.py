# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The drop-ins against the packages themselves where they are installed, and against dense numpy always."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reidfast.compat import fastreid, openunreid, torchreid
from reidfast.evaluation._core.rerank_variants import VARIANTS
from reidfast.testing import make_embeddings
from reidfast.testing.reference import dense_jaccard, dense_rerank_distances


def peer_file(package, path):
    """One file of an installed package as a module of its own: the package itself may need a torchvision."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (extra [peers])")
    file = f"{spec.submodule_search_locations[0]}/{path}"
    spec = importlib.util.spec_from_file_location(f"peer_{package}_{path.replace('/', '_')[:-3]}", file)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            spec.loader.exec_module(module)
        except (ImportError, FileNotFoundError) as error:
            pytest.skip(f"{package}/{path} does not import here: {error}")
    return module


def problem(queries=40, gallery=160, dim=16, seed=0):
    x, y = make_embeddings(queries + gallery, dim, per_identity=8, spread=0.9, seed=seed)
    cameras = np.random.default_rng(seed).integers(0, 4, queries + gallery)
    ids = y.numpy()
    return x[:queries], x[queries:], (ids[:queries], ids[queries:], cameras[:queries], cameras[queries:])


def square(x, y):
    return ((x[:, None].double() - y[None].double()) ** 2).sum(-1).float().numpy()


# ---- against the packages


def test_torchreid_evaluate_rank():
    peer = peer_file("torchreid", "reid/metrics/rank.py")
    q, g, labels = problem()
    d = square(q, g)
    theirs = peer.evaluate_rank(d, *labels, max_rank=30, use_cython=False)
    ours = torchreid.evaluate_rank(d, *labels, max_rank=30)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    assert ours[0].dtype == theirs[0].dtype and isinstance(ours[1], float)
    assert ours[1] == pytest.approx(theirs[1], abs=1e-12)


@pytest.mark.parametrize("package,path", [("torchreid", "reid/utils/rerank.py"), ("fastreid", "evaluation/rerank.py")])
@pytest.mark.parametrize("k1,k2,lambda_", [(20, 6, 0.3), (7, 3, 0.0), (5, 1, 0.5), (4, 9, 0.3)])
def test_re_ranking(package, path, k1, k2, lambda_):
    peer = peer_file(package, path)
    q, g, _ = problem(seed=1)
    blocks = square(q, g), square(q, q), square(g, g)
    theirs = peer.re_ranking(*blocks, k1=k1, k2=k2, lambda_value=lambda_)
    ours = (torchreid if package == "torchreid" else fastreid).re_ranking(*blocks, k1=k1, k2=k2, lambda_value=lambda_)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_torchreid_distance_matrix():
    peer = peer_file("torchreid", "reid/metrics/distance.py")
    q, g, _ = problem(seed=2)
    for metric in ("euclidean", "cosine"):
        theirs = peer.compute_distance_matrix(q, g, metric)
        torch.testing.assert_close(torchreid.compute_distance_matrix(q, g, metric), theirs, atol=1e-6, rtol=1e-5)


def test_fastreid_evaluate_rank():
    peer = peer_file("fastreid", "evaluation/rank.py")
    q, g, labels = problem(seed=3)
    d = square(q, g)
    theirs = peer.evaluate_rank(d, *labels, use_cython=False)
    ours = fastreid.evaluate_rank(d, *labels, use_cython=False)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert type(mine) is type(other)
        np.testing.assert_allclose(mine, other, atol=1e-12)
    compiled = fastreid.evaluate_rank(d, *labels)
    assert [x.dtype for x in compiled] == [np.float32] * 3


@pytest.mark.parametrize("k1,k2", [(20, 6), (7, 3), (6, 1), (4, 9)])
def test_fastreid_jaccard(k1, k2):
    pytest.importorskip("faiss", reason="needs faiss (extra [peers])")
    pytest.importorskip("fastreid", reason="fastreid is not installed (extra [peers])")
    peer = importlib.import_module("fastreid.utils.compute_dist")
    q, g, _ = problem(20, 100, seed=4)
    x = torch.cat([q, g])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer.compute_jaccard_distance(x, k1=k1, k2=k2, search_option=3)
    for module in (fastreid, openunreid):
        ours = module.compute_jaccard_distance(x, k1=k1, k2=k2, search_option=3)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(fastreid.build_dist(q, g, "jaccard", k1=k1, k2=k2), theirs[:20, 20:], atol=1e-5)


def test_fastreid_aqe():
    peer = peer_file("fastreid", "evaluation/query_expansion.py")
    q, g, _ = problem(seed=5)
    for theirs, ours in zip(peer.aqe(3 * q, 2 * g, 2, 5, 3.0), fastreid.aqe(3 * q, 2 * g, 2, 5, 3.0), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "package,path,names,ours",
    [
        ("torchreid", "reid/metrics/rank.py", ["evaluate_rank"], torchreid),
        ("torchreid", "reid/metrics/distance.py", ["compute_distance_matrix", "cosine_distance"], torchreid),
        ("torchreid", "reid/utils/rerank.py", ["re_ranking"], torchreid),
        ("fastreid", "evaluation/rank.py", ["evaluate_rank"], fastreid),
        ("fastreid", "evaluation/rerank.py", ["re_ranking"], fastreid),
        ("fastreid", "evaluation/query_expansion.py", ["aqe"], fastreid),
    ],
)
def test_signatures(package, path, names, ours):
    peer = peer_file(package, path)
    for name in names:
        theirs = inspect.signature(getattr(peer, name)).parameters
        mine = inspect.signature(getattr(ours, name)).parameters
        assert list(mine) == list(theirs)
        assert [p.default for p in mine.values()] == [p.default for p in theirs.values()]


# ---- always


@pytest.mark.parametrize("re_ranking", [torchreid.re_ranking, fastreid.re_ranking, openunreid.re_ranking_cpu])
def test_re_ranking_dense(re_ranking):
    q, g, _ = problem(20, 80, seed=6)
    blocks = square(q, g), square(q, q), square(g, g)
    exact = dense_rerank_distances(*(b.astype(np.float64) for b in blocks), 20, 6, 0.3, VARIANTS["torchreid"])
    got = re_ranking(*blocks)
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_allclose(got, exact, atol=1e-5)
    np.testing.assert_allclose(re_ranking(*map(torch.from_numpy, blocks)), got)


def test_jaccard_dense():
    x = problem(20, 80, seed=7)[1]
    exact = dense_jaccard(x.double().numpy(), 20, 6, VARIANTS["openunreid"])
    for module in (fastreid, openunreid):
        np.testing.assert_allclose(module.compute_jaccard_distance(x), exact, atol=1e-5)
    half = openunreid.compute_jaccard_distance(x, fp16=True)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, exact, atol=2e-3)
    with pytest.raises(ValueError, match="search_option 0, 1, 2 or 3"):
        openunreid.compute_jaccard_distance(x, search_option=9)


def test_build_dist():
    q, g, _ = problem(20, 60, seed=8)
    cfg = SimpleNamespace(dist_metric="euclidean", dist_cuda=False, k1=10, k2=4, search_type=3)
    wanted = square(q, g)
    for got in (openunreid.build_dist(cfg, q, g), fastreid.build_dist(q, g)):
        assert isinstance(got, np.ndarray)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(openunreid.build_dist(cfg, 2 * q), square(2 * q, 2 * q), atol=1e-5)
    cosine = 1 - (q @ g.T).numpy()
    np.testing.assert_allclose(openunreid.build_dist(cfg, q, g, dist_m="cosine"), cosine, atol=1e-6)
    np.testing.assert_allclose(fastreid.build_dist(q, g, "cosine"), cosine, atol=1e-6)
    whole = openunreid.compute_jaccard_distance(torch.cat([q, g]), 10, 4, verbose=False)
    np.testing.assert_allclose(openunreid.build_dist(cfg, q, g, "jaccard"), whole[:20, 20:], atol=1e-6)
    np.testing.assert_allclose(openunreid.build_dist(cfg, torch.cat([q, g]), dist_m="jaccard"), whole)
    with pytest.raises(TypeError, match="expected k2 beside"):
        fastreid.build_dist(q, g, "jaccard", k1=3)
    with pytest.raises(ValueError, match="'cosine', 'euclidean' or 'jaccard'"):
        fastreid.build_dist(q, g, "l2")


def test_evaluate_rank_always(capsys):
    d = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    labels = np.array([1, 2]), np.array([2, 1, 2, 1]), np.array([0, 0]), np.array([1, 1, 1, 1])
    cmc, mean_ap = torchreid.evaluate_rank(d, *labels)
    assert cmc.tolist() == [0, 1, 1, 1] and mean_ap == pytest.approx(0.5)
    cmc, ap, inp = fastreid.evaluate_rank(torch.from_numpy(d), *labels, use_cython=False)
    assert ap == [0.5, 0.5] and inp == [0.5, 0.5]
    assert openunreid.evaluate_rank(d, *labels)[1] == pytest.approx(0.5)
    assert "top-1" in capsys.readouterr().out
    cmc, _ = torchreid.evaluate_rank(d, *labels, use_metric_cuhk03=True)
    assert cmc.dtype == np.float32 and len(cmc) == 4
    with pytest.raises(ValueError, match="none of the 2 queries has a match"):
        torchreid.evaluate_rank(d, labels[0] + 10, *labels[1:])


def test_distance_matrix_rejects():
    x = torch.ones(2, 3)
    for bad, error, words in [
        ((x.numpy(), x), TypeError, "input1 as a torch tensor"),
        ((x, x[0]), ValueError, "input2 of shape"),
        ((x, x[:, :2]), ValueError, "one feature size"),
        ((x, x, "l1"), ValueError, "'euclidean' or 'cosine'"),
    ]:
        with pytest.raises(error, match=words):
            torchreid.compute_distance_matrix(*bad)


# ---- patch


@pytest.fixture
def fake(monkeypatch):
    """A package laid out as torchreid, whose modules import from each other."""
    code = {
        "torchreid": "",
        "torchreid.metrics": "",
        "torchreid.metrics.rank": "def evaluate_rank(*a, **k): return 'theirs'\ndef eval_market1501(): pass",
        "torchreid.metrics.distance": "def compute_distance_matrix(*a): return 'theirs'",
        "torchreid.utils": "",
        "torchreid.utils.rerank": "def re_ranking(*a): return 'theirs'",
        "torchreid.engine": (
            "from torchreid.metrics.rank import evaluate_rank\nfrom torchreid.utils.rerank import re_ranking as rr\n"
            "def test(d, *labels): return evaluate_rank(d, *labels)"
        ),
    }
    for name in [m for m in sys.modules if m.split(".")[0] == "torchreid"]:
        monkeypatch.delitem(sys.modules, name)
    modules = {name: types.ModuleType(name) for name in code}
    for name, module in modules.items():
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    for name, module in modules.items():
        exec(code[name], vars(module))
    yield modules
    torchreid.unpatch()


def test_patch_and_unpatch(fake):
    before = {(m, n): v for m, module in fake.items() for n, v in vars(module).items() if callable(v)}
    names = torchreid.patch()
    assert "torchreid.engine.rr" in names and "torchreid.engine.evaluate_rank" in names and len(names) == 5
    assert fake["torchreid.engine"].rr is torchreid.re_ranking
    assert fake["torchreid.metrics.distance"].compute_distance_matrix is torchreid.compute_distance_matrix
    d = np.array([[0.1, 0.2]])
    one = np.array([1]), np.array([1, 2]), np.array([0]), np.array([1, 1])
    assert fake["torchreid.engine"].test(d, *one)[1] == 1.0
    assert torchreid.patch() == []  # nothing left to do
    late = types.ModuleType("torchreid.late")
    late.f = before["torchreid.metrics.rank", "evaluate_rank"]
    fake["torchreid"].late = late
    sys.modules["torchreid.late"] = late
    try:
        assert torchreid.patch() == ["torchreid.late.f"]
    finally:
        del sys.modules["torchreid.late"]
    assert len(torchreid.unpatch()) == 6
    after = {(m, n): v for m, module in fake.items() for n, v in vars(module).items() if callable(v)}
    assert all(after[key] is value for key, value in before.items())
    assert torchreid.unpatch() == []


def test_patch_needs_the_package():
    if importlib.util.find_spec("openunreid") is not None:
        pytest.skip("openunreid is installed")
    with pytest.raises(RuntimeError, match="expected openunreid to be installed"):
        openunreid.patch()


def test_patch_fastreid_itself():
    pytest.importorskip("faiss", reason="needs faiss (extra [peers])")
    pytest.importorskip("fastreid", reason="fastreid is not installed (extra [peers])")
    peer = importlib.import_module("fastreid.utils.compute_dist")
    theirs = peer.build_dist
    names = fastreid.patch()
    try:
        assert "fastreid.utils.compute_dist.build_dist" in names
        q, g, _ = problem(12, 40)
        np.testing.assert_allclose(peer.build_dist(q, g, "cosine"), 1 - (q @ g.T).numpy(), atol=1e-6)
    finally:
        fastreid.unpatch()
    assert peer.build_dist is theirs
