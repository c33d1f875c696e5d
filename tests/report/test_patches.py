# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Patches drawn on images: corners, the picture, the command."""

import json

import pytest
import torch
from PIL import Image

from reidfast.cli import main
from reidfast.models import create_model, save_weights
from reidfast.nn.patch_generator import horizontal_stripes
from reidfast.report import draw_patches, patch_corners


def test_corners_of_stripes_and_of_a_turned_patch():
    corners = patch_corners(horizontal_stripes(4), 128, 64)
    torch.testing.assert_close(corners[1], torch.tensor([[0.0, 32], [64, 32], [64, 64], [0, 64]]))
    turned = torch.tensor([[0.0, -0.5, 0], [0.5, 0, 0]])  # a quarter turn at half the size
    torch.testing.assert_close(patch_corners(turned, 8, 8), torch.tensor([[6.0, 2], [6, 6], [2, 6], [2, 2]]))


def test_outlines_are_where_the_patches_are():
    net = create_model("paul", backbone="osnet_x0_25", parts=2, dim=8, patches="stripes")
    sheet = draw_patches(net, [Image.new("RGB", (64, 128))] * 3, size=(128, 64), zoom=1)
    assert sheet.size == (6 + 3 * 70, 2 * 128 + 18) and net.training
    below = 128 + 12
    assert sheet.getpixel((6 + 32, below + 63))[0] > 150  # the border between the two
    assert sheet.getpixel((6 + 32, below + 30)) == (0, 0, 0) and sheet.getpixel((6 + 32, 6 + 63)) == (0, 0, 0)


def test_command_draws_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path / "cache"))
    options = {"backbone": "osnet_x0_25", "parts": 3, "dim": 8, "hidden": 16}
    save_weights(create_model("paul", **options), tmp_path / "weights.safetensors")
    card = {"model": {"name": "paul", "options": options}, "size": [128, 64]}
    (tmp_path / "card.json").write_text(json.dumps(card))
    data = ["--data", "synthetic", "--data-option", "ids=4", "--data-option", "cameras=2", "--data-option", "images=2"]
    out = tmp_path / "patches.png"
    status = main(["patches", "--model", str(tmp_path), *data, "--images", "2", "--device", "cpu", "--out", str(out)])
    assert status == 0 and str(out) in capsys.readouterr().out
    assert Image.open(out).size == (6 + 2 * (128 + 6), 2 * 256 + 18)


@pytest.mark.parametrize(
    "more,words",
    [(["--model", "osnet_x0_25"], "expected a PatchNet"), (["--model", "paul", "--split", "all"], "--split")],
)
def test_command_rejects(more, words, tmp_path, capsys):
    assert main(["patches", *more, "--data", "synthetic", "--out", str(tmp_path / "p.png")]) == 2
    assert words in capsys.readouterr().err
