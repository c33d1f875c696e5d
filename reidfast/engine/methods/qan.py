# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of QAN and of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import ReidData, TripletSetSampler
from reidfast.data.clips import SetBatch
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.method import Method
from reidfast.engine.methods.clips import ClipConfig, ClipDataModule, ClipTask, VideoModelConfig
from reidfast.engine.task import build_model
from reidfast.losses import CrossEntropyLoss, SetTripletLoss
from reidfast.models import QAN


@dataclass
class SetConfig(ClipConfig):
    """Training and evaluation data, and the triplets of sets drawn from it.

    A step holds `triplets` anchor, positive and negative sets of `frames` frames each; `ids` and `tracks` do not count.

    Args:
        ids: Not used by this method.
        tracks: Not used by this method.
        triplets: Triplets of sets in a step.
        steps: Steps of an epoch.
        other_tracklet: Take the positive set from another tracklet than the anchor's where there is one (the authors'
            code takes any).
    """

    triplets: int = 1
    steps: int = 100
    frames: int = 8
    choose: Literal["chunks", "clip", "set"] = "set"
    test_frames: Literal["chunks", "middle", "all"] = "all"
    other_tracklet: bool = False


@dataclass
class LossConfig:
    """`image` x cross-entropy of the frames + `set` x triplet loss of the sets.

    Args:
        image: Weight of the image-level cross-entropy.
        set: Weight of the set-level triplet loss.
        margin: Margin of the triplet loss.
        contrastive: Weight of the contrastive term: 1 in the authors' code, 0 in the paper.
        label_smoothing: Label smoothing of the cross-entropy, from 0 to 1.
    """

    image: float = 1.0
    set: float = 1.0
    margin: float = 1.2
    contrastive: float = 0.0
    label_smoothing: float = 0.0


@dataclass
class Config(RunConfig):
    """A run of QAN.

    Args:
        model: The network to train; `head` holds options of `reidfast.models.QAN`, such as pooling, parts or split.
    """

    data: SetConfig = field(default_factory=SetConfig)
    model: VideoModelConfig = field(default_factory=VideoModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class TripletSetModule(ClipDataModule):
    """Triplets of sets; what is drawn depends on (seed, epoch, rank, world size) alone.

    Args:
        data: The data set, its tables with the column `tracklet`.
        config: Sizes, sampler, transforms.
        seed: Seed of what is drawn.
    """

    config: SetConfig

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (`SetBatch`) of one epoch: anchor, positive, negative, anchor, ..."""
        c = self.config
        sampler = TripletSetSampler(
            self.labels,
            self.tracklets.camids,
            c.triplets,
            steps=c.steps,
            other_tracklet=c.other_tracklet,
            seed=self.seed,
        )
        return self.clip_loader(epoch, sampler, same=False)


class QANTask(ClipTask):
    """Cross-entropy of the frames and triplet loss of the sets; the quality unit learns from the second alone.

    Args:
        model: The model.
        config: The run's settings.
        data: The data set.
        recipe: Name and options of the model.
    """

    model: QAN

    def __init__(self, model: QAN, config: Config, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.triplet = SetTripletLoss(config.loss.margin, contrastive=config.loss.contrastive)

    def training_step(self, batch: SetBatch, index: int) -> Tensor:
        """Loss of one batch."""
        out = self.model(batch.images, batch.offsets)
        weights = self.config.loss
        labels = batch.labels.repeat_interleave(batch.offsets.diff(), output_size=len(batch.images))
        image = self.cross_entropy(out.logits, labels)
        sets = self.triplet(out.sets[0::3], out.sets[1::3], out.sets[2::3])
        total = weights.image * image + weights.set * sets
        logged = {"loss/image": image.detach(), "loss/set": sets.detach(), "loss/total": total.detach()}
        logged["accuracy"] = (out.logits.detach().argmax(1) == labels).float().mean()
        if self.model.quality is not None:
            quality = out.scores.detach().sigmoid()
            logged |= {"quality/mean": quality.mean(), "quality/std": quality.std()}
        self.log_dict(logged, prog_bar=True, batch_size=len(batch.labels))
        return total


def build(config: Config, data: ReidData) -> tuple[QANTask, TripletSetModule]:
    """The task and the data of a run."""
    module = TripletSetModule(data, config.data, config.seed)
    size = [config.data.height, config.data.width]
    options = {"num_classes": len(module.classes), "size": size, **config.model.head}
    model, recipe = build_model("qan", config.model, **options)
    return QANTask(model, config, data, recipe), module


METHODS = (Method("qan", Config, build),)
