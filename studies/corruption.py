# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Spoilt frames: hidden behind another person, blurred, or cut out in the wrong place."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

KINDS = ("occlusion", "blur", "crop")


def generator(row: int, kind: str, variant: int) -> np.random.Generator:
    """What spoils image `row` in that way depends on nothing else."""
    key = np.array([0x0A11, KINDS.index(kind)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, row, variant, 0], np.uint64)))


def occlude(image: Image.Image, other: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The person of `other` (the middle of that crop, without its background's edges) stands before the left or right.

    The silhouette is a head over a body, with a soft edge, so that no straight line gives it away; it covers 40 to 75 %
    of the width.
    """
    w, h = image.size
    other = other.resize((w, h), Image.Resampling.BILINEAR)
    grow, side = rng.uniform(1.0, 1.25), 1 if rng.random() < 0.5 else -1
    wide, tall = round(w * grow), round(h * grow)
    other = other.resize((wide, tall), Image.Resampling.BILINEAR)
    centre = w / 2 + side * w * rng.uniform(0.02, 0.3)
    top = h * rng.uniform(0.0, 0.15)
    y, x = np.mgrid[0:tall, 0:wide].astype(np.float32)
    v, u = y / tall, np.abs(x / wide - 0.5)
    head = ((v - 0.12) / 0.11) ** 2 + (u / 0.14) ** 2 < 1
    half = np.interp(v, [0.17, 0.24, 0.5, 0.8, 1.0], [0.12, 0.27, 0.29, 0.22, 0.19])
    body = (v > 0.17) & (u < half)
    mask = Image.fromarray(((head | body) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.02 * w))
    out = image.copy()
    out.paste(other, (round(centre - wide / 2), round(top)), mask)
    return out


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus: a Gaussian of 2 to 4 pixels at height 128."""
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(2.0, 4.0) * image.size[1] / 128))


def miscrop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The box was in the wrong place: a window of 40 to 65 % of each side, near a corner, stretched to the size."""
    w, h = image.size
    ww, hh = w * rng.uniform(0.4, 0.65), h * rng.uniform(0.4, 0.65)
    x = (w - ww) * (rng.uniform(0, 0.25) if rng.random() < 0.5 else rng.uniform(0.75, 1))
    y = (h - hh) * (rng.uniform(0, 0.25) if rng.random() < 0.5 else rng.uniform(0.75, 1))
    return image.resize((w, h), Image.Resampling.BILINEAR, box=(x, y, x + ww, y + hh))


def spoil(image: Image.Image, kind: str, row: int, variant: int, other: Image.Image) -> Image.Image:
    """Image `row` spoilt in one of the `KINDS`."""
    rng = generator(row, kind, variant)
    if kind == "occlusion":
        return occlude(image, other, rng)
    return blur(image, rng) if kind == "blur" else miscrop(image, rng)
