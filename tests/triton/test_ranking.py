# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The Triton kernels of evaluation against the same in plain torch (tests/evaluation/plain_kernels.py), and as machine
code. Features are small integers where equality is asked for: every product is exact then, ties abound."""

import os
import sys

import numpy as np
import pytest
import torch
from triton_aot import Aot, compile_all

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.triton
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "evaluation"))

import plain_kernels as plain  # noqa: E402

from reidfast.evaluation import rank, search  # noqa: E402
from reidfast.evaluation._backends import certified  # noqa: E402
from reidfast.evaluation._backends.triton import Triton  # noqa: E402
from reidfast.evaluation._core import plan  # noqa: E402
from reidfast.ops.triton import ranking  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")


@pytest.fixture(autouse=True)
def tiles_of_one_size(monkeypatch):
    monkeypatch.setattr(plain, "TILE", ranking.TILE)
    monkeypatch.setattr(plain, "ALIGN", ranking.ALIGN)


@pytest.fixture
def on_kernels(monkeypatch):
    """Evaluation of CPU tensors as on a CUDA device."""
    monkeypatch.setattr(plan, "triton_kernels", lambda device: ranking)
    if ranking.INTERPRETED:
        monkeypatch.setattr(Triton, "tile_shape", lambda self, query: (32, 64))


def whole(n, dim, seed, levels=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels + 1, (n, dim), generator=generator).float().to(DEVICE)


def to_cpu(packed):
    return plain.Packed(packed.data.cpu(), packed.stats.cpu(), packed.n, packed.kind)


@pytest.mark.parametrize("cosine", [False, True], ids=["plain", "cosine"])
@pytest.mark.parametrize("kind", ranking.KINDS)
def test_pack(kind, cosine):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 70, generator=generator) * torch.tensor([1e-20, 1e-3, 1, 3, 1e4, 1e15, 1])[:, None]
    x[6] = 0
    centre = torch.randn(70, generator=generator) * 0.1
    rows = torch.tensor([6, 0, 5, 5, 2, 4, 3, 1])
    for index in (None, rows):
        got = ranking.pack(x.to(DEVICE), None if index is None else index.to(DEVICE), cosine, kind, centre.to(DEVICE))
        want = plain.pack(x, index, cosine, kind, centre)
        got = to_cpu(got)
        assert got.n == want.n and got.data.shape == want.data.shape and got.data.dtype == want.data.dtype
        if cosine or kind.endswith("low"):  # the root of the norm, or the order of a sum: a unit of the last place
            torch.testing.assert_close(
                got.data.float(), want.data.float(), rtol=8e-3 if "bf16" in kind else 1e-3, atol=1e-7
            )
        else:
            assert torch.equal(got.data, want.data)
        torch.testing.assert_close(got.stats, want.stats, rtol=1e-5, atol=1e-9)


def test_pack_reads_any_strides_and_half():
    x = torch.randn(5, 80, dtype=torch.float16, device=DEVICE).float().half()
    packed = ranking.pack(x[:, ::2], None, False, "float32")
    assert torch.equal(packed.data[0, :5, :40], x[:, ::2].float()) and not bool(packed.data[0, 5:].any())


@pytest.mark.parametrize("kind,metric", [("float32", 0), ("float32", 1), ("tf32x3", 2), ("bf16", 3)])
def test_dense_and_pair_tiles(kind, metric):
    x, y = whole(37, 40, 0), whole(45, 40, 1)
    q, g = (ranking.pack(t, None, metric == 0, kind) for t in (x, y))
    want = plain.dense(to_cpu(q), to_cpu(g), metric)
    got = ranking.dense(q, g, metric).cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=0 if metric else 3e-7)
    q_index, g_index = torch.randint(0, 37, (2 * ranking.TILE,)), torch.randint(0, 45, (ranking.TILE + 5,))
    starts = torch.tensor([0, ranking.TILE, 7]), torch.tensor([3, 0, 5])
    args = (q_index, g_index, *starts)
    got = ranking.pair_tiles(q, g, metric, *(t.to(DEVICE) for t in args)).cpu()
    torch.testing.assert_close(
        got, plain.pair_tiles(to_cpu(q), to_cpu(g), metric, *args), rtol=0, atol=0 if metric else 3e-7
    )


def problem(queries, gallery, dim, metric, kind, seed=0, most=3):
    """Packed integers, and thresholds among the distances of random columns."""
    x, y = whole(queries, dim, seed), whole(gallery, dim, seed + 1)
    q, g = (ranking.pack(t, None, False, kind) for t in (x, y))
    d = plain.dense(to_cpu(q), to_cpu(g), metric)
    rng = np.random.default_rng(seed)
    rows = q.data.shape[1]
    sizes = np.zeros(rows, np.int64)
    sizes[:queries] = rng.integers(0, most + 1, queries)
    values, columns = [], []
    for i in range(queries):
        mine = rng.choice(gallery, sizes[i], replace=False)
        order = np.lexsort((mine, d[i, mine]))
        values.append(d[i, mine[order]])
        columns.append(torch.from_numpy(mine[order] + 1000))
    ptr = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]))
    q_id, g_id = torch.from_numpy(rng.integers(0, 9, rows)), torch.from_numpy(rng.integers(0, 9, g.data.shape[1]))
    total = int(ptr[-1])
    table = [t.to(DEVICE) for t in (ptr, torch.cat(values), torch.cat(columns), q_id, torch.zeros(3, total).long())]
    return q, g, ranking.Table(*table), g_id.to(DEVICE)


def on_cpu(table):
    return plain.Table(*(t.cpu().clone() for t in (table.ptr, table.values, table.columns, table.q_id, table.counts)))


@pytest.mark.parametrize("kind,metric", [("float32", 2), ("tf32x3", 1), ("bf16", 3)])
def test_counts(kind, metric):
    q, g, table, g_id = problem(20, 40, 12, metric, kind)
    want = on_cpu(table)
    plain.count(to_cpu(q), to_cpu(g), metric, want, g_id.cpu(), 1000)
    for _ in range(2):  # adds
        ranking.count(q, g, metric, table, g_id, 1000)
    assert torch.equal(table.counts.cpu(), 2 * want.counts)
    assert bool((want.counts > 0).any(1).all())  # closer ones, ties, ties at a lower column


def test_nan_counts_for_nothing():
    q, g, table, g_id = problem(20, 30, 12, 2, "float32")
    g.data[0, 5, 3], q.data[0, 2, 1] = torch.nan, torch.nan
    want = on_cpu(table)
    plain.count(to_cpu(q), to_cpu(g), 2, want, g_id.cpu(), 1000)
    ranking.count(q, g, 2, table, g_id, 1000)
    mine = slice(int(table.ptr[2]), int(table.ptr[3]))
    assert torch.equal(table.counts.cpu(), want.counts) and not bool(want.counts[:, mine].any())


@pytest.mark.parametrize("kind,metric", [("tf32_low", 1), ("bf16_low", 2)])
def test_first_pass_and_recheck(monkeypatch, metric, kind):
    monkeypatch.setattr(plain, "ADVERSE", 0)
    monkeypatch.setattr(ranking, "_WORDS", 3)
    q, g, table, g_id = problem(9, 40, 40, metric, "float32", most=2)
    x, y = (p.data[0, : p.n, :40].contiguous() for p in (q, g))
    centre = y.mean(0)
    low_q, low_g = (ranking.pack(t, None, False, kind, centre) for t in (x, y))
    terms = certified.error_terms(low_q.stats, low_g.stats, centre, 40, ranking.CHUNK, metric)
    want, exact = on_cpu(table), on_cpu(table)
    wanted = plain.low_count(
        to_cpu(low_q), to_cpu(low_g), metric, terms.q.cpu(), terms.g.cpu(), terms.slope, want, g_id.cpu()
    )
    row, column = ranking.low_count(low_q, low_g, metric, terms.q, terms.g, terms.slope, table, g_id)
    assert set(zip(*(t.tolist() for t in wanted), strict=True)) == set(zip(row.tolist(), column.tolist(), strict=True))
    assert torch.equal(table.counts.cpu(), want.counts) and len(row) > 0
    plain.count(to_cpu(q), to_cpu(g), metric, exact, g_id.cpu(), 1000)
    ranking.recheck(q, g, metric, row, column, table, 1000)
    assert torch.equal(table.counts.cpu(), exact.counts)


@pytest.mark.parametrize("queries,gallery,k", [(5, 40, 7), (3, 140, 3), (3, 33, 33), (1, 1, 1)])
def test_nearest(queries, gallery, k, metric=2):
    x, y = whole(queries, 5, 7), whole(gallery, 5, 8)
    q, g = (ranking.pack(t, None, False, "float32") for t in (x, y))
    d, row = (t.cpu() for t in ranking.nearest(q, g, metric, k))
    exact = plain.dense(to_cpu(q), to_cpu(g), metric).numpy()
    for i in range(queries):
        found = sorted((float(v), int(c)) for v, c in zip(d[i], row[i], strict=True) if c >= 0)[:k]
        order = np.argsort(exact[i], kind="stable")[:k]
        assert found == [(float(exact[i, c]), int(c)) for c in order]


@pytest.mark.parametrize("precision", ["tf32x3", "certified"])
def test_rank(on_kernels, monkeypatch, precision):
    rng = np.random.default_rng(2)
    x, y = whole(12, 20, 3), whole(34, 20, 4)
    labels = [rng.integers(0, 9, 12), rng.integers(-1, 9, 34), rng.integers(0, 3, 12), rng.integers(0, 3, 34)]
    got = rank(x, y, *labels, metric="sqeuclidean", precision=precision)
    monkeypatch.undo()
    want = rank(x.cpu(), y.cpu(), *labels, metric="sqeuclidean")
    for name in want._fields[:-1]:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    assert (got.ambiguous > 0) == (precision == "certified")


def test_search_and_its_exclusions(on_kernels, monkeypatch):
    x, y = whole(18, 6, 5), whole(60, 6, 6)
    exclude = [np.arange(i % 4) * 3 for i in range(len(x))]
    got = search(x, [y[:20], y[20:]], 9, metric="sqeuclidean", exclude=exclude)
    few = search(x[:1], y[:4], 4, metric="sqeuclidean", exclude=[[0, 2]])
    monkeypatch.undo()
    want = search(x.cpu(), y.cpu(), 9, metric="sqeuclidean", exclude=exclude)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    want = search(x[:1].cpu(), y[:4].cpu(), 4, metric="sqeuclidean", exclude=[[0, 2]])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(few, want, strict=True))
    assert few[1][0, 2:].tolist() == [-1, -1]


def test_search_shows_what_rank_compares(on_kernels, monkeypatch):
    """All of evaluation multiplies by the same kernels: k beyond the kernel's lists goes through tiles of distances."""
    monkeypatch.setattr(ranking, "MAX_K", 30)
    x, y = whole(5, 6, 5), whole(33, 6, 6)
    d, index = search(x, y, len(y), metric="sqeuclidean")
    want = plain.dense(*(plain.pack(t.cpu(), None, False, "float32") for t in (x, y)), 2)
    assert torch.equal(d.cpu(), want.sort(1).values)
    assert torch.equal(index.cpu(), want.sort(dim=1, stable=True).indices)


