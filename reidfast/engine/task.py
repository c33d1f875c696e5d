# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What training tasks share: a task that evaluates itself and survives a kill, and its optimiser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reidfast.data import Records
from reidfast.data.samplers import shard_indices
from reidfast.engine.config import BackboneConfig, OptimConfig
from reidfast.engine.data import epoch_seed
from reidfast.engine.extract import extract
from reidfast.engine.schedules import warmup_multistep
from reidfast.engine.sources import targets_of
from reidfast.evaluation import Ranking, rank
from reidfast.models import create_model, unfold_batch_norms

Factor = Callable[[int], float]


def build_model(name: str, config: BackboneConfig, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model over the backbone that `config` names, and its entry in the card: what makes it again, without weights.

    Args:
        name: Name for `create_model`.
        config: Backbone, its options and its weights; with `channels_last`, maps have the channels innermost.
        options: Further options of `create_model`.
    """
    options = {"backbone": config.backbone, "backbone_options": config.options, **options}
    model = create_model(name, backbone_weights=config.weights, **options)
    if getattr(config, "channels_last", False):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, {"name": name, "options": options}


class ReidTask(lightning.LightningModule):
    """A model in training that is evaluated by `reidfast.evaluation.rank`.

    A method's task gives `training_step`. What must outlive a kill is a parameter or a buffer; what an epoch draws
    depends on (seed, epoch, rank) alone. Over several processes, a loss that looks at the whole batch takes it from
    `reidfast.nn.gather_rows`.

    Args:
        model: The model; in evaluation mode it turns images into embeddings.
        config: The run's settings.
        data: The data set, for evaluation.
        recipe: Name and options that make the model again (`build_model`), for the card; None: the card says nothing.

    Attributes:
        find_unused_parameters: Set by tasks whose steps leave some parameters out (asked by the data-parallel wrapper).
    """

    model: Any
    find_unused_parameters = False

    def __init__(self, model: nn.Module, config: Any, data: Any, recipe: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.config, self.data, self.recipe = model, config, data, recipe
        self.history: list[dict[str, float]] = []
        self._before = {"wall": 0.0, "cpu": 0.0, "starts": 0}
        self._begun = (time.perf_counter(), time.process_time())

    @property
    def seconds(self) -> dict[str, float]:
        """What the run has cost so far in this process and in those it went on from, evaluations included."""
        wall, cpu = time.perf_counter() - self._begun[0], time.process_time() - self._begun[1]
        before = self._before
        return {"wall": before["wall"] + wall, "cpu": before["cpu"] + cpu, "starts": before["starts"] + 1}

    def prepare(self, module: Any) -> None:
        """Once, before a fresh run's first evaluation (never on resume): unfold batch norms where `config` says so."""
        images = getattr(self.config.model, "unfold", 0)
        if images:
            unfold_batch_norms(self.model.backbone, module.plain_images(images).to(self.device))

    def configure_optimizers(self) -> Any:
        """Adam or SGD, the backbone at its own rate, the schedule by epoch."""
        o = self.config.optim
        backbone, head = trainable(self.model.backbone.parameters()), trainable(self.model.head_parameters())
        groups: list[dict[str, Any]] = [{"params": backbone, "lr": o.lr * o.backbone_factor}]
        return optimizer_and_schedule(groups + ([{"params": head}] if head else []), o)

    def card(self) -> dict[str, Any]:
        """How to make the model again, for card.json and the checkpoints; plain values only.

        `{"model": {"name": ..., "options": {...}}}`, arguments of `create_model`, without weights: `extract`,
        `evaluate` and `export` then take the run as it is. `whole_card` adds `size`, `filter` and `data`.
        """
        return {} if self.recipe is None else {"model": self.recipe}

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
        mine = np.asarray(shard_indices(len(query), me, world))
        part = np.asarray(shard_indices(len(gallery), me, world))
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


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [p for p in parameters if p.requires_grad]


def optimizer_and_schedule(
    groups: list[dict[str, Any]], config: OptimConfig, factor: Factor | list[Factor] | None = None
) -> Any:
    """Adam or SGD over parameter groups, the rate by epoch: what `configure_optimizers` returns.

    Args:
        groups: Parameters, and `lr` where it is not the configuration's.
        config: Optimiser, rate, momentum, weight decay, schedule.
        factor: From an epoch, counted from 0, to the factor of the rate, for all groups or one each; None: warm-up and
            milestones of the configuration.
    """
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
    if factor is None:
        factor = warmup_multistep(warmup=config.warmup, milestones=config.milestones, gamma=config.gamma)
    return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]
