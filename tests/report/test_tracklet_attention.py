# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The picture of attention maps and temporal weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.cli import main
from reidfast.data import Tracklets, write_synthetic_tracklets
from reidfast.models import create_model
from reidfast.report import draw_tracklet_attention, explain_tracklet
from reidfast.report.tracklet_attention import BAR, COLOURS, GAP, LEFT


def test_colour_lies_where_the_map_is_high_and_bars_are_as_long_as_the_weights():
    maps = np.zeros((2, 3, 4, 2))
    maps[:, :, 0, 0] = 1.0  # all look at the top left corner
    maps[1, 2] = [[0, 0], [0, 0], [0, 0], [0, 1]]  # but the last at the bottom right of the second frame
    weights = np.array([[0.25, 0.5, 1.0], [0.75, 0.5, 0.0]])
    frames = [Image.new("RGB", (20, 40), (90, 90, 90))] * 2
    sheet = np.asarray(draw_tracklet_attention(frames, maps, weights, height=40, width=20)).astype(int)
    row = 40 + GAP + BAR + GAP
    for n in range(2):
        for k in range(3):
            y, x = GAP + 40 + GAP + k * row, LEFT + n * (20 + GAP)
            cell = sheet[y : y + 40, x : x + 20]
            away = np.abs(cell - np.array(COLOURS[k])).sum(2)
            assert (away[:5, :5].mean() < away[-5:, -5:].mean()) == ((n, k) != (1, 2))
            bar = (sheet[y + 42 + BAR // 2, x : x + 20] == np.array(COLOURS[k])).all(1).sum()
            assert bar == round(20 * weights[n, k])


def test_a_tracklet_and_a_model(tmp_path):
    data = write_synthetic_tracklets(tmp_path / "w", ids=2, cameras=2, frames=5, height=64, width=32)
    model = create_model("drsta", backbone="osnet_x0_25", maps=2).train()
    torch.nn.init.normal_(model.time.weight)
    tracklets = Tracklets.of(data.query)
    picture = explain_tracklet(model, tracklets[0], data.query, frames=3, size=(64, 32))
    assert picture.width == LEFT + 3 * (64 + GAP) and picture.height > 3 * 128 and model.training
    again = explain_tracklet(model, tracklets[0], data.query, frames=3, size=(64, 32))
    assert np.array_equal(np.asarray(picture), np.asarray(again))


def test_rejects():
    image = Image.new("RGB", (4, 8))
    with pytest.raises(ValueError, match=r"expected attention \(N, K, h, w\) of N=1 >= 1 frames, got \(2, 3, 4, 2\)"):
        draw_tracklet_attention([image], np.zeros((2, 3, 4, 2)))
    with pytest.raises(ValueError, match=r"expected weights \(N, K\) = \(1, 3\), got \(3, 1\)"):
        draw_tracklet_attention([image], np.zeros((1, 3, 4, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="expected 3 names, got 1"):
        draw_tracklet_attention([image], np.zeros((1, 3, 4, 2)), names=["head"])


def test_command(tmp_path):
    write_synthetic_tracklets(tmp_path / "w", ids=2, cameras=2, frames=5, height=64, width=32)
    options = ["--model-option", "backbone=osnet_x0_25", "--model-option", "maps=2", "--size", "64x32"]
    arguments = ["--data", "synthetic_tracklets", "--root", str(tmp_path / "w"), "--model", "drsta", *options]
    assert main(["frames", str(tmp_path / "f.png"), *arguments, "--tracklets", "0", "1", "--frames", "4"]) == 0
    assert Image.open(tmp_path / "f.png").width == LEFT + 4 * (64 + GAP)
