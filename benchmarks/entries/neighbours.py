# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking and Jaccard graphs against half of the symmetric product and against the peers' dense code.

``python -m benchmarks.reranking`` takes these at full size, with peak memory, equality, and the table against gallery
size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness.registry import Step, register
from benchmarks.peers import dense_restated
from reidfast.evaluation import jaccard_graph, rank_reranked, rerank


def people(rows: int, dim: int) -> tuple[Tensor, Any, Any]:
    """Unit features of identities with 20 images each, shuffled; identities and cameras.

    Noise such that the cosine of one person's images lies four standard deviations above strangers': mAP about 0.9.
    """
    generator = torch.Generator().manual_seed(0)
    ids = (torch.arange(rows) // 20)[torch.randperm(rows, generator=generator)]
    x = torch.randn(rows // 20 + 1, dim, generator=generator)[ids]
    x += max(0.0, dim**0.5 / 4 - 1) ** 0.5 * torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(x), ids.numpy(), torch.randint(0, 6, (rows,), generator=generator).numpy()


def half_product(x: Tensor) -> Step:
    """The matrix product that nobody can do without: every pair once, into the same memory again and again."""
    rows = min(1024, len(x))
    out = torch.zeros(rows * len(x), device=x.device)

    def step() -> None:
        for begin in range(0, len(x), rows):
            some, rest = x[begin : begin + rows], x[begin:]
            torch.mm(some, rest.T, out=out[: len(some) * len(rest)].view(len(some), len(rest)))

    return step


def torchreid_rerank(q: Tensor, g: Tensor) -> tuple[str, Step]:
    """torchreid's code, its own where it can be had."""
    try:
        own = peers.torchreid_rerank()
        return "torchreid", lambda: own(q, g)
    except Exception:  # no index in reach: the same in our words
        return "torchreid (restated)", lambda: dense_restated.argsort_pattern(q, g)


def dense_jaccard(x: Tensor) -> tuple[str, Step]:
    """The code of OpenUnReID, cluster-contrast and fast-reid, fast-reid's own where it can be had."""
    try:
        own = peers.fastreid_jaccard()
        return "faiss and dense (fast-reid)", lambda: own(x)
    except Exception:
        return "neighbours and dense (restated)", lambda: dense_restated.neighbours_pattern(x)


def rerank_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    x = people(shape["queries"] + shape["gallery"], shape["dim"])[0].to(device)
    q, g = x[: shape["queries"]], x[shape["queries"] :]
    steps = {"reidfast": lambda: rerank(q, g, variant="torchreid").dense(), "half product": half_product(x)}
    if shape["dense"] and device == "cpu":
        name, step = torchreid_rerank(q, g)
        steps[name] = step
    return steps


def rank_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    x, ids, cameras = people(shape["queries"] + shape["gallery"], shape["dim"])
    x = x.to(device)
    at = shape["queries"]
    labels = ids[:at], ids[at:], cameras[:at], cameras[at:]
    return {"reidfast": lambda: rank_reranked(x[:at], x[at:], *labels), "half product": half_product(x)}


def graph_providers(shape: dict[str, Any], device: str) -> dict[str, Step]:
    x = people(shape["items"], shape["dim"])[0].to(device)
    steps = {"reidfast": lambda: jaccard_graph(x), "half product": half_product(x)}
    if shape["dense"] and device == "cpu":
        name, step = dense_jaccard(x)
        steps[name] = step
    return steps


def items(shape: dict[str, Any]) -> int:
    return shape["items"] if "items" in shape else shape["queries"] + shape["gallery"]


SHAPES = {
    "market": {"queries": 3368, "gallery": 15913, "dim": 2048, "dense": False},
    "market and torchreid": {"queries": 3368, "gallery": 15913, "dim": 2048, "dense": True},
    "fifth of market": {"queries": 674, "gallery": 3182, "dim": 2048, "dense": True},
    "tiny": {"queries": 8, "gallery": 40, "dim": 16, "dense": True},
}
LONG = ("market and torchreid", "msmt17, D=512", "msmt17, D=2048", "market train", "msmt17 train")
COMMON: dict[str, Any] = {
    "bytes": lambda s: 4.0 * items(s) * s["dim"],
    "flops": lambda s: float(items(s)) ** 2 * s["dim"],
    "mode": "forward",
}
register(
    name="rerank",
    shapes=SHAPES,
    providers=rerank_providers,
    targets={
        "market": {"half product": 1 / 1.6},
        "market and torchreid": {"torchreid": 20.0, "torchreid (restated)": 20.0, "half product": 1 / 1.6},
    },
    tests="tests/evaluation/test_rerank.py",
    long=LONG,
    quick=("fifth of market",),
    **COMMON,
)
register(
    name="rank_reranked",
    shapes={
        "fifth of market": {"queries": 674, "gallery": 3182, "dim": 2048},
        "msmt17, D=512": {"queries": 11659, "gallery": 82161, "dim": 512},
        "msmt17, D=2048": {"queries": 11659, "gallery": 82161, "dim": 2048},
        "tiny": {"queries": 8, "gallery": 40, "dim": 16},
    },
    providers=rank_providers,
    tests="tests/evaluation/test_rerank.py",
    long=LONG,
    quick=("fifth of market",),
    **COMMON,
)
register(
    name="jaccard_graph",
    shapes={
        "market train": {"items": 12936, "dim": 2048, "dense": True},
        "msmt17 train": {"items": 32621, "dim": 2048, "dense": False},
        "quarter of market train": {"items": 3234, "dim": 2048, "dense": True},
        "tiny": {"items": 48, "dim": 16, "dense": True},
    },
    providers=graph_providers,
    targets={
        "market train": {"faiss and dense (fast-reid)": 10.0, "neighbours and dense (restated)": 10.0},
    },
    tests="tests/evaluation/test_rerank.py",
    long=LONG,
    quick=("quarter of market train",),
    **COMMON,
)
