# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL's supervised pre-training of PatchNet on a labelled source."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import lightning
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import ReidData
from reidfast.data.images import ImageDataset
from reidfast.data.samplers import PairSampler
from reidfast.engine.config import RunConfig
from reidfast.engine.methods import paul
from reidfast.engine.methods.paul import PatchDataConfig, PatchModelConfig, PatchOptimConfig, ViewsDataModule
from reidfast.engine.task import ReidTask
from reidfast.losses import CrossEntropyLoss, NearestPositiveTripletLoss
from reidfast.models import create_model, unfold_batch_norms
from reidfast.models.paul import PatchNet


@dataclass
class SourceLossConfig:
    """What is minimised: the patches' cross-entropies, summed, plus `triplet` x triplet loss.

    Args:
        triplet: Weight; 0: none.
        margin: Of the triplet loss.
    """

    triplet: float = 0.1
    margin: float = 1.0


@dataclass
class SourceOptimConfig(PatchOptimConfig):
    """How it is minimised.

    Args:
        optimizer: "sgd" or "adam".
        lr: Of what is new: branches, embedding layers, classifiers.
        backbone_factor: The backbone's rate over `lr`; 0: it is frozen.
        generator_lr: Of the patch generation network; not subject to the milestones.
        generator_epochs: First epoch, from 1, in which it learns, and the first in which it no longer does.
        weight_decay: On everything.
        momentum: Of SGD.
        epochs: Length of the run.
        warmup: Not used.
        milestones: Epochs, from 1, at which the rate falls.
        gamma: By which factor.
        clip: Largest gradient norm; 0: none.
        nesterov: Of SGD; the authors' code: no.
    """

    lr: float = 0.1
    backbone_factor: float = 0.1
    generator_lr: float = 1e-5
    generator_epochs: list[int] = field(default_factory=lambda: [26, 41])
    milestones: list[int] = field(default_factory=lambda: [41])


@dataclass
class Config(RunConfig):
    """A pre-training.

    Args:
        data: The labelled source. `batch` pairs of one identity are a step; `surrogates` is not used.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    data: PatchDataConfig = field(default_factory=PatchDataConfig)
    model: PatchModelConfig = field(default_factory=PatchModelConfig)
    loss: SourceLossConfig = field(default_factory=SourceLossConfig)
    optim: SourceOptimConfig = field(default_factory=SourceOptimConfig)


class PairsDataModule(ViewsDataModule):
    """Every image once an epoch, each beside a random image of its identity (it may be the same one)."""

    def __init__(self, data: ReidData, config: PatchDataConfig, seed: int = 0) -> None:
        super().__init__(data, config, seed)
        self.classes, self.labels = np.unique(data.train.pids, return_inverse=True)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [2 B, 3, H, W], classes, cameras, rows)."""
        dataset = ImageDataset(self.data.train, self._real(), self._open_cache(), labels=self.labels, seed=self.seed)
        dataset.set_epoch(epoch)
        sampler = PairSampler(self.labels, self.config.batch, seed=self.seed)
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.config.workers)


class PaulSourceTask(ReidTask):
    """Cross-entropy of each patch and the nearest-positive triplet loss over PatchNet.

    Args:
        model: The network, with classifiers.
        config: Losses, optimiser, evaluation.
        data: The data set, for evaluation.
    """

    model: PatchNet

    def __init__(self, model: PatchNet, config: Config, data: ReidData) -> None:
        super().__init__(model, config, data)
        self.cross_entropy = CrossEntropyLoss(0.0)
        self.triplet = NearestPositiveTripletLoss(config.loss.margin) if config.loss.triplet else None
        if not config.optim.backbone_factor:
            model.backbone.requires_grad_(False)

    def prepare(self, module: lightning.LightningDataModule) -> None:
        """Undo folded batch norms."""
        assert isinstance(module, ViewsDataModule)
        if self.config.model.unfold:
            unfold_batch_norms(self.model.backbone, module.plain_images(self.config.model.unfold).to(self.device))

    def card(self) -> dict[str, Any]:
        """How to make the model again."""
        assert self.model.class_weight is not None
        options = {**paul.model_options(self.config), "num_classes": self.model.class_weight.shape[1]}
        return {"model": {"name": "paul", "options": options}}

    def configure_optimizers(self) -> Any:
        """Rates of the new layers, the backbone and the patch generation network by epoch."""
        o = self.config.optim
        first, end = o.generator_epochs

        def steps(epoch: int) -> float:
            return float(o.gamma ** bisect_right(sorted(o.milestones), epoch + 1))

        def window(epoch: int) -> float:
            return float(first <= epoch + 1 < end)

        rates = {"backbone": o.lr * o.backbone_factor, "head": o.lr, "generator": o.generator_lr}
        return paul.patch_optimizer(o, rates, self.model, [steps, steps, window])

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch[0], batch[1]
        out = self.model(images)
        total = sum(self.cross_entropy(logits, labels) for logits in out.logits)
        logged = {"loss/cross_entropy": total.detach()}
        if self.triplet is not None:
            triplet = self.triplet(out.embeddings, labels)
            total = total + self.config.loss.triplet * triplet
            logged["loss/triplet"] = triplet.detach()
        logged["accuracy"] = (out.logits.detach().sum(0).argmax(1) == labels).float().mean()
        self.log_dict(logged | {"loss/total": total.detach()}, prog_bar=True)
        return total


load = paul.load


def build(config: Config, data: ReidData) -> tuple[PaulSourceTask, PairsDataModule]:
    """The task and the data of a run."""
    module = PairsDataModule(data, config.data, config.seed)
    options = paul.model_options(config)
    weights, classes = config.model.weights, len(module.classes)
    model = create_model("paul", backbone_weights=weights, num_classes=classes, **options)
    assert isinstance(model, PatchNet)
    return PaulSourceTask(model, config, data), module
