# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of person search: NPSM, and the two-stage baseline on the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reidfast.data.proposals import create_proposals
from reidfast.data.search import SearchData, load_search
from reidfast.engine.methods.npsm.config import Config
from reidfast.engine.methods.npsm.data import PairModule, Pairs
from reidfast.engine.person_search import PersonSearcher, SceneMaps, Shrinkage, Sizing
from reidfast.engine.task import ReidTask, build_model
from reidfast.evaluation import PersonSearch, person_search
from reidfast.losses import CrossEntropyLoss, OIMLoss, RegionShrinkageLoss
from reidfast.models.npsm import NPSM, RegionEmbedder, coverage_chooser
from reidfast.nn.region_shrinkage import RegionTree, coverage


class PersonSearchTask(ReidTask):
    """NPSM or the two-stage baseline in training; evaluation by `reidfast.evaluation.person_search`.

    Args:
        model: `NPSM` or `RegionEmbedder`.
        config: Losses, optimiser, evaluation.
        data: The set.
        module: The pairs.
        recipe: Name and options of the model.
    """

    model: RegionEmbedder
    data: SearchData
    maps: SceneMaps
    labels: Tensor

    def __init__(
        self, model: RegionEmbedder, config: Config, data: SearchData, module: PairModule, recipe: dict[str, Any]
    ) -> None:
        super().__init__(model, config, data, recipe)
        if config.data.keep != "none" and model.train_shallow:
            raise ValueError(
                "train: expected keep none where the shallow part is trained (its maps change); "
                "set model.head_options.train_shallow to false"
            )
        self.maps, self.scenes = module.maps, data.train
        self.register_buffer("labels", torch.from_numpy(module.labels), persistent=False)
        self.proposals = create_proposals(config.data.proposals, **config.data.proposal_options)
        self.cross_entropy = CrossEntropyLoss(config.loss.label_smoothing)
        self.oim: OIMLoss | None = None
        if config.loss.identity == "oim":
            queue = config.loss.oim_queue if config.loss.boxes == "all" else 0
            self.oim = OIMLoss(
                len(module.classes),
                model.feature_size,
                scale=config.loss.oim_scale,
                momentum=config.loss.oim_momentum,
                queue=queue,
            )
        self.shrinkage_loss = RegionShrinkageLoss()
        self._trees: dict[int, RegionTree] = {}
        self._searcher: PersonSearcher | None = None
        self.last_shrinkage: Shrinkage | None = None

    def card(self) -> dict[str, Any]:
        """Head and backbone, how large images go in, and the size of the crops that the embedding alone takes."""
        d = self.config.data
        sizing = {"short": d.short, "long": d.long, "scale": d.scale}
        return {**super().card(), "sizing": sizing, "size": [256, 128]}

    def choice_probability(self) -> float:
        """How often the attention chooses the regions in this epoch: 0 -> 1 over the first `ramp` of the run."""
        length = self.config.loss.ramp * self.config.optim.epochs
        return 1.0 if length <= 0 else min(1.0, self.current_epoch / length)

    def tree(self, image: int) -> RegionTree:
        """Nested regions of a training image."""
        if image not in self._trees:
            assert isinstance(self.model, NPSM)
            width, height, factor = self.maps.size(image)
            boxes = self.proposals(self.scenes, image).boxes * factor
            self._trees[image] = self.model.tree(boxes, width, height)
        return self._trees[image]

    def training_step(self, batch: Pairs, index: int) -> Tensor:
        """Loss of one batch of pairs."""
        self.maps.device = self.device
        if batch.pixels is None:
            maps = self.maps(batch.images.tolist())
        else:
            maps = self.model.maps(batch.pixels.to(self.device))
        factor = np.array([self.maps.size(int(i))[2] for i in batch.images])
        logged: dict[str, Any] = {}
        loss = maps.features.new_zeros(())
        if self.config.loss.weight:
            loss, logged = self._identity(batch, maps, factor)
            loss = self.config.loss.weight * loss
        if isinstance(self.model, NPSM) and self.config.loss.region:
            region, more = self._shrink(batch, maps, factor)
            loss = loss + self.config.loss.region * region
            logged |= more
        self.log_dict(logged | {"loss/total": loss.detach()}, prog_bar=True, batch_size=len(batch.query_box))
        return loss

    def _identity(self, batch: Pairs, maps: Any, factor: NDArray[np.float64]) -> tuple[Tensor, dict[str, Any]]:
        rows = np.concatenate([batch.query_box, batch.target_box])
        images = np.concatenate([batch.query_image, batch.target_image])
        if self.config.loss.boxes == "all":
            parts = [np.flatnonzero(self.scenes.box_images == image) for image in batch.images]
            rows, images = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(p) for p in parts])
            if self.oim is None:
                named = self.labels.cpu().numpy()[rows] >= 0
                rows, images = rows[named], images[named]
        boxes = torch.as_tensor(self.scenes.boxes[rows] * factor[images][:, None], dtype=torch.float32)
        at = torch.from_numpy(images).to(self.device)
        features = self.model.describe(maps, boxes.to(self.device), at)
        labels = self.labels[torch.from_numpy(rows).to(self.device)]
        if self.oim is not None:
            loss = self.oim(nn.functional.normalize(features, dim=1), labels)
            return loss, {"loss/identity": loss.detach()}
        assert self.model.classifier is not None
        logits = self.model.classifier(features)
        loss = self.cross_entropy(logits, labels)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return loss, {"loss/identity": loss.detach(), "accuracy": accuracy}

    def _shrink(self, batch: Pairs, maps: Any, factor: NDArray[np.float64]) -> tuple[Tensor, dict[str, Any]]:
        model = self.model
        assert isinstance(model, NPSM)
        scenes = self.scenes
        query = scenes.boxes[batch.query_box] * factor[batch.query_image][:, None]
        target = scenes.boxes[batch.target_box] * factor[batch.target_image][:, None]
        state = model.queries(
            maps,
            torch.as_tensor(query, dtype=torch.float32, device=self.device),
            torch.from_numpy(batch.query_image).to(self.device),
        )
        trees = [self.tree(int(i)) for i in batch.images]
        chooser = coverage_chooser(target, batch.draws < self.choice_probability())
        trace = model.search(maps, trees, state, batch.target_image, np.arange(len(target)), chooser)
        if not trace.steps:
            zero = maps.features.new_zeros(())
            return zero, {"loss/region": zero}
        person = torch.as_tensor(target, dtype=torch.float32, device=self.device)
        losses = [
            self.shrinkage_loss(s.logits, person[torch.from_numpy(s.rows).to(self.device)], s.regions)
            for s in trace.steps
        ]
        loss = torch.stack(losses).mean()
        lost = 1 - coverage(trace.boxes, target).mean()
        return loss, {"loss/region": loss.detach(), "lost": float(lost)}  # lost: the paper's 0-1 loss at the end

    def searcher(self) -> PersonSearcher:
        """Over the gallery; its maps are kept while the shallow part is not trained."""
        c = self.config.data
        if self._searcher is None or self.model.train_shallow:
            self._searcher = PersonSearcher(
                self.model, self.data.gallery, self.proposals, Sizing(c.short, c.long, c.scale), keep=c.keep
            )
        self._searcher.maps.device = self._searcher.device = self.device
        return self._searcher

    def search(self) -> PersonSearch | None:
        """The scores of the set's queries in the set's gallery; None where it has none."""
        data, c = self.data, self.config
        if not len(data.queries):
            return None
        galleries = data.gallery_lists(c.data.gallery)
        searcher = self.searcher()
        if isinstance(self.model, NPSM):
            found, self.last_shrinkage = searcher.search(data.queries, galleries)
            queries = data.queries.with_features()
        else:
            features, found = searcher.two_stage(data.queries, galleries)
            queries = data.queries.with_features(features)
        cameras = data.gallery.camids if c.protocol == "prw" else None
        return person_search(
            queries, found, data.gallery.truth, protocol=c.protocol, galleries=galleries, image_camids=cameras
        )

    def scores(self) -> dict[str, float] | None:
        """Top-1, mAP and recall, and for NPSM how much of the person the last region holds."""
        got = self.search()
        if got is None:
            return None
        out = {"top1": float(got.cmc[0]), "mAP": got.mean_ap, "recall": got.recall}
        if self.last_shrinkage is not None:
            out |= {"covered": float(self.last_shrinkage.covered[-1]), "filled": float(self.last_shrinkage.filled[-1])}
        return out


def load(config: Config) -> SearchData:
    """The person-search set."""
    return load_search(config.data.name, config.data.root, **config.data.options)


def build(config: Config, data: SearchData) -> tuple[PersonSearchTask, PairModule]:
    """The task and the data of a run."""
    m, options = config.model, dict(config.model.head_options)
    if config.loss.identity == "softmax":
        options["num_classes"] = len(np.unique(data.train.pids[data.train.pids >= 0]))
    model, recipe = build_model(m.head, m, **options)
    module = PairModule(data, config.data, config.seed, model)
    return PersonSearchTask(model, config, data, module, recipe), module
