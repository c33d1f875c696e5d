# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What training tasks share: a data module of P x K batches, and a task that evaluates itself and survives a kill."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reidfast.data import Records, ReidData
from reidfast.data.cache import ImageCache
from reidfast.data.images import ImageDataset
from reidfast.data.samplers import IdentitySampler, shard
from reidfast.data.transforms import TrainTransform
from reidfast.engine.config import DataConfig, OptimConfig
from reidfast.engine.extract import extract
from reidfast.engine.schedules import warmup_multistep
from reidfast.evaluation import Ranking, rank


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


class ReidTask(lightning.LightningModule):
    """A model in training that is evaluated by `reidfast.evaluation.rank`.

    A method's task gives `training_step` and `configure_optimizers`. What must outlive a kill is a parameter or a
    buffer; what an epoch draws depends on (seed, epoch, rank) alone.

    Args:
        model: The model; in evaluation mode it turns images into embeddings.
        config: The run's settings.
        data: The data set, for evaluation.
    """

    def __init__(self, model: nn.Module, config: Any, data: Any) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config, data
        self.history: list[dict[str, float]] = []

    def prepare(self, module: lightning.LightningDataModule) -> None:
        """Once, before a fresh run's first evaluation (never on resume): memories are filled, batch norms unfolded."""

    def card(self) -> dict[str, Any]:
        """What card.json says beside the weights: how to make the model again."""
        return {}

    def on_train_epoch_start(self) -> None:
        """Draw what the epoch draws (dropout) from (seed, epoch, rank), so that a resumed run draws the same."""
        torch.manual_seed(((self.config.seed * 1_000_003) + self.current_epoch) * 4_099 + self.global_rank)

    def on_train_epoch_end(self) -> None:
        """Evaluate every so many epochs, and after the last."""
        epoch = self.current_epoch + 1
        if epoch % self.config.evaluate_every == 0 or epoch == self.trainer.max_epochs:
            scores = self.scores()
            if scores is not None:
                self.history.append({"epoch": float(epoch), **scores})
                self.log_dict(scores)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scores so far."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scores so far."""
        self.history = list(checkpoint["history"])

    def scores(self) -> dict[str, float] | None:
        """What an evaluation reports, `mAP` (which chooses best.ckpt) among it; None where there is nothing to do."""
        ranking = self.evaluate()
        if ranking is None:
            return None
        return {"rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap, "mINP": ranking.mean_inp}

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


def optimizer_and_schedule(groups: list[dict[str, Any]], config: OptimConfig) -> Any:
    """Adam or SGD (Nesterov) over parameter groups, the rate by epoch: what `configure_optimizers` returns."""
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay
        )
    factor = warmup_multistep(warmup=config.warmup, milestones=config.milestones, gamma=config.gamma)
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]
