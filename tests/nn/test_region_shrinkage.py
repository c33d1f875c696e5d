# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Nested regions: the published vector, the rules, and what holds for all proposals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidfast.losses.region_shrinkage import RegionShrinkageLoss, attention_target
from reidfast.nn import RegionTree
from reidfast.nn.region_shrinkage import (
    area,
    attention_mass,
    best_child,
    cells_inside,
    coverage,
    k_means,
    path_to,
    score_regions,
    to_cells,
)


def published_attention():
    """Softmax over 16 cells of sin(0.9 n + 0.2)."""
    return torch.sin(0.9 * torch.arange(16, dtype=torch.float64) + 0.2).softmax(0).view(1, 4, 4)


def test_published_vector():
    a = published_attention()
    row = torch.tensor([0.05689050, 0.11371172, 0.11578749, 0.05924660], dtype=torch.float64)
    torch.testing.assert_close(a[0, 0], row, rtol=0, atol=5e-9)
    image = torch.tensor([[0.0, 0.0, 400.0, 400.0]], dtype=torch.float64)
    boxes = torch.tensor([[100.0, 0, 400, 200], [0, 200, 200, 400]], dtype=torch.float64)  # rows 0-1, cols 1-3 ...
    scores = score_regions(a, image, boxes, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(scores, torch.tensor([0.06475797, 0.06795695], dtype=torch.float64), rtol=0, atol=5e-9)
    assert best_child(scores, boxes, [0, 0], 1).tolist() == [1]


boxes_strategy = st.lists(
    st.tuples(st.floats(-20, 220), st.floats(-20, 120), st.floats(0, 90), st.floats(0, 90)), min_size=0, max_size=40
)


@given(boxes_strategy, st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_regions_are_always_nested(rows, clusters, steps, random):
    proposals = np.array([[x, y, x + w, y + h] for x, y, w, h in rows]).reshape(-1, 4)
    tree = RegionTree(proposals, 200, 100, clusters=clusters, steps=steps)
    number, walked = 0, 0
    while children := tree.children(number):
        parent = tree.regions[number]
        assert len(children) <= clusters and parent.depth < steps
        for child in children:
            box = tree.regions[child].box
            assert (box[:2] >= parent.box[:2]).all() and (box[2:] <= parent.box[2:]).all()
            assert (box[2:] >= box[:2]).all()
            inside = tree.regions[child].proposals
            centres = tree.centres[inside]
            assert ((centres >= box[:2]) & (centres <= box[2:])).all()
            assert tree.regions[child].depth == parent.depth + 1 and tree.regions[child].parent == number
        # every proposal of the parent is in a child
        assert set(parent.proposals) <= set().union(*(set(tree.regions[c].proposals) for c in children))
        number, walked = random.choice(children), walked + 1
    assert walked <= steps and path_to(tree, number)[0] == 0
    again = RegionTree(proposals, 200, 100, clusters=clusters, steps=steps)
    assert again.children(0) == tree.children(0)
    for a, b in zip(again.regions[1:], tree.regions[1 : len(again.regions)], strict=True):
        np.testing.assert_array_equal(a.box, b.box)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60), st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_k_means(points, clusters):
    x = np.array(points, float)
    labels = k_means(x, clusters)
    used = np.unique(labels)
    assert (used == np.arange(len(used))).all() and len(used) <= min(clusters, len({*points}))
    same = {}
    for point, label in zip(points, labels, strict=True):
        assert same.setdefault(point, label) == label  # equal points are together
    assert (k_means(x, clusters) == labels).all()
    if len({*points}) >= clusters:
        within = sum(((x[labels == c] - x[labels == c].mean(0)) ** 2).sum() for c in used)
        assert within <= ((x - x.mean(0)) ** 2).sum() + 1e-9  # no worse than one cluster


def test_k_means_finds_blobs():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    x = np.repeat(centres, 10, 0) + rng.normal(0, 2, (40, 2))
    labels = k_means(x, 4)
    assert all(len(set(labels[10 * i : 10 * i + 10])) == 1 for i in range(4)) and len(set(labels)) == 4
    with pytest.raises(ValueError, match="clusters of at least 1"):
        k_means(x, 0)
    assert len(k_means(np.empty((0, 2)), 3)) == 0


def test_search_stops():
    one = RegionTree([[10, 10, 20, 40]], 100, 100, steps=5)
    (child,) = one.children(0)
    assert one.regions[child].box.tolist() == [10, 10, 20, 40] and one.children(child) == ()
    nothing = RegionTree(np.empty((0, 4)), 100, 100)
    assert nothing.children(0) == ()
    # all in one place: a single cluster of the same box, which cannot shrink
    same = RegionTree([[10, 10, 20, 40]] * 5, 100, 100, clusters=1, steps=9)
    first = same.children(0)[0]
    second = same.children(first)
    assert len(second) == 1 and same.children(second[0]) == ()


def test_ties_go_to_the_smaller_area_then_the_first():
    boxes = [[0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 9, 9]]
    assert best_child([0.5, 0.5, 0.5, 0.4], boxes, [0, 0, 0, 1], 3).tolist() == [1, 3, -1]
    assert best_child([], np.empty((0, 4)), [], 2).tolist() == [-1, -1]


def test_final_box_is_the_person_where_attention_is_uniform_on_it():
    """By the mean all boxes inside the person tie; mass over the root of the area peaks at the person."""
    a = torch.zeros(1, 20, 20, dtype=torch.float64)
    a[0, 5:15, 8:12] = 1 / 40
    image = torch.tensor([[0.0, 0.0, 200.0, 200.0]], dtype=torch.float64)
    person = torch.tensor([[80.0, 50.0, 120.0, 150.0]], dtype=torch.float64)
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.uniform(0, 150, (400, 2)))
    others = torch.cat([low, low + torch.from_numpy(rng.uniform(4, 120, (400, 2)))], 1)
    boxes = torch.cat([person, others])
    index = torch.zeros(len(boxes), dtype=torch.int64)
    mass = attention_mass(a, image, boxes, index)
    assert mass.argmax() == 0 and mass[0] == pytest.approx(1 / 4000**0.5)
    assert (mass[1:] < mass[0]).all()
    part = torch.tensor([[90.0, 70.0, 110.0, 130.0]], dtype=torch.float64)
    mean = score_regions(a, image, torch.cat([person, part]), index[:2])
    torch.testing.assert_close(mean[0], mean[1])


