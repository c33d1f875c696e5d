# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pooling of regions of a feature map, in plain tensor operations: RoIAlign and the max pooling of Fast R-CNN."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["roi_align", "roi_max_pool", "roi_pool"]


def roi_align(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    size: tuple[int, int],
    *,
    scale: float,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Mean of bilinear samples in every bin of every region.

    He et al., "Mask R-CNN", ICCV 2017; equal to torchvision's op of that name. A sample's weights factor into one for
    its row and one for its column, and so does their mean over a bin. Hence a region is two matrix products,

        out[r, c] = Y_r  features[image_r, c]  X_r^T          Y_r [h, H], X_r [w, W]

    with nothing gathered or scattered: differentiable as often as one likes, and deterministic on every device.

    Args:
        features: (N, C, H, W).
        boxes: (R, 4) as x1, y1, x2, y2 in pixels. No gradient.
        image_index: (R,) int64: the map of each box.
        size: (h, w) bins.
        scale: Cells a pixel (1 / stride).
        sampling_ratio: Samples of a bin in each direction.
        aligned: Half a cell is taken off, so that cell centres are where they are in the picture.

    Returns:
        (R, C, h, w). Samples more than a cell outside of the map count as zero.
    """
    _check("roi_align", features, boxes, image_index, size)
    if sampling_ratio < 1:
        raise ValueError(f"roi_align: expected sampling_ratio of at least 1, got {sampling_ratio}")
    height, width = features.shape[2:]
    wide = torch.promote_types(features.dtype, torch.float32)
    corners = boxes.detach().to(wide) * scale - (0.5 if aligned else 0.0)
    low, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = extent.clamp(min=1)
    rows = _hats(low[:, 1], extent[:, 1], size[0], height, sampling_ratio).to(features.dtype)
    columns = _hats(low[:, 0], extent[:, 0], size[1], width, sampling_ratio).to(features.dtype)

    def pool(image: Tensor, at: Tensor) -> Tensor:  # image [C, H, W], at [r] -> [r, C, h, w]
        r, channels = len(at), image.shape[0]
        lines = rows[at].reshape(r * size[0], height) @ image.transpose(0, 1).reshape(height, channels * width)
        bins = lines.view(r, size[0] * channels, width) @ columns[at].transpose(1, 2)
        return bins.view(r, size[0], channels, size[1]).transpose(1, 2)

    return _by_image(features, image_index, pool, size)


def roi_max_pool(
    features: Tensor, boxes: Tensor, image_index: Tensor, size: tuple[int, int], *, scale: float
) -> Tensor:
    """Maximum over the cells of every bin of every region, with corners rounded to cells.

    Girshick, "Fast R-CNN", ICCV 2015; equal to torchvision's `roi_pool`: cells round(x1) ... round(x2), both ends
    included, bin i of n from floor(i L / n) to ceil((i + 1) L / n); an empty bin is zero. The gradient goes to one
    cell of each bin.

    Args:
        features: (N, C, H, W).
        boxes: (R, 4) as x1, y1, x2, y2 in pixels. No gradient.
        image_index: (R,) int64: the map of each box.
        size: (h, w) bins.
        scale: Cells a pixel (1 / stride).

    Returns:
        (R, C, h, w).
    """
    _check("roi_max_pool", features, boxes, image_index, size)
    height, width = features.shape[2:]
    scaled = boxes.detach().double() * scale
    cells = (scaled.sign() * (scaled.abs() + 0.5).floor()).long().tolist()  # C's round: halves away from zero
    pooled = []
    for (x1, y1, x2, y2), image in zip(cells, image_index.tolist(), strict=True):
        x2, y2 = max(x2, x1), max(y2, y1)
        inside = features[image, :, max(y1, 0) : max(y2 + 1, 0), max(x1, 0) : max(x2 + 1, 0)]
        if not inside.numel():
            pooled.append(features.new_zeros(features.shape[1], *size))
            continue
        left, top = max(-x1, 0), max(-y1, 0)
        right, bottom = max(x2 + 1 - width, 0), max(y2 + 1 - height, 0)
        if left or top or right or bottom:  # bins are laid over the whole region, also where there is no map
            inside = F.pad(inside, (left, right, top, bottom), value=-torch.inf)
        out = F.adaptive_max_pool2d(inside, size)
        pooled.append(torch.where(out == -torch.inf, 0.0, out) if left or top or right or bottom else out)
    return torch.stack(pooled) if pooled else features.new_zeros(0, features.shape[1], *size)


def roi_pool(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    size: tuple[int, int],
    *,
    scale: float,
    op: str = "align",
    sampling_ratio: int = 2,
) -> Tensor:
    """`roi_align` (op "align") or `roi_max_pool` (op "max")."""
    if op == "align":
        return roi_align(features, boxes, image_index, size, scale=scale, sampling_ratio=sampling_ratio)
    if op == "max":
        return roi_max_pool(features, boxes, image_index, size, scale=scale)
    raise ValueError(f"roi_pool: expected op 'align' or 'max', got {op!r}")


def _hats(low: Tensor, extent: Tensor, bins: int, cells: int, ratio: int) -> Tensor:
    """Weight of each cell in each bin, [R, bins, cells]: means of bilinear hats around the samples."""
    step = (torch.arange(bins * ratio, device=low.device, dtype=low.dtype) + 0.5) / (bins * ratio)
    at = low[:, None] + extent[:, None] * step
    inside = (at >= -1) & (at <= cells)
    at = at.clamp(0, cells - 1)
    grid = torch.arange(cells, device=low.device, dtype=low.dtype)
    weights = (1 - (at[..., None] - grid).abs()).clamp(min=0) * inside[..., None]
    return weights.view(len(low), bins, ratio, cells).mean(2)


def _by_image(features: Tensor, image_index: Tensor, pool: object, size: tuple[int, int]) -> Tensor:
    """Calls pool(map, rows) once a map that has regions, and puts the results into the order of the regions."""
    if not len(image_index):
        return features.new_zeros(0, features.shape[1], *size)
    order = torch.argsort(image_index, stable=True)
    images, counts = torch.unique_consecutive(image_index[order], return_counts=True)
    parts = [
        pool(features[image], at)  # type: ignore[operator]
        for image, at in zip(images.tolist(), order.split(counts.tolist()), strict=True)
    ]
    out = torch.cat(parts)
    return out if len(parts) == 1 and bool((order[1:] > order[:-1]).all()) else out[torch.argsort(order)]


def _check(op: str, features: Tensor, boxes: Tensor, image_index: Tensor, size: tuple[int, int]) -> None:
    if features.dim() != 4 or not features.is_floating_point():
        raise ValueError(f"{op}: expected features (N, C, H, W) of a floating dtype, got {tuple(features.shape)}")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or image_index.shape != boxes.shape[:1]:
        raise ValueError(
            f"{op}: expected boxes (R, 4) and image_index (R,), got {tuple(boxes.shape)} and {tuple(image_index.shape)}"
        )
    if image_index.dtype != torch.int64:
        raise TypeError(f"{op}: expected image_index int64, got {image_index.dtype}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{op}: expected size (h, w) of at least 1, got {size}")
    if features.device.type == "cpu" and len(boxes):
        low, high = int(image_index.min()), int(image_index.max())
        if low < 0 or high >= len(features):
            raise ValueError(f"{op}: expected image_index in [0, {len(features)}), got {low} to {high}")
