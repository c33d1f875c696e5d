# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking's CUDA kernels, run on the CPU by the emulation, against the CPU's own: sets and Jaccard sums alike."""

import numpy as np
import pytest
import torch
from cuda_emu import emulated

import reidfast
from reidfast.evaluation import jaccard_graph, rerank
from reidfast.evaluation._backends.base import SetOptions, encode_arguments
from reidfast.evaluation._backends.compiled import Compiled, DeviceKernels
from reidfast.evaluation._backends.torch_tiles import TorchTiles
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import Chunk
from reidfast.evaluation._core.rerank_variants import VARIANTS
from reidfast.evaluation._core.reranking import RerankSettings
from reidfast.testing import make_embeddings

pytestmark = pytest.mark.skipif(not reidfast.ops._library.loaded, reason="the compiled part is not there")


def people(rows, dim, seed=0, per_identity=6):
    x, _ = make_embeddings(rows, dim, per_identity=per_identity, spread=0.9, seed=seed)
    return 1.3 * x


def lists(x, variant, k1, k2):
    settings = RerankSettings.of(VARIANTS[variant], k1, k2, len(x))
    return settings, neighbours(x, 30, settings)


def neighbours(x, queries, settings):
    metric, square = settings.variant.metric, settings.square
    return Compiled().neighbours("rerank", x[:queries], x[queries:], settings.list_size, metric, square, 0, 1)


def compare(got, want, ulps):
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2], rtol=ulps * 1.2e-7, atol=0)


@pytest.mark.parametrize("metric,square", [("sqeuclidean", False), ("sqeuclidean", True), ("cosine", False)])
@pytest.mark.parametrize("k,keep", [(25, 21), (40, 3), (1, 1), (121, 121)])
def test_cuda_emu_settles_what_rounding_may_have_swapped(metric, square, k, keep):
    x = torch.cat([people(41, 70), people(41, 70), people(39, 70) * 1e-4 + people(1, 70)])  # near duplicates
    ids, distances, *_ = Compiled().neighbours("rerank", x[:30], x[30:], k, metric, square, 0, 1)
    args = (x[:30], x[30:], ids, distances, keep, metric, square)
    got, want = emulated("rerank_settle")(*args), Compiled().settle(*args)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-12)
    assert k < 40 or not torch.equal(got[0], ids[:, :keep])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("k1,k2", [(20, 6), (7, 1), (70, 2)])
def test_cuda_emu_sets_weights_and_expansion(variant, k1, k2):
    x = people(121, 9)
    settings, nearest = lists(x, variant, k1, k2)
    args = (nearest, (x[:30], x[30:]), None, settings.set_options)
    half = settings.set_options.store_half  # a last bit of float32 may be one of half precision
    got, want = emulated("rerank_encode")(*encode_arguments(*args)), Compiled().encode(*args)
    compare(got, want, 8192 if half else 24)


@pytest.mark.parametrize("variant", ["zhong", "transreid"])
@pytest.mark.parametrize("rows,first", [(30, 30), (121, 0), (0, 5), (7, 121)])
def test_cuda_emu_jaccard(variant, rows, first):
    """The same sums in the same order: the same bits."""
    x = people(121, 9)
    settings, nearest = lists(x, variant, 12, 4)
    v = Compiled().encode(nearest, (x[:30], x[30:]), None, settings.set_options)
    got = emulated("rerank_jaccard")(*v, rows, first, settings.set_options.store_half)
    compare(got, Compiled().jaccard(v, rows, first, settings.set_options.store_half), 0)
    assert len(got[1]) > 100 or rows == 0 or first == 121


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lambda_", [0.0, 0.3, 1.0])
def test_cuda_emu_final_distances(variant, lambda_):
    x = people(121, 9)
    result = rerank(x[:30], x[30:], k1=9, k2=3, lambda_=lambda_, variant=variant)
    metric = {"cosine": 0, "sqeuclidean": 2}[result.variant.metric]
    base = Compiled().chunk_distances(Chunk("rerank", metric, x[:30], x[30:])).clamp_min(0).contiguous()
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
    settings = RerankSettings.of(VARIANTS["torchreid"], 9, 4, 80)
    nearest = Compiled().neighbours_from_distances(*blocks, settings.list_size, settings.square)
    args = (nearest, None, tuple(blocks), settings.set_options)
    compare(emulated("rerank_encode")(*encode_arguments(*args)), Compiled().encode(*args), 24)


def test_cuda_emu_duplicates_and_few_items():
    x = torch.cat([people(6, 5), people(6, 5), torch.zeros(1, 5)])
    for variant in ("zhong", "fastreid"):
        settings = RerankSettings.of(VARIANTS[variant], 20, 6, len(x))
        args = (neighbours(x, 2, settings), (x[:2], x[2:]), None, settings.set_options)
        compare(emulated("rerank_encode")(*encode_arguments(*args)), Compiled().encode(*args), 24)


def test_cuda_emu_refuses_what_does_not_fit():
    x = people(300, 5)
    settings = RerankSettings.of(VARIANTS["zhong"], 290, 2, 300)
    nearest = neighbours(x, 30, settings)
    with pytest.raises(RuntimeError, match="k1 is too large for the CUDA kernels, with neighbourhoods of 291"):
        emulated("rerank_encode")(*encode_arguments(nearest, (x[:30], x[30:]), None, settings.set_options))


@pytest.mark.parametrize("variant", ["zhong", "fastreid"])
def test_cuda_emu_whole_rerank(monkeypatch, variant):
    x = people(90, 8)
    want, graph = rerank(x[:40], x[40:], k1=8, k2=3, variant=variant).dense(), jaccard_graph(x, k1=8, k2=3)
    steps = ("count_below", "settle", "encode", "jaccard", "final_")
    kernels = DeviceKernels(*(emulated(s if s == "count_below" else f"rerank_{s}") for s in steps))
    served = plan.Plan(TorchTiles(kernels), TorchTiles(kernels))  # as on a CUDA device
    with monkeypatch.context() as patch:
        patch.setattr(plan, "choose", lambda *args, **options: served)
        got, other = rerank(x[:40], x[40:], k1=8, k2=3, variant=variant).dense(), jaccard_graph(x, k1=8, k2=3)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(other.indices, graph.indices)
    np.testing.assert_allclose(other.data, graph.data, atol=2e-6)


@pytest.mark.parametrize("k1,k1_half,k2,where", [(21, 11, 6, "cuda"), (301, 151, 1, "cpu"), (61, 31, 6, "cpu")])
def test_where_sets_are_made(k1, k1_half, k2, where):
    """k1 = 300 alone, or 60 with k2 = 6, is more than the kernels hold."""
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    options = SetOptions("cosine", k1, k1_half, k2, False, False, False)
    with_kernels = plan.Plan(TorchTiles(DeviceKernels(*[print] * 5)), Compiled())
    assert with_kernels.sets_device(cuda, options).type == where
    assert with_kernels.sets_device(cpu, options) == cpu
    assert plan.Plan(TorchTiles(), Compiled()).sets_device(cuda, options) == cpu
