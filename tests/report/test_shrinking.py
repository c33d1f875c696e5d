# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Pictures of a person search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reidfast.data import load_search
from reidfast.data.proposals import create_proposals
from reidfast.engine.person_search import PersonSearcher, Sizing
from reidfast.models import create_model
from reidfast.report.shrinking import Search, animate, draw_steps, frames, heat, trace_search


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    data = load_search(
        "synthetic_scenes",
        tmp_path_factory.mktemp("scenes") / "a",
        ids=6,
        cameras=2,
        train=2,
        gallery=6,
        people=2,
        height=96,
        width=128,
    )
    torch.manual_seed(0)
    model = create_model("npsm", backbone="osnet_x0_25", grid=6, hidden=8, size=(4, 2), embedding=8).eval()
    made = PersonSearcher(model, data.gallery, create_proposals("objectness", count=20), Sizing(0, 0, 1.0))
    return data, made


def test_a_traced_search_is_the_search(searcher):
    data, made = searcher
    found, _ = made.search(data.queries)
    for k in (0, len(found.images) // 2):
        q, image = int(found.queries[k]), int(found.images[k])
        search = trace_search(made, data.queries, q, image)
        np.testing.assert_allclose(search.box, found.boxes[k])
        assert search.similarity == pytest.approx(float(found.similarities[k]), abs=1e-5)
        assert len(search.regions) == len(search.attention) + 1
        assert search.regions[0].tolist() == [0, 0, 128, 96]
        shown = data.queries.pids[q] in data.gallery.people(image).values
        assert (search.truth is not None) == shown


def test_pictures(searcher, tmp_path):
    data, made = searcher
    one = trace_search(made, data.queries, 0, (int(data.queries.images[0]) + 1) % 6)
    pictures = frames(one)
    assert len(pictures) == len(one.attention) + 1 and all(p.size == (128, 96) for p in pictures)
    x, y = (int(v) for v in one.regions[1][:2])
    assert pictures[0].getpixel((min(x, 127), min(y, 95))) == (255, 214, 10)  # the outline of the next region
    sheet = draw_steps([one, one])
    assert sheet.height == 2 * draw_steps([one]).height
    path = tmp_path / "search.gif"
    animate([one], path, width=200)
    with Image.open(path) as gif:
        assert gif.n_frames >= len(pictures) and gif.width > 200  # the scene and the query beside it
        gif.seek(gif.n_frames - 1)
        colours = {c for _, c in gif.convert("RGB").getcolors(100_000)}
        assert (52, 199, 89) in colours  # the outline of what was found
    assert path.stat().st_size < 300_000
    with pytest.raises(ValueError, match="at least one search"):
        animate([], path)


def test_heat_is_where_the_attention_is():
    scene = Image.new("RGB", (80, 60), (100, 100, 100))
    attention = np.zeros((4, 4))
    attention[1, 2] = 1.0
    out = np.asarray(heat(scene, np.array([40.0, 20.0, 80.0, 60.0]), attention)).astype(int)
    assert out[35, 65, 0] > out[35, 65, 2] + 80  # the middle of cell (1, 2) is red
    assert (out[5, 5] == 35).all() and (out[58, 42] <= 85).all()  # darker outside of the region


def test_needs_an_attention(searcher):
    data, _ = searcher
    plain = create_model("two_stage", backbone="osnet_x0_25", size=(4, 2), embedding=8)
    other = PersonSearcher(plain, data.gallery, create_proposals("oracle"), Sizing(0, 0, 1.0))
    with pytest.raises(TypeError, match="no attention"):
        trace_search(other, data.queries, 0, 1)


def test_a_search_that_never_began():
    picture = Image.new("RGB", (40, 30))
    box = np.array([0.0, 0, 40, 30])
    search = Search(picture, picture, box[None], [], box, 0.0, None)
    assert len(frames(search)) == 1
