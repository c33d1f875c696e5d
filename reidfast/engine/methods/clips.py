# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What training on tracklets shares between methods: settings, P x K batches of clips, and evaluation of tracklets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import IdentitySampler, ImageCache, ReidData, TrackletDataset, Tracklets, TrainTransform
from reidfast.data.clips import SetBatch, collate_sets
from reidfast.data.images import EvalTransform, decode
from reidfast.engine.config import RunConfig
from reidfast.engine.sets import evaluate_sets
from reidfast.engine.task import ReidTask
from reidfast.evaluation import Ranking
from reidfast.models import unfold_batch_norms
from reidfast.models.video import VideoModel

TEST_FRAMES = {"chunks": "first", "middle": "middle"}


@dataclass
class ClipConfig:
    """What is trained and evaluated on.

    Args:
        name: Of the data set (`reidfast data list`); its tables have the column `tracklet`.
        root: Where it is; None: REIDFAST_DATA.
        options: Of the reader.
        height: Of the input.
        width: Of the input.
        ids: Identities P in a step.
        tracks: Tracklets K of each, of different cameras where there are.
        frames: Of each tracklet.
        choose: Which: "chunks" (one drawn from each of `frames` equal parts), "clip" (consecutive, from a drawn start),
            "set" (drawn without replacement).
        least: Tracklets of fewer frames are not trained on.
        test_frames: At test: "chunks" (as many as in training), "middle" (of each chunk, not its first), or "all".
        chunk: Frames that the backbone sees at a time at test.
        steps: An epoch; 0: each tracklet about once.
        flip: Probability of the mirror image, all frames of a tracklet alike.
        pad: Pixels of padding before the crop, alike.
        erase: Probability of random erasing, alike.
        filter: Of resizing.
        cache: Keep decoded images, resized, in one memory-mapped file.
        workers: Loader processes; 0: in the training process.
    """

    name: str = "synthetic_tracklets"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    height: int = 256
    width: int = 128
    ids: int = 16
    tracks: int = 2
    frames: int = 6
    choose: Literal["chunks", "clip", "set"] = "chunks"
    least: int = 1
    test_frames: Literal["chunks", "middle", "all"] = "chunks"
    chunk: int = 32
    steps: int = 0
    flip: float = 0.0
    pad: int = 0
    erase: float = 0.0
    filter: str = "bilinear"
    cache: bool = True
    workers: int = 0


@dataclass
class VideoModelConfig:
    """What is trained.

    Args:
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random.
        options: Of the backbone.
        head: Options of the method's model (`reidfast.models.DRSTA`, `RRUSTIM`): which parts are there, their sizes,
            and the comparisons (`time`: "average", "max", "lstm", "gru").
        unfold: Undo folded batch norms of the weights before training, over this many training images; 0: no.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    unfold: int = 0


class ClipDataModule(lightning.LightningDataModule):
    """Clips of P identities with K tracklets each; what is drawn depends on (seed, epoch, rank, world size) alone.

    Args:
        data: The data set, its tables with the column `tracklet`.
        config: Sizes, sampler, transforms.
        seed: Of what is drawn.
    """

    def __init__(self, data: ReidData, config: ClipConfig, seed: int = 0) -> None:
        super().__init__()
        if "tracklet" not in data.train.extra:
            raise ValueError(
                f"train: expected a data set of tracklets, got {data.name}, whose table has no column 'tracklet'"
            )
        self.data, self.config, self.seed = data, config, seed
        self.tracklets = Tracklets.of(data.train, least=config.least)
        self.tracklets = self.tracklets.select(self.tracklets.pids >= 0)
        if not len(self.tracklets):
            raise ValueError(f"train: {data.name} has no training tracklet of at least {config.least} frames")
        self.classes, self.labels = np.unique(self.tracklets.pids, return_inverse=True)
        self._cache: ImageCache | None = None

    def prepare_data(self) -> None:
        """Make the cache of decoded images, on one process."""
        if self.config.cache:
            self._open_cache()

    def _open_cache(self) -> ImageCache | None:
        c = self.config
        if c.cache and self._cache is None:
            self._cache = ImageCache(self.data.train, c.height, c.width, filter=c.filter)
        return self._cache

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (`SetBatch`) of one epoch."""
        c = self.config
        dataset = TrackletDataset(
            self.tracklets,
            TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter),
            choose=c.choose,
            n=c.frames,
            decode=self._open_cache(),
            labels=self.labels,
            seed=self.seed,
        )
        dataset.set_epoch(epoch)
        sampler = IdentitySampler(
            self.labels,
            c.ids,
            c.tracks,
            camids=self.tracklets.camids,
            camera_aware=True,
            steps=c.steps or None,
            mark_repeats=True,
            seed=self.seed,
        )
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers, collate_fn=collate_sets)

    def plain_images(self, count: int) -> Tensor:
        """Some training frames [n, 3, H, W], spread over the tracklets, prepared as for evaluation."""
        c, table = self.config, self.data.train
        transform, cache = EvalTransform(c.height, c.width, c.filter), self._open_cache()
        rows = self.tracklets.rows[np.linspace(0, len(self.tracklets.rows) - 1, count).round().astype(np.int64)]
        images = [
            decode(table.absolute(row)) if cache is None else cache(table, row) for row in np.unique(rows).tolist()
        ]
        return torch.stack([transform(image) for image in images])

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch (the trainer asks anew each epoch)."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)


class ClipTask(ReidTask):
    """A model of clips in training, evaluated on whole tracklets: a row of query and gallery is a tracklet.

    Args:
        model: The model.
        config: The run's settings; `config.data` is a `ClipConfig`.
        data: The data set.
    """

    model: VideoModel
    method: str

    def __init__(self, model: VideoModel, config: RunConfig, data: ReidData) -> None:
        super().__init__(model, config, data)

    def prepare(self, module: Any) -> None:
        """Undo folded batch norms."""
        if self.config.model.unfold:
            unfold_batch_norms(self.model.backbone, module.plain_images(self.config.model.unfold))

    def card(self) -> dict[str, Any]:
        """How `create_model` makes the model again."""
        m = self.config.model
        return {
            "model": {"name": self.method, "options": {"backbone": m.backbone, "backbone_options": m.options} | m.head}
        }

    def evaluate(self, data: Any = None) -> Ranking | None:
        """CMC, mAP and mINP over query and gallery tracklets of a data set (default: the run's); None without any."""
        c = self.config.data
        choose, choice = ("all", {}) if c.test_frames == "all" else ("chunks", {"at": TEST_FRAMES[c.test_frames]})
        return evaluate_sets(
            self.model,
            self.data if data is None else data,
            protocol=self.config.protocol,
            choose=choose,
            n=0 if choose == "all" else c.frames,
            choice=choice,
            size=(c.height, c.width),
            filter=c.filter,
            batch=c.chunk,
            device=self.device,
        )

    def transfer_batch_to_device(self, batch: SetBatch, device: torch.device, dataloader_idx: int) -> SetBatch:
        """Every tensor of the batch."""
        return SetBatch(*(value.to(device) for value in batch))
