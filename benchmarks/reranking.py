# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking and Jaccard graphs against half of the symmetric product and against the dense pattern of the peers.

``python -m benchmarks.reranking`` prints time and peak memory against the number of gallery items instead.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.registry import Bench, register
from reidfast.evaluation import jaccard_graph, rank_reranked, rerank
from reidfast.testing import peak_memory


def people(rows, dim):
    """Unit features of identities with 20 images each, shuffled; identities and cameras."""
    generator = torch.Generator().manual_seed(0)
    ids = (torch.arange(rows) // 20)[torch.randperm(rows, generator=generator)]
    x = torch.randn(rows // 20 + 1, dim, generator=generator)[ids]
    x += 3 * torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(x), ids.numpy(), torch.randint(0, 6, (rows,), generator=generator).numpy()


def half_product(x):
    """The matrix product that nobody can do without: every pair once, nothing kept."""
    for begin in range(0, len(x), 1024):
        x[begin : begin + 1024] @ x[begin:].T


def square_distances(x, y):
    return (x.square().sum(1, keepdim=True) + y.square().sum(1)).addmm_(x, y.T, alpha=-2).numpy()


def dense_weights(rank, weigh, near, half, k2):
    """V as a dense matrix with a Python loop over items, as torchreid, fast-reid and OpenUnReID make it."""
    n = len(rank)

    def reciprocal(i, k):
        forward = rank[i, :k]
        return forward[np.where(rank[forward, :k] == i)[0]]

    v = np.zeros((n, n), np.float32)
    for i in range(n):
        own = reciprocal(i, near)
        grown = own
        for j in own:
            other = reciprocal(j, half)
            if len(np.intersect1d(other, own)) > 2 / 3 * len(other):
                grown = np.append(grown, other)
        grown = np.unique(grown)
        v[i, grown] = weigh(i, grown)
    if k2 == 1:
        return v
    expanded = np.zeros_like(v)
    for i in range(n):
        expanded[i] = v[rank[i, :k2]].mean(0)
    return expanded


def dense_jaccard(v, rows):
    """Jaccard distances by inverted lists over a dense V."""
    lists = [np.where(v[:, j] != 0)[0] for j in range(len(v))]
    out = np.empty((rows, len(v)), np.float32)
    for i in range(rows):
        minima = np.zeros(len(v), np.float32)
        for j in np.where(v[i] != 0)[0]:
            minima[lists[j]] += np.minimum(v[i, j], v[lists[j], j])
        out[i] = 1 - minima / (2 - minima)
    return out


def argsort_pattern(q, g, k1=20, k2=6, lambda_=0.3):
    """Distances, full argsort, dense V: what torchreid does from features on."""
    distances = [square_distances(a, b) for a, b in ((q, g), (q, q), (g, g))]
    whole = np.block([[distances[1], distances[0]], [distances[0].T, distances[2]]])
    whole = np.power(whole, 2).astype(np.float32)
    whole = np.transpose(whole / whole.max(0))
    rank = np.argsort(whole).astype(np.int32)

    def weigh(i, others):
        weights = np.exp(-whole[i, others])
        return weights / weights.sum()

    v = dense_weights(rank, weigh, k1 + 1, round(k1 / 2) + 1, k2)
    return (dense_jaccard(v, len(q)) * (1 - lambda_) + whole[: len(q)] * lambda_)[:, len(q) :]


def faiss_pattern(x, k1=30, k2=6):
    """Exact neighbours from faiss, one small product per item, dense V: what cluster-contrast does."""
    try:
        import faiss

        index = faiss.IndexFlatL2(x.shape[1])
        index.add(x.numpy())
        rank = index.search(x.numpy(), k1)[1]
    except ImportError:
        rank = np.concatenate([(x[i : i + 512] @ x.T).topk(k1).indices.numpy() for i in range(0, len(x), 512)])

    def weigh(i, others):
        return torch.softmax(2 * (x[i : i + 1] @ x[torch.from_numpy(others)].T) - 2, 1).flatten().numpy()

    return dense_jaccard(dense_weights(rank, weigh, k1, round(k1 / 2) + 1, k2), len(x))


def rerank_providers(shape, device):
    x = people(shape["queries"] + shape["gallery"], shape["dim"])[0]
    q, g = x[: shape["queries"]], x[shape["queries"] :]
    steps = {"reidfast": lambda: rerank(q, g, variant="torchreid").dense(), "half product": lambda: half_product(x)}
    if shape["dense"]:
        steps["torchreid's pattern"] = lambda: argsort_pattern(q, g)
    return steps


def rank_providers(shape, device):
    x, ids, cameras = people(shape["queries"] + shape["gallery"], shape["dim"])
    at = shape["queries"]
    labels = ids[:at], ids[at:], cameras[:at], cameras[at:]
    return {"reidfast": lambda: rank_reranked(x[:at], x[at:], *labels), "half product": lambda: half_product(x)}


def graph_providers(shape, device):
    x = people(shape["items"], shape["dim"])[0]
    steps = {"reidfast": lambda: jaccard_graph(x), "half product": lambda: half_product(x)}
    if shape["dense"]:
        steps["cluster-contrast's pattern"] = lambda: faiss_pattern(x)
    return steps


def items(shape):
    return shape["items"] if "items" in shape else shape["queries"] + shape["gallery"]


SHAPES = {
    "market": {"queries": 3368, "gallery": 15913, "dim": 2048, "dense": False},
    "market with the dense pattern": {"queries": 3368, "gallery": 15913, "dim": 2048, "dense": True},
    "fifth of market": {"queries": 674, "gallery": 3182, "dim": 2048, "dense": True},
    "tiny": {"queries": 8, "gallery": 40, "dim": 16, "dense": True},
}
COMMON = {
    "bytes": lambda s: 4.0 * items(s) * s["dim"],
    "flops": lambda s: float(items(s)) ** 2 * s["dim"],
    "mode": "forward",
    "devices": ("cpu",),
}
register(
    Bench(
        name="rerank",
        shapes=SHAPES,
        providers=rerank_providers,
        targets={
            "market": {"half product": 1 / 1.6},
            "market with the dense pattern": {"torchreid's pattern": 20.0, "half product": 1 / 1.6},
        },
        tests="tests/evaluation/test_rerank.py",
        **COMMON,
    )
)
register(
    Bench(
        name="rank_reranked",
        shapes={
            "msmt17, D=512": {"queries": 11659, "gallery": 82161, "dim": 512},
            "msmt17, D=2048": {"queries": 11659, "gallery": 82161, "dim": 2048},
            "tiny": {"queries": 8, "gallery": 40, "dim": 16},
        },
        providers=rank_providers,
        tests="tests/evaluation/test_rerank.py",
        **COMMON,
    )
)
register(
    Bench(
        name="jaccard_graph",
        shapes={
            "market train": {"items": 12936, "dim": 2048, "dense": True},
            "msmt17 train": {"items": 32621, "dim": 2048, "dense": False},
            "quarter of market train": {"items": 3234, "dim": 2048, "dense": True},
            "tiny": {"items": 48, "dim": 16, "dense": True},
        },
        providers=graph_providers,
        targets={"market train": {"cluster-contrast's pattern": 10.0}},
        tests="tests/evaluation/test_rerank.py",
        **COMMON,
    )
)


def seconds(step):
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def scaling_row(gallery, dim, queries):
    """Time and peak memory of rank_reranked, and of the dense pattern while its 24 N^2 bytes stay below 4 GB."""
    setup = f"""
    from benchmarks.reranking import *
    x, ids, cameras = people({queries + gallery}, {dim})
    q, g = x[:{queries}], x[{queries}:]
    labels = ids[:{queries}], ids[{queries}:], cameras[:{queries}], cameras[{queries}:]
    rank_reranked(q[:64], g[:256], ids[:64] * 0, ids[:256] * 0)
    """
    memory = peak_memory(setup, "rank_reranked(q, g, *labels)") / 1e6
    x, ids, cameras = people(queries + gallery, dim)
    q, g = x[:queries], x[queries:]
    labels = ids[:queries], ids[queries:], cameras[:queries], cameras[queries:]
    ours, product = seconds(lambda: rank_reranked(q, g, *labels)), seconds(lambda: half_product(x))
    row = f"{gallery:>9} {ours:>11.2f} {memory:>7.0f} {product:>15.2f}"
    if 24 * (queries + gallery) ** 2 < 4e9:
        dense = seconds(lambda: argsort_pattern(q, g))
        row += f" {dense:>9.2f} {peak_memory(setup, 'argsort_pattern(q, g)') / 1e6:>7.0f}"
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 8_000, 32_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1_000)
    options = parser.parse_args()
    print(f"D={options.dim}, {options.queries} queries, {torch.get_num_threads()} threads")
    print(f"{'gallery':>9} {'reidfast s':>11} {'MB':>7} {'half product s':>15} {'dense s':>9} {'MB':>7}")
    for size in options.sizes:
        print(scaling_row(size, options.dim, options.queries), flush=True)
