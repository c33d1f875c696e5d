# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CASN through `reidfast train`'s engine: a run that learns, staged attention, a run that is taken up again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_settings import parse

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.engine.methods import find_method
from reidfast.engine.methods.casn import build
from reidfast.engine.training import train
from reidfast.losses import CASNLoss
from reidfast.models import create_model, read_weights

SMALL = [
    "--data.name=synthetic",
    "--data.options={ids: 16, cameras: 3, images: 4, height: 64, width: 32, seed: 1, difficulty: 0.0}",
    "--data.height=64",
    "--data.width=32",
    "--data.ids=4",
    "--data.positives=6",
    "--data.negatives=6",
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--loss.start=1",
    "--loss.siamese=0.5",
    "--optim.optimizer=adam",
    "--optim.lr=0.01",
    "--optim.backbone_factor=1.0",
    "--accelerator=cpu",
]


@pytest.fixture(autouse=True)
def small_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def config(method, out, *more, dropout=0.0):
    sizes = "parts: 2, reduced: 32" if method == "casn" else "hidden: 64"
    return parse(
        method, [*SMALL, f"--model.base_options={{{sizes}, dropout: {dropout}}}", f"--out={out}", "--seed=3", *more]
    )


def run_casn(out, *more, dropout):
    return train(find_method("casn"), config("casn", out, *more, dropout=dropout))


def test_the_published_settings():
    pcb, ide = parse("casn", []), parse("casn-ide", [])
    assert (pcb.model.base, pcb.data.height, ide.model.base, ide.data.height) == ("pcb", 384, "ide", 256)
    for c in (pcb, ide):
        assert (c.loss.attention, c.loss.siamese, c.loss.consistency, c.loss.start) == (0.5, 0.05, 0.2, 10)
        assert (c.loss.alpha, c.loss.beta, c.loss.threshold, c.loss.margin) == (10.0, 0.5, 0.5, None)
        assert (c.data.ids, c.data.images, c.data.positives, c.data.negatives) == (8, 4, 16, 16)
        assert (c.model.diff, c.model.indicator, c.loss.mask_forward) == ("neg_square", "gradient", "train")


@pytest.mark.parametrize("method", ["casn", "casn-ide"])
def test_a_run_learns_and_starts_its_attention_late(method, tmp_path, monkeypatch):
    seen = []
    forward = CASNLoss.forward

    def watched(self, *inputs, **options):
        out = forward(self, *inputs, **options)
        seen.append((options["attentive"], {k: float(v) for k, v in out.terms.items()}))
        return out

    monkeypatch.setattr(CASNLoss, "forward", watched)
    metrics = train(find_method(method), config(method, tmp_path / "run", "--optim.epochs=6", "--evaluate_every=6"))
    assert len(metrics["history"]) == 1 and 0 < metrics["history"][-1]["mAP"] <= 1
    early, late = [t for attentive, t in seen if not attentive], [t for attentive, t in seen if attentive]
    assert len(early) < len(late) and all(set(t) == {"identification", "verification"} for t in early)
    assert all(set(t) == {"identification", "verification", "attention", "consistency"} for t in late)
    assert np.mean([t["identification"] for t in late[-4:]]) < 0.92 * np.mean([t["identification"] for t in early])


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    straight = train(
        find_method("casn"),
        config("casn", tmp_path / "straight", "--optim.epochs=3", "--evaluate_every=1", dropout=0.5),
    )
    train(
        find_method("casn"), config("casn", tmp_path / "broken", "--optim.epochs=2", "--evaluate_every=1", dropout=0.5)
    )
    broken = train(
        find_method("casn"),
        config("casn", tmp_path / "broken", "--optim.epochs=3", "--evaluate_every=1", "--resume=true", dropout=0.5),
    )
    a, b = (read_weights(tmp_path / d / "weights.safetensors") for d in ("straight", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert straight["history"] == broken["history"]
    card = json.loads((tmp_path / "broken" / "card.json").read_text())["model"]
    again = create_model(card["name"], weights=tmp_path / "broken" / "weights.safetensors", **card["options"]).eval()
    assert again(torch.zeros(1, 3, 64, 32)).shape == (1, 256) and again.base.parts == 2


def test_pairs_need_the_pair_sampler(tmp_path):
    from reidfast.data import load_dataset

    c = config("casn", tmp_path, "--data.sampler=shuffle")
    data = load_dataset(c.data.name, None, **c.data.options)
    with pytest.raises(ValueError, match='data.sampler "pairs"'):
        build(c, data)
    c.loss = replace(c.loss, siamese=0.0)
    task, module = build(c, data)
    rows = torch.cat([batch[3] for batch in module.loader(0)])
    assert len(rows.unique()) == len(rows) and not any(p.requires_grad for p in task.model.pair.parameters())
