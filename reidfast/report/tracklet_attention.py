# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Where a model looks in each frame of a tracklet, and how much each frame counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_tracklet_attention", "explain_tracklet", "stack_pictures"]

COLOURS = ((230, 60, 50), (40, 120, 220), (40, 170, 80), (235, 160, 20), (160, 70, 190), (20, 180, 180))
GAP, BAR, LEFT = 4, 9, 64


def _overlay(picture: NDArray[np.float32], heat: NDArray[np.float64], colour: tuple[int, int, int]) -> Image.Image:
    """The picture in grey, coloured where the map is high (its largest cell = full colour)."""
    height, width = picture.shape[:2]
    top = float(heat.max())
    scaled = Image.fromarray((255 * heat / top if top > 0 else 0 * heat).round().astype(np.uint8))
    alpha = np.asarray(scaled.resize((width, height), Image.Resampling.BICUBIC), np.float32)[..., None] / 255 * 0.75
    grey = 0.35 * 255 + 0.65 * (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return Image.fromarray(((1 - alpha) * grey + alpha * np.array(colour, np.float32)).round().astype(np.uint8))


def draw_tracklet_attention(
    images: Sequence[Image.Image],
    attention: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
    height: int = 128,
    width: int = 64,
) -> Image.Image:
    """One picture: the frames, and below them a row for each attention map, a bar for each temporal weight.

    Args:
        images: The N frames.
        attention: (N, K, h, w), as `reidfast.models.DRSTA.explain` gives it; each map is drawn relative to its own
            largest cell.
        weights: (N, K), sums to 1 over the frames; a full bar is the largest weight of all. None: no bars.
        names: Names of the K rows; default: map 1, map 2, ...
        notes: Written over each frame.
        height: Height of each frame in pixels.
        width: Width of each frame in pixels.
    """
    maps = np.asarray(attention, np.float64)
    count = len(images)
    if count == 0 or maps.ndim != 4 or len(maps) != count:
        raise ValueError(
            f"draw_tracklet_attention: expected attention (N, K, h, w) of N={count} >= 1 frames, got {maps.shape}"
        )
    k = maps.shape[1]
    share = None if weights is None else np.asarray(weights, np.float64)
    if share is not None and share.shape != (count, k):
        raise ValueError(f"draw_tracklet_attention: expected weights (N, K) = ({count}, {k}), got {share.shape}")
    names = [f"map {i + 1}" for i in range(k)] if names is None else names
    if len(names) != k:
        raise ValueError(f"draw_tracklet_attention: expected {k} names, got {len(names)}")
    font = ImageFont.load_default()
    top = 14 if notes is not None else GAP
    row = height + GAP + (0 if share is None else BAR + GAP)
    sheet = Image.new("RGB", (LEFT + count * (width + GAP), top + height + GAP + k * row), "white")
    draw = ImageDraw.Draw(sheet)
    small = [image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR) for image in images]
    highest = 1.0 if share is None else max(float(share.max()), 1e-12)
    for n, image in enumerate(small):
        left = LEFT + n * (width + GAP)
        if notes is not None:
            draw.text((left, 1), notes[n], fill=(60, 60, 60), font=font)
        sheet.paste(image, (left, top))
        picture = np.asarray(image, np.float32)
        for i in range(k):
            colour, y = COLOURS[i % len(COLOURS)], top + height + GAP + i * row
            sheet.paste(_overlay(picture, maps[n, i], colour), (left, y))
            if share is not None:
                y += height + 2
                draw.rectangle((left, y, left + width - 1, y + BAR - 1), fill=(236, 236, 236))
                long = round(float(share[n, i]) / highest * width)
                if long:
                    draw.rectangle((left, y, left + long - 1, y + BAR - 1), fill=colour)
    for i, name in enumerate(names):
        draw.text((GAP, top + height + GAP + i * row + height // 2), name, fill=COLOURS[i % len(COLOURS)], font=font)
    return sheet


def stack_pictures(pictures: Sequence[Image.Image], *, gap: int = 10) -> Image.Image:
    """Pictures below each other, on white."""
    if not pictures:
        raise ValueError("stack_pictures: expected at least one picture, got none")
    heights = [picture.height for picture in pictures]
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(heights) + gap * (len(pictures) - 1)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def explain_tracklet(
    model: Any,
    tracklet: Any,
    records: Any,
    *,
    frames: int = 6,
    size: tuple[int, int] = (256, 128),
    filter: str = "bilinear",
    height: int = 128,
    width: int = 64,
) -> Image.Image:
    """`draw_tracklet_attention` of a tracklet: frames chosen as at test, what the model sees in them.

    Args:
        model: A `reidfast.models.DRSTA`.
        tracklet: A row of `reidfast.data.Tracklets`.
        records: Its table of frames. A column `visible` (synthetic walks) is written over the frames.
        frames: One of each of so many chunks.
        size: (height, width) of the model's input.
        filter: Resize filter.
        height: Height of each frame in the picture in pixels.
        width: Width of each frame in the picture in pixels.
    """
    import torch

    from reidfast.data.clips import chunk_frames
    from reidfast.data.images import EvalTransform, decode

    rows = tracklet.rows[chunk_frames(len(tracklet.rows), frames)]
    images = [decode(records.absolute(int(row))) for row in rows]
    transform, training = EvalTransform(*size, filter), model.training
    model.eval()
    try:
        with torch.inference_mode():
            seen = model.explain(model.maps(torch.stack([transform(image) for image in images]).unsqueeze(0)))
    finally:
        model.train(training)
    notes = None
    if "visible" in records.extra:
        notes = [f"{100 * float(records.extra['visible'][row]):.0f} % seen" for row in rows]
    return draw_tracklet_attention(
        images, seen.attention[0].numpy(), seen.weights[0].numpy(), notes=notes, height=height, width=width
    )
