# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Processes of a group that do not pass the same: an error on all of them that names what differs."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

WORKER = """
import os, pickle, sys
import numpy as np
import torch, torch.distributed as dist
torch.set_num_threads(1)
from reidfast.evaluation import jaccard_graph, rank, rank_distances, rank_reranked, rerank, roc, search
folder, index = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
group = dist.group.WORLD
rng = np.random.default_rng(3)
q, g = (rng.standard_normal((n, 32), dtype=np.float32) for n in (50, 301))
qp, gp = np.arange(50) % 10, np.arange(301) % 10
shard = np.array_split(np.arange(301), 2)[index]
y, yp = g[shard], gp[shard]
qc, yc = np.arange(50) % 3, (np.arange(301) % 3)[shard]
cases = {
    "query_pids": lambda: rank(q, y, (qp + index) % 10, yp, group=group),
    "order": lambda: rank(q[:: 1 - 2 * index].copy(), y, qp, yp, group=group),
    "metric": lambda: rank(q, y, qp, yp, metric=("cosine", "euclidean")[index], group=group),
    "49 queries": lambda: rank(q[: 50 - index], y, qp[: 50 - index], yp, group=group),
    "D": lambda: rank(*((x[:, : 32 - 16 * index] for x in (q, y))), qp, yp, group=group),
    "cameras": lambda: rank(q, y, qp, yp, *((qc, yc) if index else ()), group=group),
    "max_rank": lambda: rank(q, y, qp, yp, protocol="cuhk03", max_rank=10 + index, group=group),
    "k1": lambda: rerank(q, y, k1=20 + index, group=group),
    "k": lambda: search(q, y, 5 + index, group=group),
    "protocol": lambda: rank(q, y, qp, yp, protocol=("market1501", "mars")[index], group=group),
    "ap": lambda: rank_distances(q @ y.T, qp, yp, average_precision=("step", "sklearn")[index], group=group),
    "query dtype": lambda: rank(q.astype(("f4", "f8")[index]), y, qp, yp, group=group),
    "points": lambda: roc(q, y, qp, yp, points=[0.1, 0.2][: 1 + index], group=group),
    "exclude": lambda: search(q, y, 5, exclude=np.arange(50) + index, group=group),
    "lambda_": lambda: rank_reranked(q, y, qp, yp, lambda_=0.3 - 0.1 * index, group=group),
    "variant": lambda: jaccard_graph(y, variant=("zhong", "torchreid")[index], group=group),
    "function": lambda: (search(q, y, 5, group=group) if index else rank(q, y, qp, yp, group=group)),
    "a bad option": lambda: rank(q, y, qp, yp, max_rank=5 * index, group=group),
    "a broken shard": lambda: rank(q, y[: 150 - 9 * index], qp, yp[:150], group=group),
    "nothing": lambda: rank(q, y, qp, yp, qc, yc, group=group),
    "gallery dtype": lambda: rank(q, y.astype(("f4", "f8")[index]), qp, yp, group=group),  # shards may differ
}
messages = {}
for name, call in cases.items():
    try:
        call()
        messages[name] = None
    except Exception as error:
        messages[name] = type(error).__name__, str(error)
pickle.dump(messages, open(f"{folder}/out{index}.pickle", "wb"))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that is shutting down
"""

DIFFER = {
    "query_pids": "rank: expected the same query_pids on every process of group, got others on process 1 than on "
    "process 0",
    "order": "rank: expected the same query on",
    "metric": "rank: expected the same metric on",
    "49 queries": "rank: expected the same query, query_pids on",
    "D": "rank: expected the same query, D on",
    "cameras": "rank: expected the same query_camids on",
    "max_rank": "rank: expected the same max_rank on",
    "k1": "rerank: expected the same k1 on",
    "k": "search: expected the same k on",
    "protocol": "rank: expected the same protocol, average_precision on",
    "ap": "rank_distances: expected the same average_precision on",
    "query dtype": "rank: expected the same query on",
    "points": "roc: expected the same points on",
    "exclude": "search: expected the same exclude on",
    "lambda_": "rank_reranked: expected the same lambda_ on",
    "variant": "jaccard_graph: expected the same variant on",
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disagreement")
    command = [sys.executable, "-c", WORKER, str(folder)]
    workers = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE) for i in range(2)]
    for worker in workers:
        _, complaint = worker.communicate(timeout=240)
        assert worker.returncode == 0, complaint.decode()
    return [pickle.loads((folder / f"out{i}.pickle").read_bytes()) for i in range(2)]


@pytest.mark.network
@pytest.mark.parametrize("case", DIFFER)
def test_every_process_gets_an_error_that_names_what_differs(messages, case):
    for told in messages:
        kind, text = told[case]
        assert kind == "ValueError" and text.startswith(DIFFER[case]), text


@pytest.mark.network
def test_different_functions(messages):
    for op, told in zip(("rank", "search"), messages, strict=True):
        assert told["function"][1].startswith(f"{op}: expected every process of group to call the same function")


@pytest.mark.network
def test_an_error_of_one_process_is_raised_on_both(messages):
    assert messages[0]["a bad option"] == ("ValueError", "rank: expected max_rank >= 1, got 0")
    assert messages[1]["a bad option"] == ("ValueError", "rank: expected max_rank >= 1, got 0 (on process 0)")
    assert messages[0]["a broken shard"][1].endswith("got (150,) (on process 1)")


@pytest.mark.network
def test_what_may_differ(messages):
    for told in messages:
        assert told["nothing"] is None and told["gallery dtype"] is None
