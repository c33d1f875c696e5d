# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Training of person search: NPSM, and the two-stage baseline on the same network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from reidfast.data.proposals import create_proposals
from reidfast.data.search import SearchData, load_search
from reidfast.engine.config import OptimConfig, RunConfig
from reidfast.engine.person_search import PersonSearcher, SceneMaps, Shrinkage, Sizing
from reidfast.engine.task import ReidTask, optimizer_and_schedule
from reidfast.evaluation import PersonSearch, person_search
from reidfast.losses import CrossEntropyLoss, OIMLoss, RegionShrinkageLoss
from reidfast.models import create_model
from reidfast.models.npsm import NPSM, RegionEmbedder, coverage_chooser
from reidfast.nn.region_shrinkage import RegionTree, coverage

Ints = NDArray[np.int64]


@dataclass
class SearchDataConfig:
    """What is trained on and searched in.

    Args:
        name: Of the person-search set: cuhk_sysu, prw, pets09_s2l1, synthetic_scenes.
        root: Where it is; None: REIDFAST_DATA.
        options: Of the reader.
        gallery: List of gallery images to search; None: the set's usual one.
        short: Pixels of an image's shorter side; 0: its own size times `scale`.
        long: Most pixels of the longer side.
        scale: Factor where short is 0.
        proposals: Where to look: sliding, objectness, selective_search, detector, simulated, random, oracle.
        proposal_options: Of the provider.
        pairs: Query and image in a step.
        keep: Shallow maps are kept between epochs as "float32" or "float16", which needs a shallow part that is not
            trained; "none": computed each time.
        workers: Loader processes; 0: in the training process.
    """

    name: str = "synthetic_scenes"
    root: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    gallery: str | None = None
    short: int = 600
    long: int = 1000
    scale: float = 1.0
    proposals: str = "objectness"
    proposal_options: dict[str, Any] = field(default_factory=dict)
    pairs: int = 2
    keep: Literal["none", "float32", "float16"] = "none"
    workers: int = 0


@dataclass
class SearchModelConfig:
    """What is trained.

    Args:
        head: "npsm" or "two_stage".
        backbone: Name for `create_model`.
        weights: Checkpoint of the backbone; None: random.
        options: Of the backbone.
        head_options: Of the model: see `reidfast.models.npsm`.
    """

    head: Literal["npsm", "two_stage"] = "npsm"
    backbone: str = "resnet50"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    head_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchLossConfig:
    """What is minimised: `weight` x identity + `region` x region shrinkage.

    Args:
        weight: Of the identity loss; 0: the embedding stays as it came.
        identity: "softmax" (a classifier) or "oim" (a memory, and a queue of unnamed people).
        boxes: Boxes that the identity loss sees: "pair" (the query and the person in the image) or "all" (everybody
            in both images; with oim also unnamed people).
        label_smoothing: Of softmax.
        region: Weight of the shrinkage loss.
        ramp: Share of the epochs over which the choice of regions passes from the truth to the attention.
        oim_scale: 1 / temperature.
        oim_momentum: Weight of the old row.
        oim_queue: Slots for unnamed people.
    """

    weight: float = 1.0
    identity: Literal["softmax", "oim"] = "softmax"
    boxes: Literal["pair", "all"] = "pair"
    label_smoothing: float = 0.0
    region: float = 1.0
    ramp: float = 0.5
    oim_scale: float = 10.0
    oim_momentum: float = 0.5
    oim_queue: int = 5000


