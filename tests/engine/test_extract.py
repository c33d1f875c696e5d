# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Extraction: right rows, same file whenever it is interrupted, errors that name the image."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reidfast.data import EvalTransform, ImageDataset, Records, ReidData
from reidfast.engine import extract, read_features
from reidfast.models import create_model


def make_records(root: Path, count: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    root.mkdir(exist_ok=True)
    names = [f"{i:03d}.png" for i in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 12, 3), np.uint8)).save(root / name)
    return Records(root, names, rng.integers(0, 5, count), rng.integers(0, 3, count))


class Mean(nn.Module):
    """A small model that remembers how many images it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]]))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return images.mean((2, 3)) @ self.weight.T


SMALL = {"size": (16, 8), "batch": 4, "shard": 8, "show_progress": False}


def test_rows_equal_the_transform_and_the_model(tmp_path):
    records = make_records(tmp_path / "images", 11)
    model = create_model("osnet_x0_25").eval()
    file = extract(model, records, tmp_path / "f.npz", **{**SMALL, "size": (64, 32)})
    dataset = ImageDataset(records, EvalTransform(64, 32))
    with torch.no_grad():
        expected = torch.cat([model(dataset[i][0][None]) for i in range(len(dataset))])
    found = read_features(tmp_path / "f.npz")
    assert np.allclose(found.gallery.features, expected.numpy(), atol=1e-5 * float(expected.abs().max()))
    assert np.array_equal(found.gallery.pids, records.pids) and np.array_equal(found.gallery.camids, records.camids)
    assert found.gallery.paths == records.paths and np.array_equal(found.gallery.features, file.gallery.features)
    assert [p.name for p in tmp_path.iterdir() if p.name != "images"] == ["f.npz"]


def test_data_set_flip_and_half(tmp_path):
    query, gallery = make_records(tmp_path / "q", 3, 1), make_records(tmp_path / "g", 9, 2)
    data = ReidData("mine", Records.empty(), query, gallery)
    model = Mean().train()
    file = extract(model, data, None, dtype="float16", flip=True, meta={"model": "mean"}, **SMALL)
    assert model.training and model.seen == 24
    assert set(file.splits) == {"query", "gallery"} and file.gallery.features.dtype == np.float16
    assert file.meta["model"] == "mean" and file.meta["settings"]["size"] == [16, 8]
    plain = extract(model, data, None, **SMALL)
    assert np.allclose(plain.query.features, file.query.features, atol=1e-2)  # a mean does not see the mirror


def test_a_finished_file_is_not_made_again(tmp_path):
    records = make_records(tmp_path / "images", 5)
    model = Mean()
    extract(model, records, tmp_path / "f.npz", **SMALL)
    extract(model, records, tmp_path / "f.npz", **SMALL)
    assert model.seen == 5
    with pytest.raises(FileExistsError, match="made with other filter; give another name"):
        extract(model, records, tmp_path / "f.npz", filter="box", **SMALL)
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(FileExistsError, match="made with other weights"):
        extract(model, records, tmp_path / "f.npz", **SMALL)
    extract(model, records, tmp_path / "f.npz", overwrite=True, **SMALL)
    assert model.seen == 10
    (tmp_path / "f.npz").write_bytes(b"half")
    with pytest.raises(FileExistsError, match="no whole feature file; remove it"):
        extract(model, records, tmp_path / "f.npz", **SMALL)


@pytest.mark.parametrize("stop_after", [0, 3, 4, 8, 12, 16])
def test_interrupted_and_resumed(tmp_path, stop_after):
    records = make_records(tmp_path / "images", 20)
    whole = Mean()
    extract(whole, records, tmp_path / "whole.npz", **SMALL)

    class Stops(Mean):
        __qualname__ = "Mean"

        def forward(self, images):
            if self.seen >= stop_after:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), records, tmp_path / "f.npz", **SMALL)
    assert not (tmp_path / "f.npz").exists()
    second = Mean()
    extract(second, records, tmp_path / "f.npz", **SMALL)
    assert second.seen == 20 - stop_after // 4 * 4 // 8 * 8 and not (tmp_path / "f.npz.parts").exists()
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_damaged_and_foreign_shards_are_made_again(tmp_path):
    records = make_records(tmp_path / "images", 20)
    extract(Mean(), records, tmp_path / "whole.npz", **SMALL)

    class Stops(Mean):
        __qualname__ = "Mean"

        def forward(self, images):
            if self.seen >= 16:
                raise KeyboardInterrupt
            return super().forward(images)

    parts = tmp_path / "f.npz.parts"
    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), records, tmp_path / "f.npz", **SMALL)
    shard = parts / "000000.npy"
    shard.write_bytes(shard.read_bytes()[:-3])
    model = Mean()
    extract(model, records, tmp_path / "f.npz", **SMALL)
    assert model.seen == 12 and (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()

    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), records, tmp_path / "g.npz", **SMALL)
    model = Mean()
    extract(model, records, tmp_path / "g.npz", **{**SMALL, "size": (8, 8)})
    assert model.seen == 20  # shards of another size are not taken


CHILD = """
import sys, time, pathlib, numpy as np, torch
from reidfast.data import Records
from reidfast.engine import extract
class Mean(torch.nn.Module):
    def forward(self, images):
        time.sleep(0.03)
        return images.mean((2, 3))
