# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""region_scores against masks over all cells and a loop over boxes."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import region_scores
from reidfast.ops.reference.region_scores import region_scores as masks


def loop(attention, boxes, index):
    out = []
    for (x1, y1, x2, y2), b in zip(boxes.round().int().tolist(), index.tolist(), strict=True):
        out.append(attention[b, y1:y2, x1:x2].mean())
    return torch.stack(out)


def providers(shape, device):
    generator = torch.Generator().manual_seed(0)
    side, count = shape["side"], shape["boxes"]
    attention = torch.rand(shape["batch"], side, side, generator=generator).to(device).requires_grad_()
    corner = (torch.rand(count, 2, generator=generator) * (side - 1)).floor()
    size = 1 + (torch.rand(count, 2, generator=generator) * (side - corner - 1)).floor()
    boxes = torch.cat([corner, corner + size], 1).to(device)
    index = torch.randint(0, shape["batch"], (count,), generator=generator).to(device)
    step = lambda function: with_backward(lambda a: function(a, boxes, index), attention)  # noqa: E731
    return {
        "reidfast": step(region_scores),
        "eager masks": step(masks),
        "torch.compile of it": step(torch.compile(masks, dynamic=False)),
        "loop over boxes": step(loop),
    }


register(
    name="region_scores",
    shapes={
        "frame": {"batch": 2, "side": 14, "boxes": 2000},
        "clusters": {"batch": 16, "side": 14, "boxes": 64},
        "tiny": {"batch": 1, "side": 2, "boxes": 1},
    },
    providers=providers,
    bytes=lambda s: 4 * 2 * s["batch"] * s["side"] ** 2 + 2 * 28 * s["boxes"],
    flops=lambda s: 3 * s["batch"] * s["side"] ** 2 + 8 * s["boxes"],
    targets={"frame": {"eager masks": 2.0, "loop over boxes": 10.0}},
    tests="tests/ops/test_region_scores.py",
    quick=("frame", "tiny"),
)
