# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A training run from its configuration to weights, metrics and logs in one folder."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist

from reidfast._files import write_whole
from reidfast.engine.method import Method

# Lightning's advice that does not apply here.
QUIET = (
    ".*could not find the monitored key",
    ".*Checkpoint directory .* exists and is not empty",
    ".*LeafSpec",
    ".*number of training batches",
)


def train(method: Method, config: Any) -> dict[str, Any]:
    """Train, evaluate, and leave the run in the folder `config.out`.

    There: last.ckpt, best.ckpt, weights.safetensors, card.json, metrics.json, logs for TensorBoard, and csv/startN with
    the same values as text (N counts the starts of the run).
    A run that was killed at any moment goes on with `resume`: its last whole epoch is taken up, and what follows is
    what would have followed (bit for bit on the CPU).

    Args:
        method: What is trained (`reidfast.engine.methods.find_method`).
        config: Its settings (`method.parse`).

    Returns:
        What metrics.json holds: the scores before training and after every evaluated epoch, and the configuration.

    Raises:
        ValueError: `out` holds another run and `resume` is not set, or the settings do not fit the data.
        ImportError: The extra "train" is not installed.
    """
    try:
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    except ImportError as error:
        raise ImportError('train: lightning is missing; pip install "reidfast[train]"') from error
    from reidfast.models import save_weights
    from reidfast.nn import convert_sync_batch_norm

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in QUIET:
        warnings.filterwarnings("ignore", message=words)
    launched = join_processes(config.accelerator)
    out = Path(config.out)
    last = out / "last.ckpt"
    if last.exists() and not config.resume:
        raise ValueError(f"train: {out} holds a run already; go on with it (--resume true) or choose another --out")
    lightning.seed_everything(config.seed, verbose=False)
    task, module = method.build(config, method.load(config))
    checkpoints: list[Any] = [
        ModelCheckpoint(
            out,
            filename="last",
            every_n_epochs=1,
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        ModelCheckpoint(out, filename="best", monitor="mAP", mode="max", save_top_k=1, enable_version_counter=False),
    ]
    trainer = lightning.Trainer(
        max_epochs=config.optim.epochs,
        accelerator=config.accelerator,
        devices=launched.local if launched else config.devices,
        num_nodes=launched.nodes if launched else 1,
        strategy="ddp_find_unused_parameters_true" if task.find_unused_parameters and launched else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        deterministic=config.deterministic,
        gradient_clip_val=config.optim.clip or None,
        callbacks=checkpoints,
        logger=[
            TensorBoardLogger(out, name="", version="logs"),
            CSVLogger(out, name="csv", version=f"start{1 + len(list((out / 'csv').glob('start*')))}"),
        ],
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    task.to(trainer.strategy.root_device)
    if trainer.world_size > 1 and config.sync_batch_norm:
        convert_sync_batch_norm(task)
    resumed = last.exists()
    if resumed:
        before = json.loads((out / "before.json").read_text())
    else:
        task.prepare(module)
        before = task.scores()
        out.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        _write_json(out / "before.json", before)
    trainer.fit(task, module, ckpt_path=str(last) if resumed else None)
    metrics = {"before": before, "history": task.history, "seconds": task.seconds, "config": asdict(config)}
    if trainer.is_global_zero:
        save_weights(task.model, out / "weights.safetensors")
        _write_json(out / "card.json", task.whole_card())
        _write_json(out / "metrics.json", metrics)
    if launched:
        dist.barrier()
        dist.destroy_process_group()
    return metrics


class Launched(NamedTuple):
    """What torchrun started.

    Attributes:
        rank: Number of this process.
        local_rank: Its number on this machine.
        local: Processes on this machine.
        nodes: Machines.
    """

    rank: int
    local_rank: int
    local: int
    nodes: int


def launched_processes() -> Launched | None:
    """What torchrun started; None in a process on its own."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in os.environ or world < 2:
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return Launched(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), local, world // local)


def join_processes(accelerator: str = "auto") -> Launched | None:
    """Join the processes that torchrun started, before anything is computed; None in a process on its own."""
    launched = launched_processes()
    if launched is not None and not dist.is_initialized():
        gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(launched.local_rank)
        dist.init_process_group("nccl" if gpu else "gloo")
    return launched


def leave_processes() -> NoReturn:
    """End this process when all have come here; gloo's threads may abort an interpreter that shuts down as usual."""
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    os._exit(0)


def _write_json(path: Path, content: Any) -> None:
    with write_whole(path) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
