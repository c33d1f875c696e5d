# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A training run from its configuration to weights, metrics and logs in one folder."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from reidfast._files import write_whole
from reidfast.engine.config import TrainConfig

HEADS = {"ide": "IDE", "pcb": "PCB", "strong_baseline": "StrongBaseline"}


def build_model(config: TrainConfig, num_classes: int) -> Any:
    """The untrained model that `config` describes."""
    from reidfast.models import baselines, create_model

    m = config.model
    backbone = create_model(m.backbone, weights=m.weights, **m.options)
    return getattr(baselines, HEADS[m.head])(backbone, num_classes, **m.head_options)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate, and leave the run in the folder `config.out`.

    There: last.ckpt, best.ckpt, weights.safetensors, card.json, metrics.json, and logs for TensorBoard.
    A run that was killed at any moment goes on with `resume`: its last whole epoch is taken up, and what follows is
    what would have followed (bit for bit on the CPU).

    Returns:
        What metrics.json holds: the scores before training and after every evaluated epoch, and the configuration.

    Raises:
        ValueError: `out` holds another run and `resume` is not set, or the settings do not fit the data.
        ImportError: The extra "train" is not installed.
    """
    try:
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.loggers import TensorBoardLogger
    except ImportError as error:
        raise ImportError('train: lightning is missing; pip install "reidfast[train]"') from error
    from reidfast.data import load
    from reidfast.engine.task import BaselineTask, ReidDataModule
    from reidfast.models import save_weights, unfold_batch_norms

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    out = Path(config.out)
    last = out / "last.ckpt"
    if last.exists() and not config.resume:
        raise ValueError(f"train: {out} holds a run already; go on with it (--resume true) or choose another --out")
    lightning.seed_everything(config.seed, verbose=False)
    data = load(config.data.name, config.data.root, **config.data.options)
    module = ReidDataModule(data, config.data, config.seed)
    model = build_model(config, len(module.classes))
    if config.model.unfold and not last.exists():
        images = torch.cat([batch[0] for batch, _ in zip(module.loader(0), range(64), strict=False)])
        unfold_batch_norms(model.backbone, images[: config.model.unfold])
    task = BaselineTask(model, config, data, len(module.classes))
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
        devices=config.devices,
        precision=config.precision,  # type: ignore[arg-type]
        deterministic=config.deterministic,
        gradient_clip_val=config.optim.clip or None,
        callbacks=checkpoints,
        logger=TensorBoardLogger(out, name="", version="logs"),
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    before = None
    if not last.exists():
        ranking = task.evaluate()
        before = None if ranking is None else {"rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap}
        out.mkdir(parents=True, exist_ok=True)
    else:
        before = json.loads((out / "before.json").read_text()) if (out / "before.json").exists() else None
    if trainer.is_global_zero:
        _write_json(out / "before.json", before)
    trainer.fit(task, module, ckpt_path=str(last) if last.exists() else None)
    metrics = {"before": before, "history": task.history, "config": asdict(config)}
    if trainer.is_global_zero:
        save_weights(model, out / "weights.safetensors")
        card = {"model": asdict(config.model), "classes": len(module.classes), "data": data.name}
        _write_json(out / "card.json", card | {"size": [config.data.height, config.data.width]})
        _write_json(out / "metrics.json", metrics)
    return metrics


def _write_json(path: Path, content: Any) -> None:
    with write_whole(path) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