def kernel_cases(precision):
    """The kernels as they are launched for rows of 2048 columns."""
    name, kind = {"ieee": ("fp32", "float32"), "tf32": ("fp32", "tf32x3"), "bf16": ("bf16", "bf16")}[precision]
    rows = {"q": f"*{name}", "g": f"*{name}"}
    squares = {"q_square": "*fp32", "g_square": "*fp32"}
    sizes = {"q_plane": "i64", "g_plane": "i64", "dim": "i32"}
    across = {"across_m": "i32", "across_n": "i32"}
    lists = {n: "*i64" for n in ("q_id", "g_id", "ptr", "columns", "counts")} | {"values": "*fp32"}
    options = {"METRIC": 2, "TILE": 128, "CHUNK": 256, "SEGMENTS": 3 if kind == "tf32x3" else 1, "BLOCK_K": 32}
    options["PRECISION"] = "tf32" if precision == "tf32" else "ieee"
    wide = ("q", "g", "dim", "q_plane", "g_plane", "q_square", "g_square")
    of = "reidfast.ops.triton.ranking"
    tail = {"rows": "i32", "first": "i64", "total": "i32"}
    yield Aot(of, "count_kernel", rows | squares | lists | tail | sizes | across, options, 8, 3, wide)
    pairs = {n: "*i64" for n in ("q_index", "g_index", "q_tile", "g_tile")} | {"out": "*fp32"}
    yield Aot(of, "pair_tiles_kernel", rows | squares | pairs | sizes, options, 8, 3, wide)
    if precision != "ieee":
        terms = {"q_terms": "*fp32", "g_terms": "*fp32", "bits": "*i32", "slope": "fp32"}
        tail = {n: "i32" for n in ("rows", "words", "q_ld", "g_ld")}
        some = {n: t for n, t in lists.items() if n != "columns"}
        low = options | {"SEGMENTS": 1}
        yield Aot(of, "low_kernel", rows | terms | some | tail | sizes | across, low, 8, 3, (*wide[:5], "q_terms"))
        return
    where = {"out": "*fp32", "rows": "i32", "columns": "i32", "ld": "i32"}
    yield Aot(of, "dense_kernel", rows | squares | where | sizes | across, options, 8, 3, wide)
    groups = {n: "*i64" for n in ("group_query", "group_begin", "pair_ptr", "pair_row")}
    some = {n: t for n, t in lists.items() if not n.endswith("id")}
    one = {"METRIC": 2, "GROUP": 32, "CHUNK": 256, "BLOCK_K": 32}
    tail = {"first": "i64", "total": "i32", "dim": "i32"}
    recheck = rows | squares | groups | some | tail
    yield Aot(of, "recheck_kernel", recheck, one, 1, 3, ("q", "g", "dim"))
    best = {"best": "*fp32", "best_row": "*i32", "farthest": "*fp32"} | {
        n: "i32" for n in ("queries", "rows", "piece", "blocks", "dim")
    }
    keep = {"METRIC": 2, "FARTHEST": True, "K": 20, "K2": 32, "HEIGHT": 64, "TILE": 128, "CHUNK": 256, "BLOCK_K": 32}
    yield Aot(of, "nearest_kernel", rows | squares | best, keep, 8, 3, ("q", "g", "dim"))
    x = {"x": "*fp32", "index": "*i64", "centre": "*fp32", "out": "*fp32", "stats": "*fp64"}
    x |= {n: "i32" for n in ("n", "dim", "padded", "x_row", "stats_ld")} | {"plane": "i64"}
    for kind, gather in ((0, False), (3, True)):
        how = {"GATHER": gather, "COSINE": True, "KIND": kind, "BLOCK": 1024, "x_col": 1}
        yield Aot(of, "pack_kernel", x, how, 4, 3, ("x", "out", "dim", "padded", "x_row"))


