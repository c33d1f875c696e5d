# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""rank_distances against the peers' evaluators; rank and search against the bare matrix product."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import peers
from benchmarks.harness.registry import register
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
    if device == "cuda":
        return {"reidfast": lambda: rank_distances(held, *given), "sort and gather": sort_and_gather(held, *given)}
    return {
        "reidfast": lambda: rank_distances(held, *given),
        "fast-reid cython": lambda: peers.fastreid_cython().evaluate_cy(d, *given, 50),
        "torchreid cython (restated)": lambda: peers.torchreid_cython().market1501(d, *given, 50),
    }


def sort_and_gather(d, query_pids, gallery_pids, query_camids, gallery_camids):
    """As torchreid and fast-reid score, moved to the device: every row sorted, labels gathered, sums along rows."""
    labels = [torch.from_numpy(x).to(d.device) for x in (query_pids, gallery_pids, query_camids, gallery_camids)]

    def step():
        precisions = []
        for i in range(0, len(d), 512):
            order = d[i : i + 512].argsort(dim=1)
            same = labels[1][order] == labels[0][i : i + 512, None]
            keep = ~(same & (labels[3][order] == labels[2][i : i + 512, None]))
            hits = (same & keep).double()
            found = hits.cumsum(1)
            place = keep.double().cumsum(1)
            precisions.append((hits * found / place.clamp_min(1)).sum(1) / found[:, -1])
        return torch.cat(precisions).nanmean().item()

    return step


def product(shape, device):
    q, g = features(shape, device)
    out = torch.empty(len(q), len(g), device=device)  # warm pages: fresh ones would slow the baseline
    return q, g, lambda: torch.mm(q, g.T, out=out)


def rank_steps(shape, device):
    q, g, bare = product(shape, device)
    given = labels(shape)
    return {"reidfast": lambda: rank(q, g, *given), "q @ g.T alone": bare}


def people(shape, device):
    """Features as a trained network makes them: clusters around a common mean, unit length; their labels."""
    query_pids, gallery_pids, *cameras = labels(shape)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(shape["ids"] + 1, shape["dim"], generator=generator) / shape["dim"] ** 0.5
    mean = 1.2 * torch.randn(shape["dim"], generator=generator) / shape["dim"] ** 0.5

    def make(ids):
        noise = torch.randn(len(ids), shape["dim"], generator=generator) / shape["dim"] ** 0.5
        own = torch.where(torch.from_numpy(ids)[:, None] > 0, centres[torch.from_numpy(ids)], 1.1 * noise)
        return torch.nn.functional.normalize(mean + own + 1.1 * noise).to(device)

    return make(query_pids), make(gallery_pids), (query_pids, gallery_pids, *cameras)


def precision_steps(precision):
    """`rank` at one of the precisions that GPUs have."""

    def steps(shape, device):
        q, g, given = people(shape, device)
        out = torch.empty(len(q), len(g), device=device)
        return {
            "reidfast": lambda: rank(q, g, *given, precision=precision),
            "rank in float32": lambda: rank(q, g, *given),
            "q @ g.T alone": lambda: torch.mm(q, g.T, out=out),
            "q @ g.T, sort and gather": lambda: sort_and_gather(1 - torch.mm(q, g.T, out=out), *given)(),
        }

    return steps


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
GPU_SHAPES = {
    "market": SHAPES["market"],
    "msmt17": {"queries": 11659, "gallery": 82161, "ids": 3060, "dim": 2048, "distractors": 0.0},
    "tiny": SHAPES["tiny"],
}
# How many products in TensorFloat-32 a precision costs at least.
for precision, products in (("tf32x3", 3), ("certified", 1), ("bf16", 0.5)):
    register(
        name=f"rank {precision}",
        shapes=GPU_SHAPES,
        providers=precision_steps(precision),
        bytes=feature_bytes,
        flops=lambda shape, products=products: products * product_flops(shape),
        mode="forward",
        tests="tests/evaluation/test_certified.py",
        devices=("cuda",),
    )
for name, steps, targets in (
    ("rank", rank_steps, {"market": {"q @ g.T alone": 1 / 1.15}}),
    ("search", search_steps, {"market": {"q @ g.T alone": 1 / 1.15}}),
):
    register(
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
