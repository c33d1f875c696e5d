# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of QAN and of what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import ReidData, TrackletDataset, TrainTransform, TripletSetSampler
from reidfast.data.clips import SetBatch, collate_sets
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.methods.clips import ClipConfig, ClipDataModule, ClipTask, VideoModelConfig
from reidfast.engine.task import optimizer_and_schedule
from reidfast.losses import CrossEntropyLoss, SetTripletLoss
from reidfast.models import QAN, create_model


@dataclass
class SetConfig(ClipConfig):
    """What is trained and evaluated on.

    A step holds `triplets` anchor, positive and negative sets of `frames` frames each; `ids` and `tracks` do not count.

    Args:
        triplets: A step.
        other_tracklet: The positive is another tracklet than the anchor where there is one (the released code: any).
    """

    triplets: int = 1
    steps: int = 100
    frames: int = 8
    choose: Literal["chunks", "clip", "set"] = "set"
    test_frames: Literal["chunks", "middle", "all"] = "all"
    other_tracklet: bool = False


@dataclass
class LossConfig:
    """What is minimised: `image` x cross-entropy of the frames + `set` x triplet loss of the sets.

    Args:
        image: Weight of the image-level loss.
        set: Weight of the set-level loss.
        margin: Of the triplets.
        contrastive: Weight of the contrastive term: 1 in the released code, 0 in the paper.
        label_smoothing: Of the cross-entropy.
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
        data: What is trained and evaluated on.
        model: What is trained; `head` holds options of `reidfast.models.QAN`: `pooling`, `parts`, `split`, `unit`, ...
        loss: What is minimised.
        optim: How.
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
        seed: Of what is drawn.
    """

    config: SetConfig

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (`SetBatch`) of one epoch: anchor, positive, negative, anchor, ..."""
        c = self.config
        dataset = TrackletDataset(
            self.tracklets,
            TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter),
            choose=c.choose,
            n=c.frames,
            same=False,
            decode=self._open_cache(),
            labels=self.labels,
            seed=self.seed,
        )
        dataset.set_epoch(epoch)
        sampler = TripletSetSampler(
            self.labels,
            self.tracklets.camids,
            c.triplets,
            steps=c.steps,
            other_tracklet=c.other_tracklet,
            seed=self.seed,
        )
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers, collate_fn=collate_sets)


class QANTask(ClipTask):
    """Cross-entropy of the frames and triplet loss of the sets; the quality unit learns from the second alone.

    Args:
        model: The model.
        config: The run's settings.
        data: The data set.
        num_classes: Training identities.
    """

    model: QAN
    method = "qan"

    def __init__(self, model: QAN, config: Config, data: ReidData, num_classes: int) -> None:
        super().__init__(model, config, data)
        self.num_classes = num_classes
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.triplet = SetTripletLoss(config.loss.margin, contrastive=config.loss.contrastive)

    def card(self) -> dict[str, Any]:
        """How to make the model again."""
        m, c = self.config.model, self.config.data
        options = {"num_classes": self.num_classes, "backbone": m.backbone, "backbone_options": m.options}
        return {"model": {"name": "qan", "options": options | {"size": [c.height, c.width]} | m.head}}

    def configure_optimizers(self) -> Any:
        """The backbone at its own rate, the rest at the full one."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head_parameters() if p.requires_grad]
        return optimizer_and_schedule([{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": head}], o)

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
    m, c = config.model, config.data
    model = create_model(
        "qan",
        num_classes=len(module.classes),
        backbone=m.backbone,
        backbone_weights=m.weights,
        backbone_options=m.options,
        size=(c.height, c.width),
        **m.head,
    )
    return QANTask(model, config, data, len(module.classes)), module  # type: ignore[arg-type]
