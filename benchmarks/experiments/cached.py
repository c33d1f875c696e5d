# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Adaptation at a CPU's size: the first stages of an OSNet run once over every view, what they give is kept, and the
rest of the network (third stage on) trains on that.

The stem and the second stage take three quarters of the time at 128 x 64. Their batch norms are adapted to the target
first (one pass in training mode), then they are frozen: two views of each image (as it is, mirrored) and `SURROGATES`
of its surrogates are kept as float16 maps. Everything behind is what `reidfast.engine.methods` trains, by its own step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from reidfast._files import write_whole
from reidfast.data import EvalTransform, ImageDataset, Records, SurrogateTransform, TrainTransform
from reidfast.data.samplers import IdentitySampler, ShuffleSampler
from reidfast.engine.methods.cluster_contrast import ClusterContrastTask
from reidfast.engine.methods.paul import PaulTask, ViewsDataModule
from reidfast.evaluation import Ranking, rank
from reidfast.models import OSNet
from reidfast.models.backbones import Backbone
from reidfast.nn import gather_rows

SURROGATES = 2
TAIL = ("conv3", "conv4", "conv5", "fc")


class Tail(Backbone):
    """An OSNet from its third stage on: takes the maps that the second one gives."""

    stride = 4

    def __init__(self, whole: OSNet) -> None:
        super().__init__()
        for name in TAIL:
            setattr(self, name, getattr(whole, name))
        self.out_channels, self.feature_size = whole.out_channels, whole.feature_size

    def forward_map(self, images: Tensor) -> Tensor:
        """Maps [B, C, h, w] of the second stage -> [B, C', h / 2, w / 2]."""
        return self.conv5(self.conv4(self.conv3(images)))

    def pool(self, features: Tensor) -> Tensor:
        """As OSNet's."""
        pooled = super().pool(features)
        return pooled if self.fc is None else self.fc(pooled)


def head(backbone: OSNet, images: Tensor) -> Tensor:
    """What the stem and the second stage give."""
    return backbone.conv2(functional.max_pool2d(backbone.conv1(images), 3, 2, 1))


@torch.no_grad()
def make_cache(task: PaulTask, module: ViewsDataModule, path: Path) -> dict[str, Any]:
    """The maps of all views, from the file where they are there."""
    if path.exists():
        return torch.load(path, weights_only=True)
    data, c = task.data, task.config.data
    task.prepare(module)
    net = task.model.train()
    assert isinstance(net.backbone, OSNet)
    for views, *_ in itertools.islice(module.loader(0), 40):  # the statistics are moving averages over some ten batches
        net(views.flatten(0, 1))
    net.eval()

    def maps(records: Records, transform: Any, epoch: int = 0) -> Tensor:
        dataset = ImageDataset(records, transform, seed=0)
        dataset.set_epoch(epoch)
        batches = DataLoader(dataset, batch_size=64)
        return torch.cat([head(net.backbone, batch[0]).half() for batch in batches])

    plain = EvalTransform(c.height, c.width, c.filter)
    mirrored = TrainTransform(c.height, c.width, flip=1.0, pad=0, erase=0.0, filter=c.filter)
    surrogate = SurrogateTransform(c.height, c.width, mode=c.surrogates, flip=c.flip, filter=c.filter)
    made = {
        "net": net.state_dict(),
        "real": torch.stack([maps(data.train, plain), maps(data.train, mirrored)]),
        "surrogates": torch.stack([maps(data.train, surrogate, epoch) for epoch in range(SURROGATES)]),
        "query": maps(data.query, plain),
        "gallery": maps(data.gallery, plain),
    }
    with write_whole(path) as stream:
        torch.save(made, stream)
    return made


@torch.no_grad()
def embed(model: torch.nn.Module, maps: Tensor) -> Tensor:
    """Embeddings of cached maps, in evaluation mode."""
    training = model.training
    model.eval()
    found = torch.cat([model(part.float()) for part in maps.split(256)])
    model.train(training)
    return found


def evaluate(task: Any, cache: dict[str, Any]) -> Ranking:
    """Scores of the query and gallery."""
    query, gallery = task.data.query, task.data.gallery
    x, y = embed(task.model, cache["query"]), embed(task.model, cache["gallery"])
    return rank(x, y, query.pids, gallery.pids, query.camids, gallery.camids)


def adapt(task: Any, cache: dict[str, Any]) -> Iterator[tuple[int, Ranking]]:
    """Train on the cached maps; yields the scores after every epoch."""
    config, net = task.config, task.model
    before = net.backbone
    assert isinstance(before, OSNet)
    prefix = "backbone."
    known = {k.removeprefix(prefix): v for k, v in cache["net"].items() if k.startswith(prefix)}
    before.load_state_dict(known, strict=False)
    if isinstance(task, PaulTask) and config.source_checkpoint is None:
        net.branches.load_state_dict(
            {k.removeprefix("branches."): v for k, v in cache["net"].items() if k.startswith("branches.")}
        )
    net.backbone = Tail(before)
    task.log_dict = lambda *args, **options: None
    [optimizer], [schedule] = task.configure_optimizers()
    task.train()
    batches = paul_batches if isinstance(task, PaulTask) else cluster_batches
    if isinstance(task, PaulTask) and config.loss.pedal:
        with torch.no_grad():
            for maps, rows in paul_batches(task, cache, -1):
                task.memory.write(gather_rows(rows), net(maps[:, 0]).features)
    if isinstance(task, ClusterContrastTask):
        task.embed = lambda records: embed(net, cache["real"][0])
    for epoch in range(config.optim.epochs):
        for maps, rows in batches(task, cache, epoch):
            loss = task.training_step((maps, rows, None, rows), 0)
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                task.on_after_backward()
                optimizer.step()
        schedule.step()
        yield epoch + 1, evaluate(task, cache)


def paul_batches(task: PaulTask, cache: dict[str, Any], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(maps [B, 2, C, h, w] of an image and its surrogate, rows [B]) of an epoch; -1: of the memory's pass."""
    seed = task.config.seed
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch + 1]))
    sampler = ShuffleSampler(cache["real"].shape[1], task.config.data.batch, seed=seed, drop_last=False)
    sampler.set_epoch(epoch if epoch >= 0 else 2**31 - 1)
    for batch in sampler:
        rows = torch.tensor(batch)
        real = cache["real"][torch.from_numpy(rng.integers(0, 2, len(rows))), rows]
        other = cache["surrogates"][torch.from_numpy(rng.integers(0, SURROGATES, len(rows))), rows]
        yield torch.stack([real, other], 1).float(), rows


def cluster_batches(task: ClusterContrastTask, cache: dict[str, Any], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(maps [P K, C, h, w], clusters) of an epoch, after clustering."""
    c, seed = task.config.data, task.config.seed
    labels = task.relabel()
    found = int(labels.max(initial=-1)) + 1
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch + 1]))
    sampler = IdentitySampler(labels, min(c.ids, found), c.images, steps=c.steps or None, seed=seed)
    sampler.set_epoch(epoch)
    for batch in sampler:
        rows = torch.tensor(batch)
        views = torch.cat([cache["real"], cache["surrogates"]])
        yield (
            views[torch.from_numpy(rng.integers(0, len(views), len(rows))), rows].float(),
            torch.from_numpy(labels)[rows],
        )
