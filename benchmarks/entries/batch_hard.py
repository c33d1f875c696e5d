# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""batch_hard against a masked distance matrix and the per-anchor loop of torchreid and its relatives."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import batch_hard
from reidfast.testing import make_embeddings


def product_distances(x):
    """||x||^2 + ||y||^2 - 2<x, y>, clamped, as the re-ID libraries write it."""
    sq = x.square().sum(1)
    return (sq[:, None] + sq - 2 * x @ x.t()).clamp(min=1e-12).sqrt()


def eager(x, labels):
    d = product_distances(x)
    same = labels[:, None] == labels
    return d.masked_fill(~same, -torch.inf).amax(1), d.masked_fill(same, torch.inf).amin(1)


def loop(x, labels):
    """One boolean selection of positives and one of negatives per anchor."""
    d = product_distances(x)
    same = labels[:, None] == labels
    ap, an = [], []
    for i in range(len(x)):
        ap.append(d[i][same[i]].max().unsqueeze(0))
        an.append(d[i][same[i] == 0].min().unsqueeze(0))
    return torch.cat(ap), torch.cat(an)


def providers(shape, device):
    spread, offset = (0.5, 0.0) if shape["data"] == "easy" else (1e-3, 1.0)
    x, labels = make_embeddings(shape["rows"], shape["dim"], device=device, spread=spread)
    x = (x + offset / shape["dim"] ** 0.5).requires_grad_()
    step = lambda function: with_backward(function, x)  # noqa: E731
    compiled = torch.compile(eager, dynamic=False)
    return {
        "reidfast": step(lambda x: batch_hard(x, labels)[:2]),
        "eager masked matrix": step(lambda x: eager(x, labels)),
        "torch.compile of it": step(lambda x: compiled(x, labels)),
        "loop over anchors (torchreid)": step(lambda x: loop(x, labels)),
    }


LOOP = {"loop over anchors (torchreid)": 10.0}
register(
    name="batch_hard",
    shapes={
        "64": {"rows": 64, "dim": 2048, "data": "easy"},
        "64 clustered": {"rows": 64, "dim": 2048, "data": "clustered"},
        "256": {"rows": 256, "dim": 2048, "data": "easy"},
        "256 clustered": {"rows": 256, "dim": 2048, "data": "clustered"},
        "1024": {"rows": 1024, "dim": 512, "data": "easy"},
        "tiny": {"rows": 4, "dim": 3, "data": "easy"},
    },
    providers=providers,
    bytes=lambda s: 4 * 3 * s["rows"] * s["dim"],
    flops=lambda s: 2 * s["rows"] ** 2 * s["dim"],
    targets={name: LOOP for name in ("64", "64 clustered", "256", "256 clustered")},
    tests="tests/ops/test_batch_hard.py",
    quick=("64", "tiny"),
)
