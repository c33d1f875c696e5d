# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""ONNX files: any batch size, reidfast's ops as plain operators, and never one that differs from the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from reidfast import ops
from reidfast.cli import main
from reidfast.models import Backbone, create_model, load_trained

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
pytest.importorskip("onnxscript", reason="needs the extra [onnx]")

from reidfast.engine.export import export_onnx  # noqa: E402


class WithOps(nn.Module):
    """Compiled ops in the way of an exporter."""

    def __init__(self):
        super().__init__()
        self.conv, self.logits = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(3, 2, 3, 2, 1)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, images):
        pooled = ops.diverse_attention(self.conv(images), self.logits(images)).pooled
        return self.norm(pooled.flatten(1))


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["features"], {"images": images.numpy()})[0]


def test_a_run_by_the_command(small_run, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert main(["export", str(small_run), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["feature_size"] == 512 and said["size"] == [64, 32] and said["error"] < 1e-5
    images = torch.randn(5, 3, 64, 32)
    wanted = load_trained(small_run).model(images).detach().numpy()
    np.testing.assert_allclose(run(out, images), wanted, atol=1e-5 * np.abs(wanted).max())
    props = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
    assert json.loads(props["reidfast"])["size"] == [64, 32]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_ops_are_exported_as_their_reference(exporter, tmp_path):
    torch.manual_seed(0)
    model = WithOps().train()
    done = export_onnx(model, tmp_path / "ops.onnx", size=(16, 8), exporter=exporter)
    assert done.error < 1e-5 and model.training
    domains = {node.domain for node in onnx.load(str(done.path)).graph.node}
    assert domains <= {"", "ai.onnx"}  # nothing that another runtime would not know
    images = torch.randn(7, 3, 16, 8)
    torch.testing.assert_close(torch.from_numpy(run(done.path, images)), model.eval()(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ide", "pcb"])
def test_baselines(name, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU6())
    model = create_model(name, backbone=net, backbone_options={"size": (48, 16)}, num_classes=3)
    assert export_onnx(model, tmp_path / "m.onnx", size=(48, 16), batches=(1, 2)).error < 1e-5


def test_the_command_says_what_it_wrote(small_run, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert main(["export", str(small_run), "--exporter", "torchscript", "--out", str(out)]) == 0
    assert "images [batch, 3, 64, 32] -> features [batch, 512], opset 18" in capsys.readouterr().out


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    out = tmp_path / "stripes.onnx"
    assert main(["export", "color_stripes", "--size", "24x8", "--exporter", "torchscript", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "ColorStripes cannot be exported" in printed.err and "hypot" in printed.err and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and not out.exists()


class Wrong(Backbone):
    """Differs from what was traced: its batches of one are special."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.odd = False

    def forward(self, images):
        return images.mean((2, 3)) * self.weight + (1.0 if self.odd else 0.0)


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    from reidfast.engine import export

    model = Wrong()
    convert = export._convert

    def then_change(*arguments):
        content = convert(*arguments)
        model.odd = True
        return content

    monkeypatch.setattr(export, "_convert", then_change)
    with pytest.raises(ValueError, match="features differ from the model's by .* nothing was written"):
        export_onnx(model, tmp_path / "wrong.onnx", size=(8, 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["color_stripes", "--out", "model.pb"], "expected a name ending in .onnx"),
        (["color_stripe"], "did you mean 'color_stripes'"),
        (["nowhere/last.ckpt"], "no such file"),
        (["osnet_x0_25", "--exporter", "magic"], "expected exporter dynamo or torchscript"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and words in lines[0]


def test_missing_package_names_the_extra(small_run, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(small_run), "--out", str(tmp_path / "m.onnx")]) == 2
    assert 'onnxruntime is missing; pip install "reidfast[onnx]"' in capsys.readouterr().err
