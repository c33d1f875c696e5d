# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""diverse_attention against its float64 reference: layouts, vanishing attention, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

import reidfast
from reidfast.ops import diverse_attention
from reidfast.ops.reference.diverse_attention import diverse_attention as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

OP = reidfast.implementations("diverse_attention")["native"]
SHAPES = [  # B, D, K, spatial: one cell, odd, past a vector, more maps than a register block, larger than a tile
    (1, 1, 1, (1,)),
    (2, 5, 3, (7,)),
    (3, 37, 6, (8, 4)),
    (2, 130, 13, (7, 7)),
    (1, 300, 2, (20, 17)),
]
impl = every_implementation("diverse_attention")


def ulps(dtype):
    """Floor of the comparison: in float64 plain PyTorch is itself the truth and leaves no error to compare with."""
    return 64 if dtype == torch.float64 else 4


def make(b, d, k, spatial, dtype=torch.float64, *, last=False, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, d, *spatial, generator=generator, dtype=torch.float64).to(dtype)
    z = (scale * torch.randn(b, k, *spatial, generator=generator, dtype=torch.float64)).to(dtype)
    return (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x), z


def upstream(x, z, seed=1):
    generator = torch.Generator().manual_seed(seed)
    b, d, k, cells = len(x), x.shape[1], z.shape[1], z[0, 0].numel() if z.shape[:2].numel() else z.shape[2:].numel()
    wide = torch.promote_types(x.dtype, torch.float32)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(b, k, d).to(x.dtype), draw(b, k, cells).to(x.dtype), draw(b).to(wide)


def run(function, x, z, grads):
    """The three outputs and both gradients; an upstream gradient of None leaves that output unused."""
    x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
    out = function(x, z)
    used = [(o, g.to(o)) for o, g in zip(out, grads, strict=True) if g is not None]
    return (*out, *torch.autograd.grad([o for o, _ in used], (x, z), [g for _, g in used]))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("b,d,k,spatial", SHAPES, ids=shape_id)
