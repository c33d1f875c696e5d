# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""sample_patches against grid_sample: layouts, outside, extremes, integer positions, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation
from patch_inputs import LAYOUTS, SHAPES, feature_map, run, stripes, transforms, ulps
from torch.nn.functional import affine_grid, grid_sample

import reidfast
from reidfast.ops import sample_patches
from reidfast.ops.reference.sample_patches import sample_patches as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

OP = reidfast.implementations("sample_patches")["native"]
impl = every_implementation("sample_patches")


def grads_for(x, theta, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (x.shape[0], theta.shape[1], x.shape[1], *size)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("b,c,h,w,m,size", SHAPES, ids=shape_id)
def test_matches_reference(impl, b, c, h, w, m, size, dtype, layout, align_corners):
    x, theta = feature_map(b, c, h, w, dtype, layout=layout), transforms(b, m, dtype)
    grad = grads_for(x, theta, size)
    # Half inputs: positions are float32 in both, so the truth takes its floors from the same rounded theta.
    exact = run(reference, x.double(), theta.double(), size, align_corners, grad)
    got = run(impl, x, theta, size, align_corners, grad)
    assert_no_worse(got, exact, run(reference, x, theta, size, align_corners, grad), ulps=ulps(dtype))
    assert [t.dtype for t in got] == [dtype] * 3


@pytest.mark.parametrize("kind", ["upright", "outside"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_upright_and_outside(impl, kind, layout):
    x, theta = feature_map(2, 20, 6, 5, layout=layout), transforms(2, 5, kind=kind, seed=3)
    grad = grads_for(x, theta, (4, 3))
    torch.testing.assert_close(
        run(impl, x, theta, (4, 3), True, grad),
        run(reference, x, theta, (4, 3), True, grad),
        rtol=1e-12,
        atol=1e-12,
        check_device=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=shape_id)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("h,w", [(24, 8), (12, 4), (5, 5), (7, 3)], ids=shape_id)
def test_integer_positions_take_the_cells_grid_sample_takes(impl, h, w, align_corners, dtype):
    # Stripes sample columns at integers. A rounding that differed in one bit would move the gradient of theta by O(1).
    x, theta = feature_map(2, 3, h, w, dtype), stripes(2, 6, dtype)
    grad = grads_for(x, theta, (h, w))
    got, want = (run(f, x, theta, (h, w), align_corners, grad) for f in (impl, reference))
    torch.testing.assert_close(got, want, rtol=2e-4 if dtype == torch.float32 else 1e-11, atol=1e-4, check_device=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_map_larger_than_shared_memory(impl, layout):
    x, theta = feature_map(1, 5, 45, 40, layout=layout), transforms(1, 3)
    grad = grads_for(x, theta, (4, 5))
    got, want = (run(f, x, theta, (4, 5), True, grad) for f in (impl, reference))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, check_device=False)


def test_half_features_beside_float32_theta(impl):
    x, theta = feature_map(2, 9, 6, 4, torch.float16), transforms(2, 3, torch.float32)
    grad = grads_for(x, theta, (5, 3))
    got = run(impl, x, theta, (5, 3), True, grad)
    assert [t.dtype for t in got] == [torch.float16, torch.float16, torch.float32]
    exact = run(reference, x.double(), theta.double(), (5, 3), True, grad)
    assert_no_worse(got, exact, run(reference, x, theta, (5, 3), True, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=shape_id)
def test_extreme_theta(dtype):
    x = feature_map(1, 4, 3, 3, dtype)
    for value in (1e30, -1e30, 1e38, 2.0**31, 2.0**63, -(2.0**63)):
        theta = torch.tensor([1.0, 0, value, 0, 1, 0], dtype=dtype).view(1, 1, 2, 3)
        out, dx, dt = run(OP, x, theta, (3, 3), True, torch.ones(1, 1, 4, 3, 3))
        assert not out.any() and not dx.any() and not dt.any()
    for value in (torch.nan, torch.inf, -torch.inf):
        theta = torch.tensor([1.0, 0, value, 0, 1, 0], dtype=dtype).view(1, 1, 2, 3)
        want = grid_sample(x, affine_grid(theta[:, 0], (1, 4, 3, 3), align_corners=True), align_corners=True)
        out = OP(x, theta, 3, 3, True)
        assert bool(out.isnan().all()) and bool(want.isnan().all())
        run(OP, x, theta, (3, 3), True, torch.ones(1, 1, 4, 3, 3))
    degenerate = torch.zeros(1, 2, 2, 3, dtype=dtype)
    out, _, dt = run(OP, x, degenerate, (2, 5), True, torch.ones(1, 2, 4, 2, 5))
    torch.testing.assert_close(out, x[:, None, :, 1:2, 1:2].expand_as(out), rtol=0, atol=0)
    assert bool(dt.isfinite().all())


def test_infinite_cells_stay_outside_patches_that_miss_them(impl):
    x = torch.zeros(1, 1, 4, 4)
    x[..., 3] = torch.inf
    theta = torch.tensor([[[[0.2, 0, -0.5], [0, 1, 0]], [[0.2, 0, -3.0], [0, 1, 0]]]])
    assert bool(impl(x, theta, 3, 3, True).isfinite().all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_follows_features_and_nothing_is_copied(layout):
    x, theta = feature_map(2, 8, 4, 4, torch.float32, layout=layout), transforms(2, 3, torch.float32)
    out, dx, _ = run(OP, x, theta, (4, 4), True, torch.randn(2, 3, 8, 4, 4))
    last = layout == "channels_last"
    assert out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) == last
    assert dx.stride() == x.stride()


def test_strided_expanded_and_sliced_inputs(impl):
    whole = feature_map(4, 12, 6, 10)
    theta = transforms(4, 3)
    cases = [
        (whole[:, ::2], theta),
        (whole[..., 2:8], theta),
        (whole.transpose(2, 3), theta),
        (whole[:1].expand(4, -1, -1, -1), theta),
        (whole[::2], theta[1::2]),
        (whole, theta[:, :1].expand(-1, 5, -1, -1)),
        (whole, theta.transpose(0, 1).contiguous().transpose(0, 1)),
    ]
    for x, t in cases:
        grad = grads_for(x, t, (3, 4))
        torch.testing.assert_close(
            run(impl, x, t, (3, 4), False, grad), run(reference, x, t, (3, 4), False, grad), check_device=False
        )
        expanded = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64).expand(grad.shape)
        torch.testing.assert_close(
            run(impl, x, t, (3, 4), True, expanded), run(reference, x, t, (3, 4), True, expanded), check_device=False
        )


def test_empty_inputs():
    for b, c, m in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        x, theta = torch.randn(b, c, 4, 5), transforms(b, m, torch.float32)
        out, gx, gt = run(OP, x, theta, (3, 2), True, torch.ones(b, m, c, 3, 2))
        assert out.shape == (b, m, c, 3, 2) and not gx.any() and not gt.any()
        assert reference(x, theta, 3, 2, True).shape == out.shape


def test_size_forms():
    x, theta = feature_map(1, 2, 6, 4), transforms(1, 2)
    assert sample_patches(x, theta).shape == (1, 2, 2, 6, 4)
    assert sample_patches(x, theta, 3).shape == (1, 2, 2, 3, 3)
    torch.testing.assert_close(sample_patches(x, theta, (6, 4)), sample_patches(x, theta))
    torch.testing.assert_close(sample_patches(x, theta), reference(x, theta, 6, 4, True))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(["general", "upright", "outside"]),
    align_corners=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_property(shape, size, layout, kind, align_corners, seed):
    b, c, h, w, m = shape
    x, theta = feature_map(b, c, h, w, layout=layout, seed=seed), transforms(b, m, kind=kind, seed=seed)
    grad = grads_for(x, theta, size)
    torch.testing.assert_close(
        run(OP, x, theta, size, align_corners, grad),
        run(reference, x, theta, size, align_corners, grad),
        rtol=1e-10,
        atol=1e-10,
    )


def test_no_repeated_map_and_no_grid():
    setup = "x, t = torch.randn(8, 512, 24, 8), torch.randn(8, 6, 2, 3) * 0.3"
    peak = peak_memory(setup, "y = reidfast.ops.sample_patches(x, t)")
    out = 8 * 6 * 512 * 192 * 4
    assert peak < out + 6 * 2**20, f"{peak / 2**20:.1f} MiB for an output of {out / 2**20:.1f} MiB"


X, THETA = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 3)
BAD = [
    ((X.long(), THETA), TypeError, "features of dtype float32"),
    ((X, THETA.numpy()), TypeError, "theta to be a torch.Tensor"),
    ((X[0], THETA), ValueError, r"features \(B, C, H, W\) and theta \(B, M, 2, 3\)"),
    ((X, THETA[:, :, 0]), ValueError, r"theta \(B, M, 2, 3\)"),
    ((X, THETA.transpose(2, 3)), ValueError, r"got \(2, 3, 4, 5\) and \(2, 6, 3, 2\)"),
    ((X, THETA[:1]), ValueError, r"with B=2 as in features, got \(1, 6, 2, 3\)"),
    ((X, THETA.to("meta")), ValueError, "device"),
    ((X, THETA, 0), ValueError, "at least 1 x 1, got 0 x 0"),
    ((X, THETA, (3, -1)), ValueError, "got 3 x -1"),
    ((X, THETA, 2.5), TypeError, r"size to be an int, \(h, w\) or None, got 2.5"),
    ((X, THETA, (1, 2, 3)), TypeError, "size"),
    ((X[:, :, :0], THETA), ValueError, "at least one cell"),
    ((X[:, :, :0], THETA, 2), ValueError, "at least one cell"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad,error,words", BAD)
def test_rejects(bad, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        sample_patches(*bad)


def test_the_op_itself_checks_what_would_read_out_of_bounds():
    with pytest.raises(RuntimeError, match="theta"):
        OP(X, THETA[:1], 2, 2, True)
    with pytest.raises(RuntimeError, match="at least 1 x 1"):
        OP(X, THETA, 0, 2, True)
    with pytest.raises(RuntimeError, match="grad"):
        torch.ops.reidfast.sample_patches_backward(torch.ones(2, 6, 3, 2, 1), X, THETA, 2, 2, True, True, True)
