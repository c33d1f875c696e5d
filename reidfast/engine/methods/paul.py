# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL's unsupervised adaptation: PEDAL over a memory of patches, IPFL over images and their surrogates."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import ImageCache, ReidData, concatenate
from reidfast.data import load as load_data
from reidfast.data.images import EvalTransform, ImageDataset
from reidfast.data.samplers import ShuffleSampler
from reidfast.data.transforms import SurrogateTransform, TrainTransform, Views
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.schedules import warmup_multistep
from reidfast.engine.task import ReidTask
from reidfast.losses import IPFL, PEDAL
from reidfast.models import create_model, is_trained, load_weights, read_card, unfold_batch_norms
from reidfast.models.paul import PatchNet
from reidfast.nn import MemoryBank, gather_rows
from reidfast.nn.gather import world_size

MEMORY_PASS = 2**31 - 1  # the epoch that the pass over the images before the first epoch draws as


@dataclass
class PatchDataConfig:
    """What is trained and evaluated on.

    Args:
        name: Of the data set (`reidfast data list`), a .json or a .csv. Its training images are taken without labels.
        root: Where it is; None: REIDFAST_DATA.
        options: Of the reader.
        whole: Train on the query and gallery images as well, identities of both kept apart, as the published
            pre-training does with MSMT17. Scores on the same set then say nothing.
        train_ids: Keep the images of this many training identities only, the first in order; 0: all. For short trials.
        height: Of the input.
        width: Of the input.
        batch: Images in a step; each comes with its surrogate.
        flip: Probability of the mirror image.
        surrogates: How a surrogate is made: "all" changes one after the other (the code) or "one_of" them (the paper).
        filter: Of resizing.
        cache: Keep decoded images in one memory-mapped file.
        workers: Loader processes; 0: in the training process.
    """

    name: str = "synthetic"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    train_ids: int = 0
    height: int = 384
    width: int = 128
    batch: int = 42
    flip: float = 0.5
    surrogates: Literal["all", "one_of"] = "all"
    filter: str = "bilinear"
    cache: bool = True
    workers: int = 0


@dataclass
class PatchModelConfig:
    """What is trained.

    Args:
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random, or those of `source_checkpoint`.
        options: Of the backbone.
        parts: Patches M.
        dim: Size of a patch's feature.
        patches: "learned", "stripes" or "random" (`PatchNet`).
        branches: "new", or "backbone": OSNet's fully connected layer and batch norm, six times.
        embedding: Width of the embedding layers; None: without.
        hidden: Of the patch generation network.
        unfold: Undo folded batch norms of the weights before training (`unfold_batch_norms`), over this many training
            images; 0: no.
        frozen: Beginnings of names of backbone parameters that stay as they are (`conv1.`); batch norms still count.
    """

    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parts: int = 6
    dim: int = 256
    patches: Literal["learned", "stripes", "random"] = "learned"
    branches: Literal["new", "backbone"] = "new"
    embedding: int | None = 128
    hidden: int = 512
    unfold: int = 0
    frozen: list[str] = field(default_factory=list)


