# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of the baselines: IDE, PCB and the strong baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reidfast.data import ReidData
from reidfast.engine.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from reidfast.engine.task import ReidDataModule, ReidTask, optimizer_and_schedule
from reidfast.losses import CentreLoss, CrossEntropyLoss, TripletLoss
from reidfast.models import create_model, unfold_batch_norms
from reidfast.models.baselines import Baseline
from reidfast.nn import gather_rows


@dataclass
class LossConfig:
    """What is minimised: cross-entropy, plus `triplet` x batch-hard triplet, plus `centre` x centre loss.

    Args:
        label_smoothing: Of the cross-entropy.
        triplet: Weight; 0: none.
        margin: Of the triplet loss; None: the soft margin.
        centre: Weight; 0: none (5e-4 in the strong baseline's last row).
    """

    label_smoothing: float = 0.1
    triplet: float = 1.0
    margin: float | None = 0.3
    centre: float = 0.0


@dataclass
class Config(RunConfig):
    """A run of a baseline.

    Args:
        data: What is trained and evaluated on.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

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
        num_classes: Training identities.
    """

    model: Baseline

    def __init__(self, model: Baseline, config: Config, data: ReidData, num_classes: int) -> None:
        super().__init__(model, config, data)
        self.num_classes = num_classes
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.triplet = TripletLoss(config.loss.margin) if config.loss.triplet else None
        self.centre: CentreLoss | None = None
        if config.loss.centre:
            generator = torch.Generator().manual_seed(config.seed)
            self.centre = CentreLoss(num_classes, model.feature_size, generator=generator)

    def prepare(self, module: Any) -> None:
        """Undo folded batch norms."""
        if self.config.model.unfold:
            unfold(self.model.backbone, module, self.config.model.unfold)

    def card(self) -> dict[str, Any]:
        """Head and backbone."""
        m = self.config.model
        options = {"num_classes": self.num_classes, "backbone": m.backbone, "backbone_options": m.options}
        return {"model": {"name": m.head, "options": options | m.head_options}}

    def configure_optimizers(self) -> Any:
        """Adam or SGD, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head_parameters() if p.requires_grad]
        return optimizer_and_schedule([{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": head}], o)

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


def unfold(backbone: Any, module: ReidDataModule, images: int) -> None:
    """`unfold_batch_norms` over so many training images."""
    unfold_batch_norms(backbone, module.plain_images(images))


def build(config: Config, data: ReidData) -> tuple[BaselineTask, ReidDataModule]:
    """The task and the data of a run."""
    module = ReidDataModule(data, config.data, config.seed)
    m = config.model
    model = create_model(
        m.head,
        num_classes=len(module.classes),
        backbone=m.backbone,
        backbone_weights=m.weights,
        backbone_options=m.options,
        **m.head_options,
    )
    if m.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return BaselineTask(model, config, data, len(module.classes)), module  # type: ignore[arg-type]
