# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking's CUDA kernels, run on the CPU by the emulation, against the CPU's own: sets and Jaccard sums alike."""

import numpy as np
import pytest
import torch
from cuda_emu import emulated

import reidfast
from reidfast.evaluation import _rerank_engine as engine
from reidfast.evaluation import jaccard_graph, rerank
from reidfast.evaluation._rerank_variants import VARIANTS
from reidfast.evaluation.reranking import _Settings
from reidfast.testing import make_embeddings

pytestmark = pytest.mark.skipif(reidfast.ops._extension.extension is None, reason="the compiled part is not there")


def people(rows, dim, seed=0, per_identity=6):
    x, _ = make_embeddings(rows, dim, per_identity=per_identity, spread=0.9, seed=seed)
    return 1.3 * x


def lists(x, variant, k1, k2):
    settings = _Settings.of("rerank", VARIANTS[variant], k1, k2, len(x))
    found = engine.NEIGHBOURS.on["cpu"](
        x[:30], x[30:], settings.list_size, settings.variant.metric, settings.square, 0, 1
    )
    return settings, [t.contiguous() for t in found[:3]]


def compare(got, want, ulps):
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2], rtol=ulps * 1.2e-7, atol=0)


@pytest.mark.parametrize("metric,square", [("sqeuclidean", False), ("sqeuclidean", True), ("cosine", False)])
@pytest.mark.parametrize("k,keep", [(25, 21), (40, 3), (1, 1), (121, 121)])
def test_cuda_emu_settles_what_rounding_may_have_swapped(metric, square, k, keep):
    x = torch.cat([people(41, 70), people(41, 70), people(39, 70) * 1e-4 + people(1, 70)])  # near duplicates
    ids, near, _, *_ = engine.NEIGHBOURS.on["cpu"](x[:30], x[30:], k, metric, square, 0, 1)
    args = (x[:30], x[30:], ids, near, keep, metric, square)
    got, want = emulated("rerank_settle")(*args), engine.SETTLE.on["cpu"](*args)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-12)
    assert k < 40 or not torch.equal(got[0], ids[:, :keep])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1,k2", [(20, 6), (7, 1), (70, 2)])
def test_cuda_emu_sets_weights_and_expansion(variant, k1, k2):
    x = people(121, 9)
    settings, found = lists(x, variant, k1, k2)
    args = (*found, x[:30], x[30:], None, None, None, *settings.encode_args())
    half = settings.store_half  # a last bit of float32 may be one of half precision
    got, want = emulated("rerank_encode")(*args), engine.ENCODE.on["cpu"](*args)
    compare(got, want, 8192 if half else 24)


@pytest.mark.parametrize("variant", ["zhong", "transreid"])
@pytest.mark.parametrize("rows,first", [(30, 30), (121, 0), (0, 5), (7, 121)])
def test_cuda_emu_jaccard(variant, rows, first):
    """The same sums in the same order: the same bits."""
    x = people(121, 9)
    settings, found = lists(x, variant, 12, 4)
    v = engine.ENCODE.on["cpu"](*found, x[:30], x[30:], None, None, None, *settings.encode_args())
    got = emulated("rerank_jaccard")(*v, rows, first, settings.store_half)
    compare(got, engine.JACCARD.on["cpu"](*v, rows, first, settings.store_half), 0)
    assert len(got[1]) > 100 or rows == 0 or first == 121


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_cuda_emu_final_distances(variant, lambda_):
    x = people(121, 9)
    result = rerank(x[:30], x[30:], k1=9, k2=3, lambda_=lambda_, variant=variant)
    base, _ = engine._base(x[:30], x[30:], result.variant.metric)
    base = base.contiguous()
    rows = [torch.from_numpy(t) for t in (result.largest, result.indptr, result.indices, result.jaccard)]
    half = result.variant.storage == "float16"
    emulated("rerank_final_")(base, *rows, lambda_, result.variant.power == 2, result.variant.blend == "raw", half)
    torch.testing.assert_close(base, result.dense(), rtol=2.4e-7, atol=0)  # the CPU fuses a multiply and an add


