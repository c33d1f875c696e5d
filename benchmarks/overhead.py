# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Call overhead of every op on a tiny input, forward with gradient recorded, in units of torch.mul's.

``python -m benchmarks.overhead``. The target is 4 (5 for ops with several outputs).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.timing import environment
from reidfast import ops
from reidfast.testing import call_overhead


def calls() -> dict[str, Callable[[], Any]]:
    """Every op with the smallest input that still makes sense, its floating-point inputs requiring gradients."""
    torch.manual_seed(0)
    grad = lambda *shape: torch.rand(*shape, requires_grad=True)  # noqa: E731
    x, z, offsets = grad(4, 3), grad(4), torch.tensor([0, 2, 4])
    bank, labels = torch.rand(6, 3), torch.tensor([0, 0, 1, 1])
    fmap, theta, logits = grad(1, 2, 3, 3), grad(1, 2, 2, 3), grad(1, 2, 9)
    gates, query, state = grad(1, 4, 2, 2), grad(1, 4, 2, 2), grad(1, 1, 2, 2)
    channel, spatial = grad(1, 2), grad(1, 3, 3)
    boxes, image = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([0])
    index, values = torch.tensor([1, 2, 3, 4]), torch.rand(4, 3)
    centres, own = torch.rand(4, 3), torch.tensor([0, 1, 2, 3])
    return {
        "set_pool ragged": lambda: ops.set_pool(x, z, offsets),
        "set_pool dense": lambda: ops.set_pool(x, z),
        "memory_match": lambda: ops.memory_match(x, bank, 2, scale=1.0),
        "memory_loss": lambda: ops.memory_loss(x, bank, 2, scale=1.0),
        "memory_update_": lambda: ops.memory_update_(bank, index, values, momentum=0.9),
        "sample_patches": lambda: ops.sample_patches(fmap, theta),
        "pool_patches": lambda: ops.pool_patches(fmap, theta),
        "diverse_attention": lambda: ops.diverse_attention(fmap.flatten(2), logits),
        "batch_hard": lambda: ops.batch_hard(x, labels),
        "cyclic_negatives": lambda: ops.cyclic_negatives(values, centres, own, r=2),
        "query_lstm_cell": lambda: ops.query_lstm_cell(gates, query, state),
        "gated_update": lambda: ops.gated_update(channel, spatial, fmap, fmap),
        "region_scores": lambda: ops.region_scores(spatial, boxes, image),
        "grad_cam": lambda: ops.grad_cam(fmap, channel),
    }


def main() -> int:
    """Print the table; write it with --out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(json.dumps(environment()))
    ratios = {name: call_overhead(call) for name, call in calls().items()}
    for name, ratio in ratios.items():
        print(f"{name:<20} {ratio:6.2f} x torch.mul")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"environment": environment(), "overhead": ratios}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
