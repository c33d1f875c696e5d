# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Neural person search machines, and the embedding of regions that they share with two-stage search.

Liu, Feng, Jie, Karlekar, Zhao, Qi, Jiang, Yan, "Neural Person Search Machines", ICCV 2017. No code of theirs is public;
docs/methods/npsm.md lists what the paper says, and every choice made where it is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from reidfast.models.over_backbone import OverBackbone
from reidfast.models.registry import register_model
from reidfast.nn.query_conv_lstm import QueryConvLSTM
from reidfast.nn.region_shrinkage import RegionTree, attention_mass, best_child, coverage, score_regions
from reidfast.nn.roi_pool import roi_pool

from .backbones import Backbone
from .split import split_backbone

__all__ = ["NPSM", "QueryState", "RegionEmbedder", "SearchMaps", "Step", "Trace"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Chooser = Callable[["Step", Floats, Ints], Ints]


class SearchMaps(NamedTuple):
    """What is computed once of an image.

    Attributes:
        features: (N, C, H, W): the backbone's shallow part, for re-identification.
        reduced: (N, Dh, H, W): for the attention; empty (N, 0, H, W) where the model has none.
    """

    features: Tensor
    reduced: Tensor


class QueryState(NamedTuple):
    """What is computed once of a query.

    Attributes:
        gates: (Q, 4*Dh, K, K): its terms in the gates.
        vector: (Q, C): mean of its map's features, less those of its image, of unit length; (Q, 0) without correlation.
        embedding: (Q, d), of unit length.
    """

    gates: Tensor
    vector: Tensor
    embedding: Tensor


class Step(NamedTuple):
    """One step of a search over P pairs.

    Attributes:
        rows: (p,) the pairs that take part.
        regions: (p, 4) what the attention lies over, R_{t-1}.
        logits: (p, K, K) e_t.
        attention: (p, K, K) A_t.
        boxes: (n, 4) the children of the regions.
        owner: (n,) position in `rows` of the pair each child belongs to.
        scores: (n,) mean attention of each.
    """

    rows: Ints
    regions: Tensor
    logits: Tensor
    attention: Tensor
    boxes: Tensor
    owner: Ints
    scores: Tensor


class Trace(NamedTuple):
    """A search of P pairs.

    Attributes:
        steps: At most T of them.
        regions: (P,) number of the last region R_T in its image's tree.
        boxes: (P, 4) R_T.
        attention: (P, K, K) the last attention of each pair.
        over: (P, 4) the region it lies over.
    """

    steps: list[Step]
    regions: Ints
    boxes: Floats
    attention: Tensor
    over: Tensor


@register_model("two_stage")
class RegionEmbedder(OverBackbone):
    """A re-ID network that looks at whole images once and at their regions after.

    The backbone is cut: its shallow part makes a map of the image, regions are pooled from it, and the deep part makes
    their embeddings. With proposals and a cosine it is the two-stage search of Xiao et al., CVPR 2017, without its
    detector.

    Args:
        backbone: A ResNet, an OSNet or a MobileNetV2.
        cut: Name of the last shallow module; None: stride 16 (`reidfast.models.split.default_cut`).
        size: (h, w) bins of a region.
        embedding: Size of the embedding behind a linear layer; None: the backbone's own feature.
        roi_op: "align" or "max".
        sampling_ratio: Sampling points per bin and side of "align".
        num_classes: Training identities of a classifier on the embedding; None: no classifier.
        freeze_norms: Batch norms that keep the statistics they came with: "all", "shallow" or "none".
        train_shallow: Whether the shallow part is trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        cut: str | None = None,
        size: tuple[int, int] | Sequence[int] = (14, 14),
        embedding: int | None = 256,
        roi_op: str = "align",
        sampling_ratio: int = 2,
        num_classes: int | None = None,
        freeze_norms: str = "all",
        train_shallow: bool = True,
    ) -> None:
        super().__init__()
        if freeze_norms not in ("all", "shallow", "none"):
            raise ValueError(f"RegionEmbedder: expected freeze_norms 'all', 'shallow' or 'none', got {freeze_norms!r}")
        if roi_op not in ("align", "max"):
            raise ValueError(f"RegionEmbedder: expected roi_op 'align' or 'max', got {roi_op!r}")
        self.backbone = backbone
        self._shallow, self._deep, self.channels, self.stride = split_backbone(backbone, cut)
        self.size = (int(size[0]), int(size[1]))
        self.roi_op, self.sampling_ratio, self.freeze_norms = roi_op, sampling_ratio, freeze_norms
        self.embed_layer = None if embedding is None else nn.Linear(backbone.feature_size, embedding)
        self.feature_size = backbone.feature_size if embedding is None else embedding
        self.classifier = None if num_classes is None else nn.Linear(self.feature_size, num_classes)
        self.train_shallow = train_shallow
        if not train_shallow:
            for module in self._shallow:
                module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> RegionEmbedder:
        """As every module's, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        frozen: tuple[nn.Module, ...] = ()
        if self.freeze_norms != "none" and hasattr(self, "_shallow"):
            frozen = self._shallow + ((self.backbone,) if self.freeze_norms == "all" else ())
        for part in frozen:
            for module in part.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def shallow(self, images: Tensor) -> Tensor:
        """Map (N, C, H / stride, W / stride) of images (N, 3, H, W)."""
        x = images
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_shallow):
            for module in self._shallow:
                x = module(x)
        return x

    def maps(self, images: Tensor) -> SearchMaps:
        """What a search needs of images (N, 3, H, W), once."""
        return self.maps_of(self.shallow(images))

    def maps_of(self, features: Tensor) -> SearchMaps:
        """The same from the shallow part's maps."""
        return SearchMaps(features, features[:, :0])

    def describe(self, maps: SearchMaps, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features (R, d) of boxes (R, 4) in pixels of the images given to `maps`, not of unit length."""
        x = roi_pool(
            maps.features,
            boxes,
            image_index,
            self.size,
            scale=1 / self.stride,
            op=self.roi_op,
            sampling_ratio=self.sampling_ratio,
        )
        for module in self._deep:
            x = module(x)
        x = self.backbone.pool(x)
        return x if self.embed_layer is None else self.embed_layer(x)

    def embed(self, maps: SearchMaps, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Embeddings (R, d) of unit length."""
        return F.normalize(self.describe(maps, boxes, image_index), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, d) of images that show one person each, from border to border."""
        height, width = images.shape[2:]
        boxes = images.new_tensor([[0.0, 0.0, width, height]]).expand(len(images), 4)
        return self.embed(self.maps(images), boxes, torch.arange(len(images), device=images.device))


@register_model("npsm")
class NPSM(RegionEmbedder):
    """Neural person search machine: the query shrinks the image, step by step, to the person.

        x_t = ROIPool(F, R_{t-1})                      h_t, c_t = cell(x_t, h_{t-1}, c_{t-1}, q)
        A_t = softmax over K x K of (w_a * h_t + b_a)  R_t = of the clusters of proposals in R_{t-1}, the one with the
                                                             highest mean A_t

    Args:
        backbone: See `RegionEmbedder`, which all that is not listed here goes to.
        grid: K.
        hidden: Dh. A 1x1 convolution brings the map to it before regions are pooled (pooling and it commute).
        normalize: A batch norm without weights before that convolution: features of frozen networks can be far from
            unit deviation, and the gates would hardly see them.
        steps: T.
        clusters: Children of a region, at most.
        shrinkage: See `RegionTree`.
        query_in_candidate: See `QueryConvLSTM`.
        peephole: See `QueryConvLSTM`.
        forget_bias: See `QueryConvLSTM`.
        query_form: "map": the query's K x K cells meet the region's cell by cell, as published; "mean": each cell meets
            the mean of the query's.
        correlation: The gates also see how like the query each cell is: the cosine of its features with the mean of
            the query's, both less the mean of their image and with a learned weight a channel, brought to mean 0 and
            deviation 1 over the region, through a 3x3 convolution. Not in the paper.
        final_box: "attention": of the proposals in R_T the one with the most attention over the root of its area;
            "identity": the one whose embedding is nearest the query's.
        options: Options of `RegionEmbedder`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        grid: int = 14,
        hidden: int = 256,
        normalize: bool = True,
        steps: int = 3,
        clusters: int = 4,
        shrinkage: float = 0.95,
        query_in_candidate: bool = True,
        peephole: bool = False,
        forget_bias: float = 1.0,
        query_form: str = "map",
        correlation: bool = False,
        final_box: str = "attention",
        **options: Any,
    ) -> None:
        if query_form not in ("map", "mean"):
            raise ValueError(f"NPSM: expected query_form 'map' or 'mean', got {query_form!r}")
        if final_box not in ("attention", "identity"):
            raise ValueError(f"NPSM: expected final_box 'attention' or 'identity', got {final_box!r}")
        if min(grid, hidden, steps, clusters) < 1:
            raise ValueError(
                f"NPSM: expected grid, hidden, steps, clusters >= 1, got {grid}, {hidden}, {steps}, {clusters}"
            )
        super().__init__(backbone, **options)
        self.grid, self.steps, self.clusters, self.shrinkage = grid, steps, clusters, shrinkage
        self.query_form, self.final_box = query_form, final_box
        self.norm = nn.BatchNorm2d(self.channels, affine=False) if normalize else nn.Identity()
        self.reduce = nn.Conv2d(self.channels, hidden, 1)
        self.cell = QueryConvLSTM(
            hidden, hidden, query_in_candidate=query_in_candidate, peephole=peephole, forget_bias=forget_bias
        )
        self.match = nn.Conv2d(1, 4 * hidden, 3, padding=1, bias=False) if correlation else None
        self.channel_weights = nn.Parameter(torch.ones(self.channels)) if correlation else None
        self.attention = nn.Conv2d(hidden, 1, 1)
        if self.match is not None:
            nn.init.normal_(self.match.weight, std=0.2)
        nn.init.xavier_uniform_(self.attention.weight)
        nn.init.zeros_(self.attention.bias)  # type: ignore[arg-type]

    def maps_of(self, features: Tensor) -> SearchMaps:
        """Adds the reduced map."""
        return SearchMaps(features, self.reduce(self.norm(features)))

    def tree(self, proposals: Any, width: float, height: float) -> RegionTree:
        """The nested regions of an image of that size, from proposals (J, 4)."""
        return RegionTree(proposals, width, height, clusters=self.clusters, steps=self.steps, shrinkage=self.shrinkage)

    def _regions(self, maps: SearchMaps, boxes: Tensor, image_index: Tensor) -> Tensor:
        size = (self.grid, self.grid)
        return roi_pool(
            maps.reduced,
            boxes,
            image_index,
            size,
            scale=1 / self.stride,
            op=self.roi_op,
            sampling_ratio=self.sampling_ratio,
        )

    def _distinct(self, maps: SearchMaps, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features (R, C, K, K) of regions, less the mean of their image, weighted."""
        assert self.channel_weights is not None
        size = (self.grid, self.grid)
        x = roi_pool(maps.features, boxes, image_index, size, scale=1 / self.stride, op=self.roi_op)
        mean = maps.features.mean((2, 3))[image_index]
        return (x - mean[:, :, None, None]) * self.channel_weights[:, None, None]

    def queries(self, maps: SearchMaps, boxes: Tensor, image_index: Tensor) -> QueryState:
        """What a search needs of queries: boxes (Q, 4) in images, once."""
        q = self._regions(maps, boxes, image_index)
        seen = q if self.query_form == "map" else q.mean((2, 3), keepdim=True).expand_as(q)
        vector = self._distinct(maps, boxes, image_index).mean((2, 3)) if self.match is not None else q[:, :0, 0, 0]
        return QueryState(self.cell.query_gates(seen), F.normalize(vector, dim=1), self.embed(maps, boxes, image_index))

    def search(
        self,
        maps: SearchMaps,
        trees: Sequence[RegionTree],
        query: QueryState,
        images: Ints,
        queries: Ints,
        choose: Chooser | None = None,
    ) -> Trace:
        """Runs the recursion for P pairs of an image and a query, each until it stops.

        A region that several queries look at is pooled and convolved once.

        Args:
            maps: Maps of N images.
            trees: Their nested regions.
            query: States of Q queries.
            images: (P,) image of each pair.
            queries: (P,) query of each pair.
            choose: (step, boxes of the children, numbers) -> the row of the child taken by each pair; None: the
                highest mean attention, ties to the smaller area, then to the first.
        """
        pairs = len(images)
        device, dtype = maps.reduced.device, maps.reduced.dtype
        node = np.zeros(pairs, np.int64)
        rows = np.arange(pairs)
        state: tuple[Tensor, Tensor] | None = None
        steps: list[Step] = []
        last: list[tuple[Ints, Tensor, Tensor]] = []
        for _ in range(self.steps):
            children = [trees[images[p]].children(node[p]) for p in rows]
            alive = np.array([len(c) > 0 for c in children], bool)
            if not alive.any():
                break
            if not alive.all():
                keep = np.flatnonzero(alive)
                rows, children = rows[keep], [children[k] for k in keep]
                if state is not None:
                    at = torch.from_numpy(keep).to(device)
                    state = (state[0][at], state[1][at])
            unique, where = np.unique(np.stack([images[rows], node[rows]], 1), axis=0, return_inverse=True)
            regions = _tensor([trees[i].regions[k].box for i, k in unique], device, dtype)
            back = torch.from_numpy(where.reshape(-1)).to(device)
            of_image = torch.from_numpy(unique[:, 0].copy()).to(device)
            x = self._regions(maps, regions, of_image)
            gates = self.cell.input_gates(x)
            which = torch.from_numpy(queries[rows]).to(device)
            seen = query.gates[which]
            if self.match is not None:
                cells = F.normalize(self._distinct(maps, regions, of_image), dim=1)
                seen = seen + self.match(_likeness(cells, query.vector[which], back))
            state = self.cell.step(gates if len(unique) == 1 and state is None else gates[back], seen, state)
            logits = self.attention(state[0])[:, 0]
            attention = logits.flatten(1).softmax(1).view_as(logits)
            over = regions[back]
            index = np.repeat(np.arange(len(rows)), [len(c) for c in children])
            numbers = np.array([n for c in children for n in c], np.int64)
            images_of = images[rows][index]
            boxes = np.stack([trees[i].regions[n].box for i, n in zip(images_of, numbers, strict=True)])
            tensor = _tensor(boxes, device, dtype)
            scores = score_regions(attention, over, tensor, torch.from_numpy(index).to(device))
            step = Step(rows, over, logits, attention, tensor, index, scores)
            if choose is None:
                chosen = best_child(scores.detach().float().cpu().numpy(), boxes, index, len(rows))
            else:
                chosen = choose(step, boxes, numbers)
            node[rows] = numbers[chosen]
            steps.append(step)
            last.append((rows, attention, over))
        attention = maps.reduced.new_full((pairs, self.grid, self.grid), 1 / self.grid**2)
        over = _tensor([trees[i].regions[0].box for i in images], device, dtype)
        for at_rows, a, o in last:
            at = torch.from_numpy(at_rows).to(device)
            attention, over = attention.index_copy(0, at, a), over.index_copy(0, at, o)
        final = np.stack([trees[i].regions[n].box for i, n in zip(images, node, strict=True)]) if pairs else None
        return Trace(steps, node, np.empty((0, 4)) if final is None else final, attention, over)

    def boxes_by_attention(self, trace: Trace, trees: Sequence[RegionTree], images: Ints) -> tuple[Floats, Ints]:
        """The box each pair ends with, (P, 4), and its number among the image's proposals; -1: the region itself."""
        inside = [trees[i].regions[n].proposals for i, n in zip(images, trace.regions, strict=True)]
        index = np.repeat(np.arange(len(images)), [len(p) for p in inside])
        boxes, chosen = trace.boxes.copy(), np.full(len(images), -1, np.int64)
        if len(index):
            listed = np.concatenate(inside)
            candidates = np.stack([trees[images[p]].proposals[j] for p, j in zip(index, listed, strict=True)])
            device, dtype = trace.attention.device, trace.attention.dtype
            at = torch.from_numpy(index).to(device)
            mass = attention_mass(trace.attention, trace.over, _tensor(candidates, device, dtype), at)
            best = best_child(mass.detach().float().cpu().numpy(), candidates, index, len(images))
            found = best >= 0
            boxes[found], chosen[found] = candidates[best[found]], listed[best[found]]
        return boxes, chosen


def coverage_chooser(targets: Floats, by_attention: NDArray[np.bool_]) -> Chooser:
    """Teacher forcing: the child that covers most of the person, ties to the attention.

    Args:
        targets: (P, 4): the person of each pair.
        by_attention: (P,): pairs that the attention decides instead.
    """

    def choose(step: Step, boxes: Floats, numbers: Ints) -> Ints:
        scores = step.scores.detach().float().cpu().numpy().astype(np.float64)
        rank = np.empty(len(scores))
        rank[np.lexsort((np.arange(len(scores))[::-1], scores))] = np.arange(len(scores)) / max(1, len(scores))
        covered = coverage(boxes, targets[step.rows][step.owner]).round(6) * 1e6  # a rank is less than one unit
        free = by_attention[step.rows][step.owner]
        return best_child(np.where(free, scores, covered + rank), boxes, step.owner, len(step.rows))

    return choose


def _likeness(cells: Tensor, vectors: Tensor, region: Tensor) -> Tensor:
    """Cosines (P, 1, K, K) of the cells (U, C, K, K) of regions with the vectors (P, C) of pairs, standardised."""
    parts, order = [], []
    for u in range(len(cells)):
        rows = (region == u).nonzero()[:, 0]
        parts.append(vectors[rows] @ cells[u].flatten(1))
        order.append(rows)
    out = torch.cat(parts)[torch.argsort(torch.cat(order))]
    out = (out - out.mean(1, keepdim=True)) / out.std(1, keepdim=True).clamp(min=1e-6)
    return out.view(len(vectors), 1, *cells.shape[2:])


def _tensor(boxes: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.asarray(boxes), dtype=dtype, device=device).reshape(-1, 4)
