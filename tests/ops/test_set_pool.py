# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""set_pool against its float64 reference: shapes, strides, empties, extremes, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

import reidfast
from reidfast.ops import set_pool
from reidfast.ops.reference.set_pool import set_pool as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

WEIGHTINGS = ("linear", "sigmoid", "softmax")
SETS = [(1, 1), (3, 5), (2, 64), (17, 130), (64, 1031)]  # sets, dim: one, odd, past a block edge, past 1024
OP = reidfast.implementations("set_pool")["native"]
impl = every_implementation("set_pool")


def ragged(sets, dim, dtype=torch.float64, *, empties=True, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0 if empties else 1, 9, (sets,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    total = int(offsets[-1])
    x = torch.randn(total, dim, generator=generator, dtype=torch.float64).to(dtype)
    z = (torch.rand(total, generator=generator, dtype=torch.float64) * 3 + 0.1).to(dtype)
    return x.requires_grad_(requires_grad), z.requires_grad_(requires_grad), offsets


def run(function, x, z, offsets, weighting, grad):
    """Output and gradients of ``function``."""
    x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
    out = function(x, z, offsets, weighting)
    return (out, *torch.autograd.grad(out, (x, z), grad.to(out)))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("sets,dim", SETS, ids=shape_id)
def test_matches_reference(impl, sets, dim, dtype, weighting):
    x, z, offsets = ragged(sets, dim, dtype, seed=sets)
    grad = torch.randn(sets, dim)
    exact = run(reference, x.double(), z.double(), offsets, weighting, grad.to(dtype))
    assert_no_worse(
        run(impl, x, z, offsets, weighting, grad.to(dtype)),
        exact,
        run(reference, x, z, offsets, weighting, grad.to(dtype)),
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=shape_id)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
def test_dense_equals_ragged(impl, lead, dtype, weighting):
    x = torch.randn(*lead, 5, 37).to(dtype)
    z = torch.rand(*lead, 5).to(dtype)
    count = x[..., 0, 0].numel()
    offsets = torch.arange(count + 1) * 5
    dense = impl(x, z, None, weighting)
    assert dense.shape == (*lead, 37)
    assert_no_worse(dense, reference(x.double(), z.double(), None, weighting), reference(x, z, None, weighting))
    assert_no_worse(
        dense.reshape(count, 37), impl(x.reshape(-1, 37), z.reshape(-1), offsets, weighting), dense.reshape(count, 37)
    )


def test_float32_scores_beside_half_features():
    x, z, offsets = ragged(5, 33, torch.bfloat16)
    z = z.float() / 3
    out = set_pool(x, z, offsets, weighting="sigmoid")
    assert out.dtype == torch.bfloat16
    assert_no_worse(out, reference(x.double(), z.double(), offsets, "sigmoid"), reference(x, z, offsets, "sigmoid"))


def test_empty_inputs(impl):
    for offsets, rows in ((torch.tensor([0]), 0), (torch.tensor([0, 0, 0]), 0), (torch.tensor([0, 0, 2, 2]), 2)):
        x, z = torch.randn(rows, 3, requires_grad=True), torch.ones(rows, requires_grad=True)
        out = impl(x, z, offsets, "softmax")
        assert out.shape == (len(offsets) - 1, 3)
        assert torch.equal(out.cpu()[offsets.diff() == 0], torch.zeros(int((offsets.diff() == 0).sum()), 3))
        out.sum().backward()
        assert x.grad.shape == x.shape and bool(x.grad.isfinite().all())
    assert impl(torch.randn(4, 0, 3), torch.rand(4, 0), None, "linear").tolist() == [[0.0] * 3] * 4
    assert impl(torch.randn(4, 2, 0), torch.rand(4, 2), None, "linear").shape == (4, 0)
    assert impl(torch.randn(0, 2, 5), torch.rand(0, 2), None, "softmax").shape == (0, 5)


def test_linear_zero_sum_gives_zeros(impl):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    out = impl(x, z, torch.tensor([0, 2, 4]), "linear")
    assert torch.equal(out, torch.zeros_like(out))
    gx, gz = torch.autograd.grad(out.sum(), (x, z))
    assert torch.equal(gx, torch.zeros_like(gx)) and bool(gz.isfinite().all())


@pytest.mark.parametrize("weighting", ["sigmoid", "softmax"])
def test_extreme_scores_stay_finite(impl, weighting):
    z = torch.tensor([-1e4, -9e3, 1e4, 3e4, -120.0, -121.0], requires_grad=True)
    x = torch.randn(6, 5, requires_grad=True)
    offsets = torch.tensor([0, 2, 4, 6])
    out = impl(x, z, offsets, weighting)
    exact = reference(x.double(), z.double(), offsets, weighting)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6, check_device=False)
    for grad in torch.autograd.grad(out.square().sum(), (x, z)):
        assert bool(grad.isfinite().all())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_nan_stays_within_its_set(impl, weighting):
    x, z = torch.randn(6, 3), torch.rand(6)
    z[1] = torch.nan
    x[5, 0] = torch.nan
    out = impl(x, z, torch.tensor([0, 2, 4, 6]), weighting).cpu()
    assert bool(out[0].isnan().all()) and bool(out[1].isfinite().all())
    assert out[2].isnan().tolist() == [True, False, False]


def test_export():
    class Pool(torch.nn.Module):
        def forward(self, x, z):
            return set_pool(x, z, weighting="softmax")

    x, z = torch.randn(4, 6, 8), torch.randn(4, 6)
    sets = torch.export.Dim("sets", min=2)
    exported = torch.export.export(Pool(), (x, z), dynamic_shapes=({0: sets}, {0: sets}))
    torch.testing.assert_close(exported.module()(x[:3], z[:3]), set_pool(x[:3], z[:3], weighting="softmax"))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=0, max_size=12),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(FLOATS),
    weighting=st.sampled_from(WEIGHTINGS),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_property(sizes, dim, dtype, weighting, scale, seed):
    offsets = torch.tensor([0, *torch.tensor(sizes, dtype=torch.int64).cumsum(0).tolist()])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(int(offsets[-1]), dim, generator=generator).to(dtype)
    z = (scale * torch.rand(int(offsets[-1]), generator=generator)).to(dtype)
    assert_no_worse(
        set_pool(x, z, offsets, weighting=weighting),
        reference(x.double(), z.double(), offsets, weighting),
        reference(x, z, offsets, weighting),
        terms=float(x.abs().max()) if x.numel() else 0.0,
    )


