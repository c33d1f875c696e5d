# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""cyclic_negatives against vectorised eager PyTorch and the loop over anchors and candidates of PAUL's release."""

import torch

from benchmarks.harness.registry import register
from reidfast.ops import cyclic_negatives


def eager(anchors, centres, own, r, candidates):
    rows = torch.arange(len(anchors), device=anchors.device)
    d = torch.cdist(anchors, centres)
    d[rows, own] = torch.inf
    nearest = d.topk(min(candidates, len(centres) - 1), largest=False).indices
    between = torch.cdist(centres, centres)
    radius = between.topk(r, largest=False).values[:, -1]
    accepted = between[nearest, own[:, None]] > radius[nearest]
    first = accepted.int().argmax(1)
    return torch.where(accepted.any(1), nearest[rows, first], -1)


def loop(anchors, centres, own, r, candidates):
    """Per anchor and candidate a row of distances, a sort, and a look whether the own centre is among the first."""
    out = []
    for f, u in zip(anchors, own, strict=True):
        order = (f - centres).square().sum(1).sqrt().argsort()
        order = order[order != u][:candidates]
        chosen = -1
        for v in order:
            near = (centres[v] - centres).square().sum(1).sqrt().argsort()[:r]
            if u not in near:
                chosen = int(v)
                break
        out.append(chosen)
    return torch.tensor(out)


def providers(shape, device):
    generator = torch.Generator().manual_seed(0)
    num, dim = shape["centres"], shape["dim"]
    groups = num if shape["data"] == "easy" else max(1, num // 14)
    base = torch.randn(groups, dim, generator=generator)[torch.arange(num) % groups]
    centres = (base + 0.3 * torch.randn(num, dim, generator=generator)).to(device)
    anchors = centres.repeat(2, 1) + 0.1 * torch.randn(2 * num, dim, generator=generator).to(device)
    own = torch.arange(2 * num, device=device) % num
    r = min(shape["r"], num)
    compiled = torch.compile(lambda f, c, u: eager(f, c, u, r, 15), dynamic=False)
    return {
        "reidfast": lambda: cyclic_negatives(anchors, centres, own, r=r),
        "eager": lambda: eager(anchors, centres, own, r, 15),
        "torch.compile of it": lambda: compiled(anchors, centres, own),
        "loop (PAUL)": lambda: loop(anchors, centres, own, r, 15),
    }


register(
    name="cyclic_negatives",
    shapes={
        "easy": {"centres": 40, "dim": 768, "r": 3, "data": "easy"},
        "clustered": {"centres": 40, "dim": 768, "r": 12, "data": "clustered"},
        "400": {"centres": 400, "dim": 768, "r": 3, "data": "easy"},
        "tiny": {"centres": 4, "dim": 3, "r": 1, "data": "easy"},
    },
    providers=providers,
    bytes=lambda s: 4 * 3 * s["centres"] * s["dim"],
    flops=lambda s: 6 * s["centres"] ** 2 * s["dim"],
    mode="forward",
    targets={"easy": {"loop (PAUL)": 10.0}, "clustered": {"loop (PAUL)": 10.0}},
    tests="tests/ops/test_cyclic_negatives.py",
    quick=("easy", "tiny"),
)
