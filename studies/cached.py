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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from reidfast._files import write_whole
from reidfast.data import EvalTransform, ImageDataset, Records, SurrogateTransform, TrainTransform
from reidfast.data.samplers import IdentitySampler, ShuffleSampler
from reidfast.engine.methods.cluster_contrast import ClusterContrastTask
from reidfast.engine.methods.paul import PaulTask, ViewsDataModule
from reidfast.evaluation import Ranking, rank, subtract_camera_mean
from reidfast.losses import PEDAL
from reidfast.models import OSNet
from reidfast.models.backbones import Backbone
from reidfast.models.paul import PatchNet
from reidfast.nn import MemoryBank, gather_rows
from studies.watch import Watch

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


@dataclass
class Choices:
    """What an arm does otherwise than its method, to find out why it does what it does.

    Args:
        settle: Embeddings (in evaluation, and before clustering) are taken with batch norm statistics of the images as
            they are, measured then, instead of the running ones, half of which come from surrogates.
        views: What cluster-contrast draws from: "all" of the cached views, or "real" ones.
        labels: "found", or "identities": what perfect clusters would give cluster-contrast, and PEDAL if the k nearest
            rows were taken from those of the image's own identity.
        nearest: The k nearest rows of PEDAL are those of the "patch", or of the whole "image", the same for each patch.
        cameras: The k nearest rows of PEDAL are taken from images of "any" camera, or of an "other" one, or, "centred",
            from any, with each camera's mean taken off before distances are measured.
        centred: Clustering takes each camera's mean off the features first.
        refresh: The memory is written anew at the beginning of each epoch, not only of the first.
    """

    settle: bool = False
    views: str = "all"
    labels: str = "found"
    nearest: str = "patch"
    cameras: str = "any"
    centred: bool = False
    refresh: bool = False


