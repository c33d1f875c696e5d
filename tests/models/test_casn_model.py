# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CASN: the closed form against autograd, in both orders, its baseline inside, and the classifier of pairs."""

import pytest
import torch
from _support.casn_networks import Tiny, TinyOther, TinyWithNeck, lively, tiny_batch, tiny_casn
from torch import nn

from reidfast.losses import CASNLoss
from reidfast.models import CASN, OSNet, ResNet, create_model, save_weights
from reidfast.models.baselines import IDE, PCB
from reidfast.models.casn import PairHead

HEADS = [("ide", Tiny), ("ide", TinyWithNeck), ("pcb", Tiny)]
FIRST, SECOND = torch.tensor([0, 1, 0]), torch.tensor([2, 3, 1])


def both(base, backbone, **options):
    return [tiny_casn(base, backbone, closed_form=closed, **options) for closed in (True, False)]


def compare(closed, graph, function):
    """Values, and the gradient of a nonlinear function of them in every parameter: first and second order."""
    results = [function(model) for model in (closed, graph)]
    torch.testing.assert_close(*results)
    gradients = []
    for model, maps in zip((closed, graph), results, strict=True):
        parameters = list(model.parameters())
        found = torch.autograd.grad((maps + 0.3).square().sum(), parameters, allow_unused=True)
        gradients.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])
    names = [n for n, _ in closed.named_parameters()]
    for name, a, b in zip(names, *gradients, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")
    return gradients[0]


@pytest.mark.parametrize("target", ["sum", "mean", "each"])
@pytest.mark.parametrize("base,backbone", HEADS)
def test_closed_form_of_identity_attention_equals_autograd_to_second_order(base, backbone, target):
    images, labels = tiny_batch()
    gradients = compare(
        *both(base, backbone, target=target),
        lambda model: model.identity_attention(model.backbone.forward_map(images), labels),
    )
    assert sum(g.abs().sum() > 0 for g in gradients) > 4


@pytest.mark.parametrize(
    "diff,indicator", [("neg_square", "gradient"), ("abs", "contribution"), ("signed", "gradient")]
)
@pytest.mark.parametrize("base,backbone", HEADS)
def test_closed_form_of_pair_attention_equals_autograd_to_second_order(base, backbone, diff, indicator):
    images, _ = tiny_batch()

    def maps(model):
        return torch.cat(model.pair_attention(model.backbone.forward_map(images), FIRST, SECOND)[:2])

    compare(*both(base, backbone, diff=diff, indicator=indicator), maps)


def test_detached_weights_agree_in_both_forms_and_leave_the_head_alone():
    images, labels = tiny_batch()
    models = both("ide", TinyWithNeck, detach_weights=True)
    compare(*models, lambda model: model.identity_attention(model.backbone.forward_map(images), labels))
    maps = models[0].identity_attention(models[0].backbone.forward_map(images), labels)
    head = list(models[0].base.classifier.parameters())
    assert torch.autograd.grad(maps.sum(), head, allow_unused=True) == (None, None)


@pytest.mark.parametrize("base,backbone", HEADS)
def test_maps_without_gradient_equal_those_with(base, backbone):
    images, labels = tiny_batch()
    for model in both(base, backbone):
        cells = model.backbone.forward_map(images)
        want = model.identity_attention(cells, labels)
        with torch.no_grad():
            got = model.identity_attention(cells, labels)
        assert not got.requires_grad
        torch.testing.assert_close(got, want.detach())
        torch.testing.assert_close(model.identity_attention(cells.detach(), labels).detach(), want.detach())


def test_the_identity_map_is_grad_cam_of_the_true_logit():
    model, (images, labels) = tiny_casn("pcb").eval(), tiny_batch()
    cells = model.backbone.forward_map(images)
    logits = model.head(cells).logits.sum(1)
    (slope,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), cells)
    want = (slope.mean((2, 3), keepdim=True) * cells).sum(1).relu()
    torch.testing.assert_close(model.train().identity_attention(cells, labels), want)
    assert torch.equal(model.predicted(cells), logits.argmax(1)) and model.base.training


