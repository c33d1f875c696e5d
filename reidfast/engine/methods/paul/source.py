# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL's supervised pre-training of PatchNet on a labelled source."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch import Tensor

from reidfast.data import ReidData
from reidfast.engine.config import model_options
from reidfast.engine.methods.paul.config import SourceConfig
from reidfast.engine.methods.paul.data import PairsDataModule
from reidfast.engine.task import ReidTask, build_model, optimizer_and_schedule, trainable
from reidfast.losses import CrossEntropyLoss, NearestPositiveTripletLoss
from reidfast.models.paul import PatchNet


class PaulSourceTask(ReidTask):
    """Cross-entropy of each patch and the nearest-positive triplet loss over PatchNet.

    Args:
        model: The network, with classifiers.
        config: Losses, optimiser, evaluation.
        data: The data set, for evaluation.
        recipe: Name and options of the network.
    """

    model: PatchNet

    def __init__(self, model: PatchNet, config: SourceConfig, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        self.cross_entropy = CrossEntropyLoss(0.0)
        self.triplet = NearestPositiveTripletLoss(config.loss.margin) if config.loss.triplet else None
        if not config.optim.backbone_factor:
            model.backbone.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """Rates of the new layers, the backbone and the patch generation network by epoch."""
        o = self.config.optim
        first, end = o.generator_epochs

        def steps(epoch: int) -> float:
            return float(o.gamma ** bisect_right(sorted(o.milestones), epoch + 1))

        def window(epoch: int) -> float:
            return float(first <= epoch + 1 < end)

        groups = [
            {"params": trainable(self.model.backbone.parameters()), "lr": o.lr * o.backbone_factor},
            {"params": trainable(self.model.head_parameters()), "lr": o.lr},
            {"params": trainable(self.model.generator.parameters()), "lr": o.generator_lr},
        ]
        return optimizer_and_schedule(groups, o, [steps, steps, window])

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


def build(config: SourceConfig, data: ReidData) -> tuple[PaulSourceTask, PairsDataModule]:
    """The task and the data of a run."""
    module, options = PairsDataModule(data, config.data, config.seed), model_options(config.model)
    model, recipe = build_model("paul", config.model, **options, seed=config.seed, num_classes=len(module.classes))
    return PaulSourceTask(model, config, data, recipe), module
