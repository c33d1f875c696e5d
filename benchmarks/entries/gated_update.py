# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""gated_update against the broadcast, sigmoid and blend of the refining recurrent unit's release."""

import torch

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import gated_update
from reidfast.ops.reference.gated_update import gated_update as eager


def providers(shape, device):
    b, c, s = shape["batch"], shape["channels"], shape["side"]
    inputs = [
        torch.randn(size, device=device, requires_grad=True) for size in ((b, c), (b, s, s), (b, c, s, s), (b, c, s, s))
    ]
    grads = [torch.randn(b, c, s, s, device=device)]
    step = lambda function: with_backward(function, *inputs, grads=grads)  # noqa: E731
    return {
        "reidfast": step(gated_update),
        "eager (rru-reid)": step(eager),
        "torch.compile of it": step(torch.compile(eager, dynamic=False)),
    }


def cells(shape):
    return shape["batch"] * shape["channels"] * shape["side"] ** 2


register(
    name="gated_update",
    shapes={
        "training": {"batch": 20, "channels": 2048, "side": 8},
        "one track": {"batch": 1, "channels": 2048, "side": 8},
        "tiny": {"batch": 1, "channels": 2, "side": 2},
    },
    providers=providers,
    bytes=lambda s: 4 * (3 + 5) * cells(s),  # forward: 2 in, 1 out; backward: 3 in, 2 out
    flops=lambda s: 20 * cells(s),
    targets={"training": {"eager (rru-reid)": 1.0}},
    tests="tests/ops/test_gated_update.py",
    quick=("training", "tiny"),
)