def test_cuda_emu_wide_rows_are_taken_in_parts():
    d = torch.rand(3, 20_000)
    starts, columns = torch.tensor([0, 3, 3, 8]), torch.tensor([0, 8191, 8192, 5, 8191, 8192, 16_383, 19_999]).int()
    values, top = torch.rand(8), torch.tensor([1.0, 0.0, 2.0])
    want = d / top[:, None].clamp_min(1e-30) * 0.25
    want[1] = 0
    other = torch.full_like(d, 0.75)
    for q in range(3):
        mine = slice(int(starts[q]), int(starts[q + 1]))
        other[q, columns[mine].long()] = values[mine] * 0.75
    emulated("rerank_final_")(d, top, starts, columns, values, 0.25, False, False, False)
    torch.testing.assert_close(d, other + want)


def test_cuda_emu_from_distances():
    x = people(80, 7)
    d = torch.cdist(x, x).square()
    blocks = [t.contiguous() for t in (d[:20, 20:], d[:20, :20], d[20:, 20:])]
    settings = _Settings.of("rerank", VARIANTS["torchreid"], 9, 4, 80)
    found = engine.NEIGHBOURS_FROM_DISTANCES.on["cpu"](*blocks, settings.list_size, settings.square)
    args = (*found, None, None, *blocks, *settings.encode_args())
    compare(emulated("rerank_encode")(*args), engine.ENCODE.on["cpu"](*args), 24)


def test_cuda_emu_duplicates_and_few_items():
    x = torch.cat([people(6, 5), people(6, 5), torch.zeros(1, 5)])
    for variant in ("zhong", "fastreid"):
        settings = _Settings.of("rerank", VARIANTS[variant], 20, 6, len(x))
        found = engine.NEIGHBOURS.on["cpu"](
            x[:2], x[2:], settings.list_size, settings.variant.metric, settings.square, 0, 1
        )
        args = (*(t.contiguous() for t in found[:3]), x[:2], x[2:], None, None, None, *settings.encode_args())
        compare(emulated("rerank_encode")(*args), engine.ENCODE.on["cpu"](*args), 24)


def test_cuda_emu_refuses_what_does_not_fit():
    x = people(300, 5)
    settings = _Settings.of("rerank", VARIANTS["zhong"], 290, 2, 300)
    found = engine.NEIGHBOURS.on["cpu"](x[:30], x[30:], settings.list_size, "sqeuclidean", False, 0, 1)
    with pytest.raises(RuntimeError, match="k1 is too large for the CUDA kernels, with neighbourhoods of 291"):
        args = (*found[:3], x[:30], x[30:], None, None, None, *settings.encode_args())
        emulated("rerank_encode")(*args)


@pytest.mark.parametrize("variant", ["zhong", "fastreid"])
def test_cuda_emu_whole_rerank(monkeypatch, variant):
    x = people(90, 8)
    want, graph = rerank(x[:40], x[40:], k1=8, k2=3, variant=variant).dense(), jaccard_graph(x, k1=8, k2=3)
    with monkeypatch.context() as patch:
        for name in ("settle", "encode", "jaccard"):
            patch.setitem(getattr(engine, name.upper()).on, "cpu", emulated(f"rerank_{name}"))
        patch.setitem(engine.DISTANCES.on, "cpu", engine.distances)
        patch.setitem(engine.FINAL.on, "cpu", emulated("rerank_final_"))
        got, other = rerank(x[:40], x[40:], k1=8, k2=3, variant=variant).dense(), jaccard_graph(x, k1=8, k2=3)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(other.indices, graph.indices)
    np.testing.assert_allclose(other.data, graph.data, atol=2e-6)


def test_where_sets_are_made(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(engine.ENCODE, "serving", lambda device: "native")
    assert engine.sets_on(cuda, 21, 11, 6) == "cuda" and engine.sets_on(torch.device("cpu"), 21, 11, 6) == "cpu"
    assert engine.sets_on(cuda, 301, 151, 1) == "cpu"  # k1 = 300
    assert engine.sets_on(cuda, 61, 31, 6) == "cpu"  # k1 = 60 with k2 = 6
