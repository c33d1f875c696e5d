# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""How a person search goes: the regions and the attention of every step, drawn on the scene."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reidfast._files import write_whole
from reidfast.engine.person_search import PersonSearcher
from reidfast.models.npsm import NPSM
from reidfast.nn.region_shrinkage import path_to

__all__ = ["Search", "animate", "draw_steps", "trace_search"]

Floats = NDArray[np.float64]
REGION, FOUND, TRUE = (255, 214, 10), (52, 199, 89), (255, 255, 255)
MARKS = (REGION, FOUND, TRUE, (255, 120, 0), (255, 60, 0), (200, 30, 10), (230, 170, 40), (140, 20, 10))
GAP = 6


class Search(NamedTuple):
    """One query in one image, in the image's own pixels.

    Attributes:
        scene: The picture.
        query: The query's crop.
        regions: (t+1, 4): R_0 ... R_t.
        attention: Attention of every step, (K, K) over the region before it.
        box: Where the search ended.
        similarity: Cosine of the box and the query.
        truth: Where the person is, or None.
    """

    scene: Image.Image
    query: Image.Image
    regions: Floats
    attention: list[Floats]
    box: Floats
    similarity: float
    truth: Floats | None


@torch.inference_mode()
def trace_search(searcher: PersonSearcher, queries: Any, row: int, image: int) -> Search:
    """Runs the search of query `row` in gallery image `image` and keeps what it saw.

    Args:
        searcher: Model, gallery and proposals.
        queries: A set's `Queries`.
        row: Which of them.
        image: Number of the gallery image.
    """
    model = searcher.model
    if not isinstance(model, NPSM):
        raise TypeError(f"trace_search: expected an NPSM, got {type(model).__name__}, which has no attention")
    one, training = queries.select([row]), model.training
    state = searcher.query_states(one)
    model.eval()
    try:
        maps, tree, factor = searcher.maps([image]), searcher.tree(image), searcher.maps.size(image)[2]
        zero = np.zeros(1, np.int64)
        trace = model.search(maps, [tree], state, zero, zero)
        box, likeness = searcher.finish(maps, [tree], trace, state.embedding, zero, zero)
    finally:
        model.train(training)
    x1, y1, x2, y2 = one.boxes[0]
    crop = searcher.scenes.image(int(one.images[0])).crop((int(x1), int(y1), int(x2) + 1, int(y2) + 1))
    boxes, people = searcher.scenes.people(image)
    there = np.flatnonzero(people == one.pids[0])
    return Search(
        searcher.scenes.image(image),
        crop,
        np.stack([tree.regions[n].box for n in path_to(tree, int(trace.regions[0]))]) / factor,
        [step.attention[0].double().cpu().numpy() for step in trace.steps],
        box[0] / factor,
        float(likeness[0]),
        boxes[there[0]] if len(there) else None,
    )


def heat(scene: Image.Image, region: Floats, attention: Floats, strength: float = 0.75) -> Image.Image:
    """The scene, darker outside of the region, with the attention over the region in red and yellow."""
    width, height = scene.size
    x1, y1, x2, y2 = (int(round(v)) for v in region)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    level = np.asarray(attention / max(float(attention.max()), 1e-12), np.float32)
    over = np.zeros((height, width), np.float32)
    patch = Image.fromarray(level).resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC)
    over[y1:y2, x1:x2] = np.clip(np.asarray(patch), 0, 1)[: height - y1, : width - x1]
    pixels = np.asarray(scene, np.float32)
    shade = np.full((height, width, 1), 0.35, np.float32)
    shade[y1:y2, x1:x2] = 0.8
    colour = np.stack([np.full_like(over, 255), 255 * np.clip(2 * over - 0.8, 0, 1), np.zeros_like(over)], 2)
    blend = strength * over[..., None]
    return Image.fromarray(np.clip(pixels * shade * (1 - blend) + colour * blend, 0, 255).astype(np.uint8))


