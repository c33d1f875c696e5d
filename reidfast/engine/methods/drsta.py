# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of DRSTA in its three stages, and of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reidfast.data import ReidData, Tracklets
from reidfast.data.clips import SetBatch
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.method import Method
from reidfast.engine.methods.clips import ClipConfig, ClipDataModule, ClipTask, VideoModelConfig
from reidfast.engine.sets import embed_sets, take_frames
from reidfast.engine.task import build_model, optimizer_and_schedule
from reidfast.losses import DiversityLoss, KLDiversityLoss, OIMLoss
from reidfast.models import DRSTA
from reidfast.nn import gather_rows

Stage = Literal["backbone", "spatial", "joint"]


@dataclass
class LossConfig:
    """OIM, and the penalty on attention maps that overlap.

    Args:
        scale: Factor of OIM's logits (1 / temperature).
        momentum: Weight of the old row when OIM's table is updated.
        fill: Fill OIM's table at the beginning of each stage with the mean embedding of each identity, by one pass over
            the tracklets. As published it starts at zero, which can collapse over a frozen backbone.
        penalty: Penalty on overlapping maps: "official" (batch-wide root), "paper_mean" (mean over the frames), "kl"
            (the form that the authors gave up) or "none".
        weight: Weight of the penalty.
    """

    scale: float = 30.0
    momentum: float = 0.5
    fill: bool = False
    penalty: Literal["official", "paper_mean", "kl", "none"] = "official"
    weight: float = 1.0


@dataclass
class StageConfig:
    """One stage of the schedule.

    Args:
        stage: Part that is trained: "backbone" (single frames), "spatial" (mean over the frames) or "joint".
        epochs: Number of epochs of the stage.
        lr: Learning rate at the beginning of the stage.
        milestones: Epochs of the stage, counted from 1, at which the learning rate is multiplied by `gamma`.
        gamma: Factor of the learning rate at each milestone.
        freeze: Freeze the backbone; null: in all stages but "backbone".
    """

    stage: Stage = "joint"
    epochs: int = 40
    lr: float = 0.1
    milestones: list[int] = field(default_factory=lambda: [30])
    gamma: float = 0.1
    freeze: bool | None = None


