# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""memory_match against its float64 reference: values, both gradients, ties, extremes, files, errors."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation
from torch.nn.functional import normalize

import reidfast
from reidfast.ops import memory_match
from reidfast.ops.reference.memory_match import memory_match as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

METRICS = ("sqeuclidean", "dot")
SHAPES = [  # M (0: the 2-D form), B, N, d: one, odd, past a tile, past a chunk, past a block of queries
    ((0, 1, 1, 1), 1),
    ((2, 3, 5, 7), 3),
    ((6, 40, 700, 64), 10),
    ((1, 5, 9001, 33), 4),
    ((0, 131, 600, 300), 7),
]
OP = reidfast.implementations("memory_match")["native"]
impl = every_implementation("memory_match")
kernel = every_implementation("memory_match", reference=False)


def floor(dtype):
    """In float64 the reference is the truth itself, so that its error, zero, is no yardstick."""
    return 512 if dtype == torch.float64 else 4


def problem(shape, dtype=torch.float64, seed=0, unit=True):
    parts, queries, rows, dim = shape
    generator = torch.Generator().manual_seed(seed)
    lead = (parts,) if parts else ()
    x = torch.randn(*lead, queries, dim, generator=generator, dtype=torch.float64)
    bank = torch.randn(*lead, rows, dim, generator=generator, dtype=torch.float64)
    if unit:
        x, bank = normalize(x, dim=-1), normalize(bank, dim=-1)
    exclude = torch.randint(-1, rows, (queries,), generator=generator)
    return x.to(dtype), bank.to(dtype), exclude


def run(function, x, bank, k, scale, metric, exclude, seed=1):
    """Both outputs that have gradients, and the gradients of x and of the bank for random upstream gradients."""
    x, bank = x.detach().requires_grad_(), bank.detach().requires_grad_()
    lse, logits, _ = function(x, bank, k, scale, metric, exclude)
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(out.shape, generator=generator).to(out) for out in (lse, logits)]
    return (lse, logits, *torch.autograd.grad((lse, logits), (x, bank), grads))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("shape,k", SHAPES, ids=shape_id)
def test_matches_reference(kernel, shape, k, dtype, metric):
    x, bank, exclude = problem(shape, dtype)
    exclude = None if shape[2] == 1 else exclude
    args = (k, 9.0, metric, exclude)
    exact, eager = run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args)
    assert_no_worse(run(kernel, x, bank, *args), exact, eager, ulps=floor(dtype))
    got, truth = kernel(x, bank, *args), reference(x.double(), bank.double(), *args)
    assert got[0].dtype == got[1].dtype == torch.promote_types(dtype, torch.float32) and got[2].dtype == torch.int64
    gap = truth[1][..., :-1] - truth[1][..., 1:]  # indices equal where the order is clear
    clear = torch.ones_like(truth[2], dtype=torch.bool)
    clear[..., 1:] &= gap > 1e-3
    clear[..., :-1] &= gap > 1e-3
    clear[..., -1] = False
    assert torch.equal(got[2].cpu()[clear], truth[2][clear])


