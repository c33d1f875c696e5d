# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Settings of person search: NPSM and the two-stage baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reidfast.engine.config import BackboneConfig, DatasetConfig, OptimConfig, RunConfig


@dataclass
class SearchDataConfig(DatasetConfig):
    """Whole images to train on and to search in.

    Args:
        name: Name of the person-search set: cuhk_sysu, prw, pets09_s2l1 or synthetic_scenes.
        gallery: Name of the list of gallery images to search; null: the set's usual one.
        short: Length in pixels that an image's shorter side is resized to; 0: its own size times `scale`.
        long: Largest length in pixels of the longer side.
        scale: Factor of an image's size where `short` is 0.
        proposals: Source of proposals: sliding, objectness, selective_search, detector, simulated, random or oracle.
        proposal_options: Options of the source of proposals, such as count.
        pairs: Pairs of a query and an image in a step.
        keep: Precision in which shallow maps are kept between epochs, "float32" or "float16", for a shallow part that
            is not trained; "none": they are computed each time.
        workers: Number of data-loader processes; 0: load in the training process.
    """

    name: str = "synthetic_scenes"
    gallery: str | None = None
    short: int = 600
    long: int = 1000
    scale: float = 1.0
    proposals: str = "objectness"
    proposal_options: dict[str, Any] = field(default_factory=dict)
    pairs: int = 2
    keep: Literal["none", "float32", "float16"] = "none"
    workers: int = 0


@dataclass
class SearchModelConfig(BackboneConfig):
    """The network to train.

    Args:
        head: Search on top of the backbone: "npsm" or "two_stage".
        head_options: Options of that model (`reidfast.models.NPSM`, `RegionEmbedder`).
    """

    head: Literal["npsm", "two_stage"] = "npsm"
    head_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchLossConfig:
    """`weight` x identity loss + `region` x region shrinkage loss.

    Args:
        weight: Weight of the identity loss; 0: the embedding is not trained.
        identity: Identity loss: "softmax" (a classifier) or "oim" (a memory, and a queue of unnamed people).
        boxes: Boxes of the identity loss: "pair" (the query and the same person in the other image) or "all" (everybody
            in both images; with oim also unnamed people).
        label_smoothing: Label smoothing of softmax, from 0 to 1.
        region: Weight of the region shrinkage loss.
        ramp: Share of the epochs, from 0 to 1, over which the attention takes over the choice of regions from the
            ground truth.
        oim_scale: Factor of OIM's logits (1 / temperature).
        oim_momentum: Weight of the old row when OIM's memory is updated.
        oim_queue: Slots of OIM's queue of unnamed people.
    """

    weight: float = 1.0
    identity: Literal["softmax", "oim"] = "softmax"
    boxes: Literal["pair", "all"] = "pair"
    label_smoothing: float = 0.0
    region: float = 1.0
    ramp: float = 0.5
    oim_scale: float = 10.0
    oim_momentum: float = 0.5
    oim_queue: int = 5000


@dataclass
class Config(RunConfig):
    """A run of person search.

    Args:
        data: Whole images to train on and to search in.
    """

    protocol: str = "cuhk_sysu"
    data: SearchDataConfig = field(default_factory=SearchDataConfig)
    model: SearchModelConfig = field(default_factory=SearchModelConfig)
    loss: SearchLossConfig = field(default_factory=SearchLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
