# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Frames of tracklets with what is said of each: quality, weight, visibility."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["TrackletRow", "describe_tracklets", "draw_tracklets"]

COLOURS = ((30, 120, 180), (220, 120, 20), (40, 150, 70), (160, 60, 150))
GAP, BAR, TEXT = 5, 11, 13


class TrackletRow:
    """One row of the figure.

    Args:
        images: The frames.
        values: Values of each frame, by name, drawn as bars in this order.
        title: Over the row.
        full: What fills a bar, by name; default: 1 for values within 0..1, else the largest.
    """

    def __init__(
        self,
        images: Sequence[Image.Image],
        values: Mapping[str, Sequence[float] | NDArray[Any]],
        title: str = "",
        full: Mapping[str, float] | None = None,
    ) -> None:
        self.images, self.title = list(images), title
        self.values = {name: [float(v) for v in column] for name, column in values.items()}
        self.full = dict(full or {})
        for name, column in self.values.items():
            if len(column) != len(self.images):
                raise ValueError(f"TrackletRow: expected {len(self.images)} values of {name!r}, got {len(column)}")
            self.full.setdefault(name, max(1.0, *column) if column else 1.0)


def draw_tracklets(rows: Sequence[TrackletRow], *, height: int = 128, width: int = 64) -> Image.Image:
    """One picture: a row a tracklet, under each frame a bar and a number for each of its values.

    Args:
        rows: The tracklets.
        height: Height of each frame in pixels.
        width: Width of each frame in pixels.
    """
    if not rows or not any(row.images for row in rows):
        raise ValueError("draw_tracklets: expected at least one row with a frame, got none")
    font = ImageFont.load_default()
    heights = [height + GAP + (TEXT if r.title else 0) + (BAR + 2) * len(r.values) for r in rows]
    columns = max(len(row.images) for row in rows)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    legend = TEXT + GAP if names else 0
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + sum(heights) + GAP * len(rows) + legend), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, tall in zip(rows, heights, strict=True):
        at = top
        if row.title:
            draw.text((GAP, at), row.title, fill=(30, 30, 30), font=font)
            at += TEXT
        for i, image in enumerate(row.images):
            left = GAP + i * (width + GAP)
            sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), (left, at))
            for k, (name, column) in enumerate(row.values.items()):
                y = at + height + 2 + k * (BAR + 2)
                share = min(1.0, max(0.0, column[i] / row.full[name])) if row.full[name] > 0 else 0.0
                colour = COLOURS[names.index(name) % len(COLOURS)]
                draw.rectangle((left, y, left + width - 1, y + BAR - 1), fill=(236, 236, 236))
                if share > 0:
                    draw.rectangle((left, y, left + max(1, round(share * width)) - 1, y + BAR - 1), fill=colour)
                draw.text((left + 2, y - 1), f"{column[i]:.2f}", fill=(0, 0, 0), font=font)
        top += tall + GAP
    left = GAP
    for k, name in enumerate(names):
        draw.rectangle((left, top + 2, left + 9, top + 11), fill=COLOURS[k % len(COLOURS)])
        draw.text((left + 13, top), name, fill=(30, 30, 30), font=font)
        left += 24 + round(draw.textlength(name, font=font))
    return sheet


def describe_tracklets(
    model: Any,
    tracklets: Any,
    *,
    frames: int = 12,
    size: tuple[int, int] = (256, 128),
    filter: str = "bilinear",
    transform: Any = None,
    decode: Any = None,
) -> list[TrackletRow]:
    """Rows of a figure: up to `frames` frames of each tracklet, spread evenly, and what the model says of them.

    Args:
        model: A `reidfast.models.QAN`; it sees the whole tracklet, and the mean over its parts is drawn. None: only
            what is known.
        tracklets: `reidfast.data.Tracklets`. A column `quality` of its frames (synthetic walks) is drawn as "known".
        frames: Drawn of each tracklet.
        size: (height, width) of the input.
        filter: Resize filter.
        transform: In place of resizing and normalising by ImageNet's statistics.
        decode: From (records, row) to a picture; default: read the file.
    """
    import torch

    from reidfast.data.clips import all_frames
    from reidfast.data.images import EvalTransform
    from reidfast.data.images import decode as decode_file
    from reidfast.nn.quality import quality_weights

    transform = transform or EvalTransform(*size, filter)
    records, rows = tracklets.frames, []
    for tracklet in tracklets:
        pictures = [
            decode_file(records.absolute(r)) if decode is None else decode(records, r) for r in tracklet.rows.tolist()
        ]
        shown = all_frames(len(pictures), frames)
        values: dict[str, NDArray[Any]] = {}
        if model is not None:
            training = model.training
            model.eval()
            with torch.inference_mode():
                chunks = [pictures[k : k + 64] for k in range(0, len(pictures), 64)]
                scores = torch.cat([model.encode_frames(torch.stack([transform(p) for p in c]))[1] for c in chunks])
            model.train(training)
            weight = quality_weights(scores, torch.tensor([0, len(pictures)]))
            values["quality"] = scores.sigmoid().mean(1).numpy()[shown]
            values["weight x frames"] = weight.mean(1).numpy()[shown] * len(pictures)
        if "quality" in records.extra:
            values["known"] = np.asarray(records.extra["quality"])[tracklet.rows[shown]]
        title = f"person {tracklet.pid}, camera {tracklet.camid}, {len(pictures)} frames"
        rows.append(TrackletRow([pictures[i] for i in shown], values, title))
    if rows and "weight x frames" in rows[0].values:
        most = max(max(r.values["weight x frames"]) for r in rows)
        for r in rows:
            r.full["weight x frames"] = most
    return rows
