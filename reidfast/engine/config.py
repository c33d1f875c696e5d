# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Settings of a training run: dataclasses that jsonargparse fills from a method's YAML file, yours, and options.

A method's own settings stand beside its task in `reidfast.engine.methods`; here is what every run has, and sections
that many share.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from reidfast.engine.methods import METHODS, module_of

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass
class DataConfig:
    """What is trained and evaluated on.

    Args:
        name: Of the data set (`reidfast data list`), a .json or a .csv; or a list of them, whose training images are
            put together, identities and cameras kept apart.
        root: Where it is; None: REIDFAST_DATA. For several names: one for all, or a list.
        options: Of the reader. For several names: the same for all, or a list.
        targets: Names of what is evaluated; empty: what is trained on.
        target_root: Their root; None: `root`.
        target_options: Of their readers.
        height: Of the input.
        width: Of the input.
        ids: Identities P in a step of each process; no two processes see the same one.
        images: Images K of each.
        split_ids: Let `ids` be those of all processes together: the same batches as one process has.
        camera_aware: Deal the images of an identity over its cameras.
        flip: Probability of the mirror image.
        pad: Pixels of padding before the crop.
        erase: Probability of random erasing.
        filter: Of resizing.
        cache: Keep decoded images, resized, in one memory-mapped file.
        augment: "image": each on its own in the loader, drawn from (seed, epoch, row); "batch": the whole batch at once
            on the training device, from the cache (faster).
        workers: Loader processes; 0: in the training process.
    """

    name: str | list[str] = "synthetic"
    root: str | list[str | None] | None = None
    options: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    target_root: str | list[str | None] | None = None
    target_options: dict[str, Any] | list[dict[str, Any]] = field(default_factory=dict)
    height: int = 256
    width: int = 128
    ids: int = 16
    images: int = 4
    split_ids: bool = False
    camera_aware: bool = False
    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    filter: str = "bilinear"
    cache: bool = True
    augment: Literal["image", "batch"] = "image"
    workers: int = 0


@dataclass
class ModelConfig:
    """What is trained.

    Args:
        head: "strong_baseline" (BNNeck), "ide" or "pcb".
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random.
        options: Of the backbone.
        head_options: Of the head.
        channels_last: Keep maps with the channels innermost: often much faster on the CPU, and for half types on GPUs.
        unfold: Undo folded batch norms of the weights before training (`unfold_batch_norms`), over this many training
            images; 0: no.
    """

    head: Literal["strong_baseline", "ide", "pcb"] = "strong_baseline"
    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    head_options: dict[str, Any] = field(default_factory=dict)
    channels_last: bool = True
    unfold: int = 0


@dataclass
class OptimConfig:
    """How it is minimised.

    Args:
        optimizer: "adam" or "sgd" (Nesterov).
        lr: Of what is new.
        backbone_factor: The backbone's rate over `lr`.
        weight_decay: On everything.
        momentum: Of SGD.
        epochs: Length of the run.
        warmup: Epoch from which the full rate holds; 0: none.
        milestones: Epochs, from 1, at which the rate falls.
        gamma: By which factor.
        clip: Largest gradient norm; 0: none.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 3.5e-4
    backbone_factor: float = 1.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    epochs: int = 120
    warmup: int = 10
    milestones: list[int] = field(default_factory=lambda: [40, 70])
    gamma: float = 0.1
    clip: float = 0.0


@dataclass
class RunConfig:
    """What every run has; a method's configuration adds its sections, `data` (with name, root, options) among them.

    Args:
        out: Folder of the run: checkpoints, logs, weights, metrics.json.
        seed: Of everything drawn.
        evaluate_every: Epochs between evaluations; the last epoch is always evaluated.
        protocol: Of the evaluation.
        accelerator: Of Lightning: "auto", "cpu", "gpu".
        devices: How many, or "auto". Several processes: start with torchrun, which says how many.
        sync_batch_norm: Over several processes, batch norms take the statistics of the global batch.
        precision: Of Lightning: "32-true", "bf16-mixed", "16-mixed".
        deterministic: Only deterministic algorithms.
        resume: Go on from `out`/last.ckpt where it is there.
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


def methods() -> list[str]:
    """Names of the methods that can be trained."""
    return sorted(METHODS)


def parse(method: str, arguments: list[str]) -> Any:
    """The configuration of `method`, changed by `arguments` (`--config mine.yaml --optim.lr 1e-3 ...`)."""
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError('train: jsonargparse is missing; pip install "reidfast[train]"') from error
    if method not in METHODS:
        raise ValueError(f"train: expected a method among {', '.join(methods())}, got {method!r}")
    config = module_of(method).Config
    parser = ArgumentParser(
        prog=f"reidfast train {method}",
        default_config_files=[str(CONFIGS / f"{method}.yaml")],
        exit_on_error=False,
        description="Settings come from the method's file, then --config files, then options, the later ones winning.",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings")
    parser.add_class_arguments(config, sub_configs=True)
    try:
        values = parser.parse_args([_underscores(argument) for argument in arguments])
    except argparse.ArgumentError as error:
        raise ValueError(f"train {method}: {error.message}") from error
    values.pop("config", None)
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the name changed in jsonargparse 4.49
    built = build(values)
    return config(**{f.name: getattr(built, f.name) for f in fields(config)})


def _underscores(argument: str) -> str:
    """`--source-checkpoint=a-b` as `--source_checkpoint=a-b`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
