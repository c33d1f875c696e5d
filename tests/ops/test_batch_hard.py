# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""batch_hard against its float64 reference and a plain double loop: ties, near duplicates, missing pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast import implementations
from reidfast.ops import batch_hard
from reidfast.ops.reference.batch_hard import batch_hard as reference
from reidfast.testing import FLOATS, assert_no_worse, make_embeddings, peak_memory, shape_id

SHAPES = [(4, 1), (8, 3), (63, 130), (64, 512), (96, 2048), (300, 40)]  # one, odd, past a chunk, real, several tiles
impl = every_implementation("batch_hard")


def double_loop(x, labels):
    """Hardest pairs by looking at every pair in float64."""
    x, labels = x.double().tolist(), labels.tolist()
    out = []
    for i, a in enumerate(x):
        ap, an = (-math.inf, -1), (math.inf, -1)
        for j, b in enumerate(x):
            d = math.dist(a, b)
            if labels[i] != labels[j] and d < an[0]:
                an = d, j
            if labels[i] == labels[j] and i != j and d > ap[0]:
                ap = d, j
        out.append((ap[0], an[0], ap[1], an[1]))
    d_ap, d_an, i_ap, i_an = zip(*out, strict=True)
    return [torch.tensor(d, dtype=torch.float64) for d in (d_ap, d_an)] + [torch.tensor(i) for i in (i_ap, i_an)]


def run(function, x, labels, *grads):
    x = x.detach().requires_grad_()
    out = function(x, labels)
    return (*out, *torch.autograd.grad(out[:2], x, [g.to(o) for g, o in zip(grads, out, strict=False)]))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows,dim", SHAPES, ids=shape_id)
def test_matches_reference(impl, rows, dim, dtype):
    x, labels = make_embeddings(rows, dim, dtype, seed=rows)
    g_ap, g_an = torch.randn(rows).to(dtype), torch.randn(rows).to(dtype)
    exact = run(reference, x.double(), labels, g_ap, g_an)
    got, eager = run(impl, x, labels, g_ap, g_an), run(reference, x, labels, g_ap, g_an)
    assert got[0].dtype == got[1].dtype == torch.promote_types(dtype, torch.float32)
    assert_no_worse(got, exact, eager)


