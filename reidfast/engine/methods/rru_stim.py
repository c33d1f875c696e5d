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
from reidfast.engine.method import Method
from reidfast.engine.methods.clips import ClipConfig, ClipDataModule, ClipTask, VideoModelConfig
from reidfast.engine.task import build_model
from reidfast.losses import RRUSTIMLoss
from reidfast.models import RRUSTIM
from reidfast.nn import gather_rows


@dataclass
class LossConfig:
    """The four-part loss.

    Args:
        margin: Margin of the triplet losses.
        parts: Weight of the triplet loss over the horizontal parts.
        auxiliary: Weight of the auxiliary classifier's cross-entropy.
    """

    margin: float = 0.4
    parts: float = 1.0
    auxiliary: float = 1.0


@dataclass
class Config(RunConfig):
    """A run of RRU + STIM."""

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
        recipe: Name and options of the model.
    """

    model: RRUSTIM

    def __init__(self, model: RRUSTIM, config: Config, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        c = config.loss
        self.loss = RRUSTIMLoss(c.margin, parts_weight=c.parts, auxiliary_weight=c.auxiliary)

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
    size = [config.data.height, config.data.width]
    model, recipe = build_model(
        "rru_stim", config.model, **{**config.model.head, "num_classes": len(module.classes), "size": size}
    )
    return RRUSTIMTask(model, config, data, recipe), module


METHODS = (Method("rru_stim", Config, build),)
