# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""region_scores against its float64 reference and a loop over cells: boxes off the map, degenerate, NaN; TV-NPSM."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_implementations import every_implementation

from reidfast import implementations
from reidfast.ops import region_scores
from reidfast.ops.reference.region_scores import region_scores as reference
from reidfast.testing import FLOATS, assert_no_worse, shape_id

SHAPES = [(1, 1, 1, 1), (2, 4, 4, 9), (3, 7, 13, 40), (5, 14, 14, 3000)]  # B, H, W, P
INF, NAN = math.inf, math.nan
impl = every_implementation("region_scores")


def make(shape, dtype=torch.float64, seed=0):
    b, h, w, p = shape
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(b, h, w, generator=generator, dtype=torch.float64).to(dtype)
    corner = torch.rand(p, 2, generator=generator) * torch.tensor([w + 2.0, h + 2.0]) - 1
    size = torch.rand(p, 2, generator=generator) * torch.tensor([0.7 * w, 0.7 * h])
    boxes = torch.cat([corner, corner + size], 1)
    boxes[::5] = (boxes[::5] * 2).round() / 2  # edges on cell borders and on cell centres
    return attention, boxes, torch.randint(0, b, (p,), generator=generator)


def loop(attention, boxes, image_index):
    """The definition, cell by cell."""
    out = []
    for (x1, y1, x2, y2), b in zip(boxes.tolist(), image_index.tolist(), strict=True):
        height, width = attention.shape[1:]
        cells = [(y, x) for y in range(height) for x in range(width) if x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2]
        if not cells:
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            cells = [(min(max(math.floor(cy), 0), height - 1), min(max(math.floor(cx), 0), width - 1))]
        out.append(sum(attention[b, y, x].item() for y, x in cells) / len(cells))
    return torch.tensor(out, dtype=torch.float64)


def run(function, attention, boxes, index, grad):
    attention = attention.detach().requires_grad_()
    out = function(attention, boxes, index)
    return (out, *torch.autograd.grad(out, attention, grad.to(out)))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_matches_reference(impl, shape, dtype):
    attention, boxes, index = make(shape, dtype, seed=shape[3])
    grad = torch.randn(shape[3]).to(dtype)
    exact = run(reference, attention.double(), boxes, index, grad)
    assert_no_worse(run(impl, attention, boxes, index, grad), exact, run(reference, attention, boxes, index, grad))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.lists(st.integers(-6, 18), min_size=4, max_size=40), st.integers(0, 999)
)
def test_equals_loop_over_cells(height, width, halves, seed):
    attention = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    boxes = torch.tensor(halves[: len(halves) // 4 * 4]).view(-1, 4) / 2  # any corners, also swapped, all on halves
    index = torch.arange(len(boxes)) % 2
    for function in implementations("region_scores").values():
        torch.testing.assert_close(function(attention, boxes, index), loop(attention, boxes, index))


def test_published_vector(impl):
    attention = torch.softmax(torch.sin(0.9 * torch.arange(16, dtype=torch.float64) + 0.2), 0).view(1, 4, 4)
    scores = impl(
        attention, torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 2.0, 2.0, 4.0]]), torch.zeros(2, dtype=torch.int64)
    )
    torch.testing.assert_close(
        scores.cpu(), torch.tensor([0.06475797, 0.06795695], dtype=torch.float64), atol=5e-9, rtol=0
    )


