# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of the baselines: IDE, PCB and the strong baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from reidfast.data import ReidData
from reidfast.engine.config import DataConfig, OptimConfig, RunConfig, UnfoldConfig
from reidfast.engine.data import ReidDataModule
from reidfast.engine.method import Method
from reidfast.engine.task import ReidTask, build_model
from reidfast.losses import CentreLoss, CrossEntropyLoss, TripletLoss
from reidfast.models.baselines import Baseline
from reidfast.nn import gather_rows


@dataclass
class ModelConfig(UnfoldConfig):
    """The network to train.

    Args:
        head: Head on the backbone: "strong_baseline" (BNNeck), "ide" or "pcb".
        head_options: Options of the head (see docs/models.md).
        channels_last: Store feature maps with the channels innermost: often much faster on the CPU, and for half types
            on GPUs.
    """

    head: Literal["strong_baseline", "ide", "pcb"] = "strong_baseline"
    head_options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = True


@dataclass
class LossConfig:
    """Cross-entropy, plus `triplet` x batch-hard triplet loss, plus `centre` x centre loss.

    Args:
        label_smoothing: Label smoothing of the cross-entropy, from 0 to 1.
        triplet: Weight of the triplet loss; 0: without it.
        margin: Margin of the triplet loss; null: the soft margin.
        centre: Weight of the centre loss; 0: without it (the last row of the strong baseline's table has 5e-4).
    """

    label_smoothing: float = 0.1
    triplet: float = 1.0
    margin: float | None = 0.3
    centre: float = 0.0


@dataclass
class Config(RunConfig):
    """A run of a baseline."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class BaselineTask(ReidTask):
    """Cross-entropy, batch-hard triplet and centre loss over a baseline.

    Args:
        model: The baseline.
        config: Losses, optimiser, evaluation.
        data: The data set, for evaluation.
        recipe: Name and options of the model, `num_classes` among them.
    """

    model: Baseline

    def __init__(self, model: Baseline, config: Config, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.triplet = TripletLoss(config.loss.margin) if config.loss.triplet else None
        self.centre: CentreLoss | None = None
        if config.loss.centre:
            generator = torch.Generator().manual_seed(config.seed)
            self.centre = CentreLoss(recipe["options"]["num_classes"], model.feature_size, generator=generator)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch[0], batch[1]
        out = self.model(images)
        weights = self.config.loss
        parts = out.logits.shape[1]
        total = sum(self.cross_entropy(out.logits[:, p], labels) for p in range(parts))
        logged = {"loss/cross_entropy": total.detach()}
        if self.triplet is not None:
            triplet = self.triplet(gather_rows(out.features), gather_rows(labels))
            total = total + weights.triplet * triplet
            logged["loss/triplet"] = triplet.detach()
        if self.centre is not None:
            centre = self.centre(out.features, labels)
            total = total + weights.centre * centre
            logged["loss/centre"] = centre.detach()
        logged["accuracy"] = (out.logits.detach().sum(1).argmax(1) == labels).float().mean()
        self.log_dict(logged | {"loss/total": total.detach()}, prog_bar=True)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The centres move by a rule of their own."""
        if self.centre is not None:
            self.centre.step_centres(self.config.loss.centre)


def build(config: Config, data: ReidData) -> tuple[BaselineTask, ReidDataModule]:
    """The task and the data of a run."""
    module = ReidDataModule(data, config.data, config.seed)
    m = config.model
    model, recipe = build_model(m.head, m, num_classes=len(module.classes), **m.head_options)
    return BaselineTask(model, config, data, recipe), module


METHODS = tuple(Method(name, Config, build) for name in ("ide", "pcb", "strong_baseline"))
