# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Settings of PAUL's adaptation and of its supervised pre-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reidfast.engine.config import DatasetConfig, ImageConfig, OptimConfig, RunConfig, UnfoldConfig


@dataclass
class PatchDataConfig(ImageConfig, DatasetConfig):
    """Training and evaluation data, and the batches drawn from it.

    Args:
        name: Name of the data set (see `reidfast data list`), or a .json or .csv file.
        whole: Also train on the query and gallery images, identities of both kept apart, as the published pre-training
            does with MSMT17. Scores on the same data set then mean nothing.
        train_ids: Number of training identities to keep, the first in order, for short trials; 0: all.
        batch: Images in a step; each comes with its surrogate (in pre-training: with an image of the same identity).
        pad: Zero padding in pixels on each side before a random crop of the real images; 0: no crop.
        erase: Probability of random erasing of the real images.
        surrogates: Changes that make a surrogate: "all", one after the other (the authors' code), or "one_of" them (the
            paper).
    """

    height: int = 384
    whole: bool = False
    train_ids: int = 0
    batch: int = 42
    surrogates: Literal["all", "one_of"] = "all"


@dataclass
class PatchModelConfig(UnfoldConfig):
    """The network to train.

    Args:
        weights: Checkpoint file of the backbone; null: random initialisation, or the network of `source_checkpoint`.
        parts: Number of patches M.
        dim: Size of a patch's feature.
        patches: Location of the patches: "learned", horizontal "stripes" or "random" boxes.
        branches: Initial branches: "new", or copies of OSNet's fully connected layer and batch norm ("backbone").
        embedding: Width of the embedding layers; null: without them.
        hidden: Width of the patch generation network's hidden layer.
        frozen: Prefixes of the names of backbone parameters that are not trained (such as conv1.); their batch norms
            still update their statistics.
    """

    parts: int = 6
    dim: int = 256
    patches: Literal["learned", "stripes", "random"] = "learned"
    branches: Literal["new", "backbone"] = "new"
    embedding: int | None = 128
    hidden: int = 512
    frozen: list[str] = field(default_factory=list)


@dataclass
class PatchLossConfig:
    """`pedal` x PEDAL + `ipfl` x IPFL.

    Args:
        pedal: Weight of PEDAL; 0: without it and its memory.
        k: Number of nearest rows of the memory that attract.
        scale: Factor of the squared distances (the authors' code: 15 for Market-1501, 5 for DukeMTMC-reID).
        memory_momentum: Weight of the old row when the memory is updated.
        ipfl: Weight of IPFL; 0: without it.
        margin: Margin of IPFL.
        r: Number r of closer images in the cyclic ranking.
        candidates: Number of nearest images that the cyclic ranking looks at.
        ipfl_embedding: Image embedding of IPFL: "official" (cosines with the frozen embedding layers, as in the
            authors' code) or "concat" (the patches' features, as in the paper).
        centre_momentum: Weight of the old image centre in its update.
    """

    pedal: float = 2.0
    k: int = 10
    scale: float = 15.0
    memory_momentum: float = 0.9
    ipfl: float = 1.0
    margin: float = 2.0
    r: int = 3
    candidates: int = 15
    ipfl_embedding: Literal["official", "concat"] = "official"
    centre_momentum: float = 0.9


@dataclass
class PatchOptimConfig(OptimConfig):
    """Optimiser and learning-rate schedule.

    Args:
        lr: Learning rate of the branches; 0: nothing is trained, and the same passes only update the statistics of the
            batch norms (AdaBN).
        nesterov: Use Nesterov momentum in SGD (the authors' code does not).
    """

    optimizer: Literal["adam", "sgd"] = "sgd"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    nesterov: bool = False
    epochs: int = 60
    warmup: int = 0
    milestones: list[int] = field(default_factory=lambda: [51])


@dataclass
class Config(RunConfig):
    """An adaptation.

    Args:
        source_checkpoint: Pre-trained network: the folder or the weights of a run of `reidfast train paul-source`. Its
            card, where there is one, decides the network but for `model.patches`. null: the network of `model`, with
            `model.weights`.
        data: The target; its training labels are not used.
    """

    source_checkpoint: str | None = None
    data: PatchDataConfig = field(default_factory=PatchDataConfig)
    model: PatchModelConfig = field(default_factory=PatchModelConfig)
    loss: PatchLossConfig = field(default_factory=PatchLossConfig)
    optim: PatchOptimConfig = field(default_factory=PatchOptimConfig)


@dataclass
class SourceLossConfig:
    """Sum of the patches' cross-entropies, plus `triplet` x triplet loss.

    Args:
        triplet: Weight of the triplet loss; 0: without it.
        margin: Margin of the triplet loss.
    """

    triplet: float = 0.1
    margin: float = 1.0


@dataclass
class SourceOptimConfig(PatchOptimConfig):
    """Optimiser and learning-rate schedule.

    Args:
        lr: Learning rate of the newly initialised layers: branches, embedding layers, classifiers.
        backbone_factor: Learning rate of the backbone as a multiple of `lr`; 0: the backbone is frozen.
        generator_lr: Learning rate of the patch generation network, which has no milestones.
        generator_epochs: First epoch, counted from 1, in which the patch generation network is trained, and the first
            in which it no longer is.
        warmup: Not used by this method.
    """

    lr: float = 0.1
    backbone_factor: float = 0.1
    generator_lr: float = 1e-5
    generator_epochs: list[int] = field(default_factory=lambda: [26, 41])
    milestones: list[int] = field(default_factory=lambda: [41])


@dataclass
class SourceConfig(RunConfig):
    """A pre-training.

    Args:
        data: The labelled source; `surrogates` is not used.
    """

    data: PatchDataConfig = field(default_factory=PatchDataConfig)
    model: PatchModelConfig = field(default_factory=PatchModelConfig)
    loss: SourceLossConfig = field(default_factory=SourceLossConfig)
    optim: SourceOptimConfig = field(default_factory=SourceOptimConfig)
