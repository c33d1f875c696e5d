# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Ranked lists as one picture: the query in blue, right answers in green, wrong ones in red."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from reidfast.data import decode
from reidfast.engine.features import FeatureFile

from .rankings import RankedList

__all__ = ["draw_ranked_lists"]

QUERY, RIGHT, WRONG = (40, 90, 200), (30, 150, 60), (205, 50, 45)
FRAME, GAP, TEXT = 4, 6, 14


def draw_ranked_lists(
    file: FeatureFile, lists: Sequence[RankedList], roots: Mapping[str, Path], *, height: int = 128, width: int = 64
) -> Image.Image:
    """A row of pictures a query, the nearest gallery image next to it, the distance under each.

    Args:
        file: With query and gallery, and their paths.
        lists: From `rank_queries`.
        roots: The folders of the images, "query" and "gallery".
        height: Height of each picture in pixels.
        width: Width of each picture in pixels.
    """
    longest = max((len(found.rows) for found in lists), default=0)
    cell_w, cell_h = width + 2 * FRAME + GAP, height + 2 * FRAME + GAP + TEXT
    sheet = Image.new("RGB", (GAP + cell_w * (longest + 1) + 2 * GAP, GAP + cell_h * max(len(lists), 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()

    def put(path: Path, left: int, top: int, color: tuple[int, int, int], text: str) -> None:
        picture = decode(path).resize((width, height), Image.Resampling.BILINEAR)
        draw.rectangle((left, top, left + width + 2 * FRAME - 1, top + height + 2 * FRAME - 1), fill=color)
        sheet.paste(picture, (left + FRAME, top + FRAME))
        draw.text((left + FRAME, top + height + 2 * FRAME), text, fill=color, font=font)

    for i, found in enumerate(lists):
        top = GAP + i * cell_h
        query = file.query
        text = f"id {query.pids[found.query]} c{query.camids[found.query]}"
        put(roots["query"] / query.paths[found.query], GAP, top, QUERY, text)
        for j, (row, distance, match) in enumerate(zip(found.rows, found.distances, found.matches, strict=True)):
            path = roots["gallery"] / file.gallery.paths[row]
            put(path, GAP + cell_w * (j + 1) + 2 * GAP, top, RIGHT if match else WRONG, f"{distance:.3f}")
    return sheet
