# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Searching whole images: maps of images computed once, many queries against many images, one stage or two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidfast.data.images import normalize, resize, to_float
from reidfast.data.proposals import Proposals
from reidfast.data.search import Floats, Queries, Scenes
from reidfast.evaluation import Detections
from reidfast.models.npsm import NPSM, QueryState, RegionEmbedder, SearchMaps, Trace
from reidfast.nn.region_shrinkage import RegionTree, area, best_child, coverage, path_to

__all__ = ["PersonSearcher", "SceneMaps", "Shrinkage", "Sizing", "collect_pairs", "nearest_boxes"]

Ints = NDArray[np.int64]
IMAGES = 16  # of a chunk, at most


@dataclass(frozen=True)
class Sizing:
    """How large images go into the network.

    Args:
        short: Pixels of the shorter side; 0: by `scale`.
        long: Most pixels of the longer side.
        scale: Factor on the image's own size, where short is 0.
    """

    short: int = 600
    long: int = 1000
    scale: float = 1.0

    def __call__(self, width: int, height: int) -> tuple[int, int]:
        """New width and height."""
        factor = self.scale
        if self.short:
            factor = min(self.short / min(width, height), self.long / max(width, height))
        return max(32, round(width * factor)), max(32, round(height * factor))


class SceneMaps:
    """The shallow maps of a table of images, each computed when first asked for, and kept.

    Args:
        model: Whose shallow part.
        scenes: The images.
        sizing: How large they go in.
        device: Where the network runs.
        keep: What maps are kept as between calls: "float32", "float16", or "none": they are computed each time.
    """

    def __init__(
        self,
        model: RegionEmbedder,
        scenes: Scenes,
        sizing: Sizing | None = None,
        *,
        device: str | torch.device = "cpu",
        keep: str = "float32",
    ) -> None:
        if keep not in ("float32", "float16", "none"):
            raise ValueError(f"SceneMaps: expected keep 'float32', 'float16' or 'none', got {keep!r}")
        self.model, self.scenes, self.sizing = model, scenes, sizing or Sizing()
        self.device, self.keep = torch.device(device), keep
        self._maps: dict[int, Tensor] = {}
        self._sizes: dict[int, tuple[int, int, float]] = {}

    def size(self, index: int) -> tuple[int, int, float]:
        """(width, height, factor) that image `index` goes in with."""
        if index not in self._sizes:
            from PIL import Image

            with Image.open(self.scenes.absolute(index)) as image:
                width, height = self.sizing(*image.size)
                self._sizes[index] = (width, height, width / image.width)
        return self._sizes[index]

    def image(self, index: int) -> Tensor:
        """The picture as the network takes it, (3, H, W)."""
        width, height, _ = self.size(index)
        return normalize(to_float(resize(self.scenes.image(index), height, width)))

    def shallow(self, index: int) -> Tensor:
        """Map (C, h, w) of one image."""
        if index in self._maps:
            return self._maps[index].to(self.device, torch.float32)
        x = self.model.shallow(self.image(index)[None].to(self.device))[0]
        if self.keep != "none":
            kept = x.detach().to(getattr(torch, self.keep))
            self._maps[index] = kept
            return kept.to(torch.float32)
        return x

    def __call__(self, indices: Sequence[int]) -> SearchMaps:
        """Maps of several images; smaller ones are filled up with zeros on the right and below."""
        maps = [self.shallow(int(i)) for i in indices]
        height, width = (max(m.shape[d] for m in maps) for d in (1, 2))
        filled = [torch.nn.functional.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in maps]
        return self.model.maps_of(torch.stack(filled))


class Shrinkage(NamedTuple):
    """How regions shrank, over the pairs whose image shows the person.

    Attributes:
        covered: (T+1,) mean share of the person that R_t holds.
        filled: (T+1,) mean share of R_t that is the person.
        area: (T+1,) mean share of the image that R_t is.
        kept: (T+1,) share of the pairs whose R_t holds at least half of the person.
        pairs: How many.
    """

    covered: Floats
    filled: Floats
    area: Floats
    kept: Floats
    pairs: int