def _smaller(search: Search, width: int) -> Search:
    """The same search, drawn `width` pixels wide."""
    factor = width / search.scene.width
    scene = search.scene.resize((width, round(search.scene.height * factor)), Image.Resampling.LANCZOS)
    truth = None if search.truth is None else search.truth * factor
    return search._replace(scene=scene, regions=search.regions * factor, box=search.box * factor, truth=truth)


def _outline(image: Image.Image, box: Floats, colour: tuple[int, int, int], width: int = 2) -> None:
    ImageDraw.Draw(image).rectangle([float(v) for v in box], outline=colour, width=width)


def frames(search: Search) -> list[Image.Image]:
    """A picture for each step: the attention over R_{t-1} and the outline of R_t; then the box found."""
    out = []
    for t, attention in enumerate(search.attention):
        picture = heat(search.scene, search.regions[t], attention)
        _outline(picture, search.regions[t + 1], REGION)
        out.append(picture)
    last = search.scene.copy()
    if search.truth is not None:
        _outline(last, search.truth, TRUE, 1)
    _outline(last, search.box, FOUND, 3)
    return [*out, last]


def _beside(query: Image.Image, picture: Image.Image) -> Image.Image:
    height = picture.height
    tall = min(height - 2 * GAP, round(0.6 * height))
    wide = max(1, round(query.width * tall / query.height))
    sheet = Image.new("RGB", (picture.width + wide + 3 * GAP, height + 2 * GAP), "white")
    sheet.paste(query.resize((wide, tall), Image.Resampling.LANCZOS), (GAP, GAP))
    sheet.paste(picture, (wide + 2 * GAP, GAP))
    return sheet


def draw_steps(searches: Sequence[Search]) -> Image.Image:
    """One search a row: the query, the attention and region of each step, and the box found."""
    rows = []
    for search in searches:
        pictures = frames(search)
        strip = Image.new("RGB", (sum(p.width + GAP for p in pictures) - GAP, search.scene.height), "white")
        left = 0
        for picture in pictures:
            strip.paste(picture, (left, 0))
            left += picture.width + GAP
        rows.append(_beside(search.query, strip))
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def animate(
    searches: Sequence[Search],
    path: str | os.PathLike[str],
    *,
    seconds: float = 0.9,
    width: int | None = None,
    colors: int = 64,
) -> None:
    """Writes a GIF: each search in turn, a frame a step, the box found twice as long.

    Args:
        searches: What to show.
        path: The file; it appears whole.
        seconds: Seconds that a frame is shown.
        width: Width of the scenes in pixels; None: their own.
        colors: Colours of the palette: fewer make a smaller file.
    """
    if not searches:
        raise ValueError("animate: expected at least one search, got none")
    pictures, times = [], []
    for search in searches:
        small = search if width is None else _smaller(search, width)
        made = [_beside(small.query, small.scene), *(_beside(small.query, f) for f in frames(small))]
        pictures += made
        times += [int(1000 * seconds)] * (len(made) - 1) + [int(2000 * seconds)]
    size = (max(p.width for p in pictures), max(p.height for p in pictures))
    sheets = []
    for drawn in pictures:
        sheet = Image.new("RGB", size, "white")
        sheet.paste(drawn, (0, 0))
        # a few pixels of outline must not lose their colours to the scene's: they get places in the palette
        few = sheet.quantize(max(2, colors - len(MARKS)), dither=Image.Dither.NONE)
        palette = (few.getpalette() or [])[: 3 * max(2, colors - len(MARKS))]
        table = Image.new("P", (1, 1))
        table.putpalette(palette + [value for colour in MARKS for value in colour])
        sheets.append(sheet.quantize(palette=table, dither=Image.Dither.NONE))
    with write_whole(path) as stream:
        sheets[0].save(
            stream, "GIF", save_all=True, append_images=sheets[1:], duration=times, loop=0, optimize=True, disposal=1
        )
