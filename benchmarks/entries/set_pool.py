# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""set_pool against index_add (ragged) and bmm (dense)."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import set_pool


def eager_index_add(x, s, sets, num_sets):
    total = torch.zeros(num_sets, device=s.device).index_add(0, sets, s)
    weights = s / total[sets]
    return torch.zeros(num_sets, x.shape[1], device=x.device).index_add(0, sets, weights.unsqueeze(1) * x)


def eager_bmm(x, s):
    weights = s / s.sum(-1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), x).squeeze(1)


def inputs(shape, device):
    frames, dim = shape["frames"], shape["dim"]
    x = torch.randn(frames, dim, device=device, requires_grad=True)
    s = torch.rand(frames, device=device, requires_grad=True)
    return x, s, [torch.randn(shape["sets"], dim, device=device)]


def ragged(shape, device):
    x, s, grads = inputs(shape, device)
    generator = torch.Generator().manual_seed(1)
    cuts = torch.randperm(shape["frames"] - 1, generator=generator)[: shape["sets"] - 1].sort().values + 1
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([shape["frames"]])]).to(device)
    sets = torch.repeat_interleave(offsets.diff())
    baseline = lambda x, s: eager_index_add(x, s, sets, shape["sets"])  # noqa: E731
    return {
        "reidfast": with_backward(lambda x, s: set_pool(x, s, offsets), x, s, grads=grads),
        "eager index_add": with_backward(baseline, x, s, grads=grads),
        "torch.compile of index_add": with_backward(torch.compile(baseline, dynamic=False), x, s, grads=grads),
    }


def dense(shape, device):
    x, s, grads = inputs(shape, device)
    view = lambda x, s: (x.view(shape["sets"], -1, shape["dim"]), s.view(shape["sets"], -1))  # noqa: E731
    return {
        "reidfast": with_backward(lambda x, s: set_pool(*view(x, s)), x, s, grads=grads),
        "eager bmm": with_backward(lambda x, s: eager_bmm(*view(x, s)), x, s, grads=grads),
        "torch.compile of bmm": with_backward(
            torch.compile(lambda x, s: eager_bmm(*view(x, s)), dynamic=False), x, s, grads=grads
        ),
    }


SHAPES = {
    "video": {"frames": 4096, "dim": 2048, "sets": 512},
    "one set": {"frames": 900, "dim": 2048, "sets": 1},
    "small": {"frames": 64, "dim": 256, "sets": 8},
    "tiny": {"frames": 4, "dim": 3, "sets": 2},
}


def least_bytes(shape):  # forward: read x; backward: read x, write its gradient
    return 4 * 3 * shape["frames"] * shape["dim"]


COMMON = {
    "shapes": SHAPES,
    "bytes": least_bytes,
    "flops": lambda shape: 5 * shape["frames"] * shape["dim"],
    "tests": "tests/ops/test_set_pool.py",
    "quick": ("video", "tiny"),
}
register(
    name="set_pool ragged",
    providers=ragged,
    targets={"video": {"eager index_add": 3.5, "torch.compile of index_add": 1.0}},
    **COMMON,
)
register(
    name="set_pool dense",
    providers=dense,
    targets={"video": {"eager bmm": 1.3, "torch.compile of bmm": 1.0}},
    **COMMON,
)
