# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast train qan` on a few synthetic walks: it learns, resumes exactly, and its baselines train too."""

import pytest
import torch
from small_settings import parse

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.cli import main
from reidfast.data import load_dataset, write_synthetic_tracklets
from reidfast.engine.methods import find_method
from reidfast.engine.methods.qan import QANTask
from reidfast.engine.sets import evaluate_sets
from reidfast.engine.training import train
from reidfast.models import load_trained, read_weights

SMALL = [
    "--data.name=synthetic_tracklets",
    "--data.height=64",
    "--data.width=32",
    "--data.frames=2",
    "--data.triplets=8",
    "--data.steps=12",
    "--accelerator=cpu",
    "--protocol=mars",
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--model.head={hidden: 16}",
    "--optim.optimizer=adam",
    "--optim.lr=0.002",
    "--optim.epochs=4",
    "--evaluate_every=4",
]
SHORT = ["--data.triplets=2", "--data.steps=2", "--optim.epochs=3", "--evaluate_every=1"]


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "data"
    write_synthetic_tracklets(folder, ids=24, frames=5, height=64, width=32, difficulty=0.0, trouble=0.3, seed=3)
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def settings(walks, out, *more):
    return parse("qan", [*SMALL, f"--data.root={walks}", f"--out={out}", *more])


def test_training_improves(walks, tmp_path):
    found = train(find_method("qan"), settings(walks, tmp_path / "run"))
    assert found["history"][-1]["mAP"] > found["before"]["mAP"] + 0.05, (found["before"], found["history"])
    model, card, _ = load_trained(tmp_path / "run")
    assert card["size"] == [64, 32] and card["model"]["name"] == "qan"
    again = evaluate_sets(model, load_dataset("synthetic_tracklets", walks), protocol="mars", size=(64, 32))
    assert again.mean_ap == pytest.approx(found["history"][-1]["mAP"], abs=1e-6)
    assert main(["frames", str(tmp_path / "f.png"), "--data=synthetic_tracklets", f"--root={walks}",
                 f"--model={tmp_path / 'run'}"]) == 0  # fmt: skip


def test_resumes_exactly(walks, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    found = train(find_method("qan"), settings(walks, whole, *SHORT))
    task = QANTask
    step = task.training_step

    def killed(self, batch, index):  # in the middle of an epoch
        if self.current_epoch == 1 and index == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(task, "training_step", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(find_method("qan"), settings(walks, broken, *SHORT))
    monkeypatch.setattr(task, "training_step", step)
    again = train(find_method("qan"), settings(walks, broken, *SHORT, "--resume=true"))
    a, b = read_weights(whole / "weights.safetensors"), read_weights(broken / "weights.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again["history"] == found["history"] and again["before"] == found["before"]


@pytest.mark.parametrize("head", ["{pooling: mean}", "{pooling: max, parts: 2}", "{parts: 3, hidden: 8}"])
def test_comparisons_and_parts(walks, tmp_path, head):
    config = settings(walks, tmp_path, f"--model.head={head}", "--loss.contrastive=1.0")
    method = find_method("qan")
    task, data = method.build(config, load_dataset("synthetic_tracklets", walks))
    (batch,) = [b for b, _ in zip(data.loader(0), range(1), strict=False)]
    assert batch.images.shape == (8 * 3 * 2, 3, 64, 32)
    labels = batch.labels.view(-1, 3)
    assert (labels[:, 0] == labels[:, 1]).all() and (labels[:, 0] != labels[:, 2]).all()
    task.log_dict = lambda *a, **k: None
    loss = task.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss) and (task.model.quality is None) == ("pooling" in head)
    assert task.evaluate() is not None


def test_published_settings():
    config = parse("qan", [])
    assert (config.data.height, config.data.width, config.data.frames, config.data.triplets) == (224, 224, 8, 1)
    assert config.data.filter == "bicubic" and config.data.flip == 0 and config.data.pad == 0 and config.data.erase == 0
    assert config.loss.margin == 1.2 and config.loss.contrastive == 0
    assert config.optim.lr == 0.001 and config.optim.epochs * config.data.steps == 15000
    assert parse("qan", ["--model.head.parts", "3"]).model.head == {"pooling": "quality", "parts": 3}
