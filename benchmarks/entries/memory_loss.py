# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""memory_loss, memory_match and memory_update_ against eager torch, torch.compile, and the way of PAUL and of ECN."""

import torch
from torch.nn.functional import normalize

from benchmarks.harness.registry import register, with_backward
from reidfast.ops import memory_loss, memory_match, memory_update_
from reidfast.ops.reference.memory_match import memory_match as reference_match

SCALE = 15.0


def inputs(shape, device):
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: normalize(torch.randn(shape["parts"], n, shape["dim"], generator=generator), dim=-1).to(device)  # noqa: E731
    rows = torch.randperm(shape["rows"], generator=generator)[: shape["queries"]].to(device)
    return draw(shape["queries"]).requires_grad_(), draw(shape["rows"]), rows


def eager(x, bank, own, k):
    """Products of all parts at once, topk, logsumexp."""
    d = x.square().sum(-1, keepdim=True) + bank.square().sum(-1).unsqueeze(-2) - 2 * x @ bank.mT
    logits = (-SCALE * d).scatter(-1, own.expand(len(x), -1).unsqueeze(-1), -torch.inf)
    return logits.logsumexp(-1) - logits.topk(k, dim=-1).values.logsumexp(-1)


def paul(x, rows_as_list, own, k):
    """As the released code goes: the bank is a list of rows that is stacked on every step; per part a matrix of
    distances, a boolean gather of all but the own row, a full sort for the k nearest, exponentials without a
    maximum."""
    losses = []
    for part, rows in zip(x, rows_as_list, strict=True):
        bank = torch.stack(rows)
        d = part.square().sum(1, keepdim=True) + bank.square().sum(1) - 2 * part @ bank.t()
        others = torch.ones_like(d, dtype=torch.bool)
        others[torch.arange(len(part)), own] = False
        d = d[others].view(len(part), -1)
        nearest = d.sort(dim=1).values[:, :k]
        losses.append(torch.exp(-SCALE * d).sum(1).log() - torch.exp(-SCALE * nearest).sum(1).log())
    return torch.stack(losses)


def loss_providers(shape, device):
    x, bank, own = inputs(shape, device)
    k, as_list = shape["k"], [list(part) for part in bank]
    gradient_weights = torch.randn(shape["parts"], shape["queries"], shape["rows"], device=device)
    detached, transposed = x.detach(), bank.mT
    return {
        "reidfast": with_backward(lambda x: memory_loss(x, bank, k, scale=SCALE, exclude=own), x),
        "two torch.bmm": lambda: (torch.bmm(detached, transposed), torch.bmm(gradient_weights, bank)),
        "eager": with_backward(lambda x: eager(x, bank, own, k), x),
        "torch.compile of eager": with_backward(torch.compile(lambda x: eager(x, bank, own, k), dynamic=False), x),
        "PAUL's pattern": with_backward(lambda x: paul(x, as_list, own, k), x),
    }


def match_providers(shape, device):
    x, bank, own = inputs(shape, device)
    eager_match = lambda x: reference_match(x, bank, shape["k"], SCALE, "sqeuclidean", own)[:2]  # noqa: E731
    return {
        "reidfast": with_backward(lambda x: memory_match(x, bank, shape["k"], scale=SCALE, exclude=own)[:2], x),
        "eager": with_backward(eager_match, x),
        "torch.compile of eager": with_backward(torch.compile(eager_match, dynamic=False), x),
    }


def update_loop(bank, rows, values):
    """As ECN, SpCL and cluster-contrast go: one row after another, normalised after each write."""
    for value, row in zip(values, rows, strict=True):
        bank[row] = 0.9 * bank[row] + 0.1 * value
        bank[row] /= bank[row].norm()


def update_providers(shape, device):
    x, bank, rows = inputs(shape, device)
    values = x.detach()

    def loop():
        for part, value in zip(bank, values, strict=True):
            update_loop(part, rows, value)

    def ours():
        memory_update_(bank, rows, values, momentum=0.9, normalize=True)

    return {
        "reidfast": ours,
        "ECN's loop": loop,
        "memory_loss of the same shape": with_backward(
            lambda x: memory_loss(x, bank, shape["k"], scale=SCALE, exclude=rows), x
        ),
    }


SHAPES = {
    "market": {"parts": 6, "queries": 40, "rows": 12_936, "dim": 256, "k": 10},
    "msmt17": {"parts": 6, "queries": 40, "rows": 32_621, "dim": 256, "k": 10},
    "ecn": {"parts": 1, "queries": 128, "rows": 12_936, "dim": 2048, "k": 6},
    "tiny": {"parts": 1, "queries": 2, "rows": 3, "dim": 4, "k": 1},
}


def bank_bytes(shape):
    return 4 * shape["parts"] * shape["rows"] * shape["dim"]


def flops(shape):
    return 4 * shape["parts"] * shape["rows"] * shape["dim"] * shape["queries"]


FLOOR = {"two torch.bmm": 1 / 1.3, "PAUL's pattern": 15.0}
COMMON = {"shapes": SHAPES, "bytes": bank_bytes, "flops": flops, "quick": ("market", "tiny")}
register(
    name="memory_loss",
    providers=loss_providers,
    targets={"market": FLOOR, "msmt17": FLOOR},
    tests="tests/ops/test_memory_loss.py",
    **COMMON,
)
register(name="memory_match", providers=match_providers, tests="tests/ops/test_memory_match.py", **COMMON)
register(
    name="memory_update_",
    providers=update_providers,
    targets={
        "market": {"memory_loss of the same shape": 100.0},
        "msmt17": {"memory_loss of the same shape": 100.0},
    },
    tests="tests/ops/test_memory_update.py",
    mode="forward",
    shapes=SHAPES,
    bytes=lambda shape: 4 * 3 * shape["parts"] * shape["queries"] * shape["dim"],
    flops=lambda shape: 5 * shape["parts"] * shape["queries"] * shape["dim"],
    quick=("market", "tiny"),
)
