# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking with a gallery sharded over processes: bit for bit what one process finds."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from reidfast.evaluation import jaccard_graph, rank_reranked, rerank
from reidfast.testing import make_embeddings

WORKER = """
import os, pickle, sys
import torch, torch.distributed as dist
torch.set_num_threads(1)
from reidfast.evaluation import jaccard_graph, rank_reranked, rerank
folder, me, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=size)
group = dist.group.WORLD
x, y, ids, cuts = pickle.load(open(f"{folder}/case.pickle", "rb"))
mine = slice(cuts[me], cuts[me + 1])
local = (ids[0], ids[1][mine], ids[2], ids[3][mine])
r = rerank(x, y[mine], group=group)
out = [r.indptr, r.indices, r.jaccard, r.largest, r.dense()]
out += [tuple(rank_reranked(x, y[mine], *local, protocol=p, group=group)) for p in ("market1501", "cuhk03")]
g = jaccard_graph(y[mine], k1=12, group=group)
out += [g.indptr, g.indices, g.data]
try:
    rerank(x, y[mine] * (float("nan") if me == size - 1 else 1), group=group)
    error = "none"
except ValueError as e:
    error = str(e)
pickle.dump((out, error), open(f"{folder}/out{me}.pickle", "wb"))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that is shutting down
"""


@pytest.mark.network
@pytest.mark.parametrize("cuts", [[0, 700, 2200], [0, 0, 900, 2200]], ids=["uneven", "an empty shard"])
def test_bit_equal_to_one_process(tmp_path, cuts):
    """2,200 gallery rows with duplicates: three blocks of rows for two or three ranks, and ties between shards."""
    x, y = make_embeddings(2350, 16, per_identity=8, spread=0.9)
    x, y = x.numpy(), y.numpy()
    x[1900:2000] = x[500:600]
    cameras = np.random.default_rng(0).integers(0, 4, len(y))
    query, gallery, ids = x[:150], x[150:], (y[:150], y[150:], cameras[:150], cameras[150:])
    (tmp_path / "case.pickle").write_bytes(pickle.dumps((query, gallery, ids, cuts)))
    size = len(cuts) - 1
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i), str(size)], stderr=subprocess.PIPE)
        for i in range(size)
    ]
    one, graph = rerank(query, gallery), jaccard_graph(gallery, k1=12)
    wanted = [one.indptr, one.indices, one.jaccard, one.largest, one.dense()]
    wanted += [tuple(rank_reranked(query, gallery, *ids, protocol=p)) for p in ("market1501", "cuhk03")]
    wanted += [graph.indptr, graph.indices, graph.data]
    for worker in workers:
        _, complaint = worker.communicate(timeout=240)
        assert worker.returncode == 0, complaint.decode()
    for i in range(size):
        out, error = pickle.loads((tmp_path / f"out{i}.pickle").read_bytes())
        for a, b in zip(out, wanted, strict=True):
            for mine, theirs in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
                np.testing.assert_array_equal(mine, theirs)
        assert "finite gallery features" in error
