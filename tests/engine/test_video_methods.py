# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""DRSTA and RRU + STIM trained on a few synthetic walks: they learn, and go on exactly where they were killed."""

import json

import pytest
import torch
from small_settings import parse

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.data import load_dataset, write_synthetic_tracklets
from reidfast.engine.methods import find_method
from reidfast.engine.methods.drsta import DRSTATask
from reidfast.engine.methods.rru_stim import RRUSTIMTask
from reidfast.engine.sets import evaluate_sets
from reidfast.engine.training import train
from reidfast.models import load_trained, read_weights

COMMON = [
    "--data.name=synthetic_tracklets",
    "--data.height=32",
    "--data.width=16",
    "--data.ids=6",
    "--data.frames=3",
    "--data.steps=10",
    "--protocol=mars",
    "--accelerator=cpu",
    "--model.backbone=color_stripes",  # colour histograms of every pixel: maps of 18 channels, nothing to learn
    "--model.options={}",
]
SETTINGS = {
    "drsta": [
        "--model.head={maps: 3, dim: 32}",
        "--loss.weight=0.1",
        "--stages=[{stage: backbone, epochs: 1, lr: 0.02}, {stage: spatial, epochs: 4, lr: 0.02},"
        " {stage: joint, epochs: 4, lr: 0.02, milestones: [3]}]",
        "--evaluate_every=3",
    ],
    "rru_stim": [
        "--data.least=3",
        "--data.filter=bilinear",
        "--model.head={auxiliary: false, dim: 32, hidden: 32, rru: {hidden: 16}, stim: {hidden: 16}}",
        "--optim.epochs=6",
        "--optim.lr=0.02",
        "--evaluate_every=3",
    ],
}
AT_TEST = {"drsta": {"choose": "chunks", "n": 3}, "rru_stim": {}}


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks") / "data"
    write_synthetic_tracklets(
        folder, ids=24, cameras=2, frames=6, height=32, width=16, difficulty=0.0, trouble=0.2, seed=3, workers=1
    )
    return folder


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def settings(method, walks, out, *more):
    return parse(method, [*COMMON, *SETTINGS[method], f"--data.root={walks}", f"--out={out}", *more])


@pytest.mark.parametrize("method", ["drsta", "rru_stim"])
def test_training_improves_and_resumes_exactly(method, walks, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    found = train(find_method(method), settings(method, walks, whole))
    last = found["history"][-1]
    assert last["mAP"] > found["before"]["mAP"] + 0.15, (found["before"], found["history"])
    assert json.loads((whole / "card.json").read_text())["size"] == [32, 16]
    model = load_trained(whole).model  # made from the card alone
    scores = evaluate_sets(model, load_dataset("synthetic_tracklets", walks), size=(32, 16), **AT_TEST[method])
    assert scores.mean_ap == pytest.approx(last["mAP"], abs=1e-6)

    kind = {"drsta": DRSTATask, "rru_stim": RRUSTIMTask}[method]
    step = kind.training_step

    def killed(self, batch, index):  # in the middle of an epoch, in the last stage of DRSTA
        if self.current_epoch == (6 if method == "drsta" else 3) and index == 1:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(kind, "training_step", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(find_method(method), settings(method, walks, broken))
    monkeypatch.setattr(kind, "training_step", step)
    again = train(find_method(method), settings(method, walks, broken, "--resume=true"))
    a, b = read_weights(whole / "weights.safetensors"), read_weights(broken / "weights.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again["history"] == found["history"] and again["before"] == found["before"]


def test_published_settings():
    config = parse("drsta", [])
    assert (config.data.frames, config.data.height, config.model.head["maps"]) == (6, 256, 6)
    assert [s.stage for s in config.stages] == ["backbone", "spatial", "joint"] and config.loss.penalty == "official"
    config = parse("rru_stim", ["--model.head.time", "lstm"])
    assert (config.data.frames, config.data.height, config.optim.epochs) == (8, 299, 900)
    assert config.loss.margin == 0.4 and config.optim.milestones == []


def test_stages_set_rates_and_begin_the_table_anew(walks, tmp_path):
    config = settings("drsta", walks, tmp_path)
    task, data = find_method("drsta").build(config, load_dataset("synthetic_tracklets", walks))
    assert config.optim.epochs == 9
    assert [task.stage_of(e) for e in (0, 1, 4, 5, 8)] == [(0, 0), (1, 0), (1, 3), (2, 0), (2, 3)]
    (optimizer,), (schedule,) = task.configure_optimizers()
    rates = []
    for _ in range(9):
        rates.append(round(optimizer.param_groups[1]["lr"], 6))
        optimizer.step()
        schedule.step()
    assert rates == [0.02] * 8 + [0.002]
    batch = next(iter(data.loader(0)))
    assert batch.images.shape == (6 * 2 * 3, 3, 32, 16) and set(batch.camids.tolist()) == {1, 2}
    assert "oim.table" in task.state_dict() and not task.oim.table.any()
    task.train()
    task.fill()
    torch.testing.assert_close(task.oim.table.norm(dim=1), torch.ones(12))
    assert task.model.training
    nearest = (task.model.eval()(batch.dense()).detach() @ task.oim.table.T).argmax(1)
    assert (nearest == batch.labels).float().mean() > 0.25  # chance: 1 in 12
