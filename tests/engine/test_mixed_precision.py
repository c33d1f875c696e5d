# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Every method takes training steps in mixed precision: losses stay finite, everything that is to learn moves.

On a CPU, Lightning trains in bfloat16 where `precision` is "16-mixed". float16 is therefore run without it: the task's
own steps under autocast. Its gradient scaler, which keeps small gradients from becoming zero, is left out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import MethodType

import pytest
import torch
from small_settings import SMALL_BACKBONE, parse

pytest.importorskip("lightning", reason="needs the extra [train]")
pytest.importorskip("jsonargparse", reason="needs the extra [train]")

from reidfast.data import load_search, write_synthetic_tracklets
from reidfast.engine.methods import find_method, list_methods
from reidfast.engine.training import train

STEPS = 2
IMAGES = [
    "--data.name=synthetic",
    "--data.options={ids: 12, cameras: 3, images: 2, height: 64, width: 32, seed: 1}",
    "--data.height=64",
    "--data.width=32",
    f"--model.backbone={SMALL_BACKBONE}",
    "--optim.epochs=1",
]
IDENTITIES = [*IMAGES, "--data.ids=2", "--data.images=2"]
PAIRS = [*IMAGES, "--data.ids=3", "--data.images=2", "--data.positives=4", "--data.negatives=4", "--loss.start=0"]
PATCHES = [*IMAGES, "--data.batch=6", "--model.dim=8", "--model.embedding=8", "--model.hidden=8"]
VIDEO = [
    "--data.name=synthetic_tracklets",
    "--data.height=64",
    "--data.width=32",
    "--data.frames=2",
    f"--data.steps={STEPS}",
    "--protocol=mars",
    f"--model.backbone={SMALL_BACKBONE}",
    "--optim.epochs=1",
]
SCENES = {"ids": 6, "cameras": 2, "train": 8, "gallery": 4, "people": 2, "height": 96, "width": 128, "difficulty": 0.1}
SEARCH = [
    "--data.name=synthetic_scenes",
    f"--data.options={json.dumps(SCENES)}",
    "--data.short=0",
    "--data.scale=1.0",
    "--data.pairs=4",
    "--data.proposal_options={count: 20}",
    "--model.backbone=osnet_x0_25",
    "--optim.epochs=1",
]
SETTINGS = {
    "ide": IDENTITIES,
    "pcb": IDENTITIES,
    "strong_baseline": IDENTITIES,
    "casn": [*PAIRS, "--model.base_options={parts: 2, reduced: 16}"],
    "casn-ide": [*PAIRS, "--model.base_options={hidden: 16}"],
    "cluster_contrast": [
        *IDENTITIES, f"--data.steps={STEPS}", "--loss.k1=4", "--loss.k2=2", "--loss.eps=0.4", "--loss.min_samples=1"
    ],
    "paul": [*PATCHES, "--loss.k=3"],
    "paul-paper": [*PATCHES, "--loss.k=3"],
    "paul-osnet": [
        *IMAGES, "--model.backbone=osnet_x0_25", "--data.height=96", "--data.width=48", "--data.batch=6", "--loss.k=3"
    ],
    "paul-source": [*PATCHES, "--optim.generator_epochs=[1,9]"],
    "drsta": [
        *VIDEO, "--data.ids=4", "--model.head={maps: 3, dim: 16}",
        "--stages=[{stage: joint, epochs: 1, lr: 0.01, freeze: false}]",
    ],
    "rru_stim": [
        *VIDEO, "--data.ids=4", "--data.least=2", "--data.filter=bilinear",
        "--model.head={auxiliary: false, dim: 16, hidden: 16, rru: {hidden: 16}, stim: {hidden: 16}}",
    ],
    "qan": [*VIDEO, "--data.triplets=4", "--model.head={hidden: 16}"],
    "npsm": [*SEARCH, "--model.head_options={grid: 6, hidden: 8, size: [4, 2], embedding: 16, clusters: 3}"],
    "two_stage": [*SEARCH, "--model.head_options={size: [4, 2], embedding: 16}"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data that is written to files, by its name."""
    folder = tmp_path_factory.mktemp("mixed_precision")
    walks = {"ids": 8, "cameras": 2, "frames": 3, "height": 64, "width": 32, "difficulty": 0.0, "seed": 3, "workers": 1}
    write_synthetic_tracklets(folder / "synthetic_tracklets", **walks)
    load_search("synthetic_scenes", folder / "synthetic_scenes", **SCENES)
    return folder


def settings(name, folders, out, *more):
    arguments = ["--model.options={}", "--accelerator=cpu", f"--out={out}", *SETTINGS[name], *more]
    for data in ("synthetic_tracklets", "synthetic_scenes"):
        if f"--data.name={data}" in arguments:
            arguments.append(f"--data.root={folders / data}")
    return parse(name, arguments)


def assert_learned(task, before, losses):
    """Losses and parameters are finite, and the backbone and the method's own layers have moved."""
    assert len(losses) >= STEPS and all(torch.isfinite(x) for x in losses), losses
    after = dict(task.model.named_parameters())
    assert not [name for name, x in after.items() if not bool(x.isfinite().all())]
    moved = {id(x) for name, x in after.items() if not torch.equal(before[name], x)}
    assert any(id(x) in moved for x in task.model.backbone.parameters())
    assert any(id(x) in moved for x in task.model.head_parameters())


def parameters(task):
    return {name: x.detach().clone() for name, x in task.model.named_parameters()}


def test_every_method_is_here():
    assert set(SETTINGS) == set(list_methods())


@pytest.mark.parametrize("name", list_methods())
def test_bf16_mixed(name, folders, tmp_path):
    method, seen, losses = find_method(name), {}, []

    def build(config, data):
        task, module = method.build(config, data)
        step = task.training_step

        def watched(self, batch, index):
            assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
            losses.append(step(batch, index))
            return losses[-1]

        task.training_step = MethodType(watched, task)
        seen["task"], seen["before"] = task, parameters(task)
        return task, module

    train(replace(method, build=build), settings(name, folders, tmp_path / "run", "--precision=bf16-mixed"))
    assert_learned(seen["task"], seen["before"], [x.detach() for x in losses])


@pytest.mark.parametrize("name", list_methods())
def test_float16_without_lightning(name, folders, tmp_path):
    method, config = find_method(name), settings(name, folders, tmp_path / "run")
    task, module = method.build(config, method.load(config))
    task.log_dict = lambda *values, **options: None
    task.train()
    if hasattr(task, "fill_memory"):
        task.fill_memory(module)
    (optimizer,), _ = task.configure_optimizers()
    before, losses = parameters(task), []
    task.on_train_epoch_start()
    for index, batch in zip(range(STEPS), module.loader(0), strict=False):
        with torch.autocast("cpu", torch.float16):
            losses.append(task.training_step(batch, index))
        optimizer.zero_grad()
        losses[-1].backward()
        task.on_after_backward()
        optimizer.step()
    assert_learned(task, before, [x.detach() for x in losses])