def test_memory_is_linear_in_frames():
    setup = "x, z, o = torch.ones(8192, 1024), torch.ones(8192), torch.arange(0, 8193, 8)"
    peak = peak_memory(setup, "y = reidfast.ops.set_pool(x, z, o)")
    assert peak < 4 * 1024 * 1024 + 6 * 2**20, f"{peak / 2**20:.1f} MiB beyond inputs of 32 MiB for an output of 4 MiB"


def test_vector_qan():  # R = sin(0.9 n + 0.3), z = sin(0.8 n + 0.1)
    frames = torch.sin(0.9 * torch.arange(20, dtype=torch.float64) + 0.3).view(4, 5)
    z = torch.sin(0.8 * torch.arange(4, dtype=torch.float64) + 0.1).requires_grad_()
    pooled = set_pool(frames, z, weighting="sigmoid")
    want = torch.tensor([0.06616938, 0.05666521, 0.00427794, -0.05134679, -0.06811330], dtype=torch.float64)
    torch.testing.assert_close(pooled, want, atol=1e-8, rtol=0)
    (pooled * torch.sin(1.1 * torch.arange(5, dtype=torch.float64) + 0.5)).sum().backward()
    want = torch.tensor([0.17772997, -0.20783872, -0.09516428, 0.22711906], dtype=torch.float64)
    torch.testing.assert_close(z.grad, want, atol=1e-8, rtol=0)


F, Z = torch.randn(6, 3), torch.rand(6)
BAD = [
    ((F.long(), Z), TypeError, "features of dtype float32"),
    ((F.numpy(), Z), TypeError, "features to be a torch.Tensor"),
    ((F, Z.long()), TypeError, "scores of dtype"),
    ((F, Z[:5]), ValueError, r"scores \(5,\)"),
    ((F[0], Z[0]), ValueError, "expected features"),
    ((F, Z, torch.tensor([0, 6], dtype=torch.int32)), TypeError, "int64"),
    ((F, Z, torch.tensor([0, 5])), ValueError, "from 0 to T=6, got 0 to 5"),
    ((F, Z, torch.tensor([1, 6])), ValueError, "got 1 to 6"),
    ((F, Z, torch.tensor([0, 4, 3, 6])), ValueError, "never decrease, got 4 before 3"),
    ((F, Z, torch.tensor([[0, 6]])), ValueError, "offsets"),
    ((F, Z, torch.tensor([], dtype=torch.int64)), ValueError, "offsets"),
    ((F.view(2, 3, 3), Z.view(2, 3), torch.tensor([0, 2])), ValueError, "beside offsets"),
    ((F, Z.to("meta")), ValueError, "device"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad,error,words", BAD)
def test_rejects(bad, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        set_pool(*bad)


def test_rejects_weighting():
    with pytest.raises(ValueError, match="weighting to be one of 'linear', 'sigmoid', 'softmax', got 'mean'"):
        set_pool(F, Z, weighting="mean")


def test_out_of_bounds_offsets_never_reach_the_kernel():
    with pytest.raises((ValueError, RuntimeError), match="offsets"):
        OP(F, Z, torch.tensor([0, 9, 6]), "linear")
