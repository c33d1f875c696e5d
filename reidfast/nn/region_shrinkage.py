# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Nested regions of an image: clusters of proposals, the choice among them by attention, and the box at the end.

Which regions there can be depends on the image alone, so they form a tree that all queries share: the root is the
image, the children of a region are the clusters of the proposals in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reidfast import ops

__all__ = [
    "Region",
    "RegionTree",
    "attention_mass",
    "best_child",
    "cells_inside",
    "k_means",
    "score_regions",
    "to_cells",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def k_means(points: ArrayLike, clusters: int, iterations: int = 20) -> Ints:
    """Clusters 0 ... c - 1 of points (n, d): Lloyd's iterations from a start that is not random.

    The first centre is the point farthest from the mean, each next one the point farthest from the centres so far;
    ties go to the lower index. A centre that loses all its points is dropped.
    """
    x = np.asarray(points, np.float64)
    if x.ndim != 2 or clusters < 1:
        raise ValueError(f"k_means: expected points (n, d) and clusters of at least 1, got {x.shape} and {clusters}")
    if not len(x):
        return np.empty(0, np.int64)
    nearest = ((x - x.mean(0)) ** 2).sum(1)
    chosen = [int(nearest.argmax())]
    nearest = ((x - x[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(clusters, len(x)) and nearest.max() > 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((x - x[chosen[-1]]) ** 2).sum(1))
    centres, labels = x[chosen], np.full(len(x), -1, np.int64)
    for _ in range(iterations):
        new = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
        if (new == labels).all():
            break
        labels = new
        _, labels = np.unique(labels, return_inverse=True)
        centres = np.stack([x[labels == c].mean(0) for c in range(labels.max() + 1)])
    return labels.reshape(-1)


class Region(NamedTuple):
    """A region of an image.

    Attributes:
        box: x1, y1, x2, y2.
        proposals: Indices of the proposals whose centres lie in it.
        members: How many of its parent's proposals it was made of.
        depth: Steps from the root.
        parent: Number of the parent; -1 for the root.
    """

    box: Floats
    proposals: Ints
    members: int
    depth: int
    parent: int


class RegionTree:
    """The nested regions of one image.

    A region's children are the clusters of the centres of its proposals, each the tightest box around its members'
    boxes, cut off at the region; so a child never reaches out of its parent. Children are made when first asked for.

    Args:
        proposals: (J, 4) as x1, y1, x2, y2.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        clusters: Children of a region, at most.
        steps: Depth of the tree.
        shrinkage: A region with a single child that keeps more than this share of its area is not shrunk further.
    """

    def __init__(
        self,
        proposals: ArrayLike,
        width: float,
        height: float,
        *,
        clusters: int = 4,
        steps: int = 3,
        shrinkage: float = 0.95,
    ) -> None:
        boxes = np.asarray(proposals, np.float64).reshape(-1, 4)
        self.proposals = np.clip(boxes, 0, [width, height, width, height])
        self.clusters, self.steps, self.shrinkage = clusters, steps, shrinkage
        self.centres = (self.proposals[:, :2] + self.proposals[:, 2:]) / 2
        self.regions = [Region(np.array([0.0, 0.0, width, height]), np.arange(len(boxes)), len(boxes), 0, -1)]
        self._children: dict[int, tuple[int, ...]] = {}

    def children(self, region: int) -> tuple[int, ...]:
        """Numbers of a region's children; empty where the search stops (depth, one proposal, no shrinkage)."""
        if region not in self._children:
            self._children[region] = self._divide(region)
        return self._children[region]

    def _divide(self, number: int) -> tuple[int, ...]:
        parent = self.regions[number]
        if parent.depth >= self.steps or not len(parent.proposals) or (parent.depth and parent.members <= 1):
            return ()
        if parent.depth and self._stalled(number):
            return ()
        labels = k_means(self.centres[parent.proposals], self.clusters)
        out = []
        for c in range(labels.max() + 1):
            members = self.proposals[parent.proposals[labels == c]]
            box = np.concatenate([members[:, :2].min(0), members[:, 2:].max(0)])
            box = np.concatenate([np.maximum(box[:2], parent.box[:2]), np.minimum(box[2:], parent.box[2:])])
            inside = (self.centres >= box[:2]).all(1) & (self.centres <= box[2:]).all(1)
            out.append(len(self.regions))
            self.regions.append(Region(box, np.flatnonzero(inside), len(members), parent.depth + 1, number))
        return tuple(out)

    def _stalled(self, number: int) -> bool:
        region = self.regions[number]
        siblings = self._children.get(region.parent, (number, number))
        return len(siblings) == 1 and area(region.box) > self.shrinkage * area(self.regions[region.parent].box)


def area(box: Floats) -> float:
    """Of x1, y1, x2, y2."""
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))


def to_cells(boxes: Tensor, regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) of the image in the cells of the grids (h, w) that lie over their regions (..., 4)."""
    low, extent = regions[..., :2], (regions[..., 2:] - regions[..., :2]).clamp(min=1e-6)
    cells = boxes.new_tensor([grid[1], grid[0]])
    first, second = (boxes[..., :2] - low) / extent * cells, (boxes[..., 2:] - low) / extent * cells
    return torch.cat([first, second], -1)


def cells_inside(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which cells have their centre in each box, bool (P, h, w), of boxes (P, 4) in cell units.

    Where there is none, the cell that holds the box's centre, or the nearest one: the rule of ``ops.region_scores``.
    """
    height, width = grid
    ys = torch.arange(height, device=cells.device, dtype=cells.dtype) + 0.5
    xs = torch.arange(width, device=cells.device, dtype=cells.dtype) + 0.5
    x1, y1, x2, y2 = cells.unsqueeze(-1).unbind(1)
    inside = ((y1 <= ys) & (ys <= y2))[:, :, None] & ((x1 <= xs) & (xs <= x2))[:, None]
    row = ((y1 + y2) / 2).floor().clamp(0, height - 1).long()
    column = ((x1 + x2) / 2).floor().clamp(0, width - 1).long()
    nearest = (torch.arange(height, device=cells.device) == row)[:, :, None] & (
        torch.arange(width, device=cells.device) == column
    )[:, None]
    return torch.where(inside.any(2, keepdim=True).any(1, keepdim=True), inside, nearest)


def score_regions(attention: Tensor, regions: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
    """Mean attention in boxes.

    Args:
        attention: (B, K, K): maps over `regions`.
        regions: (B, 4) in pixels.
        boxes: (P, 4) in pixels.
        index: (P,) int64: the map of each box.

    Returns:
        (P,), by ``ops.region_scores``.
    """
    grid = (attention.shape[1], attention.shape[2])
    return ops.region_scores(attention, to_cells(boxes, regions[index], grid), index)


def best_child(scores: ArrayLike, boxes: ArrayLike, index: ArrayLike, count: int) -> Ints:
    """For each of `count` groups the row with the highest score; ties: the smaller area, then the lower row.

    Returns:
        (count,), -1 where a group has no rows.
    """
    s, b, g = np.asarray(scores, np.float64), np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(index, np.int64)
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    order = np.lexsort((np.arange(len(s)), areas, -s, g))
    first = np.r_[True, g[order][1:] != g[order][:-1]] if len(order) else np.zeros(0, bool)
    out = np.full(count, -1, np.int64)
    out[g[order][first]] = order[first]
    return out


def attention_mass(attention: Tensor, regions: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
    """Attention in boxes over the square root of their area, (P,): highest for the box that just holds the person.

    The attention of a cell is spread evenly over it, so boxes of a fraction of a cell get a fraction. Where attention
    is uniform on the person, the mean ties for all boxes inside it; this score is maximal at its box alone.

    Args:
        attention: (B, K, K): maps over `regions`.
        regions: (B, 4) in pixels.
        boxes: (P, 4) in pixels.
        index: (P,) int64: the map of each box.
    """
    height, width = attention.shape[1:]
    cells = to_cells(boxes, regions[index], (height, width))

    def share(low: Tensor, high: Tensor, n: int) -> Tensor:
        edge = torch.arange(n, device=cells.device, dtype=cells.dtype)
        return (torch.minimum(high[:, None], edge + 1) - torch.maximum(low[:, None], edge)).clamp(min=0)

    rows, columns = share(cells[:, 1], cells[:, 3], height), share(cells[:, 0], cells[:, 2], width)
    mass = torch.einsum("ph,phw,pw->p", rows.to(attention.dtype), attention[index], columns.to(attention.dtype))
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    return mass / extent.prod(1).sqrt().to(mass.dtype)


def coverage(boxes: ArrayLike, target: ArrayLike) -> Floats:
    """Share of the target box (4,) or (n, 4) that lies in each box (n, 4)."""
    b, t = np.asarray(boxes, np.float64), np.asarray(target, np.float64)
    wide = np.minimum(b[..., 2], t[..., 2]) - np.maximum(b[..., 0], t[..., 0])
    high = np.minimum(b[..., 3], t[..., 3]) - np.maximum(b[..., 1], t[..., 1])
    whole = (t[..., 2] - t[..., 0]) * (t[..., 3] - t[..., 1])
    return np.maximum(wide, 0) * np.maximum(high, 0) / np.maximum(whole, 1e-9)


def path_to(tree: RegionTree, region: int) -> Sequence[int]:
    """Numbers of the regions from the root to `region`."""
    path = [region]
    while tree.regions[path[-1]].parent >= 0:
        path.append(tree.regions[path[-1]].parent)
    return path[::-1]