root = pathlib.Path(sys.argv[1])
names = sorted(p.name for p in root.iterdir())
records = Records(root, names, np.arange(len(names)), np.zeros(len(names), int))
print("ready", flush=True)
extract(Mean(), records, sys.argv[2], size=(16, 8), batch=2, shard=2, show_progress=False)
"""


def test_kill_9_then_rerun_gives_the_same_file(tmp_path):
    make_records(tmp_path / "images", 40)
    (tmp_path / "child.py").write_text(CHILD)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "images"), str(tmp_path / out)]
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    child = start("f.npz")
    assert child.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("f.npz.parts/*.npy"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = len(list(tmp_path.glob("f.npz.parts/*.npy")))
    assert 3 <= left < 20 and not (tmp_path / "f.npz").exists()
    stamp = (tmp_path / "f.npz.parts" / "000000.npy").stat().st_mtime_ns
    runs = [start("f.npz"), start("g.npz")]
    assert (tmp_path / "f.npz.parts" / "000000.npy").stat().st_mtime_ns == stamp
    assert [run.wait() for run in runs] == [0, 0]
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "g.npz").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_errors_name_the_image_or_the_option(tmp_path):
    records = make_records(tmp_path / "images", 6)
    out = tmp_path / "f.npz"
    with pytest.raises(ValueError, match="at least one image"):
        extract(Mean(), Records.empty(), out)
    with pytest.raises(ValueError, match="expected filter in nearest"):
        extract(Mean(), records, out, filter="area")
    with pytest.raises(ValueError, match="expected size"):
        extract(Mean(), records, out, size=(0, 8))
    with pytest.raises(ValueError, match="expected batch and shard"):
        extract(Mean(), records, out, batch=0)
    with pytest.raises(ValueError, match="expected dtype in float16, float32, got 'int8'"):
        extract(Mean(), records, out, dtype="int8")
    with pytest.raises(ValueError, match="device: expected auto, cpu"):
        extract(Mean(), records, out, device="fpga")
    with pytest.raises(ValueError, match="name ending in .npz"):
        extract(Mean(), records, tmp_path / "f.csv")
    with pytest.raises(FileNotFoundError, match="folder .* of the output does not exist"):
        extract(Mean(), records, tmp_path / "no" / "f.npz")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA device; use cpu"):
            extract(Mean(), records, out, device="cuda")
    (tmp_path / "images" / "003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"003\.png"):
        extract(Mean(), records, out, **SMALL)
    (tmp_path / "images" / "003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"003\.png"):
        extract(Mean(), records, out, **SMALL)


def test_models_that_do_not_give_features(tmp_path):
    records = make_records(tmp_path / "images", 3)
    with pytest.raises(ValueError, match=r"expected features of shape \(3, D\) from the model, got \(3, 3, 16, 8\)"):
        extract(nn.Identity(), records, None, **SMALL)
    model = Mean()
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"000\.png is NaN or infinite in float32"):
        extract(model, records, None, **SMALL)
