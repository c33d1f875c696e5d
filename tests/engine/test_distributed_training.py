# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""torchrun with two processes: the weights and scores of one process with the same global batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from reidfast.models import read_weights

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

# In double precision: what is left are rounding errors, not training's own growth of them. The OSNet has no linear
# layer before its last batch norm: the bias of one has no gradient but noise, which Adam would scale up.
SETTINGS = [
    "--data.options={ids: 20, cameras: 2, images: 2, height: 64, width: 32, seed: 1}",
    "--data.height=64",
    "--data.width=32",
    "--data.ids=8",
    "--data.images=2",
    "--data.split_ids=true",
    "--model.backbone=osnet_x0_25",
    "--model.options={feature_size: null}",
    "--loss.centre=0.0005",
    "--optim.lr=0.001",
    "--optim.warmup=0",
    "--optim.epochs=2",
    "--evaluate_every=1",
    "--accelerator=cpu",
    "--precision=64-true",
]


def run(start, out):
    command = [*start, "-m", "reidfast", "train", "strong_baseline", *SETTINGS, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights, checkpoints and logs") == 1  # one of the processes speaks
    return read_weights(out / "weights.safetensors"), json.loads((out / "metrics.json").read_text())


@pytest.mark.network
def test_two_processes_train_and_score_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    one, scores = run([sys.executable], tmp_path / "one")
    two, same = run(torchrun, tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        worst = (value.double() - two[name].double()).abs().max() / value.double().abs().max().clamp(min=1e-3)
        assert worst < 1e-6, f"{name}: {worst}"
    assert scores["before"] == same["before"]
    assert len(scores["history"]) == len(same["history"]) == 2
    for a, b in zip(scores["history"], same["history"], strict=True):
        assert a == pytest.approx(b, abs=1e-3)  # features are ranked in float32
