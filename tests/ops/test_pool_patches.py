# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""pool_patches against the mean of grid_sample: layouts, upright and general patches, extremes, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation
from patch_inputs import LAYOUTS, SHAPES, feature_map, run, stripes, transforms, ulps

import reidfast
from reidfast.ops import pool_patches, sample_patches
from reidfast.ops.reference.pool_patches import pool_patches as reference
from reidfast.testing import FLOATS, assert_no_worse, peak_memory, shape_id

OP = reidfast.implementations("pool_patches")["native"]
LARGE = (1, 18, 24, 16, 13, (5, 5))  # more cells than one tile, more patches than one block of them
impl = every_implementation("pool_patches")


def grads_for(x, theta, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (x.shape[0], theta.shape[1], x.shape[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("kind", ["general", "upright"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=shape_id)
@pytest.mark.parametrize("b,c,h,w,m,size", [*SHAPES, LARGE], ids=shape_id)
def test_matches_reference(impl, b, c, h, w, m, size, dtype, layout, kind):
    x, theta = feature_map(b, c, h, w, dtype, layout=layout), transforms(b, m, dtype, kind=kind)
    grad, align_corners = grads_for(x, theta), b != 2
    exact = run(reference, x.double(), theta.double(), size, align_corners, grad)
    got = run(impl, x, theta, size, align_corners, grad)
    assert_no_worse(got, exact, run(reference, x, theta, size, align_corners, grad), ulps=ulps(dtype))
    assert [t.dtype for t in got] == [dtype] * 3


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("kind", ["general", "upright", "outside"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_partly_and_wholly_outside(impl, kind, layout, align_corners):
    x, theta = feature_map(2, 20, 6, 5, layout=layout), transforms(2, 5, kind=kind, seed=3)
    grad = grads_for(x, theta)
    got, want = (run(f, x, theta, (4, 3), align_corners, grad) for f in (impl, reference))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, check_device=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=shape_id)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("h,w", [(24, 8), (12, 4), (5, 5), (7, 3)], ids=shape_id)
def test_integer_positions_take_the_cells_grid_sample_takes(impl, h, w, align_corners, dtype):
    x, theta = feature_map(2, 3, h, w, dtype), stripes(2, 6, dtype)
    grad = grads_for(x, theta)
    got, want = (run(f, x, theta, (h, w), align_corners, grad) for f in (impl, reference))
    torch.testing.assert_close(got, want, rtol=2e-4 if dtype == torch.float32 else 1e-11, atol=1e-5, check_device=False)


def test_is_the_mean_of_the_sampled_patches():
    x, theta = feature_map(2, 9, 7, 5), transforms(2, 4)
    for align_corners in (True, False):
        mean = sample_patches(x, theta, (3, 6), align_corners=align_corners).mean((-2, -1))
        torch.testing.assert_close(pool_patches(x, theta, (3, 6), align_corners=align_corners), mean)


def test_half_features_beside_float32_theta(impl):
    x, theta = feature_map(2, 9, 6, 4, torch.bfloat16), transforms(2, 3, torch.float32)
    grad = grads_for(x, theta)
    got = run(impl, x, theta, (5, 3), True, grad)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.bfloat16, torch.float32]
    exact = run(reference, x.double(), theta.double(), (5, 3), True, grad)
    assert_no_worse(got, exact, run(reference, x, theta, (5, 3), True, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=shape_id)
def test_extreme_theta(dtype):
    x = feature_map(1, 4, 3, 3, dtype)
    for value in (1e30, -1e30, 1e38, 2.0**31, 2.0**63, -(2.0**63)):
        for tilt in (0.0, 0.5):
            theta = torch.tensor([1.0, tilt, value, 0, 1, 0], dtype=dtype).view(1, 1, 2, 3)
            out, dx, dt = run(OP, x, theta, (3, 3), True, torch.ones(1, 1, 4))
            assert not out.any() and not dx.any() and not dt.any()
    for value in (torch.nan, torch.inf, -torch.inf):
        for tilt in (0.0, 0.5):
            theta = torch.tensor([1.0, tilt, value, 0, 1, 0], dtype=dtype).view(1, 1, 2, 3)
            both = torch.cat([theta, transforms(1, 1, dtype)], 1)
            out, _, dt = run(OP, x, both, (3, 3), True, torch.ones(1, 2, 4))
            assert bool(out[:, 0].isnan().all()) and bool(out[:, 1].isfinite().all())
            assert bool(dt[:, 0].isnan().any()) and bool(dt[:, 1].isfinite().all())
    huge = torch.tensor([3e38, 0, 0, 0, 1, 0]).view(1, 1, 2, 3)  # overflows between the samples
    run(OP, x.float(), huge, (3, 5), True, torch.ones(1, 1, 4))
    out, _, dt = run(OP, x, torch.zeros(1, 2, 2, 3, dtype=dtype), (2, 5), True, torch.ones(1, 2, 4))
    torch.testing.assert_close(out, x[:, None, :, 1, 1].expand_as(out))
    assert bool(dt.isfinite().all())


def test_strided_expanded_and_sliced_inputs(impl):
    whole = feature_map(4, 12, 6, 10)
    theta = transforms(4, 3)
    for x, t in (
        (whole[:, ::2], theta),
        (whole[..., 2:8], theta),
        (whole.transpose(2, 3), theta),
        (whole[:1].expand(4, -1, -1, -1), theta),
        (whole[::2], theta[1::2]),
        (whole, theta[:, :1].expand(-1, 5, -1, -1)),
    ):
        grad = grads_for(x, t)
        torch.testing.assert_close(
            run(impl, x, t, (3, 4), False, grad), run(reference, x, t, (3, 4), False, grad), check_device=False
        )
        expanded = torch.ones(1, 1, 1, dtype=torch.float64).expand(grad.shape)
        torch.testing.assert_close(
            run(impl, x, t, (3, 4), True, expanded), run(reference, x, t, (3, 4), True, expanded), check_device=False
        )


def test_empty_inputs():
    for b, c, m in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        x, theta = torch.randn(b, c, 4, 5), transforms(b, m, torch.float32)
        out, gx, gt = run(OP, x, theta, (3, 2), True, torch.ones(b, m, c))
        assert out.shape == (b, m, c) and not gx.any() and not gt.any()
        assert reference(x, theta, 3, 2, True).shape == (b, m, c)


def test_export():
    class Pool(torch.nn.Module):
        def forward(self, x, theta):
            return pool_patches(x, theta)

    x, theta = torch.randn(4, 6, 8, 3), transforms(4, 6, torch.float32)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Pool(), (x, theta), dynamic_shapes=({0: batch}, {0: batch}))
    torch.testing.assert_close(exported.module()(x[:3], theta[:3]), pool_patches(x[:3], theta[:3]))


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
    grad = grads_for(x, theta)
    got, want = (run(f, x, theta, size, align_corners, grad) for f in (OP, reference))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_no_sampled_patches_in_memory():
    setup = """
    x = torch.randn(8, 512, 24, 8, requires_grad=True)
    t = (torch.randn(8, 6, 2, 3) * 0.3).requires_grad_()
    """
    peak = peak_memory(setup, "reidfast.ops.pool_patches(x, t).sum().backward()")
    size = 8 * 512 * 192 * 4  # of the map, and so of its gradient; the patches would be six of it
    assert peak < 1.3 * size + 6 * 2**20, f"{peak / 2**20:.1f} MiB, the map is {size / 2**20:.1f} MiB"


def test_vector_pgn():  # features sin(0.05 n), the initial stripes
    x = torch.sin(0.05 * torch.arange(2 * 24 * 8, dtype=torch.float64)).view(1, 2, 24, 8)
    want = {
        True: "(.71081414,-.79019567)(.54419886,-.41542007)(-.67029334,.75931246)(-.59391457,.47172111)"
        "(.62623031,-.72429563)(.64057836,-.52573467)",
        False: "(.62204025,-.71672420)(.60981201,-.49009250)(-.65072628,.74380040)(-.57181021,.44665526)"
        "(.68411945,-.76988464)(.54251014,-.41726698)",
    }
    for align_corners, text in want.items():
        numbers = [float(v) for v in text.strip("()").replace(")(", ",").split(",")]
        pooled = pool_patches(x, stripes(1, 6), align_corners=align_corners)
        expected = torch.tensor(numbers, dtype=torch.float64).view(1, 6, 2)
        torch.testing.assert_close(pooled, expected, atol=1e-8, rtol=0)


def test_closed_form_of_the_initial_stripes():  # weights of the rows in the first and second stripe
    rows = torch.eye(24, dtype=torch.float64).view(1, 24, 24, 1).expand(1, 24, 24, 8)  # channel r is row r's indicator
    pooled = pool_patches(rows, stripes(1, 6))[0]
    first = torch.tensor([0.145833, 0.25, 0.25, 0.25, 0.104167], dtype=torch.float64)
    second = torch.tensor([0.006944, 0.180556, 0.25, 0.25, 0.243056, 0.069444], dtype=torch.float64)
    torch.testing.assert_close(pooled[0, :5], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled[1, 3:9], second, atol=1e-6, rtol=0)


X, THETA = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 3)
BAD = [
    ((X.int(), THETA), TypeError, "pool_patches: expected features of dtype float32"),
    ((X, THETA[0]), ValueError, r"theta \(B, M, 2, 3\)"),
    ((X, THETA[:1]), ValueError, "with B=2"),
    ((X, THETA, (3, 0)), ValueError, "got 3 x 0"),
]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad,error,words", BAD)
def test_rejects(bad, error, words, backend):
    with reidfast.use_backend(backend), pytest.raises(error, match=words):
        pool_patches(*bad)