@pytest.mark.parametrize("metric", METRICS)
def test_best_rows_are_exact_for_near_duplicates(metric):
    bank = normalize(torch.randn(500, 64), dim=-1) * 30
    x = bank[:20] + 1e-4 * torch.randn(20, 64)
    found = memory_match(x, bank, 1, scale=15.0, metric=metric)
    exact = reference(x.double(), bank.double(), 1, 15.0, metric, None)
    if metric == "sqeuclidean":
        assert torch.equal(found.topk_indices[:, 0], torch.arange(20))
    torch.testing.assert_close(found.topk_logits.double(), exact[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.logsumexp.double(), exact[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("rows", [40, 300, 9000])
def test_ties_go_to_the_lowest_row(impl, rows, metric):
    generator = torch.Generator().manual_seed(rows)
    distinct = torch.randint(-2, 3, (7, 6), generator=generator).double()
    which = torch.randint(0, 7, (rows,), generator=generator)
    x = torch.randint(-2, 3, (9, 6), generator=generator).double()
    got = impl(x, distinct[which], 20, 1.0, metric, None)
    logits = -(x[:, None] - distinct[which]).square().sum(-1) if metric == "sqeuclidean" else x @ distinct[which].T
    order = torch.from_numpy(numpy.argsort(-logits.numpy(), axis=1, kind="stable"))[:, :20]
    assert torch.equal(got[2].cpu(), order)
    assert torch.equal(got[1].cpu(), logits.gather(1, order))


@pytest.mark.parametrize("dim", [5, 64, 256, 700])
def test_equal_rows_tie_wherever_they_stand(dim):
    """Real-valued duplicates: their logits have equal bits in any tile, so that the lowest row is found."""
    row = normalize(torch.randn(1, dim), dim=-1)
    bank = normalize(torch.randn(9500, dim), dim=-1)
    spots = torch.tensor([3, 255, 256, 700, 4100, 4101, 8191, 9499])
    bank[spots] = row
    found = memory_match(row + 1e-3 * torch.randn(40, dim), bank, 5, scale=10.0)
    assert torch.equal(found.topk_indices, spots[:5].expand(40, 5))


def test_every_row_asked_for(impl):
    x, bank, exclude = problem((2, 4, 50, 8))
    lse, logits, rows = impl(x, bank, 50, 3.0, "sqeuclidean", None)
    assert torch.equal(rows.cpu().sort(-1).values, torch.arange(50).expand(2, 4, 50))
    torch.testing.assert_close(logits.logsumexp(-1), lse)
    assert_no_worse((lse, logits, rows), reference(x, bank, 50, 3.0, "sqeuclidean", None), (lse, logits, rows), ulps=64)
    exclude[:] = torch.tensor([0, 49, 7, 7])
    rows = impl(x, bank, 49, 3.0, "sqeuclidean", exclude)[2].cpu()
    assert not bool((rows == exclude[:, None]).any())


@pytest.mark.parametrize("scale", [0.0, -4.0, 1e-6, 300.0, 1e6])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale_is_safe(impl, scale, metric):
    x, bank, exclude = problem((0, 6, 400, 16), torch.float32)
    args = (3, scale, metric, exclude)
    got = run(impl, x, bank, *args)
    assert all(bool(t.isfinite().all()) for t in got)
    if scale < 1e6:  # beyond, float32 inputs say nothing about which row is nearer
        assert_no_worse(got, run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args))


def test_nan_and_infinite_rows(impl):
    x, bank, _ = problem((0, 4, 30, 5), torch.float32)
    bank[7, 2] = torch.nan
    lse, logits, rows = (t.cpu() for t in impl(x, bank, 3, 1.0, "sqeuclidean", None))
    assert bool(lse.isnan().all())
    lse = impl(x, bank, 3, 1.0, "sqeuclidean", torch.tensor([7, 7, -1, 7]))[0].cpu()  # an excluded NaN does no harm
    assert lse.isnan().tolist() == [False, False, True, False]
    x[1, 0] = torch.nan
    bank[7, 2] = 0
    assert impl(x, bank, 3, 1.0, "dot", None)[0].isnan().tolist() == [False, True, False, False]


def test_nan_rows_rank_last():
    x, bank, _ = problem((0, 4, 30, 5), torch.float32)
    bank[7, 2] = torch.nan
    found = memory_match(x, bank, 29, scale=1.0)
    assert not bool((found.topk_indices == 7).any()) and bool(found.topk_logits.isfinite().all())
    assert memory_match(x, bank, 30, scale=1.0).topk_indices[:, 29].tolist() == [-1] * 4


def test_indices_overwritten_before_backward_are_refused():
    """numpy writes past the version counter; the gradient still never reads outside the bank."""
    x, bank, _ = problem((2, 4, 30, 5), torch.float32)
    for needs in ((True, False), (False, True), (True, True)):
        found = memory_match(x.clone().requires_grad_(needs[0]), bank.clone().requires_grad_(needs[1]), 3, scale=1.0)
        found.topk_indices.numpy()[...] = 10**12
        with pytest.raises(IndexError, match="memory_match_backward: expected indices"):
            found.topk_logits.sum().backward()


def test_empty_inputs(impl):
    lse, logits, rows = impl(torch.zeros(0, 3), torch.ones(5, 3), 2, 1.0, "dot", None)
    assert lse.shape == (0,) and logits.shape == rows.shape == (0, 2)
    assert impl(torch.zeros(0, 4, 3), torch.ones(0, 5, 3), 2, 1.0, "dot", None)[1].shape == (0, 4, 2)
    lse, logits, rows = impl(torch.zeros(2, 0), torch.ones(5, 0), 2, 1.0, "sqeuclidean", None)
    torch.testing.assert_close(lse.cpu(), torch.full((2,), 5.0).log())
    assert rows.tolist() == [[0, 1], [0, 1]]
    x = torch.zeros(0, 3, requires_grad=True)
    bank = torch.ones(5, 3, requires_grad=True)
    impl(x, bank, 2, 1.0, "dot", None)[0].sum().backward()
    assert x.grad.shape == (0, 3) and torch.equal(bank.grad, torch.zeros(5, 3))


def test_half_beside_float32():
    x, bank, exclude = problem((2, 9, 300, 24), torch.float32)
    for a, b in ((torch.bfloat16, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.bfloat16)):
        args = (5, 4.0, "sqeuclidean", exclude)
        got = run(OP, x.to(a), bank.to(b), *args)
        assert got[0].dtype == torch.float32 and got[2].dtype == a and got[3].dtype == b
        exact = run(reference, x.to(a).double(), bank.to(b).double(), *args)
        assert_no_worse(got, exact, run(reference, x.to(a), bank.to(b), *args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert memory_match(x.bfloat16(), bank, 3, scale=2.0).logsumexp.dtype == torch.float32


def test_gradient_only_where_asked():
    x, bank, _ = problem((0, 3, 12, 4))
    for needs in ((True, False), (False, True)):
        a, b = x.clone().requires_grad_(needs[0]), bank.clone().requires_grad_(needs[1])
        found = memory_match(a, b, 3, scale=2.0)
        (found.logsumexp.sum() + found.topk_logits.sum()).backward()
        assert [a.grad is not None, b.grad is not None] == list(needs)
    a = x.clone().requires_grad_()
    memory_match(a, bank, 3, scale=2.0).topk_logits[..., 0].sum().backward()  # one output alone
    rows = memory_match(x, bank, 1, scale=2.0).topk_indices[:, 0]
    torch.testing.assert_close(a.grad, 4.0 * (bank[rows] - x))


def test_bank_changed_before_backward_is_noticed():
    x, bank, _ = problem((0, 3, 12, 4))
    found = memory_match(x.requires_grad_(), bank, 3, scale=2.0)
    reidfast.ops.memory_update_(bank, torch.tensor([1]), x[:1].detach(), momentum=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.topk_logits.sum().backward()


@settings(deadline=None, max_examples=40)
@given(
    parts=st.integers(0, 3),
    queries=st.integers(0, 9),
    rows=st.integers(2, 700),
    dim=st.integers(1, 40),
    share=st.floats(0, 1),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
    metric=st.sampled_from(METRICS),
    scale=st.sampled_from([0.0, 0.1, 5.0, 300.0]),
    repeats=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_property(parts, queries, rows, dim, share, dtype, metric, scale, repeats, seed):
    x, bank, exclude = problem((parts, queries, rows, dim), dtype, seed)
    if repeats:
        bank = bank[..., torch.arange(rows) % max(1, rows // 3), :]
    args = (max(1, round(share * (rows - 1))), scale, metric, exclude)
    exact, eager = run(reference, x.double(), bank.double(), *args), run(reference, x, bank, *args)
    got = run(OP, x, bank, *args)
    assert_no_worse(got[:2], exact[:2], eager[:2], ulps=max(16, floor(dtype)), terms=1.0)  # exponentials up to 1
    rows_found = OP(x, bank, *args)[2]
    assert rows_found.sort(-1).values.diff(dim=-1).gt(0).all() and not bool((rows_found == exclude[:, None]).any())


def test_memory_does_not_grow_with_the_bank():
    setup = (
        "x, w = torch.randn(2, 40, 256), torch.randn(2, {rows}, 256)\nreidfast.ops.memory_match(x, w, 10, scale=1.0)"
    )
    call = "reidfast.ops.memory_match(x.requires_grad_(), w, 10, scale=1.0).logsumexp.sum().backward()"
    small, large = (peak_memory(setup.format(rows=rows), call) for rows in (20_000, 80_000))
    assert large < small + 4 * 2**20 and large < 24 * 2**20, f"{small / 2**20:.1f} and {large / 2**20:.1f} MiB"


def test_bank_in_a_file(tmp_path):
    path = tmp_path / "bank.f32"
    rows = normalize(torch.randn(3000, 32), dim=-1)
    numpy.asarray(rows).tofile(path)
    x = normalize(torch.randn(7, 32), dim=-1)
    want = memory_match(x, rows, 5, scale=4.0)
    read_only = numpy.memmap(path, dtype=numpy.float32, mode="r", shape=(3000, 32))
    mapped = torch.from_file(str(path), size=3000 * 32).view(3000, 32)
    for bank in (read_only, mapped):
        assert all(torch.equal(a, b) for a, b in zip(memory_match(x, bank, 5, scale=4.0), want, strict=True))


def test_bank_in_a_file_is_not_copied():
    setup = """
        import numpy, tempfile
        file = tempfile.NamedTemporaryFile()
        file.truncate(200_000 * 128 * 4)
        bank, x = numpy.memmap(file.name, dtype=numpy.float32, mode="r", shape=(200_000, 128)), torch.randn(8, 128)
        reidfast.ops.memory_match(x, bank[:5000], 3, scale=1.0)
        def anonymous():
            with open("/proc/self/status") as lines:
                return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
        before = anonymous()
    """
    call = """
        reidfast.ops.memory_match(x, bank, 3, scale=1.0)
        grown = anonymous() - before
        assert grown < 16 * 2**20, f"{grown / 2**20:.1f} MiB of memory that is not the file's"
    """
    peak_memory(setup, call)


X, W = torch.randn(2, 4, 3), torch.randn(2, 9, 3)
BAD = [
    ((X.numpy(), W, 2), {}, TypeError, "x to be a torch.Tensor"),
    ((X.long(), W, 2), {}, TypeError, "x of dtype float32"),
    ((X[0], W, 2), {}, ValueError, r"got \(4, 3\) and \(2, 9, 3\)"),
    ((X[:1], W, 2), {}, ValueError, "same M and d"),
    ((X, W[..., :2], 2), {}, ValueError, r"\(2, 9, 2\)"),
    ((X[0, 0], W[0, 0], 2), {}, ValueError, r"expected x \(M, B, d\)"),
    ((X, W, 0), {}, ValueError, "k from 1 to .*got k=0"),
    ((X, W, 10), {}, ValueError, r"N=9\), got k=10"),
    ((X, W, 2.0), {}, TypeError, "k to be an integer"),
    ((X, W, 9), {"exclude": torch.tensor([-1, -1, 3, -1])}, ValueError, "usable rows .*8 of N=9.*k=9"),
    ((X, W, 2), {"exclude": torch.tensor([0, 1, 2])}, ValueError, r"shape \(B,\) with B=4, got \(3,\)"),
    ((X, W, 2), {"exclude": torch.tensor([0, 1, 2, 3], dtype=torch.int32)}, TypeError, "exclude of dtype int64"),
    ((X, W, 2), {"exclude": torch.tensor([0, 1, 2, 9])}, ValueError, "exclude from -1 to N-1=8"),
    ((X, W, 2), {"exclude": torch.tensor([0, 1, 2, -2])}, ValueError, "exclude from -1 to N-1=8"),
    ((X, W, 2), {"metric": "cosine"}, ValueError, "'sqeuclidean', 'dot', got 'cosine'"),
    ((X, W, 2), {"scale": float("inf")}, ValueError, "finite scale, got inf"),
    ((X, W, 2), {"scale": torch.tensor(1.0)}, TypeError, r"pass float\(scale\)"),
    ((X, W.to("meta"), 2), {}, ValueError, "device"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("args,options,error,words", BAD)
def test_rejects(args, options, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        memory_match(*args, **{"scale": 1.0} | options)