@dataclass
class PatchLossConfig:
    """What is minimised: `ipfl` x IPFL + `pedal` x PEDAL.

    Args:
        pedal: Weight; 0: without, and without its memory.
        k: Nearest rows of the memory that attract.
        scale: Multiplier of squared distances (the code: 15 for Market-1501, 5 for DukeMTMC-reID).
        memory_momentum: Weight of the old row.
        ipfl: Weight; 0: without.
        margin: Of IPFL.
        r: Of the cyclic ranking.
        candidates: Of the cyclic ranking.
        ipfl_embedding: "official": cosines with the frozen embedding layers; "concat": the patches' features (the
            paper).
        centre_momentum: Weight of the old image centre.
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
    """How it is minimised.

    Args:
        optimizer: "sgd" or "adam".
        lr: Of the branches; 0: nothing is trained, the same passes only move the batch norms' statistics (AdaBN).
        backbone_factor: The backbone's rate over `lr`.
        weight_decay: On everything.
        momentum: Of SGD.
        epochs: Length of the run.
        warmup: Epoch from which the full rate holds; 0: none.
        milestones: Epochs, from 1, at which the rate falls.
        gamma: By which factor.
        clip: Largest gradient norm; 0: none.
        nesterov: Of SGD; the authors' code: no.
    """

    optimizer: Literal["adam", "sgd"] = "sgd"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    epochs: int = 60
    warmup: int = 0
    milestones: list[int] = field(default_factory=lambda: [51])
    nesterov: bool = False


@dataclass
class Config(RunConfig):
    """An adaptation.

    Args:
        source_checkpoint: A run of `reidfast train paul-source` (its folder, or its weights); its card, where there is
            one, says what the network is, `model.patches` aside. None: the network of `model`, with `model.weights`.
        data: The target, whose training labels are not used.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    source_checkpoint: str | None = None
    data: PatchDataConfig = field(default_factory=PatchDataConfig)
    model: PatchModelConfig = field(default_factory=PatchModelConfig)
    loss: PatchLossConfig = field(default_factory=PatchLossConfig)
    optim: PatchOptimConfig = field(default_factory=PatchOptimConfig)


class ViewsDataModule(lightning.LightningDataModule):
    """Batches of images and their surrogates; what is drawn depends on (seed, epoch, rank, world size) alone.

    Args:
        data: The data set.
        config: Sizes and transforms.
        seed: Of what is drawn.
    """

    def __init__(self, data: ReidData, config: PatchDataConfig, seed: int = 0) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed
        if not len(data.train):
            raise ValueError(f"train: {data.name} has no training images")
        self._cache: ImageCache | None = None

    def prepare_data(self) -> None:
        """Make the cache of decoded images, on one process."""
        self._open_cache()

    def _open_cache(self) -> ImageCache | None:
        if self.config.cache and self._cache is None:
            self._cache = ImageCache(self.data.train)  # at their own sizes: surrogates are made before resizing
        return self._cache

    def _loader(self, transform: Any, epoch: int) -> DataLoader[Any]:
        dataset = ImageDataset(self.data.train, transform, self._open_cache(), seed=self.seed)
        dataset.set_epoch(epoch)
        sampler = ShuffleSampler(len(dataset), self.config.batch, seed=self.seed, drop_last=False)
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=self.config.workers)

    def _real(self) -> TrainTransform:
        c = self.config
        return TrainTransform(c.height, c.width, flip=c.flip, pad=0, erase=0.0, filter=c.filter)

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (views [B, 2, 3, H, W], pids, cameras, rows): every image once, with its surrogate."""
        c = self.config
        surrogate = SurrogateTransform(c.height, c.width, mode=c.surrogates, flip=c.flip, filter=c.filter)
        return self._loader(Views(self._real(), surrogate), epoch)

    def memory_loader(self) -> DataLoader[Any]:
        """Batches (images [B, 3, H, W], pids, cameras, rows) of the pass that fills the memory."""
        return self._loader(self._real(), MEMORY_PASS)

    def plain_images(self, count: int) -> Tensor:
        """Some training images as at evaluation, [count, 3, H, W]."""
        c = self.config
        dataset = ImageDataset(self.data.train, EvalTransform(c.height, c.width, c.filter), self._open_cache())
        order = np.random.Generator(np.random.Philox(self.seed)).permutation(len(dataset))
        return torch.stack([dataset[int(i)][0] for i in order[:count]])

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch (the trainer asks anew each epoch)."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)


class PaulTask(ReidTask):
    """PEDAL and IPFL over PatchNet; the patch generation network and the embedding layers are frozen.

    The memory of patches and the image centres are buffers: checkpoints hold them. Over several processes each takes
    its part of the batch, all write the rows of all, in rank order, and IPFL looks at the whole batch.

    Args:
        model: The network, without classifiers.
        config: Losses, optimiser, evaluation.
        data: The data set.
        options: Of `create_model("paul", ...)` that make the network again; None: as `config` says.
    """

    model: PatchNet

    def __init__(self, model: PatchNet, config: Config, data: ReidData, options: dict[str, Any] | None = None) -> None:
        super().__init__(model, config, data)
        self.options = model_options(config) if options is None else options
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

    def prepare(self, module: lightning.LightningDataModule) -> None:
        """Undo folded batch norms."""
        assert isinstance(module, ViewsDataModule)
        if self.config.model.unfold:
            unfold_batch_norms(self.model.backbone, module.plain_images(self.config.model.unfold).to(self.device))

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

    def card(self) -> dict[str, Any]:
        """How to make the model again."""
        return {"model": {"name": "paul", "options": self.options}}

    def configure_optimizers(self) -> Any:
        """SGD or Adam, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        return patch_optimizer(
            o,
            {"backbone": o.lr * o.backbone_factor, "head": o.lr},
            self.model,
            warmup_multistep(warmup=o.warmup, milestones=o.milestones, gamma=o.gamma),
        )

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