def collect_pairs(
    images: Iterable[int], queries: int, galleries: Sequence[Ints] | None, skip: Ints | None = None
) -> Iterator[tuple[int, Ints]]:
    """(image, queries that search it) for each image; `skip` (Q,): the image of each query that it does not search."""
    everybody = np.arange(queries)
    listed: dict[int, list[int]] = {}
    if galleries is not None:
        for q, gallery in enumerate(galleries):
            for image in gallery:
                listed.setdefault(int(image), []).append(q)
    for image in images:
        who = everybody if galleries is None else np.array(listed.get(int(image), []), np.int64)
        if skip is not None:
            who = who[skip[who] != image]
        if len(who):
            yield int(image), who


class PersonSearcher:
    """A model, the images of a gallery, and boxes that may hold a person in each.

    Args:
        model: `NPSM`, or a `RegionEmbedder` for two-stage search only. It is put into evaluation mode for each search.
        scenes: The gallery.
        proposals: Where to look.
        sizing: How large images go in.
        device: Where the network runs.
        keep: See `SceneMaps`.
        batch: Pairs, or boxes, that go through the network at a time.
    """

    def __init__(
        self,
        model: RegionEmbedder,
        scenes: Scenes,
        proposals: Proposals,
        sizing: Sizing | None = None,
        *,
        device: str | torch.device = "cpu",
        keep: str = "float32",
        batch: int = 256,
        maps: SceneMaps | None = None,
    ) -> None:
        self.model, self.scenes, self.proposals, self.batch = model, scenes, proposals, batch
        self.maps = maps or SceneMaps(model, scenes, sizing, device=device, keep=keep)
        self.device = self.maps.device
        self._boxes: dict[int, Floats] = {}
        self._trees: dict[int, RegionTree] = {}

    def boxes(self, index: int) -> Floats:
        """Proposals of image `index`, as large as it goes in."""
        if index not in self._boxes:
            self._boxes[index] = self.proposals(self.scenes, index).boxes * self.maps.size(index)[2]
        return self._boxes[index]

    def tree(self, index: int) -> RegionTree:
        """Nested regions of image `index`."""
        if not isinstance(self.model, NPSM):
            raise TypeError(f"search: expected an NPSM, got {type(self.model).__name__}, which has no attention")
        if index not in self._trees:
            width, height, _ = self.maps.size(index)
            self._trees[index] = self.model.tree(self.boxes(index), width, height)
        return self._trees[index]

    @torch.no_grad()
    def embed_boxes(self, index: int, boxes: Floats, maps: SearchMaps | None = None) -> Tensor:
        """Embeddings (n, d) of boxes of one image (as large as it goes in), on the CPU."""
        maps = self.maps([index]) if maps is None else maps
        parts = [torch.empty(0, self.model.feature_size)]
        for start in range(0, len(boxes), self.batch):
            piece = torch.as_tensor(boxes[start : start + self.batch], dtype=torch.float32, device=self.device)
            at = torch.zeros(len(piece), dtype=torch.int64, device=self.device)
            parts.append(self.model.embed(maps, piece, at).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def embed_queries(self, queries: Queries) -> Tensor:
        """Embeddings (Q, d) of the queries, on the CPU."""
        out = torch.empty(len(queries), self.model.feature_size)
        with _evaluating(self.model):
            for image in np.unique(queries.images):
                rows = np.flatnonzero(queries.images == image)
                boxes = queries.boxes[rows] * self.maps.size(int(image))[2]
                out[torch.from_numpy(rows)] = self.embed_boxes(int(image), boxes)
        return out

    @torch.no_grad()
    def query_states(self, queries: Queries) -> QueryState:
        """What the recursion needs of every query, on the device."""
        if not isinstance(self.model, NPSM):
            raise TypeError(f"search: expected an NPSM, got {type(self.model).__name__}, which has no attention")
        parts: list[QueryState] = []
        order: list[Ints] = []
        with _evaluating(self.model):
            for image in np.unique(queries.images):
                rows = np.flatnonzero(queries.images == image)
                boxes = queries.boxes[rows] * self.maps.size(int(image))[2]
                tensor = torch.as_tensor(boxes, dtype=torch.float32, device=self.device)
                at = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
                parts.append(self.model.queries(self.maps([int(image)]), tensor, at))
                order.append(rows)
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device)
        return QueryState(*(torch.cat(field)[back] for field in zip(*parts, strict=True)))

    @torch.no_grad()
    def two_stage(
        self, queries: Queries, galleries: Sequence[Ints] | None = None, *, one_box: bool = False
    ) -> tuple[Tensor, Detections]:
        """Every proposal embedded, ranked by cosine.

        Args:
            queries: Whom to search for.
            galleries: Images of each query; None: all.
            one_box: Keep only the nearest box of each (query, image), as NPSM answers.

        Returns:
            The queries' embeddings, and what `evaluation.person_search` takes.
        """
        found = self.embed_queries(queries)
        wanted = np.arange(len(self.scenes)) if galleries is None else np.unique(np.concatenate(galleries))
        images, boxes, features = [], [], []
        with _evaluating(self.model):
            for image in wanted:
                at = self.boxes(int(image))
                images.append(np.full(len(at), image))
                boxes.append(at / self.maps.size(int(image))[2])
                features.append(self.embed_boxes(int(image), at))
        everything = Detections(np.concatenate(images), np.concatenate(boxes), None, torch.cat(features))
        return found, nearest_boxes(queries, found, everything, galleries) if one_box else everything

    @torch.no_grad()
    def search(
        self, queries: Queries, galleries: Sequence[Ints] | None = None, *, state: QueryState | None = None
    ) -> tuple[Detections, Shrinkage | None]:
        """The recursion for every (query, image), one box each.

        Args:
            queries: Whom to search for.
            galleries: Images of each query; None: all but its own.
            state: State of the queries, where it is at hand.

        Returns:
            What `evaluation.person_search` takes, and how the regions shrank where the person was there.
        """
        model = self.model
        if not isinstance(model, NPSM):
            raise TypeError(f"search: expected an NPSM, got {type(model).__name__}, which has no attention")
        state = self.query_states(queries) if state is None else state
        wanted = np.arange(len(self.scenes)) if galleries is None else np.unique(np.concatenate(galleries))
        out: dict[str, list[Any]] = {"images": [], "boxes": [], "queries": [], "similarities": []}
        shrunk: list[Floats] = []
        with _evaluating(model):
            for images, who in self._chunks(collect_pairs(wanted, len(queries), galleries, queries.images)):
                maps, trees = self.maps(images), [self.tree(i) for i in images]
                factors = np.array([self.maps.size(i)[2] for i in images])
                which = np.repeat(np.arange(len(images)), [len(w) for w in who])
                some = np.concatenate(who)
                trace = model.search(maps, trees, state, which, some)
                boxes, likeness = self.finish(maps, trees, trace, state.embedding, which, some)
                out["images"].append(np.array(images)[which])
                out["boxes"].append(boxes / factors[which][:, None])
                out["queries"].append(some)
                out["similarities"].append(likeness)
                for k, image in enumerate(images):
                    last, mine = trace.regions[which == k], queries.pids[who[k]]
                    shrunk += self._shrinkage(image, trees[k], last, mine, factors[k])
        found = Detections(**{k: np.concatenate(v) for k, v in out.items()})
        if not shrunk:
            return found, None
        table = np.stack(shrunk)
        covered, filled, share = table.mean(0).T
        kept = (table[:, :, 0] >= 0.5).mean(0)
        return found, Shrinkage(covered, filled, share, kept, len(table))

    def _chunks(self, pairs: Iterable[tuple[int, Ints]]) -> Iterator[tuple[list[int], list[Ints]]]:
        """Images and their queries, about `batch` pairs at a time: few queries go through many images together."""
        images: list[int] = []
        who: list[Ints] = []
        size = 0
        for image, everybody in pairs:
            for start in range(0, len(everybody), self.batch):
                some = everybody[start : start + self.batch]
                if images and (size + len(some) > self.batch or len(images) == IMAGES):
                    yield images, who
                    images, who, size = [], [], 0
                images.append(image)
                who.append(some)
                size += len(some)
        if images:
            yield images, who

    def _embed(self, maps: SearchMaps, boxes: Floats, where: Ints) -> Tensor:
        """Embeddings (n, d) of boxes of several images, on the CPU."""
        parts = [torch.empty(0, self.model.feature_size)]
        for start in range(0, len(boxes), self.batch):
            piece = torch.as_tensor(boxes[start : start + self.batch], dtype=torch.float32, device=self.device)
            at = torch.from_numpy(where[start : start + self.batch]).to(self.device)
            parts.append(self.model.embed(maps, piece, at).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def finish(
        self, maps: SearchMaps, trees: Sequence[RegionTree], trace: Trace, embedding: Tensor, which: Ints, who: Ints
    ) -> tuple[Floats, NDArray[np.float32]]:
        """The final box of each pair and its cosine with the query; a box is embedded once for all queries.

        Args:
            maps: Maps of the images.
            trees: Their nested regions.
            trace: Trace of the pairs.
            embedding: Embeddings of the queries.
            which: (P,) image of each pair.
            who: (P,) query of each pair.
        """
        model = self.model
        assert isinstance(model, NPSM)
        mine = embedding[torch.from_numpy(who).to(embedding.device)].cpu()
        boxes, _ = model.boxes_by_attention(trace, trees, which)
        if model.final_box == "identity":
            inside = [trees[i].regions[n].proposals for i, n in zip(which, trace.regions, strict=True)]
            pair = np.repeat(np.arange(len(who)), [len(p) for p in inside])
            if len(pair):
                keys = np.stack([which[pair], np.concatenate(inside)], 1)
                unique, column = np.unique(keys, axis=0, return_inverse=True)
                column = column.reshape(-1)
                candidates = np.stack([trees[i].proposals[j] for i, j in unique])
                vectors = self._embed(maps, candidates, unique[:, 0].copy())
                likeness = (mine[torch.from_numpy(pair)] * vectors[torch.from_numpy(column)]).sum(1).numpy()
                best = best_child(likeness, candidates[column], pair, len(who))
                there = best >= 0
                boxes[there] = candidates[column[best[there]]]
        rows = np.concatenate([which[:, None].astype(np.float64), boxes], 1)
        unique, where = np.unique(rows, axis=0, return_inverse=True)
        vectors = self._embed(maps, unique[:, 1:], unique[:, 0].astype(np.int64))
        return boxes, (mine * vectors[torch.from_numpy(where.reshape(-1))]).sum(1).numpy()

    def _shrinkage(self, image: int, tree: RegionTree, regions: Ints, pids: Ints, factor: float) -> list[Floats]:
        """(T+1, 3) for each pair whose image shows the person: covered, filled, area."""
        model = self.model
        assert isinstance(model, NPSM)
        boxes, people = self.scenes.people(image)
        whole, rows = area(tree.regions[0].box), []
        for pid, last in zip(pids, regions, strict=True):
            at = np.flatnonzero(people == pid)
            if not len(at):
                continue
            target = boxes[at[0]] * factor
            path = [tree.regions[n].box for n in path_to(tree, int(last))]
            path += [path[-1]] * (model.steps + 1 - len(path))
            share = coverage(np.stack(path), target)
            areas = np.array([area(b) for b in path])
            rows.append(np.stack([share, share * area(target) / np.maximum(areas, 1e-9), areas / whole], 1))
        return rows


def nearest_boxes(
    queries: Queries, features: Tensor, detections: Detections, galleries: Sequence[Ints] | None = None
) -> Detections:
    """Of detections with features, in ascending order of images: the nearest one of each (query, image) searched."""
    images, starts, counts = np.unique(detections.images, return_index=True, return_counts=True)
    place = {int(i): (a, n) for i, a, n in zip(images, starts, counts, strict=True)}
    rows, owner, nearest = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for image, who in collect_pairs(images, len(queries), galleries, queries.images):
        a, n = place[image]
        value, best = (features[who] @ detections.features[a : a + n].T).max(1)
        rows.append(a + best.numpy())
        owner.append(who)
        nearest.append(value.numpy())
    index = np.concatenate(rows)
    return Detections(
        detections.images[index],
        detections.boxes[index],
        queries=np.concatenate(owner),
        similarities=np.concatenate(nearest),
    )


class _evaluating:
    """The model in evaluation mode, and back after."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.mode = model, model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *_: Any) -> None:
        self.model.train(self.mode)