def test_attention_mass_is_the_integral():
    a = published_attention()
    region = torch.tensor([[10.0, 20.0, 50.0, 60.0]], dtype=torch.float64)
    box = torch.tensor([[15.0, 20.0, 30.0, 45.0]], dtype=torch.float64)  # columns 0.5-2, rows 0-2.5
    want = (a[0, :2, 0].sum() / 2 + a[0, :2, 1].sum() + a[0, 2, 0] / 4 + a[0, 2, 1] / 2) / (15 * 25) ** 0.5
    got = attention_mass(a, region, box, torch.tensor([0]))
    torch.testing.assert_close(got[0], want)
    whole = attention_mass(a, region, torch.tensor([[-99.0, -99.0, 999.0, 999.0]]).double(), torch.tensor([0]))
    torch.testing.assert_close(whole[0] * 1098, torch.tensor(1.0, dtype=torch.float64))


def test_cells_inside_agree_with_region_scores():
    rng = np.random.default_rng(1)
    boxes = torch.from_numpy(np.sort(rng.uniform(-2, 8, (200, 2, 2)), 1).reshape(200, 4)[:, [0, 1, 2, 3]])
    inside = cells_inside(boxes, (5, 6)).double()
    a = torch.rand(1, 5, 6, dtype=torch.float64)
    mean = (inside * a).sum((1, 2)) / inside.sum((1, 2))
    image = torch.tensor([[0.0, 0.0, 6.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(score_regions(a, image, boxes, torch.zeros(200, dtype=torch.int64)), mean)


def test_attention_target():
    region = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0, 0, 40, 40], [0, 0, 40, 40], [10, 10, 20, 20]])
    person = torch.tensor([[10.0, 0, 20, 40], [11, 12, 13, 14], [100, 100, 120, 120], [0, 0, 15, 40]])
    target = attention_target(person, region, (4, 4))
    torch.testing.assert_close(target.sum((1, 2)), torch.ones(4))
    assert target[0, :, 1].tolist() == [0.25] * 4
    assert target[1, 1, 1] == 1  # smaller than a cell
    assert target[2, 3, 3] == 1  # beyond the region: the nearest cell
    assert target[3, :, :2].flatten().tolist() == [0.125] * 8  # only the part inside the region


def test_loss_is_least_at_the_target():
    region = torch.tensor([[0.0, 0.0, 40.0, 40.0]]).double()
    person = torch.tensor([[10.0, 0, 20, 40]]).double()
    loss = RegionShrinkageLoss()
    best = torch.full((1, 4, 4), -40.0, dtype=torch.float64)
    best[0, :, 1] = 0
    assert loss(best, person, region) == pytest.approx(np.log(4))
    assert loss(torch.zeros(1, 4, 4).double(), person, region) == pytest.approx(np.log(16))
    logits = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    args = person.expand(3, 4), region.expand(3, 4)
    assert torch.autograd.gradcheck(lambda e: loss(e, *args), (logits,))
    weighted = loss(logits, *args, torch.tensor([1.0, 0.0, 0.0]).double())
    torch.testing.assert_close(weighted, loss(logits[:1], person, region))
    with pytest.raises(ValueError, match="expected logits"):
        loss(logits, person, region)


def test_small_helpers():
    assert area(np.array([0, 0, 2, 3])) == 6 and area(np.array([2, 0, 0, 3])) == 0
    np.testing.assert_allclose(coverage([[0, 0, 10, 10], [5, 5, 6, 6]], [0, 0, 20, 10]), [0.5, 0.005])
    cells = to_cells(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[10.0, 20.0, 50.0, 60.0]]), (8, 4))
    assert cells.tolist() == [[0, 0, 2, 8]]
