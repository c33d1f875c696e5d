# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A gallery sharded over processes: bit for bit what one process finds."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from ranking_cases import labels, same

from reidfast.evaluation import rank, rank_distances, roc, search

WORKER = """
import os, pickle, sys
import torch.distributed as dist
from reidfast.evaluation import rank, rank_distances, roc, search
from reidfast.evaluation._core import single_shot
single_shot.STEP_BYTES = 40_000  # several steps, shared out
folder, me, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=me, world_size=size)
group = dist.group.WORLD
x, y, d, ids, cuts = pickle.load(open(f"{folder}/case.pickle", "rb"))
mine = slice(cuts[me], cuts[me + 1])
local = (ids[0], ids[1][mine], ids[2], ids[3][mine])
out = [
    rank(x, y[mine], *local, group=group),
    rank(x, y[mine], *local, metric="euclidean", protocol="mars", group=group),
    rank_distances(d[:, mine], *local, group=group),
    rank(x, y[mine], *local, protocol="cuhk03", group=group),
    rank(x[:20], y[mine], ids[0][:20], local[1], protocol="cuhk03", group=group),
    rank_distances(d[:, mine], *local, protocol="cuhk03", max_rank=7, group=group),
    search(x, y[mine], 7, group=group),
    roc(x, y[mine], *local, group=group, points=[0.01, 0.3]),
]
errors = []
for bad in (lambda: rank(x, y[mine] * (float("nan") if me == size - 1 else 1), *local, group=group),
            lambda: search(x, y[mine], 10**6, group=group),
            lambda: rank(x, y[mine], ids[0] + 100, *local[1:], group=group)):
    try:
        bad()
        errors.append("none")
    except ValueError as error:
        errors.append(str(error))
pickle.dump((out, errors), open(f"{folder}/out{me}.pickle", "wb"))
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that is shutting down
"""


@pytest.mark.network
@pytest.mark.parametrize("cuts", [[0, 37, 90], [0, 0, 40, 90]], ids=["uneven", "an empty shard"])
def test_bit_equal_to_one_process(tmp_path, cuts):
    rng = np.random.default_rng(len(cuts))
    x, y = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (50, 90))  # ties between shards
    d = rng.integers(0, 6, (50, 90)).astype(np.float32)
    given = labels(rng, 50, 90, 5)
    ids = tuple(given)
    (tmp_path / "case.pickle").write_bytes(pickle.dumps((x, y, d, ids, cuts)))
    size = len(cuts) - 1
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(i), str(size)], stderr=subprocess.PIPE)
        for i in range(size)
    ]
    for worker in workers:
        _, complaint = worker.communicate(timeout=240)
        assert worker.returncode == 0, complaint.decode()
    expected = [
        rank(x, y, *given),
        rank(x, y, *given, metric="euclidean", protocol="mars"),
        rank_distances(d, *given),
        rank(x, y, *given, protocol="cuhk03"),
        rank(x[:20], y, ids[0][:20], ids[1], protocol="cuhk03"),
        rank_distances(d, *given, protocol="cuhk03", max_rank=7),
        search(x, y, 7),
        roc(x, y, *given, points=[0.01, 0.3]),
    ]
    assert expected[0].bounds[0] < expected[0].bounds[1]
    for i in range(size):
        out, errors = pickle.loads((tmp_path / f"out{i}.pickle").read_bytes())
        for a, b in zip(out[:6], expected[:6], strict=True):
            same(a, b)
        for a, b in zip((*out[6], *out[7]), (*expected[6], *expected[7]), strict=True):
            np.testing.assert_array_equal(a, b)
        assert "NaN or inf" in errors[0] and "at most the gallery's 90 rows" in errors[1]
        assert "no identity in common" in errors[2]