def test_the_map_of_an_image_depends_on_its_partner_and_on_no_other_image():
    model, (images, _) = tiny_casn("ide"), tiny_batch()
    model.backbone.eval()
    cells = model.backbone.forward_map(images)
    first, second = torch.tensor([0, 0]), torch.tensor([1, 2])
    one, _, chosen = model.pair_attention(cells, first, second)
    assert not torch.allclose(one[0], one[1])
    assert ((chosen.share >= 0) & (chosen.share <= 1)).all()
    alone, _, _ = model.pair_attention(cells[:2], torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(alone[0], one[0])


@pytest.mark.parametrize("base,kind", [("ide", IDE), ("pcb", PCB)])
def test_without_attention_it_is_its_baseline(base, kind):
    model, (images, _) = tiny_casn(base, dropout=0.5), tiny_batch()
    assert isinstance(model.base, kind)
    torch.manual_seed(3)
    theirs = model.base(images)
    torch.manual_seed(3)
    ours = model(images)
    assert torch.equal(ours.logits, theirs.logits)
    model.eval()
    assert torch.equal(model(images), model.base(images)) and model(images).shape[1] == model.feature_size
    assert {id(p) for p in model.head_parameters()} | {id(p) for p in model.backbone.parameters()} == {
        id(p) for p in model.parameters()
    }


def test_a_head_without_closed_form_falls_back_and_says_why():
    images, labels = tiny_batch()
    model = tiny_casn("ide", TinyOther)
    assert not model.closed_form
    assert model.identity_attention(model.backbone.forward_map(images), labels).shape == (4, 8, 4)
    with pytest.raises(ValueError, match="pooling of TinyOther is not the mean"):
        tiny_casn("ide", TinyOther, closed_form=True)
    assert tiny_casn("pcb", TinyOther).closed_form  # stripes do not ask the backbone


@pytest.mark.parametrize("name,size", [("osnet_x0_25", (64, 32)), ("mobilenet_v2", (128, 64)), ("resnet18", (64, 32))])
@pytest.mark.parametrize("base", ["ide", "pcb"])
def test_every_backbone_takes_a_step(name, size, base):
    options = {"base_options": {"parts": 4, "reduced": 8} if base == "pcb" else {"hidden": 16}, "base": base}
    model = create_model("casn", backbone=name, num_classes=3, **options)
    assert model.closed_form and isinstance(model, CASN)
    images, labels = torch.randn(4, 3, *size), torch.tensor([0, 0, 1, 2])
    out = CASNLoss()(model, images, labels, torch.tensor([0, 1]), torch.tensor([1, 2]), 1)
    out.total.backward()
    assert out.total.isfinite() and all(
        p.grad.isfinite().all() for p in model.backbone.parameters() if p.grad is not None
    )
    with torch.no_grad():
        assert model.eval()(images).shape == (4, model.feature_size)


def test_weights_come_back_and_tell_the_number_of_classes(tmp_path):
    options = {"backbone": "osnet_x0_25", "base": "pcb", "base_options": {"parts": 2, "reduced": 8}}
    model = create_model("casn", num_classes=5, **options).eval()
    lively(model)
    save_weights(model, tmp_path / "casn.safetensors")
    again = create_model("casn", weights=tmp_path / "casn.safetensors", **options).eval()
    images = torch.randn(2, 3, 64, 32)
    assert torch.equal(model(images), again(images)) and again.base.classifiers[0].out_features == 5


@pytest.mark.parametrize("diff", ["neg_square", "square", "abs", "signed"])
@pytest.mark.parametrize("indicator", ["gradient", "contribution"])
def test_indicator_is_its_definition(diff, indicator):
    head = PairHead(9, diff=diff, indicator=indicator).double()
    nn.init.normal_(head.weight)
    nn.init.normal_(head.bias)
    first, second = (torch.randn(5, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    got = head.indicator(first, second)
    if indicator == "gradient":
        want = [(g > 0).double() for g in torch.autograd.grad(head(first, second).sum(), [first, second])]
    else:
        want = [(head.phi(first, second) * head.weight + head.bias / 9 > 0).double()] * 2
    for ours, c in zip((got.first, got.second), want, strict=True):
        filled = torch.where(c.any(1, keepdim=True), c, torch.ones_like(c))
        assert torch.equal(ours, filled) and not ours.requires_grad
    torch.testing.assert_close(got.share, (want[0].mean(1) + want[1].mean(1)) / 2, check_dtype=False)


def test_an_indicator_of_zeros_becomes_ones():
    head = PairHead(4)
    same = torch.randn(2, 4)
    got = head.indicator(same, same)  # no slope anywhere
    assert torch.equal(got.first, torch.ones(2, 4)) and torch.equal(got.second, torch.ones(2, 4))
    assert torch.equal(got.share, torch.zeros(2))


def test_pair_head_starts_by_calling_near_features_more_alike():
    near, far = torch.full((1, 6), 0.1), torch.full((1, 6), 1.0)
    for diff in ("neg_square", "square", "abs"):
        head = PairHead(6, diff=diff)
        assert head(torch.zeros(1, 6), near) > head(torch.zeros(1, 6), far)
        torch.testing.assert_close(head(near, far), head(far, near))


@pytest.mark.parametrize(
    "options,words",
    [
        ({"base": "bnneck"}, "base"),
        ({"target": "max"}, "target"),
        ({"diff": "cosine"}, "diff"),
        ({"indicator": "weight"}, "indicator"),
    ],
)
def test_rejects(options, words):
    with pytest.raises(ValueError, match=words):
        create_model("casn", backbone="osnet_x0_25", num_classes=2, **options)
    with pytest.raises(ValueError, match="at least 6 rows"):
        CASN(OSNet(), 2).head(torch.zeros(1, 512, 4, 2))


def test_backbones_with_a_pooling_of_their_own_agree_with_their_closed_form():
    for backbone in (OSNet((16, 64, 96, 128)), ResNet()):
        model = CASN(backbone, 3, base="ide").eval()
        cells = torch.rand(2, backbone.out_channels, 4, 2)
        with torch.no_grad():
            torch.testing.assert_close(model.frozen_features(cells), model.base.embed(backbone.pool(cells)))
