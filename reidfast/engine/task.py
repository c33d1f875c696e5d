# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What training tasks share: a data module of P x K batches, and a task that evaluates itself and survives a kill."""

from __future__ import annotations

import time
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from reidfast.data import Records, ReidData
from reidfast.data.cache import ImageCache
from reidfast.data.images import EvalTransform, ImageDataset
from reidfast.data.samplers import IdentitySampler, ShuffleSampler, shard
from reidfast.data.transforms import BatchAugment, TrainTransform
from reidfast.engine.config import DataConfig, OptimConfig
from reidfast.engine.extract import extract
from reidfast.engine.schedules import warmup_multistep
from reidfast.engine.sources import targets_of
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
        self._augment = BatchAugment(config.flip, config.pad, config.erase) if config.augment == "batch" else None
        self._drawn: torch.Generator | None = None

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
        """Batches (images [P*K, 3, H, W], classes, cameras, rows) of one epoch.

        Images are float32, changed and normalised; with `augment="batch"` uint8, as they are in the cache.
        """
        c = self.config
        sampler = self.sampler(*self._share())
        sampler.set_epoch(epoch)
        cache = self._open_cache()
        if c.augment == "batch":
            if cache is None:
                raise ValueError("data.augment: 'batch' reads from the cache; expected data.cache true, got false")
            whole = _CachedBatches(cache, self.data.train, self.labels)
            return DataLoader(whole, batch_sampler=sampler, num_workers=c.workers, collate_fn=_as_it_is)
        transform = TrainTransform(c.height, c.width, flip=c.flip, pad=c.pad, erase=c.erase, filter=c.filter)
        dataset = ImageDataset(self.data.train, transform, cache, labels=self.labels, seed=self.seed)
        dataset.set_epoch(epoch)
        return DataLoader(dataset, batch_sampler=sampler, num_workers=c.workers)

    def sampler(self, ids: int, images: int) -> IdentitySampler | ShuffleSampler:
        """Which rows come together: `ids` x `images` in each batch of each process."""
        return IdentitySampler(
            self.labels,
            ids,
            images,
            camids=self.data.train.camids,
            camera_aware=self.config.camera_aware,
            mark_repeats=True,
            seed=self.seed,
        )

    def _share(self) -> tuple[int, int]:
        """Identities and images of each in a batch of this process."""
        c = self.config
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if c.split_ids and c.ids % world:
            raise ValueError(f"data.split_ids: expected data.ids to be a multiple of {world} processes, got {c.ids}")
        return c.ids // world if c.split_ids else c.ids, c.images

    def plain_images(self, count: int) -> Tensor:
        """Some training images [n, 3, H, W], spread over the table, prepared as for evaluation."""
        c, train = self.config, self.data.train
        transform = EvalTransform(c.height, c.width, c.filter)
        dataset = ImageDataset(train, transform, self._open_cache())
        rows = np.unique(np.linspace(0, len(train) - 1, min(count, len(train))).round().astype(np.int64))
        return torch.stack([dataset[int(row)][0] for row in rows])

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch (the trainer asks anew each epoch)."""
        self._drawn = None
        return self.loader(self.trainer.current_epoch if self.trainer else 0)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """With `augment="batch"`, images are changed and normalised here, on the device that trains."""
        if self._augment is None:
            return batch
        images = batch[0]
        if self._drawn is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            epoch = self.trainer.current_epoch if self.trainer else 0
            self._drawn = torch.Generator(images.device).manual_seed(epoch_seed(self.seed, epoch, rank))
        return (self._augment.to(images.device)(images, self._drawn), *batch[1:])


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """What an epoch's draws of a process start from."""
    return (seed * 1_000_003 + epoch) * 4_099 + rank


class _CachedBatches(Dataset[Any]):
    """Whole batches of the cache: (uint8 images, classes, cameras, rows)."""

    def __init__(self, cache: ImageCache, records: Records, labels: Any) -> None:
        self.cache, self.labels, self.camids = cache, torch.from_numpy(labels), torch.tensor(records.camids)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.tensor(indices) % len(self)  # copies of a row in one epoch are marked by multiples
        return self.cache.batch(rows.numpy()), self.labels[rows], self.camids[rows], rows


def _as_it_is(batch: Any) -> Any:
    return batch