@dataclass
class Config(RunConfig):
    """A run of person search.

    Args:
        data: What is trained on and searched in.
        model: What is trained.
        loss: What is minimised.
        optim: How.
    """

    protocol: str = "cuhk_sysu"
    data: SearchDataConfig = field(default_factory=SearchDataConfig)
    model: SearchModelConfig = field(default_factory=SearchModelConfig)
    loss: SearchLossConfig = field(default_factory=SearchLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


class Pairs(NamedTuple):
    """A batch: B pairs of a person in one image and the same person in another.

    Attributes:
        images: (n,) numbers of the images.
        pixels: (n, 3, H, W), or None where maps are kept.
        query_image: (B,) position in `images` of the query.
        target_image: (B,) position of the image to search.
        query_box: (B,) row of the scenes' boxes.
        target_box: (B,) row of the scenes' boxes.
        draws: (B,) uniform numbers: below the ramp's value, the attention chooses the regions.
    """

    images: Ints
    pixels: Tensor | None
    query_image: Ints
    target_image: Ints
    query_box: Ints
    target_box: Ints
    draws: NDArray[np.float64]


class _PairDataset(Dataset[Pairs]):
    """The batches of one epoch, known beforehand."""

    def __init__(self, batches: list[Pairs], maps: SceneMaps, pixels: bool) -> None:
        self.batches, self.maps, self.pixels = batches, maps, pixels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Pairs:
        batch = self.batches[i]
        if not self.pixels:
            return batch
        images = [self.maps.image(int(k)) for k in batch.images]
        height, width = (max(x.shape[d] for x in images) for d in (1, 2))
        filled = [nn.functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
        return batch._replace(pixels=torch.stack(filled))


class PairModule(lightning.LightningDataModule):
    """Pairs of images that show the same person; what an epoch draws depends on (seed, epoch) alone.

    Each named box whose person is in another training image too is a query once an epoch, with one of those images.

    Args:
        data: The set.
        config: Pairs in a step, sizes.
        seed: Of what is drawn.
        model: Whose maps are kept.
    """

    def __init__(self, data: SearchData, config: SearchDataConfig, seed: int, model: RegionEmbedder) -> None:
        super().__init__()
        self.data, self.config, self.seed = data, config, seed
        scenes = data.train
        named = np.flatnonzero(scenes.pids >= 0)
        self.classes = np.unique(scenes.pids[named])
        if not len(self.classes):
            raise ValueError(f"train: {data.name} has no training images with named people")
        self.labels = np.full(len(scenes.pids), -1, np.int64)
        self.labels[named] = np.searchsorted(self.classes, scenes.pids[named])
        sizing = Sizing(config.short, config.long, config.scale)
        self.maps = SceneMaps(model, scenes, sizing, keep=config.keep)
        self.partners: dict[int, Ints] = {}
        for c in range(len(self.classes)):
            rows = np.flatnonzero(self.labels == c)
            for row in rows:
                others = rows[scenes.box_images[rows] != scenes.box_images[row]]
                if len(others):
                    self.partners[int(row)] = others
        if not self.partners:
            raise ValueError(f"train: {data.name} has nobody who is in two training images")

    def batches(self, epoch: int) -> list[Pairs]:
        """The pairs of an epoch."""
        key, counter = np.array([self.seed, 0x9A125], np.uint64), np.array([0, 0, 0, epoch], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        rows = np.array(sorted(self.partners), np.int64)
        rows = rows[np.argsort(rng.random(len(rows)), kind="stable")]
        chosen = np.array([self.partners[int(r)][int(rng.random() * len(self.partners[int(r)]))] for r in rows])
        draws, where, out = rng.random(len(rows)), self.data.train.box_images, []
        for start in range(0, len(rows), self.config.pairs):
            part = slice(start, start + self.config.pairs)
            images = np.unique(np.concatenate([where[rows[part]], where[chosen[part]]]))
            first, second = np.searchsorted(images, where[rows[part]]), np.searchsorted(images, where[chosen[part]])
            out.append(Pairs(images, None, first, second, rows[part], chosen[part], draws[part]))
        return out

    def loader(self, epoch: int) -> DataLoader[Any]:
        """Batches of one epoch."""
        dataset = _PairDataset(self.batches(epoch), self.maps, self.config.keep == "none")
        return DataLoader(dataset, batch_size=None, num_workers=self.config.workers, collate_fn=_as_it_is)

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of the trainer's current epoch."""
        return self.loader(self.trainer.current_epoch if self.trainer else 0)


def _as_it_is(batch: Any) -> Any:
    return batch


class PersonSearchTask(ReidTask):
    """NPSM or the two-stage baseline in training; evaluation by `reidfast.evaluation.person_search`.

    Args:
        model: `NPSM` or `RegionEmbedder`.
        config: Losses, optimiser, evaluation.
        data: The set.
        module: The pairs.
    """

    model: RegionEmbedder
    data: SearchData
    maps: SceneMaps
    labels: Tensor

    def __init__(self, model: RegionEmbedder, config: Config, data: SearchData, module: PairModule) -> None:
        super().__init__(model, config, data)
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
        m, d = self.config.model, self.config.data
        options = {"backbone": m.backbone, "backbone_options": m.options, **m.head_options}
        if self.model.classifier is not None:
            options["num_classes"] = int(self.labels.max()) + 1
        sizing = {"short": d.short, "long": d.long, "scale": d.scale}
        return {"model": {"name": m.head, "options": options}, "sizing": sizing, "size": [256, 128]}

    def configure_optimizers(self) -> Any:
        """The backbone at its own rate."""
        o = self.config.optim
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        head = [p for p in self.model.head_parameters() if p.requires_grad]
        return optimizer_and_schedule([{"params": backbone, "lr": o.lr * o.backbone_factor}, {"params": head}], o)

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
    m = config.model
    named = data.train.pids[data.train.pids >= 0]
    options = dict(m.head_options)
    if config.loss.identity == "softmax":
        options["num_classes"] = len(np.unique(named))
    model = create_model(m.head, backbone=m.backbone, backbone_weights=m.weights, backbone_options=m.options, **options)
    assert isinstance(model, RegionEmbedder)
    module = PairModule(data, config.data, config.seed, model)
    return PersonSearchTask(model, config, data, module), module
