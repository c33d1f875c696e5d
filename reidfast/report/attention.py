# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Attention of several networks on pairs of pictures, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_attention", "overlay"]

GAP, TEXT = 6, 14


def overlay(picture: ArrayLike, attention: ArrayLike, strength: float = 0.6) -> NDArray[np.uint8]:
    """Heat over a grey picture: nothing where the attention is least, red in the middle, yellow where it is largest.

    Args:
        picture: uint8, (H, W, 3).
        attention: (h, w), any scale; stretched to the picture bilinearly. A constant map leaves the picture plain.
        strength: Opacity of the largest attention.
    """
    image, heat = np.asarray(picture, np.float32), np.asarray(attention, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or heat.ndim != 2:
        raise ValueError(f"overlay: expected a picture (H, W, 3) and attention (h, w), got {image.shape}, {heat.shape}")
    size = float(heat.max() - heat.min())
    heat = (heat - heat.min()) / size if size > 0 else np.zeros_like(heat)
    large = Image.fromarray(heat).resize((image.shape[1], image.shape[0]), Image.Resampling.BILINEAR)
    level = np.asarray(large, np.float32)[..., None]
    colour = np.concatenate([np.full_like(level, 255), 255 * np.clip(2 * level - 1, 0, 1), np.zeros_like(level)], 2)
    grey = np.repeat(image @ np.array([0.299, 0.587, 0.114], np.float32)[:, None], 3, axis=2)
    opacity = strength * np.clip(2 * level, 0, 1)
    return np.clip((1 - opacity) * grey + opacity * colour + 0.5, 0, 255).astype(np.uint8)


def draw_attention(
    pictures: Sequence[Any], attention: Mapping[str, ArrayLike], *, height: int = 128, width: int = 64
) -> Image.Image:
    """A row for each pair: the two pictures, then the two under the attention of each network.

    Args:
        pictures: uint8 (H, W, 3), those of a pair one after the other.
        attention: Heading -> a map (h, w) for each picture, (N, h, w).
        height: Height of each picture in the sheet in pixels.
        width: Width of each picture in the sheet in pixels.
    """
    maps = {name: np.asarray(values) for name, values in attention.items()}
    if len(pictures) % 2 or any(len(m) != len(pictures) for m in maps.values()):
        found = {name: len(m) for name, m in maps.items()}
        raise ValueError(f"draw_attention: expected pairs and a map for each picture, got {len(pictures)} and {found}")
    rows, columns = len(pictures) // 2, 1 + len(maps)
    cell = 2 * width + GAP
    sheet = Image.new("RGB", (GAP + columns * cell, TEXT + GAP + rows * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, heading in enumerate(["", *maps]):
        draw.text((GAP + column * cell, 2), heading, fill=(60, 60, 60), font=font)
        for i, picture in enumerate(pictures):
            shown = np.asarray(picture) if column == 0 else overlay(picture, maps[heading][i])
            image = Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(image, (GAP + column * cell + i % 2 * width, TEXT + GAP + i // 2 * (height + GAP)))
    return sheet
