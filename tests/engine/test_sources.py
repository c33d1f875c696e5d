# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Several sources, several targets, and batches that are changed on the device."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from small_settings import SMALL, run

from reidfast.data import write_synthetic
from reidfast.engine.config import DataConfig
from reidfast.engine.data import ReidDataModule
from reidfast.engine.sources import load_sources, targets_of


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two small worlds."""
    root = tmp_path_factory.mktemp("worlds")
    for seed in (1, 2):
        write_synthetic(root / str(seed), ids=8, cameras=2, images=2, seed=seed, height=64, width=32)
    return [str(root / "1"), str(root / "2")]


def test_sources_are_kept_apart_and_are_the_targets(places):
    data = load_sources(DataConfig(name=["synthetic", "synthetic"], root=places))
    one, two = (load_sources(DataConfig(name="synthetic", root=place)) for place in places)
    assert len(data.train) == len(one.train) + len(two.train)
    assert len(np.unique(data.train.pids)) == 8 and len(np.unique(data.train.camids)) == 4
    assert data.train.extra["source"].tolist() == [0] * 16 + [1] * 16
    assert [str(data.train.absolute(i)) for i in (0, 16)] == [str(one.train.absolute(0)), str(two.train.absolute(0))]
    targets = targets_of(data)
    assert list(targets) == ["synthetic", "synthetic-2"]
    assert targets["synthetic-2"].query.root == two.query.root and data.query.paths == one.query.paths


def test_other_targets(places):
    data = load_sources(DataConfig(name="synthetic", root=places[0], targets=["synthetic"], target_root=places[1]))
    alone = load_sources(DataConfig(name="synthetic", root=places[1]))
    assert str(data.train.root).startswith(places[0]) and data.query.paths == alone.query.paths
    assert list(targets_of(data)) == ["synthetic"]
    options = {"ids": 4, "cameras": 2, "images": 2, "height": 64, "width": 32}
    made = load_sources(DataConfig(options=[options]))
    assert made.summary()["train"]["ids"] == 2 and "targets" not in made.info


@pytest.mark.parametrize("setting", [{"root": ["a"]}, {"options": [{}, {}, {}]}, {"name": []}])
def test_lists_of_other_lengths(setting):
    with pytest.raises(ValueError, match="data.name"):
        load_sources(DataConfig(**({"name": ["synthetic", "synthetic"]} | setting)))


def test_a_run_over_two_sources_scores_both(places, tmp_path):
    arguments = [a for a in SMALL if not a.startswith(("--data.name", "--data.options"))]
    arguments += ["--data.name=[synthetic, synthetic]", f"--data.root=[{places[0]}, {places[1]}]"]
    metrics = run("strong_baseline", [*arguments, f"--out={tmp_path / 'run'}"])
    last = metrics["history"][-1]
    assert last["mAP"] == pytest.approx((last["mAP/synthetic"] + last["mAP/synthetic-2"]) / 2)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["model"]["options"]["num_classes"] == 8 and card["data"] == ["synthetic", "synthetic"]
    assert (tmp_path / "run" / "best.ckpt").is_file() and metrics["seconds"]["starts"] == 1


def test_batches_changed_on_the_device_are_drawn_from_the_epoch(places):
    config = DataConfig(
        root=places[0], height=64, width=32, ids=4, images=4, flip=0.0, pad=0, erase=0.0, augment="batch"
    )
    plain, changed = (
        ReidDataModule(load_sources(config), DataConfig(**(vars(config) | more)), seed=3)
        for more in ({}, {"pad": 4, "flip": 0.5, "erase": 0.5})
    )
    raw = next(iter(plain.loader(0)))
    assert raw[0].dtype == torch.uint8 and raw[0].shape == (16, 3, 64, 32)
    images, labels, cameras, rows = plain.on_after_batch_transfer(raw, 0)
    shown = torch.stack([plain.plain_images(16)[int(row)] for row in rows])
    torch.testing.assert_close(images, shown)  # nothing is changed: the pictures as in evaluation
    assert torch.equal(labels, torch.from_numpy(plain.labels)[rows]) and len(cameras) == 16

    def first(module):
        module._drawn = None
        return module.on_after_batch_transfer(next(iter(module.loader(0))), 0)[0]

    assert torch.equal(first(changed), first(changed)) and not torch.equal(first(changed), images)


def test_changing_batches_needs_the_cache(places):
    config = DataConfig(root=places[0], ids=2, images=2, height=64, width=32, cache=False, augment="batch")
    with pytest.raises(ValueError, match="'batch' reads from the cache"):
        ReidDataModule(load_sources(config), config).loader(0)


def test_split_ids_deals_one_batch_over_processes(places):
    config = DataConfig(root=places[0], ids=3, images=2, height=64, width=32, split_ids=True)
    assert len(next(iter(ReidDataModule(load_sources(config), config).loader(0)))[0]) == 6
