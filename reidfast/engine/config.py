# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Settings of a training run: dataclasses that jsonargparse fills from a method's YAML file, the user's, and options.

Here are the settings of every run and the sections that methods share; a method's own stand beside its task in
`reidfast.engine.methods`. The docstrings are what `reidfast train METHOD --help` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass
class DatasetConfig:
    """A data set to train on and to evaluate.

    Args:
        name: Name of the data set (see `reidfast data list`).
        root: Folder that holds the data set; null: the environment variable REIDFAST_DATA.
        options: Options of the data set's reader (see docs/data.md).
    """

    name: str = "synthetic"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageConfig:
    """How training images are decoded, resized and changed.

    Args:
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        flip: Probability of mirroring an image.
        pad: Zero padding in pixels on each side before a random crop back to the input size; 0: no crop.
        erase: Probability of random erasing.
        filter: Resize filter: bilinear, bicubic, box, hamming, lanczos or nearest.
        cache: Keep the decoded images in one memory-mapped file.
        workers: Number of data-loader processes; 0: load in the training process.
    """

    height: int = 256
    width: int = 128
    flip: float = 0.5
    pad: int = 0
    erase: float = 0.0
    filter: str = "bilinear"
    cache: bool = True
    workers: int = 0


@dataclass
class DataConfig(ImageConfig):
    """Training and evaluation data, and the batches drawn from it.

    Args:
        name: Name of the data set (see `reidfast data list`), or a .json or .csv file. Several in a list are
            concatenated for training, identities and cameras kept apart.
        root: Folder that holds the data set; null: the environment variable REIDFAST_DATA. For several data sets: one
            folder for all, or a list.
        options: Options of the data set's reader (see docs/data.md). For several data sets: one for all, or a list.
        targets: Names of the data sets to evaluate on; empty: the training data sets.
        target_root: Folder that holds the targets; null: the same as `root`.
        target_options: Options of the targets' readers.
        ids: Identities P in the batch of each process; no two processes see the same one.
        images: Images K of each identity in a batch.
        split_ids: Divide `ids` among the processes, so that together they see the batches of a single process.
        camera_aware: Spread the images of an identity over its cameras.
        augment: "image" changes each image by itself in the loader, drawn from (seed, epoch, row); "batch" changes the
            whole batch on the training device, from the cache (faster).
    """

    name: str | list[str] = "synthetic"
    root: str | list[str | None] | None = None
    options: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    target_root: str | list[str | None] | None = None
    target_options: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    ids: int = 16
    images: int = 4
    split_ids: bool = False
    camera_aware: bool = False
    pad: int = 10
    erase: float = 0.5
    augment: Literal["image", "batch"] = "image"


@dataclass
class BackboneConfig:
    """The network below the method's own layers.

    Args:
        backbone: Name of the backbone (see `reidfast info --models`, or timm:NAME).
        weights: Checkpoint file of the backbone; null: random initialisation.
        options: Options of the backbone, such as last_stride.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class UnfoldConfig(BackboneConfig):
    """A backbone whose checkpoint may have its batch norms folded into the convolutions.

    Args:
        unfold: Number of training images whose statistics restore batch norms that were folded into the weights,
            before training (`unfold_batch_norms`); 0: leave the weights as they are.
    """

    unfold: int = 0


def model_options(config: BackboneConfig) -> dict[str, Any]:
    """The fields of a model section that are options of the method's own model, not of the backbone or the run."""
    shared = {f.name for f in fields(UnfoldConfig)} | {"channels_last", "frozen"}
    return {name: value for name, value in vars(config).items() if name not in shared}


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Args:
        optimizer: Optimiser: "adam" or "sgd".
        lr: Learning rate of the newly initialised layers.
        backbone_factor: Learning rate of the backbone as a multiple of `lr`.
        weight_decay: Weight decay of all parameters.
        momentum: Momentum of SGD.
        nesterov: Use Nesterov momentum in SGD.
        epochs: Number of epochs of the run.
        warmup: First epoch at the full learning rate, which rises linearly until then; 0: no warm-up.
        milestones: Epochs, counted from 1, at which the learning rate is multiplied by `gamma`.
        gamma: Factor of the learning rate at each milestone.
        clip: Largest norm of the gradient, which is scaled down to it; 0: no clipping.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 3.5e-4
    backbone_factor: float = 1.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    epochs: int = 120
    warmup: int = 10
    milestones: list[int] = field(default_factory=lambda: [40, 70])
    gamma: float = 0.1
    clip: float = 0.0


@dataclass
class RunConfig:
    """Settings of every run; a method's configuration adds the sections `data`, `model`, `loss` and `optim`.

    Args:
        out: Folder to write checkpoints, logs, weights and metrics.json to.
        seed: Seed of every random draw.
        evaluate_every: Number of epochs between evaluations; the last epoch is always evaluated.
        protocol: Evaluation protocol: market1501, cuhk03, mars or mars_torchreid; for person search cuhk_sysu or prw.
        accelerator: Lightning's accelerator: auto, cpu or gpu.
        devices: Number of devices, or "auto". To train with several processes start with torchrun, whose number of
            processes counts instead.
        sync_batch_norm: Compute batch-norm statistics over the batches of all processes.
        precision: Lightning's precision: 32-true, 64-true, bf16-mixed or 16-mixed.
        deterministic: Use deterministic algorithms only.
        resume: Continue from `out`/last.ckpt if it exists.

        data: Training and evaluation data.
        model: The network to train.
        loss: The loss to minimise.
        optim: Optimiser and learning-rate schedule.
    """

    out: str = "runs/train"
    seed: int = 0
    evaluate_every: int = 10
    protocol: str = "market1501"
    accelerator: str = "auto"
    devices: int | str = 1
    sync_batch_norm: bool = True
    precision: str = "32-true"
    deterministic: bool = True
    resume: bool = False