@dataclass
class Config(RunConfig):
    """A run of DRSTA. Its length is the sum of the stages' epochs; learning rate and milestones are the stages'.

    Args:
        optim: Optimiser, momentum, weight decay, and the backbone's learning rate relative to the stage's.
        stages: Stages in order, each a mapping of stage, epochs, lr, milestones, gamma and freeze. OIM's table starts
            anew after the stage "backbone", whose embedding is another one.
    """

    data: ClipConfig = field(default_factory=ClipConfig)
    model: VideoModelConfig = field(default_factory=VideoModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    stages: list[StageConfig] = field(default_factory=lambda: [StageConfig(stage=s) for s in get_args(Stage)])


class DRSTATask(ClipTask):
    """OIM and the diversity penalty; a schedule of stages, each with its own rate and its own frozen parameters.

    Args:
        model: The model.
        config: The run's settings.
        data: The data set.
        recipe: Name and options of the model.
        num_classes: Training identities: rows of OIM's table, which is a buffer and so part of every checkpoint.
    """

    model: DRSTA
    find_unused_parameters = True

    def __init__(self, model: DRSTA, config: Config, data: ReidData, recipe: dict[str, Any], num_classes: int) -> None:
        super().__init__(model, config, data, recipe)
        model.stage = config.stages[0].stage  # frozen later: a data-parallel wrapper wants to see every parameter
        c = config.loss
        self.oim = OIMLoss(num_classes, model.feature_size, scale=c.scale, momentum=c.momentum)
        self.penalty: nn.Module | None = None
        if c.penalty == "kl":
            self.penalty = KLDiversityLoss(weight=c.weight)
        elif c.penalty != "none":
            self.penalty = DiversityLoss(c.penalty, weight=c.weight)

    def stage_of(self, epoch: int) -> tuple[int, int]:
        """The stage of an epoch (counted from 0), and the epoch within it."""
        for i, stage in enumerate(self.config.stages):
            if epoch < stage.epochs or i == len(self.config.stages) - 1:
                return i, epoch
            epoch -= stage.epochs
        raise ValueError("train drsta: expected at least one stage, got none")

    def _take_up(self, epoch: int) -> int:
        """Put the model into the stage of an epoch; the epoch within that stage."""
        i, within = self.stage_of(epoch)
        self.model.set_stage(self.config.stages[i].stage, freeze_backbone=self.config.stages[i].freeze)
        return within

    def configure_optimizers(self) -> Any:
        """One optimiser of everything; what a stage freezes has no gradient and stays."""
        o, first = self.config.optim, self.config.stages[0].lr
        groups = [
            {"params": list(self.model.backbone.parameters()), "lr": first * o.backbone_factor},
            {"params": self.model.head_parameters(), "lr": first},
        ]

        def factor(epoch: int) -> float:
            i, within = self.stage_of(epoch)
            stage = self.config.stages[i]
            return stage.lr / first * stage.gamma ** sum(within + 1 > m for m in stage.milestones)

        return optimizer_and_schedule(groups, o, factor)

    def on_train_epoch_start(self) -> None:
        """Take up the epoch's stage; the table begins anew behind the stage "backbone"."""
        super().on_train_epoch_start()
        stages, before = self.config.stages, self.stage_of(self.current_epoch)[0] - 1
        if self._take_up(self.current_epoch) > 0:
            return
        if self.config.loss.fill:
            self.fill()
        elif before >= 0 and stages[before].stage == "backbone":
            self.oim.table.zero_()

    @torch.no_grad()
    def fill(self) -> None:
        """Each row of the table: the mean embedding of its identity, at unit length."""
        c = self.config.data
        tracklets = Tracklets.of(self.data.train, least=c.least)
        tracklets = tracklets.select(tracklets.pids >= 0)
        labels, _ = tracklets.labels()
        frames = take_frames(tracklets, c.choose if c.choose == "chunks" else "all", c.frames)
        x = embed_sets(self.model, frames, size=(c.height, c.width), filter=c.filter, device=self.device)
        table = self.oim.table.new_zeros(self.oim.table.shape)
        table.index_add_(0, torch.from_numpy(labels).to(table.device), x.to(table))
        self.oim.table.copy_(torch.nn.functional.normalize(table, dim=1))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The stage goes with the epoch."""
        super().on_load_checkpoint(checkpoint)
        self._take_up(int(checkpoint["epoch"]))

    def training_step(self, batch: SetBatch, index: int) -> Tensor:
        """Loss of one batch."""
        out = self.model(batch.dense())
        labels = batch.labels
        if self.model.stage == "backbone":
            labels = labels.repeat_interleave(batch.offsets.diff())
        total = oim = self.oim(gather_rows(out.embedding), gather_rows(labels))
        logged = {"loss/oim": oim.detach()}
        if self.penalty is not None and out.overlap is not None:
            kl = isinstance(self.penalty, KLDiversityLoss)
            penalty = self.penalty(out.attention if kl else out.overlap)
            total = total + penalty
            logged["loss/penalty"] = penalty.detach()
        if out.overlap is not None:
            logged["overlap"] = out.overlap.detach().mean()
        self.log_dict(logged | {"loss/total": total.detach()}, prog_bar=True, batch_size=len(batch.labels))
        return total


def build(config: Config, data: ReidData) -> tuple[DRSTATask, ClipDataModule]:
    """The task and the data of a run."""
    if not config.stages:
        raise ValueError("train drsta: expected at least one stage, got none")
    config.optim.epochs = sum(stage.epochs for stage in config.stages)
    module = ClipDataModule(data, config.data, config.seed)
    model, recipe = build_model("drsta", config.model, **config.model.head)
    return DRSTATask(model, config, data, recipe, len(module.classes)), module


METHODS = (Method("drsta", Config, build),)
