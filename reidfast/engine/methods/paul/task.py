# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL's unsupervised adaptation: PEDAL over a memory of patches, IPFL over images and their surrogates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reidfast.data import ReidData
from reidfast.engine.config import model_options
from reidfast.engine.methods.paul.config import Config
from reidfast.engine.methods.paul.data import ViewsDataModule
from reidfast.engine.task import ReidTask, build_model
from reidfast.losses import IPFL, PEDAL
from reidfast.models import create_model, is_trained, load_weights, read_card
from reidfast.models.paul import PatchNet
from reidfast.nn import MemoryBank, gather_rows
from reidfast.nn.gather import world_size


class PaulTask(ReidTask):
    """PEDAL and IPFL over PatchNet; the patch generation network and the embedding layers are frozen.

    The memory of patches and the image centres are buffers: checkpoints hold them. Over several processes each takes
    its part of the batch, all write the rows of all, in rank order, and IPFL looks at the whole batch.

    Args:
        model: The network, without classifiers.
        config: Losses, optimiser, evaluation.
        data: The data set.
        recipe: Name and options of the network.
    """

    model: PatchNet

    def __init__(self, model: PatchNet, config: Config, data: ReidData, recipe: dict[str, Any]) -> None:
        super().__init__(model, config, data, recipe)
        loss, rows = config.loss, len(data.train)
        if loss.ipfl and loss.ipfl_embedding == "official" and model.embed_weight is None:
            raise ValueError(
                "paul: expected model.embedding with loss.ipfl_embedding official, got null; use ipfl_embedding concat"
            )
        if loss.pedal and loss.k > rows - 1:
            raise ValueError(f"paul: expected loss.k of at most {rows - 1} for {rows} training images, got {loss.k}")
        self.pedal = PEDAL(loss.k, loss.scale) if loss.pedal else None
        self.ipfl = IPFL(loss.margin, r=loss.r, candidates=loss.candidates) if loss.ipfl else None
        self.memory = MemoryBank(
            rows if loss.pedal else 1, model.dim, parts=model.parts, k=1, momentum=loss.memory_momentum
        )
        width = model.parts * model.dim
        if loss.ipfl_embedding == "official" and model.embed_weight is not None:
            width = model.parts * model.embed_weight.shape[1]
        self.centres = MemoryBank(rows if loss.ipfl else 1, width, k=None, momentum=loss.centre_momentum)
        self._ddp_params_and_buffers_to_ignore = [  # equal on all processes by construction: not sent every step
            f"{name}.{buffer}" for name in ("memory", "centres") for buffer in ("bank", "filled")
        ]
        model.generator.requires_grad_(False)
        for parameter in (model.embed_weight, model.embed_bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        for name, parameter in model.backbone.named_parameters():
            if name.startswith(tuple(config.model.frozen)):
                parameter.requires_grad_(False)

    def on_train_start(self) -> None:
        """Fill the memory, where no checkpoint did: one pass in training mode, so that batch norms see the target."""
        if self.pedal is not None and not bool(self.memory.filled.all()):
            self.fill_memory(self.trainer.datamodule)  # type: ignore[attr-defined]

    @torch.no_grad()
    def fill_memory(self, module: ViewsDataModule) -> None:
        """Write the features of every training image into the memory."""
        self.model.train()
        for images, _, _, rows in module.memory_loader():
            images = images.to(self.device, self.model.branches.weight.dtype)
            features = self.model(images).features.to(self.memory.bank.dtype)
            self.memory.write(gather_rows(rows.to(self.device)), _gather_parts(features))
        if not bool(self.memory.filled.all()):
            raise RuntimeError("paul: the pass over the training images left rows of the memory unwritten")

    def embedding(self, features: Tensor) -> Tensor:
        """Image embedding of IPFL, [B, E], of unit features [M, B, d]."""
        if self.config.loss.ipfl_embedding == "official":
            return self.model.project(features)
        return features.transpose(0, 1).flatten(1)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor | None:
        """Loss of one batch; the memories are updated before it is taken."""
        views, rows = batch[0], batch[3]
        count = views.shape[1]
        if self.config.optim.lr == 0:
            if world_size() > 1:  # which must not skip a step
                return self.model(views.flatten(0, 1)).features.sum() * 0
            with torch.no_grad():
                self.model(views.flatten(0, 1))
            return None
        features = self.model(views.flatten(0, 1)).features.to(self.memory.bank.dtype)  # [M, B * views, d]
        all_rows = gather_rows(rows)
        weights = self.config.loss
        total = features.sum() * 0
        logged = {}
        if self.pedal is not None:
            real = features[:, ::count]
            self.memory.update(all_rows, _gather_parts(real.detach()))
            loss = self.pedal(real, self.memory, rows)
            total = total + weights.pedal * loss
            logged["loss/pedal"] = loss.detach()
        if self.ipfl is not None:
            embeddings = gather_rows(self.embedding(features))  # IPFL looks at the whole batch
            size = len(all_rows)
            self.centres.write_or_update(all_rows, embeddings.detach().view(size, count, -1).mean(1))
            own = torch.arange(size, device=rows.device).repeat_interleave(count)
            loss = self.ipfl(embeddings, self.centres.bank[all_rows], own)
            total = total + weights.ipfl * loss
            logged["loss/ipfl"] = loss.detach()
        self.log_dict(logged | {"loss/total": total.detach()}, prog_bar=True)
        return total


def _gather_parts(features: Tensor) -> Tensor:
    """Features [M, B, d] of all processes, [M, W B, d], in rank order."""
    return gather_rows(features.transpose(0, 1).contiguous()).transpose(0, 1)


def build(config: Config, data: ReidData) -> tuple[PaulTask, ViewsDataModule]:
    """The task and the data of a run."""
    source, m = config.source_checkpoint, config.model
    if source is None:
        if m.weights is None:
            warnings.warn("paul: adapting a network of random weights; give source_checkpoint", stacklevel=2)
        model, recipe = build_model("paul", m, **model_options(m), seed=config.seed)
    else:
        model, recipe = _pretrained(config, Path(source))
    return PaulTask(model, config, data, recipe), ViewsDataModule(data, config.data, config.seed)


def _pretrained(config: Config, source: Path) -> tuple[Any, dict[str, Any]]:
    """The network of a pre-training, without its classifiers, and its entry in the card."""
    m, drop = config.model, ["class_"]
    options = {"backbone": m.backbone, "backbone_options": m.options, **model_options(m), "seed": config.seed}
    if is_trained(source):  # its card says what the network is; where it looks may be another choice
        learned = read_card(source)["model"]["options"]
        if learned["patches"] != m.patches:
            drop.append("generator.")
        options = {**learned, "patches": m.patches, "seed": config.seed}
        options.pop("num_classes", None)
    model = create_model("paul", **options)
    load_weights(model, source / "weights.safetensors" if source.is_dir() else source, drop=drop)
    return model, {"name": "paul", "options": options}