class ChosenPEDAL(nn.Module):
    """PEDAL whose k nearest rows are chosen otherwise.

    Args:
        pedal: k and scale.
        pids: Identity of each row of the memory: only rows of the image's own are chosen among; None: any.
        whole: The same rows for all patches, the nearest by the sum of the patches' distances.
        cameras: Camera of each row of the memory: only rows of others than the image's own are chosen among; None: any.
        centred: Among the rows of all cameras instead, by distances between features without their camera's mean.
    """

    def __init__(
        self,
        pedal: PEDAL,
        pids: np.ndarray | None = None,
        whole: bool = False,
        cameras: np.ndarray | None = None,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.k, self.scale, self.whole, self.centred = pedal.k, pedal.scale, whole, centred
        self.pids = None if pids is None else torch.from_numpy(pids)
        self.cameras = None if cameras is None else torch.from_numpy(np.unique(cameras, return_inverse=True)[1])

    def forward(self, x: Tensor, memory: MemoryBank, rows: Tensor) -> Tensor:
        """As PEDAL's."""
        bank = memory.bank
        itself = torch.arange(bank.shape[1]) == rows[:, None]
        logits = (-self.scale * _distances(x, bank)).masked_fill(itself, -torch.inf)
        chosen = logits
        if self.centred and self.cameras is not None:
            members = functional.one_hot(self.cameras).to(bank.dtype)
            offset = (members @ ((members / members.sum(0)).mT @ bank)).detach()  # [M, N, d], each row's camera's mean
            chosen = (-_distances(x - offset[:, rows], bank - offset)).masked_fill(itself, -torch.inf)
        if self.whole:
            chosen = chosen.sum(0, keepdim=True).expand_as(logits)
        if self.pids is not None:
            chosen = chosen.masked_fill(self.pids != self.pids[rows][:, None], -torch.inf)
        if self.cameras is not None and not self.centred:
            chosen = chosen.masked_fill(self.cameras == self.cameras[rows][:, None], -torch.inf)
        best = chosen.topk(self.k)
        near = logits.gather(2, best.indices).masked_fill(best.values == -torch.inf, -torch.inf)
        return (logits.logsumexp(2) - near.logsumexp(2)).mean()


def _distances(x: Tensor, bank: Tensor) -> Tensor:
    """Squared, [M, B, N]."""
    return x.square().sum(2, keepdim=True) + bank.square().sum(2)[:, None] - 2 * x @ bank.mT


def settle(model: nn.Module, maps: Tensor, rows: int = 640, batch: int = 64) -> None:
    """Make the batch norms' running statistics the means over batches of some of `maps`."""
    order = np.random.Generator(np.random.Philox(0)).permutation(len(maps))[:rows]
    parts = np.split(order, range(batch, len(order), batch))
    update_bn((maps[torch.from_numpy(part)].float() for part in parts if len(part) > 1), model)


@contextmanager
def settled(model: nn.Module, maps: Tensor) -> Iterator[None]:
    """`settle` for a while."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    settle(model, maps)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])


@torch.no_grad()
def embed(model: nn.Module, maps: Tensor) -> Tensor:
    """Embeddings of cached maps, in evaluation mode."""
    training = model.training
    model.eval()
    embeddings = torch.cat([model(part.float()) for part in maps.split(256)])
    model.train(training)
    return embeddings


def evaluate(task: Any, cache: dict[str, Any], watch: Watch | None = None) -> Ranking:
    """Scores of the query and gallery."""
    query, gallery = task.data.query, task.data.gallery
    x, y = embed(task.model, cache["query"]), embed(task.model, cache["gallery"])
    if watch is not None:
        watch.queries(x, y, task.data)
    return rank(x, y, query.pids, gallery.pids, query.camids, gallery.camids)


def adapt(
    task: Any, cache: dict[str, Any], choices: Choices | None = None, watch: Watch | None = None
) -> Iterator[tuple[int, Ranking]]:
    """Train on the cached maps; yields the scores every `evaluate_every` epochs, with `watch` before the first too."""
    config, net, choices = task.config, task.model, choices or Choices()
    before = net.backbone
    assert isinstance(before, OSNet)
    take(net, cache["net"], branches=getattr(config, "source_checkpoint", None) is None)
    net.backbone = Tail(before)
    task.log_dict = (lambda *args, **options: None) if watch is None else watch.step
    [optimizer], [schedule] = task.configure_optimizers()
    task.train()
    batches = paul_batches if isinstance(task, PaulTask) else cluster_batches
    if (
        isinstance(task, PaulTask)
        and task.pedal is not None
        and (choices.labels, choices.nearest, choices.cameras) != ("found", "patch", "any")
    ):
        known = task.data.train.pids if choices.labels == "identities" else None
        cameras = None if choices.cameras == "any" else task.data.train.camids
        whole, centred = choices.nearest == "image", choices.cameras == "centred"
        task.pedal = ChosenPEDAL(task.pedal, known, whole, cameras, centred)
    if isinstance(task, ClusterContrastTask):
        cluster_rows(task, cache, choices)
        if isinstance(net.backbone.fc, nn.Sequential):  # what lies behind the pooled map has not seen the target yet
            settle(net, cache["real"][0])

    def fill() -> None:
        if isinstance(task, PaulTask) and config.loss.pedal:
            with torch.no_grad():
                for maps, rows in paul_batches(task, cache, -1, choices):
                    task.memory.write(gather_rows(rows), net(maps[:, 0]).features)

    def scores() -> Ranking:
        with settled(net, cache["real"][0]) if choices.settle else nullcontext():
            if watch is not None:
                watch.epoch(task, embed(net, cache["real"][0]))
            return evaluate(task, cache, watch)

    fill()
    if watch is not None:
        watch.attach(task)
        yield 0, scores()
    for epoch in range(config.optim.epochs):
        if choices.refresh and epoch:
            fill()
        for maps, rows in batches(task, cache, epoch, choices):
            loss = task.training_step((maps, rows, None, rows), 0)
            if loss is not None:
                if watch is not None:
                    watch.gradients(task)
                optimizer.zero_grad()
                loss.backward()
                task.on_after_backward()
                if watch is not None:
                    watch.norm(net)
                optimizer.step()
        schedule.step()
        if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.optim.epochs:
            yield epoch + 1, scores()


def take(net: Any, known: dict[str, Tensor], *, branches: bool) -> None:
    """The network whose maps are cached: its backbone, and its branches where the net has such."""
    net.backbone.load_state_dict(_below(known, "backbone."), strict=False)
    own = net.branches if isinstance(net, PatchNet) else getattr(net.neck, "branches", None)
    if branches and own is not None:
        own.load_state_dict(_below(known, "branches."))


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def paul_batches(
    task: PaulTask, cache: dict[str, Any], epoch: int, choices: Choices
) -> Iterator[tuple[Tensor, Tensor]]:
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


def cluster_rows(task: ClusterContrastTask, cache: dict[str, Any], choices: Choices) -> None:
    """How the task clusters the cached images."""
    train = task.data.train

    def features(records: Records) -> Tensor:
        with settled(task.model, cache["real"][0]) if choices.settle else nullcontext():
            return embed(task.model, cache["real"][0])

    by_features = task.cluster
    task.embed = features
    if choices.centred:
        task.cluster = lambda x: by_features(subtract_camera_mean(x, train.camids))
    if choices.labels == "identities":
        task.cluster = lambda x: np.unique(train.pids, return_inverse=True)[1].astype(np.int64)


def cluster_batches(
    task: ClusterContrastTask, cache: dict[str, Any], epoch: int, choices: Choices
) -> Iterator[tuple[Tensor, Tensor]]:
    """(maps [P K, C, h, w], clusters) of an epoch, after clustering."""
    c, seed = task.config.data, task.config.seed
    labels = task.relabel()
    clusters = int(labels.max(initial=-1)) + 1
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch + 1]))
    sampler = IdentitySampler(labels, min(c.ids, clusters), c.images, steps=c.steps or None, seed=seed)
    sampler.set_epoch(epoch)
    views = cache["real"] if choices.views == "real" else torch.cat([cache["real"], cache["surrogates"]])
    for batch in sampler:
        rows = torch.tensor(batch)
        yield (
            views[torch.from_numpy(rng.integers(0, len(views), len(rows))), rows].float(),
            torch.from_numpy(labels)[rows],
        )