def test_special_boxes(impl):
    attention = torch.arange(12.0).view(1, 3, 4)
    cases = [
        ([0, 0, 4, 3], 5.5),  # the whole map
        ([-9, -9, 9, 9], 5.5),
        ([-INF, -INF, INF, INF], 5.5),
        ([1.6, 0.6, 2.4, 1.4], 6.0),  # between the centres of cells: the cell that holds (2, 1)
        ([2.5, 1.5, 2.5, 1.5], 6.0),  # a point on a centre
        ([2.9, 1.9, 2.9, 1.9], 6.0),  # a point beside it
        ([3, 2, 1, 1], 6.0),  # swapped corners: the centre (2, 1.5)
        ([10, 10, 12, 12], 11.0),  # off the map: the nearest border cell
        ([-5, -5, -4, -4], 0.0),
        ([1, -5, 2, -4], 1.0),
        ([INF, INF, INF, INF], 11.0),
        ([0, NAN, 1, 1], NAN),
        ([NAN] * 4, NAN),
        ([INF, 0, -INF, 1], NAN),
        ([1e30, 1e30, 2e30, 2e30], 11.0),
    ]
    boxes = torch.tensor([c[0] for c in cases], dtype=torch.float32)
    for dtype in (torch.float32, torch.float64):
        got = impl(attention, boxes.to(dtype), torch.zeros(len(cases), dtype=torch.int64)).cpu()
        torch.testing.assert_close(got, torch.tensor([c[1] for c in cases]), equal_nan=True)


def test_nan_box_passes_no_gradient(impl):
    attention = torch.rand(1, 2, 2, requires_grad=True)
    boxes = torch.tensor([[0.0, 0.0, NAN, 1.0], [0.0, 0.0, 1.0, 1.0]])
    (grad,) = torch.autograd.grad(impl(attention, boxes, torch.zeros(2, dtype=torch.int64)).sum(), attention)
    assert grad.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_bad_cell_reaches_only_its_boxes(impl, bad):
    attention = torch.ones(2, 4, 4)
    attention[0, 1, 1] = bad
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    got = impl(attention, boxes, torch.tensor([0, 0, 1])).cpu()
    torch.testing.assert_close(got, torch.tensor([bad, 1.0, 1.0]), equal_nan=True)


def test_no_cancellation_on_large_maps():
    attention = torch.full((1, 200, 200), 1e4)
    attention[0, 150:, 150:] = 1e-4
    got = region_scores(attention, torch.tensor([[150.0, 150.0, 200.0, 200.0]]), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor([1e-4]), rtol=2e-4, atol=0)


def test_strides_and_box_dtypes(impl):
    attention, boxes, index = make((2, 5, 6, 12))
    want = reference(attention, boxes, index)
    torch.testing.assert_close(impl(attention.transpose(1, 2).contiguous().transpose(1, 2), boxes, index).cpu(), want)
    wide = torch.stack([boxes, boxes], 2)[..., 0]
    torch.testing.assert_close(impl(attention, wide, index.repeat_interleave(2)[::2]).cpu(), want)
    halves = (boxes * 2).round() / 2
    assert torch.equal(region_scores(attention, halves.half(), index), region_scores(attention, halves.double(), index))


def test_empty(impl):
    none = torch.zeros(0, dtype=torch.int64)
    for shape in ((2, 3, 3), (0, 3, 3), (2, 0, 3)):
        attention = torch.rand(shape, requires_grad=True)
        out = impl(attention, torch.zeros(0, 4), none)
        assert out.shape == (0,)
        assert torch.equal(torch.autograd.grad(out.sum(), attention)[0], torch.zeros(shape))


A, X, U = torch.ones(2, 3, 3), torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)
BAD = [
    ((A.long(), X, U), TypeError, "expected attention of dtype float32"),
    ((A, X.long(), U), TypeError, "expected boxes of dtype float32"),
    ((A[0], X, U), ValueError, r"attention of shape \(B, H, W\)"),
    ((A, X[:, :3], U), ValueError, r"boxes of shape \(P, 4\), got \(5, 3\)"),
    ((A, X, U[:4]), ValueError, r"image_index of shape \(P,\) with P=5 to match boxes, got \(4,\)"),
    ((A, X, U.int()), TypeError, "image_index of dtype int64"),
    ((A, X, U + 2), ValueError, r"image_index in \[0, B\) with B=2, got 2"),
    ((A, X, U - 1), ValueError, r"image_index in \[0, B\) with B=2, got -1"),
    ((A[:, :0], X, U), ValueError, "at least one cell beside boxes"),
    ((A, X.to("meta"), U), ValueError, "boxes on attention's device"),
]


@pytest.mark.parametrize("args,error,words", BAD)
def test_rejects(args, error, words):
    with pytest.raises(error, match=words):
        region_scores(*args)
