# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Cluster-contrast: pseudo-labels by clustering every epoch, and a memory of cluster centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast import ops
from reidfast.data import ReidData
from reidfast.data.samplers import IdentitySampler
from reidfast.engine.config import DataConfig, OptimConfig, RunConfig, UnfoldConfig
from reidfast.engine.data import ReidDataModule, shuffled_rows
from reidfast.engine.method import Method
from reidfast.engine.task import ReidTask, build_model
from reidfast.evaluation import cluster
from reidfast.models.cluster_contrast import ClusterContrast
from reidfast.nn import gather_rows


@dataclass
class ClusterDataConfig(DataConfig):
    """Training and evaluation data; the training labels are not used.

    Args:
        train_ids: Number of training identities to keep, the first in order, for short trials; 0: all.
        steps: Steps of an epoch; 0: as many as the images with a pseudo-label give.
    """

    train_ids: int = 0
    steps: int = 0


@dataclass
class ClusterModelConfig(UnfoldConfig):
    """The network to train.

    Args:
        neck: Batch norm of the feature: "new", "backbone" (that of OSNet's fully connected layer) or "stripes" (six of
            those on horizontal stripes).
    """

    neck: Literal["new", "backbone", "stripes"] = "new"


@dataclass
class ClusterLossConfig:
    """Cross-entropy of the cosines with the cluster centres, divided by `temperature`.

    Args:
        temperature: Temperature of the logits.
        momentum: Weight of the old centre in its update.
        eps: Largest Jaccard distance of neighbours in DBSCAN.
        min_samples: Least number of neighbours of a core point in DBSCAN.
        k1: Size of the k-reciprocal neighbourhood of the Jaccard distance.
        k2: Number of neighbours of the Jaccard distance's local query expansion.
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
        data: Training and evaluation data; the training labels are not used.
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
        seed: Seed of what is drawn.
    """

    config: ClusterDataConfig
    relabel: Callable[[], NDArray[np.int64]]

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [P*K, 3, H, W], clusters, cameras, rows) of one epoch, after clustering."""
        c = self.config
        self.labels = self.relabel()
        clusters = int(self.labels.max(initial=-1)) + 1
        if clusters < 2:
            raise ValueError(
                f"cluster_contrast: expected at least 2 clusters, got {clusters}; change loss.eps or loss.min_samples"
            )
        sampler = IdentitySampler(
            self.labels, min(c.ids, clusters), c.images, steps=c.steps or None, mark_repeats=True, seed=self.seed
        )
        return self.image_loader(epoch, sampler, labels=self.labels)

    def plain_rows(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows, drawn by the seed."""
        return shuffled_rows(len(self.data.train), count, self.seed)


class ClusterContrastTask(ReidTask):
    """Each image against the centres of all clusters, its own being the target; centres move by momentum.

    Clusters and centres are functions of the weights at the beginning of an epoch: a resumed run makes them again.

    Args:
        model: The network.
        config: Losses, optimiser, evaluation.
        data: The data set.
        recipe: Name and options of the model.
    """

    model: ClusterContrast

    def __init__(self, model: ClusterContrast, config: Config, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        self.clusters = 0
        self.labels: NDArray[np.int64] | None = None
        self._centres = torch.empty(0)
        self._pending: tuple[Tensor, Tensor] | None = None

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


def build(config: Config, data: ReidData) -> tuple[ClusterContrastTask, ClusterDataModule]:
    """The task and the data of a run."""
    model, recipe = build_model("cluster_contrast", config.model, neck=config.model.neck)
    task = ClusterContrastTask(model, config, data, recipe)
    module = ClusterDataModule(data, config.data, config.seed)
    module.relabel = task.relabel
    return task, module


METHODS = (Method("cluster_contrast", Config, build),)
