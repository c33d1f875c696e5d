# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Frames of tracklets with their scores, in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.cli import main
from reidfast.data import Tracklets, write_synthetic_tracklets
from reidfast.models import create_model
from reidfast.report import TrackletRow, describe_tracklets, draw_tracklets

SMALL = {"ids": 2, "frames": 5, "height": 64, "width": 32}


def test_bars_are_as_long_as_the_values() -> None:
    images = [Image.new("RGB", (32, 64), (0, 0, 0))] * 3
    sheet = draw_tracklets([TrackletRow(images, {"quality": [0.0, 0.5, 1.0]})], height=64, width=32)
    pixels = np.asarray(sheet).astype(int)
    y = 5 + 64 + 2 + 10  # the bar's last line, under the digits
    lengths = []
    for i in range(3):
        line = pixels[y, 5 + i * 37 : 5 + i * 37 + 32]
        lengths.append(int((np.abs(line - (30, 120, 180)).sum(1) == 0).sum()))
    assert lengths == [0, 16, 32]
    assert (pixels[5 : 5 + 64, 5 : 5 + 32] == 0).all()
    two = draw_tracklets([TrackletRow(images, {"a": [1, 1, 1], "b": [3, 6, 2]}, "title")] * 2, height=64, width=32)
    assert two.size[0] == sheet.size[0] and two.size[1] > 2 * 64
    with pytest.raises(ValueError, match="3 values of 'quality', got 1"):
        TrackletRow(images, {"quality": [0.5]})
    with pytest.raises(ValueError, match="at least one row"):
        draw_tracklets([])


def test_rows_of_a_model(tmp_path: Path) -> None:
    data = write_synthetic_tracklets(tmp_path / "s", **SMALL)
    tracklets = Tracklets.of(data.gallery)
    model = create_model("qan", backbone="osnet_x0_25", hidden=8, size=(64, 32))
    rows = describe_tracklets(model, tracklets, frames=3, size=(64, 32))
    assert len(rows) == 2 and model.training
    for row, tracklet in zip(rows, tracklets, strict=True):
        assert len(row.images) == 3 and row.title == f"person 2, camera {tracklet.camid}, 5 frames"
        known = data.gallery.extra["quality"][tracklet.rows[[0, 1, 3]]]
        np.testing.assert_allclose(row.values["known"], known, atol=1e-6)
        assert all(0.3 < q < 0.7 for q in row.values["quality"])
        assert sum(row.values["weight x frames"]) == pytest.approx(3, abs=0.5)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic_tracklets(tmp_path / "s", **SMALL)
    common = ["--data", "synthetic_tracklets", "--root", str(tmp_path / "s")]
    assert main(["frames", str(tmp_path / "f.png"), *common, "--split", "query", "--tracklets", "1"]) == 0
    assert Image.open(tmp_path / "f.png").size[0] == 5 + 5 * 69 and "1 tracklets" in capsys.readouterr().out
    model = [
        "--model",
        "qan",
        "--model-option",
        "backbone=osnet_x0_25",
        "--model-option",
        "hidden=8",
        "--size",
        "64x32",
    ]
    assert main(["frames", str(tmp_path / "g.png"), *common, *model]) == 0
    capsys.readouterr()
    for arguments, words in (
        ([*common, "--tracklets", "9"], "expected 0..1 of gallery, got 9"),
        ([*common, "--model", "osnet_x0_25"], "a model that scores frames"),
    ):
        assert main(["frames", str(tmp_path / "f.png"), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_features_of_tracklets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`reidfast extract --sets` and `reidfast evaluate` together give what the library gives."""
    from reidfast.engine import read_features
    from reidfast.engine.sets import evaluate_sets

    data = write_synthetic_tracklets(tmp_path / "s", **{**SMALL, "ids": 6})
    out = tmp_path / "f.npz"
    extract = ["extract", str(out), "--sets", "--data", "synthetic_tracklets", "--root", str(tmp_path / "s"), "--quiet"]
    model = [
        "--model",
        "qan",
        "--model-option",
        "backbone=osnet_x0_25",
        "--model-option",
        "hidden=8",
        "--size",
        "64x32",
    ]
    assert main([*extract, *model]) == 0
    file = read_features(out)
    assert len(file.query) == len(file.gallery) == 6 and file.query.paths[0].endswith("C1T0001F001.jpg")
    torch.manual_seed(0)
    made = create_model("qan", backbone="osnet_x0_25", hidden=8)
    ranking = evaluate_sets(made, data, protocol="mars", size=(64, 32))
    capsys.readouterr()
    assert main(["evaluate", str(out), "--protocol", "mars", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mAP"] == pytest.approx(ranking.mean_ap, abs=1e-6)
    assert main([*extract, *model]) == 2 and "exists" in capsys.readouterr().err
    images = ["extract", str(tmp_path / "g.npz"), "--sets", "--data", "synthetic", "--root", str(tmp_path / "p")]
    options = ["--data-option", "ids=2", "--data-option", "cameras=2", "--data-option", "images=2", "--quiet"]
    assert main([*images, *options, *model]) == 2 and "without it" in capsys.readouterr().err