def test_equals_double_loop(impl):
    for sizes in ([1, 1, 1], [5], [1, 7, 2, 3], [20, 1, 9]):
        labels = torch.cat([torch.full((n,), 7 * k - 3) for k, n in enumerate(sizes)])
        labels = labels[torch.randperm(len(labels))]
        x = torch.randn(len(labels), 6, dtype=torch.float64)
        for got, want in zip(impl(x, labels), double_loop(x, labels), strict=True):
            torch.testing.assert_close(got.cpu(), want.to(got.dtype), rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 90), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_ties_pick_lowest_index(rows, dim, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (rows, dim), generator=generator).float()
    labels = torch.randint(0, classes, (rows,), generator=generator)
    want = double_loop(x, labels)
    for function in implementations("batch_hard").values():
        got = function(x, labels)
        assert got[2].tolist() == want[2].tolist() and got[3].tolist() == want[3].tolist()
        torch.testing.assert_close(got[0].double(), want[0].double())


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_near_duplicates_stay_exact(offset):
    # ||x||^2 - 2<x,y> + ||y||^2 in float32 knows nothing of distances of 1e-4 beside norms of 1e3 * sqrt(D)
    generator = torch.Generator().manual_seed(3)
    x = offset + torch.round(torch.randn(1, 512, generator=generator, dtype=torch.float64) * 64) / 64
    x = (x + torch.randint(-8, 9, (80, 512), generator=generator) / 2**13).float()  # exact in float32
    labels = torch.arange(80) // 4
    got, want = batch_hard(x, labels), reference(x.double(), labels)
    torch.testing.assert_close(got.d_ap.double(), want[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(got.d_an.double(), want[1], rtol=2e-6, atol=0)
    assert torch.equal(got.i_ap, want[2]) and torch.equal(got.i_an, want[3])


def test_self_is_never_a_positive(impl):
    x = torch.zeros(130, 33)
    d_ap, d_an, i_ap, i_an = (t.cpu() for t in impl(x, torch.arange(130) // 2))
    assert d_ap.abs().max() == 0 and d_an.abs().max() == 0
    assert torch.equal(i_ap, torch.arange(130) ^ 1)
    assert i_an[:4].tolist() == [2, 2, 0, 0]


def test_missing_pairs(impl):
    x = torch.randn(5, 3, requires_grad=True)
    d_ap, d_an, i_ap, i_an = impl(x, torch.arange(5))  # no positives
    assert (d_ap == -math.inf).all() and (i_ap == -1).all() and (i_an >= 0).all()
    (grad,) = torch.autograd.grad(d_ap.sum() + d_an.sum(), x)
    (an_only,) = torch.autograd.grad(impl(x, torch.arange(5))[1].sum(), x)
    assert torch.equal(grad, an_only)
    d_ap, d_an, i_ap, i_an = impl(x, torch.ones(5, dtype=torch.int64))  # no negatives
    assert (d_an == math.inf).all() and (i_an == -1).all() and (i_ap >= 0).all()
    assert torch.equal(torch.autograd.grad(d_an.sum(), x)[0], torch.zeros_like(x))


def test_empty_and_single(impl):
    x = torch.randn(0, 4, requires_grad=True)
    out = impl(x, torch.zeros(0, dtype=torch.int64))
    assert [t.shape for t in out] == [(0,)] * 4
    assert torch.autograd.grad(out[0].sum() + out[1].sum(), x)[0].shape == (0, 4)
    d_ap, d_an, i_ap, i_an = impl(torch.randn(1, 4), torch.tensor([3]))
    assert (d_ap.item(), d_an.item(), i_ap.item(), i_an.item()) == (-math.inf, math.inf, -1, -1)
    d_ap, _, _, i_an = impl(torch.randn(4, 0), torch.tensor([0, 0, 1, 1]))
    assert d_ap.tolist() == [0.0] * 4 and i_an.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("indices", ["i_ap", "i_an"])
@pytest.mark.parametrize("value", [10**12, -(10**12), 12])
def test_indices_overwritten_before_backward_are_refused(indices, value):
    """numpy writes past the version counter; the gradient still never reads outside the batch."""
    x, labels = make_embeddings(12, 4, seed=1)
    hard = batch_hard(x.requires_grad_(), labels)
    getattr(hard, indices).numpy()[...] = value
    with pytest.raises(IndexError, match="batch_hard"):
        (hard.d_ap.sum() + hard.d_an.sum()).backward()


def test_gradient_at_distance_zero_is_finite(impl):
    x = torch.ones(6, 4, requires_grad=True)
    out = impl(x, torch.arange(6) // 2)
    (grad,) = torch.autograd.grad(out[0].sum() - out[1].sum(), x)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_nan_is_not_hidden(impl):
    x, labels = make_embeddings(100, 40, seed=1)
    x[17, 3] = math.nan
    d_ap, d_an, i_ap, i_an = (t.cpu() for t in impl(x, labels))
    want = [t for t in reference(x.double(), labels)]
    assert torch.equal(d_ap.isnan(), want[0].isnan()) and torch.equal(d_an.isnan(), want[1].isnan())
    assert torch.equal(i_ap, want[2]) and torch.equal(i_an, want[3])


def test_overflow_still_chooses_a_valid_pair(impl):
    x = torch.full((40, 64), 3e38) * torch.randn(40, 64).sign()
    d_ap, d_an, i_ap, i_an = (t.cpu() for t in impl(x, torch.arange(40) // 4))
    assert (d_an == math.inf).all() and ((i_an // 4) != (torch.arange(40) // 4)).all() and (i_an >= 0).all()
    assert (d_ap == math.inf).all() and (i_ap >= 0).all()


def test_strides_and_label_dtypes(impl):
    base, labels = make_embeddings(66, 150, torch.float64, seed=2)
    for x in (base.t().contiguous().t(), base[::2][:33].repeat_interleave(2, 0), base[:, 5:101], base[:, ::3]):
        torch.testing.assert_close(impl(x, labels[: len(x)]), tuple(reference(x, labels[: len(x)])), check_device=False)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(batch_hard(base, labels.to(dtype)).i_an, batch_hard(base, labels).i_an)


def test_large_labels_do_not_collide():
    x = torch.randn(70, 30)
    labels = torch.arange(70) // 2
    assert torch.equal(batch_hard(x, labels * 2**32 - 2**62).i_an, batch_hard(x, labels).i_an)


def test_memory_does_not_grow_with_the_square():
    peak = peak_memory(
        "x, y = torch.randn(6000, 16), torch.arange(6000) // 4; reidfast.ops.batch_hard(x[:300], y[:300])",
        "reidfast.ops.batch_hard(x, y)",
    )
    assert peak < 16 << 20  # the full matrix would be 144 MB


BAD = [
    (torch.ones(4, 2, dtype=torch.int64), torch.arange(4), TypeError, "batch_hard: expected x of dtype float32"),
    (torch.ones(4), torch.arange(4), ValueError, r"expected x of shape \(B, D\)"),
    (torch.ones(64, 2), torch.arange(32), ValueError, r"labels of shape \(B,\) with B=64 to match x, got \(32,\)"),
    (torch.ones(4, 2), torch.arange(4)[:, None], ValueError, r"labels of shape \(B,\)"),
    (torch.ones(4, 2), torch.ones(4), TypeError, "labels to be an integer tensor, got float32"),
    (torch.ones(4, 2), [0, 0, 1, 1], TypeError, "labels to be an integer tensor, got list"),
    (torch.ones(4, 2), torch.arange(4, device="meta"), ValueError, "expected labels on x's device cpu, got meta"),
]


@pytest.mark.parametrize("x,labels,error,words", BAD)
def test_rejects(x, labels, error, words):
    with pytest.raises(error, match=words):
        batch_hard(x, labels)
