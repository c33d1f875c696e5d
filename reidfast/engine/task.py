# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of the baselines as a Lightning module and data module."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from reidfast.data import Records, ReidData
from reidfast.data.cache import ImageCache
from reidfast.data.images import ImageDataset
from reidfast.data.samplers import IdentitySampler, shard
from reidfast.data.transforms import TrainTransform
from reidfast.engine.config import DataConfig, TrainConfig
from reidfast.engine.extract import extract
from reidfast.engine.schedules import warmup_multistep
from reidfast.evaluation import Ranking, rank
from reidfast.losses import CentreLoss, CrossEntropyLoss, TripletLoss
from reidfast.models.baselines import Baseline


class ReidDataModule(lightning.LightningDataModule):
    """P x K batches of a data set's training images; what is drawn depends on (seed, epoch, rank, world size) alone.

    Args:
        data: The data set.
        config: Sizes, sampler, transforms.
        seed: Of what is drawn.
    """

    def __init__(self, data: ReidData, config: DataConfig, seed: int = 0) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed
        self.classes, self.labels = np.unique(data.train.pids, return_inverse=True)
        if not len(self.classes):
            raise ValueError(f"train: {data.name} has no training images")
        self._cache: ImageCache | None = None

    def prepare_data(self) -> None:
        """Make the cache of decoded images, on one process."""
        if self.config.cache:
            self._open_cache()

    def _open_cache(self) -> ImageCache | None:
        if self.config.cache and self._cache is None:
            c = self.config
            self._cache = ImageCache(self.data.train, c.height, c.width, filter=c.filter)
        return self._cache

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches (images [P*K, 3, H, W], classes, cameras, rows) of one epoch."""
        c = self.config
        transform = TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter)
        dataset = ImageDataset(self.data.train, transform, self._open_cache(), labels=self.labels, seed=self.seed)
        dataset.set_epoch(epoch)
        sampler = IdentitySampler(
            self.labels,
            c.ids,
            c.images,
            camids=self.data.train.camids,
            camera_aware=c.camera_aware,
            mark_repeats=True,
            seed=self.seed,
        )
        sampler.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers)

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch (the trainer asks anew each epoch)."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)


class BaselineTask(lightning.LightningModule):
    """Cross-entropy, batch-hard triplet and centre loss over a baseline; evaluation by `reidfast.evaluation.rank`.

    Args:
        model: The baseline.
        config: Losses, optimiser, evaluation.
        data: The data set, for evaluation.
        num_classes: Training identities.
    """

    def __init__(self, model: Baseline, config: TrainConfig, data: ReidData, num_classes: int) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config, data
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.triplet = TripletLoss(config.loss.margin) if config.loss.triplet else None
        self.centre: CentreLoss | None = None
        if config.loss.centre:
            generator = torch.Generator().manual_seed(config.seed)
            self.centre = CentreLoss(num_classes, model.feature_size, generator=generator)
        self.history: list[dict[str, float]] = []

    def configure_optimizers(self) -> Any:
        """Adam or SGD, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        groups = [
            {
                "params": [p for p in self.model.backbone.parameters() if p.requires_grad],
                "lr": o.lr * o.backbone_factor,
            },
            {"params": [p for p in self.model.head_parameters() if p.requires_grad], "lr": o.lr},
        ]
        optimizer: torch.optim.Optimizer
        if o.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, weight_decay=o.weight_decay)
        else:
            optimizer = torch.optim.SGD(groups, momentum=o.momentum, nesterov=True, weight_decay=o.weight_decay)
        factor = warmup_multistep(warmup=o.warmup, milestones=o.milestones, gamma=o.gamma)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def on_train_epoch_start(self) -> None:
        """Draw what the epoch draws (dropout) from (seed, epoch, rank), so that a resumed run draws the same."""
        torch.manual_seed(((self.config.seed * 1_000_003) + self.current_epoch) * 4_099 + self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        images, labels = batch[0], batch[1]
        out = self.model(images)
        weights = self.config.loss
        parts = out.logits.shape[1]
        total = sum(self.cross_entropy(out.logits[:, p], labels) for p in range(parts))
        logged = {"loss/cross_entropy": total.detach()}
        if self.triplet is not None:
            triplet = self.triplet(out.features, labels)
            total = total + weights.triplet * triplet
            logged["loss/triplet"] = triplet.detach()
        if self.centre is not None:
            centre = self.centre(out.features, labels)
            total = total + weights.centre * centre
            logged["loss/centre"] = centre.detach()
        logged["accuracy"] = (out.logits.detach().sum(1).argmax(1) == labels).float().mean()
        self.log_dict(logged | {"loss/total": total.detach()}, prog_bar=True)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The centres move by a rule of their own."""
        if self.centre is not None:
            self.centre.step_centres(self.config.loss.centre)

    def on_train_epoch_end(self) -> None:
        """Evaluate every so many epochs, and after the last."""
        epoch = self.current_epoch + 1
        if epoch % self.config.evaluate_every == 0 or epoch == self.config.optim.epochs:
            ranking = self.evaluate()
            if ranking is not None:
                scores = {"rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap, "mINP": ranking.mean_inp}
                self.history.append({"epoch": float(epoch), **scores})
                self.log_dict(scores)

    def embed(self, records: Records) -> Tensor:
        """Embeddings [n, D] of a table's images, in evaluation mode, on the CPU."""
        c = self.config.data
        table = extract(
            self.model,
            {"gallery": records},
            size=(c.height, c.width),
            filter=c.filter,
            device=self.device,
            show_progress=False,
        )
        return torch.from_numpy(table["gallery"].features)

    def evaluate(self) -> Ranking | None:
        """CMC, mAP and mINP of the data set's query and gallery; None where it has none.

        Over several processes each embeds its part: the queries are gathered, the gallery stays sharded.
        """
        query, gallery = self.data.query, self.data.gallery
        if not len(query) or not len(gallery):
            return None
        group, world, me = None, 1, 0
        if dist.is_available() and dist.is_initialized():
            group, world, me = dist.group.WORLD, dist.get_world_size(), dist.get_rank()
        mine = np.asarray(shard(len(query), me, world))
        part = np.asarray(shard(len(gallery), me, world))
        x = self.embed(query.select(mine))
        if world > 1:
            pieces: list[Any] = [None] * world
            dist.all_gather_object(pieces, x.numpy())
            x = torch.from_numpy(np.concatenate(pieces))
        y = self.embed(gallery.select(part))
        return rank(
            x,
            y,
            query.pids,
            gallery.pids[part],
            query.camids,
            gallery.camids[part],
            protocol=self.config.protocol,
            group=group,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Scores so far go with the weights."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And come back."""
        self.history = list(checkpoint["history"])