def patch_optimizer(config: Any, rates: dict[str, float], model: PatchNet, factor: Any) -> Any:
    """What `configure_optimizers` returns: groups by part of the network, each rate times `factor` of the epoch.

    Args:
        config: Optimiser, momentum, weight decay.
        rates: Rate of the backbone, head, generator.
        model: Whose parameters.
        factor: Of the epoch's index, for all groups or one each.
    """
    modules = {
        "backbone": list(model.backbone.parameters()),
        "head": model.head_parameters(),
        "generator": list(model.generator.parameters()),
    }
    groups = [{"params": [p for p in modules[name] if p.requires_grad], "lr": lr} for name, lr in rates.items()]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]


def model_options(config: Any) -> dict[str, Any]:
    """Options of `create_model("paul", ...)` that make a run's network, without weights."""
    m = config.model
    return {
        "backbone": m.backbone,
        "backbone_options": m.options,
        "parts": m.parts,
        "dim": m.dim,
        "patches": m.patches,
        "branches": m.branches,
        "embedding": m.embedding,
        "hidden": m.hidden,
        "seed": config.seed,
    }


def load(config: Any) -> ReidData:
    """The data set, with the training images that `data.whole` and `data.train_ids` ask for."""
    c = config.data
    data = load_data(c.name, c.root, **c.options)
    train = data.train
    if getattr(c, "whole", False):
        tested = concatenate([data.query, data.gallery], offset=False)
        somebody = (
            tested.pids >= 0 if data.distractor is None else (tested.pids >= 0) & (tested.pids != data.distractor)
        )
        train = concatenate([train, tested.select(somebody)])
    if c.train_ids:
        train = train.select(np.isin(train.pids, np.unique(train.pids)[: c.train_ids]))
    return data if train is data.train else replace(data, train=train)


def build(config: Config, data: ReidData) -> tuple[PaulTask, ViewsDataModule]:
    """The task and the data of a run."""
    options, weights, source, drop = model_options(config), config.model.weights, config.source_checkpoint, ["class_"]
    if source is not None:
        if is_trained(source):  # its card says what the network is; where it looks may be another choice
            learned = read_card(source)["model"]["options"]
            if learned["patches"] != options["patches"]:
                drop.append("generator.")
            options = {**learned, "patches": options["patches"], "seed": options["seed"]}
            options.pop("num_classes", None)
        weights = None
    elif weights is None:
        warnings.warn("paul: adapting a network of random weights; give source_checkpoint", stacklevel=2)
    model = create_model("paul", backbone_weights=weights, **options)
    assert isinstance(model, PatchNet)
    if source is not None:
        path = Path(source)
        load_weights(model, path / "weights.safetensors" if path.is_dir() else path, drop=drop)
    return PaulTask(model, config, data, options), ViewsDataModule(data, config.data, config.seed)