def test_matches_reference(impl, b, d, k, spatial, dtype, last):
    x, z = make(b, d, k, spatial, dtype, last=last)
    grads = upstream(x, z)
    got = run(impl, x, z, grads)
    exact, eager = run(reference, x.double(), z.double(), grads), run(reference, x, z, grads)
    assert_no_worse(got, exact, eager, ulps=ulps(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    assert [t.dtype for t in got] == [dtype, dtype, wide, dtype, dtype]


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradient_through_each_output_alone(impl, used):
    x, z = make(2, 21, 4, (5, 3))
    grads = [g if i in used else None for i, g in enumerate(upstream(x, z))]
    for needs in ((True, True), (True, False), (False, True)):
        xs = [t.clone().requires_grad_(n) for t, n in zip((x, z), needs, strict=True)]
        rs = [t.clone().requires_grad_(n) for t, n in zip((x, z), needs, strict=True)]
        for function, leaves in ((impl, xs), (reference, rs)):
            pairs = [(o, g) for o, g in zip(function(*leaves), grads, strict=True) if g is not None]
            pairs = [(o, g) for o, g in pairs if o.requires_grad]
            if pairs:
                torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        for mine, theirs in zip(xs, rs, strict=True):
            if mine.requires_grad and (theirs.grad is not None or mine.grad is not None):
                want = torch.zeros_like(mine) if theirs.grad is None else theirs.grad
                torch.testing.assert_close(torch.zeros_like(mine) if mine.grad is None else mine.grad, want)


def released_penalty(attention):
    """The penalty as the released code computes it: autograd goes through the square root of the attention."""
    root = attention.sqrt()
    gram = root @ root.transpose(1, 2) - torch.eye(attention.shape[1])
    return gram.square().sum().add(1e-5).sqrt()


def test_gradient_is_finite_where_the_released_code_gives_nan(impl):
    x, z = make(2, 8, 3, (6,), torch.float32)
    z[0, 0, 1:3] = -200.0  # exp underflows to zero
    assert (z.softmax(-1) == 0).any()
    theirs = z.clone().requires_grad_()
    released_penalty(theirs.softmax(-1)).backward()
    assert bool(theirs.grad.isnan().any())
    pooled, attention, overlap, dx, dz = run(impl, x, z, upstream(x, z))
    for t in (pooled, attention, overlap, dx, dz):
        assert bool(t.isfinite().all())
    exact = run(reference, x.double(), z.double(), upstream(x, z))
    torch.testing.assert_close(dz.double(), exact[4], rtol=1e-4, atol=1e-5)


def test_gradient_at_the_corners_of_the_simplex():
    x, z = make(1, 4, 3, (5,), torch.float32, scale=0)
    for row, cell in ((0, 0), (1, 0), (2, 4)):  # two maps on the same cell, one alone
        z[0, row, cell] = 300.0
    *out, dx, dz = run(OP, x, z, upstream(x, z))
    assert all(bool(t.isfinite().all()) for t in (*out, dx, dz))
    torch.testing.assert_close(out[2], torch.tensor([2.0]))


def test_masked_cells_and_masked_rows(impl):
    x, z = make(2, 4, 2, (5,), torch.float32)
    z[0, 0, 2] = -torch.inf
    pooled, attention, overlap, _, dz = run(OP, x, z, upstream(x, z))
    assert attention[0, 0, 2] == 0 and bool(dz.isfinite().all()) and bool(overlap.isfinite().all())
    z[1, 1] = -torch.inf
    pooled, attention, overlap = impl(x, z)
    assert bool(attention[1, 1].isnan().all()) and bool(overlap[1].isnan()) and bool(pooled[1, 1].isnan().all())
    assert bool(attention[0].isfinite().all()) and bool(overlap[0].isfinite()) and bool(pooled[1, 0].isfinite().all())


def test_nan_stays_in_its_row(impl):
    x, z = make(2, 4, 3, (20,), torch.float32)
    for cell in (0, 7, 19):
        bad = z.clone()
        bad[0, 1, cell] = torch.nan
        pooled, attention, overlap = impl(x, bad)
        assert bool(attention[0, 1].isnan().all()) and bool(attention[0, [0, 2]].isfinite().all())
        assert bool(pooled[0, 1].isnan().all()) and bool(overlap.isnan().tolist() == [True, False])


def test_overlap_of_equal_disjoint_and_single_maps(impl):
    x = torch.randn(1, 3, 4)
    equal = torch.randn(1, 1, 4).expand(1, 5, 4)
    torch.testing.assert_close(impl(x, equal)[2], torch.tensor([20.0]))
    disjoint = torch.full((1, 2, 4), -200.0)
    disjoint[0, 0, :2] = disjoint[0, 1, 2:] = 0
    assert impl(x, disjoint)[2].item() < 1e-30
    assert impl(x, equal[:, :1])[2].item() == 0


def test_strided_inputs(impl):
    x, z = make(4, 12, 4, (6, 10))
    for a, b in (
        (x[:, ::2], z),
        (x[..., 2:8], z[..., 2:8]),
        (x.transpose(2, 3), z.transpose(2, 3)),
        (x[:1].expand(4, -1, -1, -1), z[:, :2]),
        (x[::2], z[1::2]),
        (x.flatten(2), z.flatten(2)),
    ):
        grads = upstream(a, b)
        torch.testing.assert_close(run(impl, a, b, grads), run(reference, a, b, grads))


def test_empty_inputs():
    for b, d, k, cells in ((0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0)):
        x, z = torch.randn(b, d, cells), torch.randn(b, k, cells)
        out = run(OP, x, z, upstream(x, z))
        want = reference(x, z)
        assert [t.shape for t in out[:3]] == [t.shape for t in want]
        assert out[3].shape == x.shape and out[4].shape == z.shape and bool(out[4].isfinite().all())
        assert not out[0].any() and bool(torch.equal(out[2], want[2]) or d == 0)


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 14), st.integers(1, 40)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    scale=st.sampled_from([0.0, 1.0, 10.0, 200.0]),
    last=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_property(shape, dtype, scale, last, seed):
    b, d, k, cells = shape
    x, z = make(b, d, k, (cells,), dtype, last=last, scale=scale, seed=seed)
    grads = upstream(x, z)
    got, exact = run(OP, x, z, grads), run(reference, x.double(), z.double(), grads)
    eager = run(reference, x, z, grads)
    assert_no_worse(got[:-1], exact[:-1], eager[:-1], ulps=64)
    # The logits' gradient is a difference of terms that nearly cancel where attention is almost one-hot: its rounding
    # is that of the terms, not of what is left of them.
    terms = torch.einsum("bkd,bdl->bkl", grads[0].double().abs(), x.double().flatten(2).abs()).max()
    terms = terms + grads[1].double().abs().max() + 4 * k * grads[2].double().abs().max()
    error, eager_error = ((g[-1].double() - exact[-1]).abs().max() for g in (got, eager))
    assert bool(got[-1].isfinite().all())
    assert error <= 2 * eager_error + 16 * torch.finfo(dtype).eps * terms


def test_no_product_tensor_in_memory():
    setup = """
    x = torch.randn(48, 2048, 8, 4, requires_grad=True)
    z = torch.randn(48, 6, 8, 4, requires_grad=True)
    """
    call = "o = reidfast.ops.diverse_attention(x, z); (o.pooled.sum() + o.overlap.sum()).backward()"
    size = 48 * 2048 * 32 * 4  # of the map and of its gradient; the product tensor would be six of it
    peak = peak_memory(setup, call)
    assert peak < 1.5 * size + 6 * 2**20, f"{peak / 2**20:.1f} MiB, the map is {size / 2**20:.1f} MiB"


def test_vector_div():  # P = softmax(3 sin(1.1 n + 0.2))
    z = (3 * torch.sin(1.1 * torch.arange(48, dtype=torch.float64) + 0.2)).view(2, 3, 8).requires_grad_()
    out = diverse_attention(torch.zeros(2, 1, 8, dtype=torch.float64), z)
    want = torch.tensor([1.16000133, 1.07019595], dtype=torch.float64)
    torch.testing.assert_close(out.overlap, want, atol=1e-8, rtol=0)
    root = out.attention[0].sqrt()
    gram = (root @ root.T)[[0, 0, 1], [1, 2, 2]]
    torch.testing.assert_close(
        gram, torch.tensor([0.28135375, 0.65773678, 0.26119545], dtype=torch.float64), atol=1e-8, rtol=0
    )
    out.overlap.sum().backward()
    assert abs(z.grad.norm().item() - 0.65115565) < 1e-8


X, Z = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
BAD = [
    ((X.long(), Z), TypeError, "features of dtype float32"),
    ((X, Z.numpy()), TypeError, "logits to be a torch.Tensor"),
    ((X, Z.flatten(2)), ValueError, r"features \(B, D, L\) with logits \(B, K, L\)"),
    ((X[0, 0], Z[0, 0]), ValueError, "expected features"),
    ((X, Z[:1]), ValueError, r"got features \(2, 3, 4, 5\) and logits \(1, 6, 4, 5\)"),
    ((X, Z[..., 1:]), ValueError, "logits"),
    ((X, Z.to("meta")), ValueError, "device"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad,error,words", BAD)
def test_rejects(bad, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        diverse_attention(*bad)


def test_the_op_itself_checks_what_would_read_out_of_bounds():
    with pytest.raises(RuntimeError, match="agree"):
        OP(X, Z[..., 1:])
    with pytest.raises(RuntimeError, match="grad_pooled"):
        torch.ops.reidfast.diverse_attention_backward(torch.ones(2, 6, 4), None, None, X, Z, True, True)