class ReidTask(lightning.LightningModule):
    """A model in training that is evaluated by `reidfast.evaluation.rank`.

    A method's task gives `training_step` and `configure_optimizers`. What must outlive a kill is a parameter or a
    buffer; what an epoch draws depends on (seed, epoch, rank) alone. Over several processes, a loss that looks at the
    whole batch takes it from `reidfast.nn.gather_rows`.

    Args:
        model: The model; in evaluation mode it turns images into embeddings.
        config: The run's settings.
        data: The data set, for evaluation.

    Attributes:
        find_unused_parameters: Set by tasks whose steps leave some parameters out (asked by the data-parallel wrapper).
    """

    find_unused_parameters = False

    def __init__(self, model: nn.Module, config: Any, data: Any) -> None:
        super().__init__()
        self.model, self.config, self.data = model, config, data
        self.history: list[dict[str, float]] = []
        self._before = {"wall": 0.0, "cpu": 0.0, "starts": 0}
        self._begun = (time.perf_counter(), time.process_time())

    @property
    def seconds(self) -> dict[str, float]:
        """What the run has cost so far in this process and in those it went on from, evaluations included."""
        wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        before = self._before
        return {"wall": before["wall"] + wall, "cpu": before["cpu"] + cpu, "starts": before["starts"] + 1}

    def prepare(self, module: lightning.LightningDataModule) -> None:
        """Once, before a fresh run's first evaluation (never on resume): memories are filled, batch norms unfolded."""

    def card(self) -> dict[str, Any]:
        """How to make the model again, for card.json and the checkpoints; plain values only.

        `{"model": {"name": ..., "options": {...}}}`, arguments of `create_model`, without weights: `extract`,
        `evaluate` and `export` then take the run as it is. `whole_card` adds `size`, `filter` and `data`.
        """
        return {}

    def whole_card(self) -> dict[str, Any]:
        """What stands in card.json and in the checkpoints."""
        data = getattr(self.config, "data", None)
        known: dict[str, Any] = {"data": getattr(data, "name", None)}
        if data is not None and hasattr(data, "height") and hasattr(data, "width"):
            known |= {"size": [data.height, data.width], "filter": getattr(data, "filter", "bilinear")}
        return known | self.card()

    def on_train_epoch_start(self) -> None:
        """Draw what the epoch draws (dropout) from (seed, epoch, rank), so that a resumed run draws the same."""
        torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch, self.global_rank))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Once more before the first step: making the loader's iterator draws too, on resume at another moment."""
        if batch_idx == 0:
            torch.manual_seed(epoch_seed(self.config.seed, self.current_epoch, self.global_rank))

    def on_train_epoch_end(self) -> None:
        """Evaluate every so many epochs, and after the last."""
        epoch = self.current_epoch + 1
        if epoch % self.config.evaluate_every == 0 or epoch == self.trainer.max_epochs:
            scores = self.scores()
            if scores is not None:
                self.history.append({"epoch": float(epoch), **scores})
                self.log_dict(scores)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scores so far, and how to make the model."""
        checkpoint["history"] = self.history
        checkpoint["card"] = self.whole_card()
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scores so far."""
        self.history = list(checkpoint["history"])
        self._before = dict(checkpoint.get("seconds", self._before))

    def scores(self) -> dict[str, float] | None:
        """What an evaluation reports, `mAP` (which chooses best.ckpt) among it; None where there is nothing to do.

        Of several targets: their means, and each as `mAP/NAME`.
        """
        targets = targets_of(self.data)
        found = {name: self.evaluate(data) if len(targets) > 1 else self.evaluate() for name, data in targets.items()}
        each = {
            name: {"rank1": float(r.cmc[0]), "mAP": r.mean_ap, "mINP": r.mean_inp} for name, r in found.items() if r
        }
        if not each:
            return None
        scores = {key: float(np.mean([s[key] for s in each.values()])) for key in ("rank1", "mAP", "mINP")}
        if len(each) > 1:
            scores |= {f"{key}/{name}": s[key] for name, s in each.items() for key in ("rank1", "mAP")}
        return scores

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

    def evaluate(self, data: Any = None) -> Ranking | None:
        """CMC, mAP and mINP of the query and gallery of a data set (default: the run's); None where it has none.

        Over several processes each embeds its part: the queries are gathered, the gallery stays sharded.
        """
        data = self.data if data is None else data
        query, gallery = data.query, data.gallery
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