def check_machine_code(precision, architectures):
    built = compile_all(list(kernel_cases(precision)), architectures)
    assert {b.architecture for b in built} == set(architectures)
    spilling = [b for b in built if b.spills > ALLOWED.get((b.kernel, b.architecture), 8)]
    assert not spilling, spilling
    assert all(b.shared <= 163 * 1024 for b in built), built  # what a program may have on sm_80
    if precision != "ieee":
        assert all(b.mma or b.wgmma or b.tcgen05 for b in built)
        assert all(b.wgmma for b in built if b.architecture == 90)


# Bytes spilled per thread, where more than 8. Float32 tiles hold two sums and both operands in registers; but
# for Hopper, for which the tiles are chosen, what spills is the epilogue: once a tile, not once a step of the product.
ALLOWED = {(kernel, 90): 96 for kernel in ("count_kernel", "pair_tiles_kernel", "dense_kernel")}
ALLOWED |= {(kernel, 80): 96 for kernel in ("count_kernel", "pair_tiles_kernel", "dense_kernel", "nearest_kernel")}
ALLOWED |= {(kernel, 100): 104 for kernel in ("count_kernel", "pair_tiles_kernel", "low_kernel")}
ALLOWED[("low_kernel", 80)] = 240


@pytest.mark.parametrize("precision", ["tf32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("ieee", "bf16"))])
def test_compiles_for_hopper(precision):
    check_machine_code(precision, [90])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_compiles_for_its_neighbours(precision):
    check_machine_code(precision, [80, 100])
