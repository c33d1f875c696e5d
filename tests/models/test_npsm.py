# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""NPSM and the region embedder: cutting backbones, the recursion against a loop over pairs, gradients through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reidfast import ops
from reidfast.losses import RegionShrinkageLoss
from reidfast.models import NPSM, Backbone, RegionEmbedder, create_model, list_models
from reidfast.models.npsm import coverage_chooser
from reidfast.models.split import backbone_units, default_cut, split_backbone
from reidfast.nn.region_shrinkage import best_child, coverage

TINY = {"backbone": "osnet_x0_25", "backbone_options": {"feature_size": None}}
OPTIONS = {"grid": 5, "hidden": 6, "steps": 3, "clusters": 3, "size": (4, 2), "embedding": 8}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "osnet_x0_25", "mobilenet_v2"])
def test_both_parts_make_the_whole(name):
    backbone = create_model(name).eval()
    images = torch.randn(1, 3, 64, 32)
    for cut in (None, backbone_units(backbone)[-3][0]):
        shallow, deep, channels, stride = split_backbone(backbone, cut)
        x = images
        for module in shallow:
            x = module(x)
        assert x.shape[1] == channels and x.shape[2] == 64 // stride
        for module in deep:
            x = module(x)
        assert torch.equal(x, backbone.forward_map(images))
    assert split_backbone(backbone)[3] == 16
    assert all(not m.training for m in backbone.modules())


def test_default_cuts():
    assert default_cut(create_model("resnet50")) == "layer3.2"  # after the third block, as the person-search network
    assert default_cut(create_model("resnet18")) == "layer3.1"
    with pytest.raises(ValueError, match=r"one of conv1, .*got 'layer9'"):
        split_backbone(create_model("resnet18"), "layer9")
    with pytest.raises(ValueError, match="not a chain"):
        split_backbone(create_model("color_stripes"))


def test_registered():
    assert {"npsm", "two_stage"} <= set(list_models())
    model = create_model("npsm", **TINY, **OPTIONS, num_classes=4)
    assert isinstance(model, NPSM) and model.classifier.out_features == 4
    assert type(create_model("two_stage", **TINY, embedding=None)) is RegionEmbedder
    for options, words in (
        ({"roi_op": "mean"}, "roi_op"),
        ({"freeze_norms": True}, "freeze_norms"),
        ({"query_form": "max"}, "query_form"),
        ({"final_box": "best"}, "final_box"),
        ({"steps": 0}, "steps"),
        ({"colour": 1}, "does not take"),
    ):
        with pytest.raises(ValueError, match=words):
            create_model("npsm", **TINY, **options)


def test_evaluation_mode_gives_embeddings():
    model = create_model("npsm", **TINY, **OPTIONS).eval()
    out = model(torch.randn(2, 3, 64, 48))
    assert out.shape == (2, 8) and torch.allclose(out.norm(dim=1), torch.ones(2))


def test_frozen_parts():
    images = torch.randn(2, 3, 64, 48)
    for freeze, shallow, deep in (("all", False, False), ("shallow", False, True), ("none", True, True)):
        model = create_model("two_stage", **TINY, freeze_norms=freeze).train()
        norms = [m for m in model.backbone.conv1.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.training == shallow for m in norms)
        norms = [m for m in model.backbone.conv5.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.training == deep for m in norms)
    model = create_model("two_stage", **TINY, train_shallow=False).train()
    assert not model.maps(images).features.requires_grad
    assert not any(p.requires_grad for p in model.backbone.conv1.parameters())
    assert all(p.requires_grad for p in model.backbone.conv5.parameters())
    heads = {id(p) for p in model.head_parameters()}
    assert heads == {id(p) for p in model.embed_layer.parameters()}


