# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What training on tracklets shares between methods: settings, P x K batches of clips, and evaluation of tracklets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from reidfast.data import IdentitySampler, ReidData, TrackletDataset, Tracklets
from reidfast.data.clips import SetBatch, collate_sets
from reidfast.engine.config import DatasetConfig, ImageConfig, UnfoldConfig
from reidfast.engine.data import ImageModule
from reidfast.engine.sets import evaluate_sets
from reidfast.engine.task import ReidTask
from reidfast.evaluation import Ranking
from reidfast.models.video import VideoModel

TEST_FRAMES = {"chunks": "first", "middle": "middle"}


@dataclass
class ClipConfig(ImageConfig, DatasetConfig):
    """Training and evaluation data, and the clips drawn from it.

    Args:
        name: Name of the data set (see `reidfast data list`), whose tables have the column `tracklet`.
        ids: Identities P in a step.
        tracks: Tracklets K of each identity, of different cameras where possible.
        frames: Frames of each tracklet.
        choose: Choice of frames: "chunks" (one drawn from each of `frames` equal parts), "clip" (consecutive, from a
            drawn start) or "set" (drawn without replacement).
        least: Least number of frames of a tracklet to be trained on.
        test_frames: Frames at test: "chunks" (the first of each of `frames` equal parts), "middle" (the middle of each
            part) or "all".
        chunk: Frames that go through the backbone at a time at test.
        steps: Steps of an epoch; 0: as many as show each tracklet about once.
        flip: Probability of mirroring a tracklet, all its frames alike.
        pad: Zero padding in pixels on each side before a random crop back to the input size, alike for all frames of a
            tracklet; 0: no crop.
        erase: Probability of random erasing, alike for all frames of a tracklet.
    """

    name: str = "synthetic_tracklets"
    ids: int = 16
    tracks: int = 2
    frames: int = 6
    choose: Literal["chunks", "clip", "set"] = "chunks"
    least: int = 1
    test_frames: Literal["chunks", "middle", "all"] = "chunks"
    chunk: int = 32
    steps: int = 0
    flip: float = 0.0


@dataclass
class VideoModelConfig(UnfoldConfig):
    """The network to train.

    Args:
        head: Options of the method's model (`reidfast.models.DRSTA`, `QAN`, `RRUSTIM`), such as which parts it has and
            their sizes.
    """

    head: dict[str, Any] = field(default_factory=dict)


class ClipDataModule(ImageModule):
    """Clips of P identities with K tracklets each.

    Args:
        data: The data set, its tables with the column `tracklet`.
        config: Sizes, sampler, transforms.
        seed: Seed of what is drawn.
    """

    config: ClipConfig

    def __init__(self, data: ReidData, config: ClipConfig, seed: int = 0) -> None:
        if "tracklet" not in data.train.extra:
            raise ValueError(
                f"train: expected a data set of tracklets, got {data.name}, whose table has no column 'tracklet'"
            )
        super().__init__(data, config, seed)
        self.tracklets = Tracklets.of(data.train, least=config.least)
        self.tracklets = self.tracklets.select(self.tracklets.pids >= 0)
        if not len(self.tracklets):
            raise ValueError(f"train: {data.name} has no training tracklet of at least {config.least} frames")
        self.classes, self.labels = np.unique(self.tracklets.pids, return_inverse=True)

    def clip_loader(self, epoch: int, sampler: Any, *, same: bool = True) -> DataLoader[Any]:
        """Batches (`SetBatch`) of what a batch sampler draws in an epoch; `same` changes a clip's frames alike."""
        c = self.config
        dataset = TrackletDataset(
            self.tracklets,
            self.transform(),
            choose=c.choose,
            n=c.frames,
            same=same,
            decode=self.open_cache(),
            labels=self.labels,
            seed=self.seed,
        )
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers, collate_fn=collate_sets)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (`SetBatch`) of one epoch."""
        c = self.config
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
        return self.clip_loader(epoch, sampler)

    def plain_rows(self, count: int) -> NDArray[np.int64]:
        """At most `count` rows, spread evenly over the frames of the tracklets."""
        rows = self.tracklets.rows
        return np.unique(rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)])


class ClipTask(ReidTask):
    """A model of clips in training, evaluated on whole tracklets: a row of query and gallery is a tracklet.

    Args:
        model: The model.
        config: The run's settings; `config.data` is a `ClipConfig`.
        data: The data set.
        recipe: Name and options of the model.
    """

    model: VideoModel

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
