# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""rank_distances against the peers' evaluators; rank and search against the bare matrix product."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import peers
from benchmarks.registry import Bench, register
from reidfast.evaluation import rank, rank_distances, search

# Queries, gallery rows, identities, share of distractors: as the test sets have them.
SHAPES = {
    "market": {"queries": 3368, "gallery": 15913, "ids": 750, "dim": 2048, "distractors": 0.176},
    "msmt17 tenth": {"queries": 1166, "gallery": 82161, "ids": 3060, "dim": 2048, "distractors": 0.0},
    "quick": {"queries": 500, "gallery": 8000, "ids": 400, "dim": 2048, "distractors": 0.1},
    "tiny": {"queries": 8, "gallery": 40, "ids": 4, "dim": 16, "distractors": 0.0},
}


def labels(shape):
    rng = np.random.default_rng(0)
    query = rng.integers(1, shape["ids"] + 1, shape["queries"])
    gallery = rng.integers(1, shape["ids"] + 1, shape["gallery"])
    gallery[rng.random(shape["gallery"]) < shape["distractors"]] = 0
    return query, gallery, rng.integers(0, 6, shape["queries"]), rng.integers(0, 6, shape["gallery"])


def features(shape, device):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(shape["queries"], shape["dim"], generator=generator)
    g = torch.randn(shape["gallery"], shape["dim"], generator=generator)
    return q.to(device), g.to(device)


def distance_steps(shape, device):
    rng = np.random.default_rng(1)
    d = rng.random((shape["queries"], shape["gallery"]), dtype=np.float32)
    given = labels(shape)
    held = torch.from_numpy(d).to(device)
    return {
        "reidfast": lambda: rank_distances(held, *given),
        "fast-reid cython": lambda: peers.fastreid_cython().evaluate_cy(d, *given, 50),
        "torchreid cython (restated)": lambda: peers.torchreid_cython().market1501(d, *given, 50),
    }


def product(shape, device):
    q, g = features(shape, device)
    out = torch.empty(len(q), len(g), device=device)  # warm pages: fresh ones would slow the baseline
    return q, g, lambda: torch.mm(q, g.T, out=out)


def rank_steps(shape, device):
    q, g, bare = product(shape, device)
    given = labels(shape)
    return {"reidfast": lambda: rank(q, g, *given), "q @ g.T alone": bare}


def search_steps(shape, device):
    q, g, bare = product(shape, device)
    return {
        "reidfast": lambda: search(q, g, 10),
        "q @ g.T alone": bare,
        "q @ g.T and topk": lambda: bare().topk(10, dim=1),
    }


def matrix_bytes(shape):
    return 4 * shape["queries"] * shape["gallery"]


def feature_bytes(shape):
    return 4 * (shape["queries"] + shape["gallery"]) * shape["dim"]


def product_flops(shape):
    return 2 * shape["queries"] * shape["gallery"] * shape["dim"]


register(
    Bench(
        name="rank_distances",
        shapes=SHAPES,
        providers=distance_steps,
        bytes=matrix_bytes,
        flops=lambda shape: matrix_bytes(shape) / 4 * 2 * shape["gallery"] / shape["ids"],
        mode="forward",
        targets={"market": {"torchreid cython (restated)": 70, "fast-reid cython": 35}},
        tests="tests/evaluation/test_rank_distances.py",
        quick=("quick",),
    )
)
for name, steps, targets in (
    ("rank", rank_steps, {"market": {"q @ g.T alone": 1 / 1.15}}),
    ("search", search_steps, {"market": {"q @ g.T alone": 1 / 1.15}}),
):
    register(
        Bench(
            name=name,
            shapes=SHAPES,
            providers=steps,
            bytes=feature_bytes,
            flops=product_flops,
            mode="forward",
            targets=targets,
            tests="tests/evaluation/test_rank.py",
            quick=("quick",),
        )
    )