class Blur(Backbone):
    """A backbone small enough for gradcheck, smooth everywhere."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 3, 4, 1), nn.Conv2d(2, 3, 3, 1, 1)
        self.out_channels = self.feature_size = 3
        self.stride = 4


@pytest.fixture
def tiny(monkeypatch):
    """NPSM in float64 on `Blur`, two images with proposals, three queries."""
    import reidfast.models.split as split

    units = lambda b: [("first", b.first), ("act", nn.Tanh()), ("second", b.second)]  # noqa: E731
    monkeypatch.setattr(split, "backbone_units", units)

    def make(**options):
        torch.manual_seed(0)
        base = {"cut": "act", "grid": 3, "hidden": 2, "steps": 2, "clusters": 2, "size": (2, 2), "embedding": 3}
        with torch.random.fork_rng():
            model = NPSM(Blur(), **{**base, **options})
        model = model.double()
        images = torch.randn(2, 3, 24, 32, dtype=torch.float64)
        rng = np.random.default_rng(0)
        low = rng.uniform(0, 20, (2, 7, 2)) * [1.2, 0.8]
        proposals = np.concatenate([low, low + rng.uniform(3, 8, (2, 7, 2))], 2)
        trees = [model.tree(p, 32, 24) for p in proposals]
        boxes = torch.tensor([[2.0, 3, 12, 20], [8, 1, 20, 22], [0, 0, 32, 24]], dtype=torch.float64)
        return model, images, trees, boxes, torch.tensor([0, 1, 1])

    return make


VARIANTS = [
    {},
    {"query_form": "mean"},
    {"correlation": True},
    {"peephole": True, "query_in_candidate": False},
    {"roi_op": "max"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_many_pairs_equal_one_at_a_time(tiny, options):
    model, images, trees, boxes, where = tiny(**options)
    if model.cell.peephole is not None:
        nn.init.normal_(model.cell.peephole)
    maps = model.maps(images)
    state = model.queries(maps, boxes, where)
    which, who = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 2, 1])
    together = model.search(maps, trees, state, which, who)
    for p, (i, q) in enumerate(zip(which, who, strict=True)):
        alone = model.search(maps, trees, state, np.array([i]), np.array([q]))
        assert alone.regions[0] == together.regions[p]
        torch.testing.assert_close(alone.attention[0], together.attention[p])
        for step, many in zip(alone.steps, together.steps, strict=False):
            at = int(np.flatnonzero(many.rows == p)[0])
            torch.testing.assert_close(step.logits[0], many.logits[at])
            torch.testing.assert_close(step.regions[0], many.regions[at])


def test_search_follows_the_rules_step_by_step(tiny):
    """The recursion written as one reads it in the paper, for one pair."""
    model, images, trees, boxes, where = tiny(steps=3)
    maps = model.maps(images)
    state = model.queries(maps, boxes, where)
    tree, q = trees[0], 1
    node, h_c = 0, None
    for _ in range(3):
        children = tree.children(node)
        if not children:
            break
        region = torch.tensor(tree.regions[node].box)[None]
        x = model._regions(maps, region, torch.tensor([0]))
        h_c = model.cell.step(model.cell.input_gates(x), state.gates[q : q + 1], h_c)
        logits = model.attention(h_c[0])[0, 0]
        attention = logits.flatten().softmax(0).view(3, 3)
        extent = region[0, 2:] - region[0, :2]
        scores = []
        for child in children:
            box = torch.tensor(tree.regions[child].box)
            cells = (torch.cat([box[:2] - region[0, :2], box[2:] - region[0, :2]]) / extent.repeat(2) * 3)[None]
            scores.append(ops.region_scores(attention[None], cells, torch.tensor([0])).item())
        node = children[int(np.argmax(scores))]
    trace = model.search(maps, trees, state, np.array([0]), np.array([q]))
    assert trace.regions[0] == node
    torch.testing.assert_close(trace.attention[0], attention)
    np.testing.assert_array_equal(trace.boxes[0], tree.regions[node].box)
    final, number = model.boxes_by_attention(trace, trees, np.array([0]))
    inside = tree.regions[node].proposals
    assert number[0] in inside and (final[0] == tree.proposals[number[0]]).all()


@pytest.mark.parametrize("options", VARIANTS[:4], ids=str)
def test_gradients_through_the_recursion(tiny, options):
    model, images, trees, boxes, where = tiny(**options)
    which, who = np.array([0, 1]), np.array([1, 0])
    person = torch.tensor([[10.0, 5, 18, 20], [3, 3, 9, 15]], dtype=torch.float64)
    loss = RegionShrinkageLoss()
    choose = coverage_chooser(person.numpy(), np.zeros(2, bool))  # fixed regions: the loss is smooth

    def total(images, *_):
        maps = model.maps(images)
        trace = model.search(maps, trees, model.queries(maps, boxes, where), which, who, choose)
        return sum(loss(s.logits, person[torch.from_numpy(s.rows)], s.regions) for s in trace.steps)

    learned = [p for n, p in model.named_parameters() if n.split(".")[0] in ("reduce", "cell", "attention", "match")]
    assert torch.autograd.gradcheck(total, (images, *learned), fast_mode=True)
    images.requires_grad_()
    total(images).backward()
    assert images.grad.abs().sum() > 0
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        if part in ("reduce", "cell", "match") or name == "attention.weight":
            assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_teacher_forcing(tiny):
    model, images, trees, boxes, where = tiny(steps=3, clusters=3)
    maps = model.maps(images)
    state = model.queries(maps, boxes, where)
    person = np.array([[10.0, 5, 18, 20], [3, 3, 9, 15], [20, 2, 30, 20]])
    which, who = np.array([0, 1, 0]), np.array([0, 1, 2])
    forced = model.search(maps, trees, state, which, who, coverage_chooser(person, np.zeros(3, bool)))
    for p in range(3):
        tree, node = trees[which[p]], 0
        while children := tree.children(node):
            shares = coverage(np.stack([tree.regions[c].box for c in children]), person[p])
            best = shares.max()
            node = next(c for c in children if c == forced.regions[p] or _leads(tree, c, forced.regions[p]))
            assert coverage(tree.regions[node].box, person[p]) == pytest.approx(best, abs=1e-6)
    free = model.search(maps, trees, state, which, who, coverage_chooser(person, np.ones(3, bool)))
    plain = model.search(maps, trees, state, which, who)
    np.testing.assert_array_equal(free.regions, plain.regions)


def _leads(tree, ancestor, node):
    while node > 0:
        node = tree.regions[node].parent
        if node == ancestor:
            return True
    return False


def test_no_proposals(tiny):
    model, images, _, boxes, where = tiny()
    maps = model.maps(images)
    trees = [model.tree(np.empty((0, 4)), 32, 24)] * 2
    trace = model.search(maps, trees, model.queries(maps, boxes, where), np.array([0, 1]), np.array([0, 2]))
    assert not trace.steps and trace.boxes.tolist() == [[0, 0, 32, 24]] * 2
    final, number = model.boxes_by_attention(trace, trees, np.array([0, 1]))
    assert number.tolist() == [-1, -1] and (final == trace.boxes).all()


def test_ties_in_a_search_are_decided():
    assert best_child([0.5, 0.5], [[0, 0, 4, 4], [0, 0, 2, 2]], [0, 0], 1).tolist() == [1]
