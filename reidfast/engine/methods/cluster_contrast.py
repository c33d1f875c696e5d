# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cluster-contrast: pseudo-labels by clustering every epoch, and a memory of cluster centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast import ops
from reidfast.data import ReidData
from reidfast.data.images import EvalTransform, ImageDataset
from reidfast.data.samplers import IdentitySampler
from reidfast.data.transforms import TrainTransform
from reidfast.engine.config import DataConfig, OptimConfig, RunConfig
from reidfast.engine.methods import paul
from reidfast.engine.task import ReidDataModule, ReidTask, optimizer_and_schedule
from reidfast.evaluation import cluster
from reidfast.models import create_model, unfold_batch_norms
from reidfast.models.cluster_contrast import ClusterContrast
from reidfast.nn import gather_rows


@dataclass
class ClusterDataConfig(DataConfig):
    """What is trained and evaluated on; see `DataConfig`.

    Args:
        train_ids: Keep the images of this many training identities only, the first in order; 0: all. For short trials.
        steps: Of an epoch; 0: as many as the pseudo-labelled images give.
    """

    train_ids: int = 0
    steps: int = 0


@dataclass
class ClusterModelConfig:
    """What is trained.

    Args:
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random.
        options: Of the backbone.
        neck: "new" batch norm, or that of OSNet's fully connected layer ("backbone"), or six of those on horizontal
            stripes ("stripes").
        unfold: Undo folded batch norms of the weights before training, over this many training images; 0: no.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    neck: Literal["new", "backbone", "stripes"] = "new"
    unfold: int = 0


@dataclass
class ClusterLossConfig:
    """What is minimised: the cross-entropy of cosines with the cluster centres over `temperature`.

    Args:
        temperature: Of the logits.
        momentum: Weight of the old centre.
        eps: Of DBSCAN on Jaccard distances.
        min_samples: Of DBSCAN.
        k1: Of the Jaccard distance.
        k2: Of the Jaccard distance.
    """

    temperature: float = 0.05
    momentum: float = 0.1
    eps: float = 0.6
    min_samples: int = 4
    k1: int = 30
    k2: int = 6


@dataclass
class Config(RunConfig):
    """A run of cluster-contrast.

    Args:
        data: The target, whose training labels are not used.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    data: ClusterDataConfig = field(default_factory=ClusterDataConfig)
    model: ClusterModelConfig = field(default_factory=ClusterModelConfig)
    loss: ClusterLossConfig = field(default_factory=ClusterLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class ClusterDataModule(ReidDataModule):
    """P x K batches over pseudo-labels, which are made anew before each epoch; outliers are left out.

    Args:
        data: The data set.
        config: Sizes, sampler, transforms.
        seed: Of what is drawn.
    """

    relabel: Callable[[], NDArray[np.int64]]

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [P*K, 3, H, W], clusters, cameras, rows) of one epoch, after clustering."""
        c = self.config
        assert isinstance(c, ClusterDataConfig)
        self.labels = self.relabel()
        found = int(self.labels.max(initial=-1)) + 1
        if found < 2:
            raise ValueError(
                f"cluster_contrast: expected at least 2 clusters, got {found}; change loss.eps or loss.min_samples"
            )
        transform = TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter)
        dataset = ImageDataset(self.data.train, transform, self._open_cache(), labels=self.labels, seed=self.seed)
        dataset.set_epoch(epoch)
        sampler = IdentitySampler(
            self.labels, min(c.ids, found), c.images, steps=c.steps or None, mark_repeats=True, seed=self.seed
        )
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers)

    def plain_images(self, count: int) -> Tensor:
        """Some training images as at evaluation, [count, 3, H, W]."""
        c = self.config
        dataset = ImageDataset(self.data.train, EvalTransform(c.height, c.width, c.filter), self._open_cache())
        order = np.random.Generator(np.random.Philox(self.seed)).permutation(len(dataset))
        return torch.stack([dataset[int(i)][0] for i in order[:count]])


class ClusterContrastTask(ReidTask):
    """Each image against the centres of all clusters, its own being the target; centres move by momentum.

    Clusters and centres are functions of the weights at the beginning of an epoch: a resumed run makes them again.

    Args:
        model: The network.
        config: Losses, optimiser, evaluation.
        data: The data set.
    """

    model: ClusterContrast

    def __init__(self, model: ClusterContrast, config: Config, data: ReidData) -> None:
        super().__init__(model, config, data)
        self.clusters = 0
        self.labels: NDArray[np.int64] | None = None
        self._centres = torch.empty(0)
        self._pending: tuple[Tensor, Tensor] | None = None

    def prepare(self, module: lightning.LightningDataModule) -> None:
        """Undo folded batch norms."""
        assert isinstance(module, ClusterDataModule)
        if self.config.model.unfold:
            unfold_batch_norms(self.model.backbone, module.plain_images(self.config.model.unfold).to(self.device))

    def cluster(self, features: Tensor) -> NDArray[np.int64]:
        """Pseudo-label of every training image, -1 = outlier."""
        c = self.config.loss
        return cluster(features, eps=c.eps, min_samples=c.min_samples, k1=c.k1, k2=c.k2)

    def relabel(self) -> NDArray[np.int64]:
        """Cluster the training images by their features as of now; centres are the clusters' means."""
        features = self.embed(self.data.train)
        self.labels = labels = self.cluster(features)
        kept = torch.from_numpy(labels >= 0)
        self.clusters = int(labels.max(initial=-1)) + 1
        sums = torch.zeros(self.clusters, features.shape[1])
        sums.index_add_(0, torch.from_numpy(labels)[kept], features[kept])
        self._centres = torch.nn.functional.normalize(sums, dim=1)
        return labels

    def card(self) -> dict[str, Any]:
        """How to make the model again."""
        m = self.config.model
        options = {"backbone": m.backbone, "backbone_options": m.options, "neck": m.neck}
        return {"model": {"name": "cluster_contrast", "options": options}}

    def configure_optimizers(self) -> Any:
        """Adam or SGD, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head_parameters() if p.requires_grad]
        groups = [{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": head}]
        return optimizer_and_schedule(groups if head else groups[:1], o)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch; the centres move after it."""
        images, labels = batch[0], batch[1]
        features = self.model(images).float()
        self._centres = self._centres.to(features.device)
        scale = 1 / self.config.loss.temperature
        loss = ops.memory_loss(features, self._centres, targets=labels, scale=scale, metric="dot").mean()
        self._pending = gather_rows(labels), gather_rows(features.detach())
        self.log_dict({"loss/total": loss.detach(), "clusters": float(self.clusters)}, prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        """Move the centres, sample by sample."""
        if self._pending is not None:
            labels, features = self._pending
            momentum = self.config.loss.momentum
            ops.memory_update_(self._centres, labels, features, momentum=momentum, normalize=True)
            self._pending = None


load = paul.load


def build(config: Config, data: ReidData) -> tuple[ClusterContrastTask, ClusterDataModule]:
    """The task and the data of a run."""
    m = config.model
    model = create_model(
        "cluster_contrast",
        backbone=m.backbone,
        backbone_weights=m.weights,
        backbone_options=m.options,
        neck=m.neck,
    )
    assert isinstance(model, ClusterContrast)
    task = ClusterContrastTask(model, config, data)
    module = ClusterDataModule(data, config.data, config.seed)
    module.relabel = task.relabel
    return task, module
