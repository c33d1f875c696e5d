# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`torchrun --nproc-per-node 2 -m reidfast evaluate ...`: what one process finds, printed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from reidfast.engine import read_features

STRIPES = ["--model", "color_stripes", "--size", "32x16", "--batch", "16"]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "reidfast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


def without_time(text):
    result = json.loads(text)
    del result["seconds"]
    return result


@pytest.mark.network
@pytest.mark.parametrize("options", [["--protocol", "cuhk03"], ["--rerank"]], ids=["cuhk03", "rerank"])
def test_feature_file(reidfast, features, options):
    status, out, err = torchrun("evaluate", features, "--json", *options)
    assert status == 0, err
    assert without_time(out) == without_time(reidfast("evaluate", features, "--json", *options).out)


@pytest.mark.network
def test_images(reidfast, people, tmp_path):
    data = ["--data", "folder", "--root", people, *STRIPES]
    status, out, err = torchrun("evaluate", *data, "--save-features", tmp_path / "two.npz", "--json", "--quiet")
    assert status == 0, err
    assert reidfast("extract", tmp_path / "one.npz", *data).status == 0
    one, two = (read_features(tmp_path / f"{name}.npz") for name in ("one", "two"))
    for name in ("query", "gallery"):
        np.testing.assert_array_equal(one[name].features, two[name].features)
        assert one[name].paths == two[name].paths
    mine = json.loads(reidfast("evaluate", tmp_path / "one.npz", "--json").out)
    assert all(without_time(out)[key] == mine[key] for key in ("cmc", "mAP", "AP", "queries", "gallery"))
