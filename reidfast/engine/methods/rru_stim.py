# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of RRU + STIM and of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from reidfast.data import ReidData
from reidfast.data.clips import SetBatch
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.methods.clips import ClipConfig, ClipDataModule, ClipTask, VideoModelConfig
from reidfast.engine.task import optimizer_and_schedule
from reidfast.losses import RRUSTIMLoss
from reidfast.models import RRUSTIM, create_model
from reidfast.nn import gather_rows


@dataclass
class LossConfig:
    """The four-part loss.

    Args:
        margin: Of the triplets.
        parts: Weight of the term over the horizontal parts.
        auxiliary: Weight of the auxiliary classifier.
    """

    margin: float = 0.4
    parts: float = 1.0
    auxiliary: float = 1.0


@dataclass
class Config(RunConfig):
    """A run of RRU + STIM.

    Args:
        data: What is trained and evaluated on.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    data: ClipConfig = field(default_factory=ClipConfig)
    model: VideoModelConfig = field(default_factory=VideoModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class RRUSTIMTask(ClipTask):
    """The four-part loss over clips; at test one recursion over each whole tracklet.

    Args:
        model: The model.
        config: The run's settings.
        data: The data set.
        num_classes: Training identities.
    """

    model: RRUSTIM
    method = "rru_stim"

    def __init__(self, model: RRUSTIM, config: Config, data: ReidData, num_classes: int) -> None:
        super().__init__(model, config, data)
        self.num_classes = num_classes
        c = config.loss
        self.loss = RRUSTIMLoss(c.margin, parts_weight=c.parts, auxiliary_weight=c.auxiliary)

    def card(self) -> dict[str, Any]:
        """How `create_model` makes the model again."""
        card, c = super().card(), self.config.data
        card["model"]["options"] |= {"num_classes": self.num_classes, "size": [c.height, c.width]}
        return card

    def configure_optimizers(self) -> Any:
        """The backbone at its own rate."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        return optimizer_and_schedule(
            [{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": self.model.head_parameters()}], o
        )

    def training_step(self, batch: SetBatch, index: int) -> Tensor:
        """Loss of one batch."""
        out = self.model(batch.dense())
        terms = self.loss(*out, batch.labels, gather=gather_rows)
        logged = {f"loss/{name}": value.detach() for name, value in terms._asdict().items()}
        logged["accuracy"] = (out.logits.detach().argmax(1) == batch.labels).float().mean()
        self.log_dict(logged, prog_bar=True, batch_size=len(batch.labels))
        return terms.total


def build(config: Config, data: ReidData) -> tuple[RRUSTIMTask, ClipDataModule]:
    """The task and the data of a run."""
    module = ClipDataModule(data, config.data, config.seed)
    m = config.model
    model = create_model(
        "rru_stim",
        num_classes=len(module.classes),
        backbone=m.backbone,
        backbone_weights=m.weights,
        backbone_options=m.options,
        size=(config.data.height, config.data.width),
        **m.head,
    )
    return RRUSTIMTask(model, config, data, len(module.classes)), module  # type: ignore[arg-type]
