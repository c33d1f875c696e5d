# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Region pooling against loops over samples and cells."""

from __future__ import annotations

import math

import pytest
import torch

from reidfast.nn import roi_align, roi_max_pool, roi_pool

BOXES = torch.tensor(
    [
        [0.0, 0.0, 40.0, 30.0],  # the whole image
        [3.3, 5.1, 17.9, 28.4],
        [-9.0, -4.0, 12.0, 9.0],  # reaches out on the left and above
        [30.0, 20.0, 55.0, 44.0],  # right and below
        [11.0, 7.0, 11.0, 7.0],  # no area
        [100.0, 100.0, 120.0, 120.0],  # nowhere near
        [8.0, 8.0, 9.0, 29.0],  # thinner than a cell
    ],
    dtype=torch.float64,
)
INDEX = torch.tensor([0, 1, 1, 0, 1, 0, 1])


def features(channels=3):
    return torch.randn(2, channels, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def bilinear(plane, y, x):
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    top = plane[y0, x0] * (1 - dx) + plane[y0, x1] * dx
    return float(top * (1 - dy) + (plane[y1, x0] * (1 - dx) + plane[y1, x1] * dx) * dy)


def loop_align(x, boxes, index, size, scale, ratio, aligned):
    out = torch.zeros(len(boxes), x.shape[1], *size, dtype=x.dtype)
    for r, (box, n) in enumerate(zip(boxes, index, strict=True)):
        x1, y1, x2, y2 = (float(v) * scale - (0.5 if aligned else 0.0) for v in box)
        wide, high = x2 - x1, y2 - y1
        if not aligned:
            wide, high = max(wide, 1.0), max(high, 1.0)
        for c in range(x.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    samples = [
                        bilinear(
                            x[n, c],
                            y1 + (i + (a + 0.5) / ratio) * high / size[0],
                            x1 + (j + (b + 0.5) / ratio) * wide / size[1],
                        )
                        for a in range(ratio)
                        for b in range(ratio)
                    ]
                    out[r, c, i, j] = sum(samples) / ratio**2
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("size,ratio", [((4, 3), 2), ((1, 1), 3), ((7, 5), 1)])
def test_align_matches_loop(size, ratio, aligned):
    x = features()
    got = roi_align(x, BOXES, INDEX, size, scale=0.2, sampling_ratio=ratio, aligned=aligned)
    want = loop_align(x, BOXES, INDEX, size, 0.2, ratio, aligned)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_align_of_a_linear_map_is_the_position():
    ys, xs = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    ramp = torch.stack([xs + 0.5, ys + 0.5])[None]  # where each cell is in the picture, in cells
    box = torch.tensor([[10.0, 5.0, 30.0, 25.0]])
    got = roi_align(ramp, box, torch.tensor([0]), (2, 2), scale=0.2)
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(got[0, 1, :, 0], torch.tensor([2.0, 4.0]))


def loop_max(x, boxes, index, size, scale):
    height, width = x.shape[2:]
    out = torch.zeros(len(boxes), x.shape[1], *size, dtype=x.dtype)
    for r, (box, n) in enumerate(zip(boxes.tolist(), index, strict=True)):
        x1, y1, x2, y2 = (int(math.copysign(math.floor(abs(v * scale) + 0.5), v)) for v in box)
        wide, high = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        for i in range(size[0]):
            for j in range(size[1]):
                top, bottom = y1 + i * high // size[0], y1 - (-(i + 1) * high // size[0])
                left, right = x1 + j * wide // size[1], x1 - (-(j + 1) * wide // size[1])
                rows, columns = slice(max(top, 0), max(min(bottom, height), 0)), slice(max(left, 0), max(right, 0))
                cells = x[n, :, rows, columns]
                if cells.numel():
                    out[r, :, i, j] = cells.amax((1, 2))
    return out


@pytest.mark.parametrize("size", [(4, 3), (1, 1), (9, 11)])
def test_max_matches_loop(size):
    x = features()
    torch.testing.assert_close(
        roi_max_pool(x, BOXES, INDEX, size, scale=0.2), loop_max(x, BOXES, INDEX, size, 0.2), rtol=0, atol=0
    )


@pytest.mark.parametrize("op", ["align", "max"])
def test_gradients(op):
    x = features(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, BOXES, INDEX, (3, 2), scale=0.2, op=op), (x,))


def test_order_of_regions_does_not_matter():
    x, order = features(), torch.tensor([6, 2, 0, 4, 1, 5, 3])
    for op in ("align", "max"):
        a = roi_pool(x, BOXES, INDEX, (4, 4), scale=0.2, op=op)
        b = roi_pool(x, BOXES[order], INDEX[order], (4, 4), scale=0.2, op=op)
        assert torch.equal(a[order], b)


def test_no_regions_and_half_precision():
    x = features().float()
    for op in ("align", "max"):
        assert roi_pool(x, BOXES[:0], INDEX[:0], (4, 3), scale=0.2, op=op).shape == (0, 3, 4, 3)
    half = roi_align(x.bfloat16(), BOXES, INDEX, (4, 3), scale=0.2)
    assert half.dtype == torch.bfloat16
    assert (half.float() - roi_align(x, BOXES, INDEX, (4, 3), scale=0.2)).abs().max() < 0.05


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"features": torch.zeros(3, 6, 8)}, ValueError, "features"),
        ({"boxes": torch.zeros(7, 5)}, ValueError, r"boxes \(R, 4\)"),
        ({"image_index": torch.zeros(3, dtype=torch.int64)}, ValueError, "image_index"),
        ({"image_index": torch.zeros(7)}, TypeError, "int64"),
        ({"image_index": INDEX + 1}, ValueError, r"\[0, 2\)"),
        ({"size": (0, 3)}, ValueError, "size"),
        ({"op": "mean"}, ValueError, "'align' or 'max'"),
        ({"sampling_ratio": 0}, ValueError, "sampling_ratio"),
    ],
)
def test_bad_inputs(change, error, words):
    arguments = {"features": features(), "boxes": BOXES, "image_index": INDEX, "size": (2, 2), "scale": 0.2, **change}
    with pytest.raises(error, match=words):
        roi_pool(**arguments)
