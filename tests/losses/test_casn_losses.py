# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The losses of CASN: the published vector, loops as truth, gradcheck, what has no profile."""

import math

import pytest
import torch
from _support.casn_networks import Tiny, TinyWithNeck, tiny_batch, tiny_casn
from torch.nn import functional

from reidfast.losses import AttentionLoss, CASNLoss, ConsistencyLoss, SoftErase
from reidfast.losses.consistency import resize_span, row_profile

YES = torch.tensor([True])


def vectors(shape, a, b):
    return torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + b).view(shape)


def test_published_vector():
    one, two = vectors((1, 6, 4), 0.7, 0.1).relu(), vectors((1, 6, 4), 0.5, 1.1).relu()
    first, second = row_profile(one), row_profile(two)
    near = {"rtol": 0, "atol": 5e-7}
    torch.testing.assert_close(first.values[0], torch.tensor([0.997613, 0, 0.998992, 0.735781, 0.659325, 1]).double(),
                               **near)  # fmt: skip
    torch.testing.assert_close(second.values[0], torch.tensor([1, 0.008238, 0.287715, 0.969270, 0.295538, 0]).double(),
                               **near)  # fmt: skip
    assert (first.first.item(), first.last.item(), second.first.item(), second.last.item()) == (0, 5, 0, 3)
    loss = ConsistencyLoss()
    torch.testing.assert_close(
        loss.profile(two)[0][0], torch.tensor([1, 0.504119, 0.054818, 0.241135, 0.628492, 0.969270]).double(), **near
    )
    assert loss(one, two, YES).loss.item() == pytest.approx(1.17990535, abs=5e-9)


def test_resize_equals_interpolate_of_every_window():
    values = torch.rand(1, 9, dtype=torch.float64)
    for first in range(9):
        for last in range(first, 9):
            for rows in (1, 5, 9, 16):
                want = functional.interpolate(values[None, :, first : last + 1], rows, mode="linear")[0]
                got = resize_span(values, torch.tensor([first]), torch.tensor([last]), rows)
                torch.testing.assert_close(got, want)


def test_a_shifted_or_stretched_person_has_the_same_profile():
    person = torch.tensor([1.0, 0.55, 0.8, 0.9, 0.6, 1.0])
    high, low = torch.zeros(1, 12, 3), torch.zeros(1, 12, 3)
    high[0, 0:6, 1], low[0, 5:11, 2] = person, person
    assert ConsistencyLoss()(high, low, YES).loss < 1e-6
    assert ConsistencyLoss(span="none")(high, low, YES).loss > 1
    assert ConsistencyLoss(span="mask")(high, low, YES).loss > 1
    dim = 3.0 * low + 1.0  # neither scale nor offset matter
    assert ConsistencyLoss()(high, dim, YES).loss < 1e-6


def test_only_positive_pairs_pull_and_the_margin_pushes_the_others():
    one, two = torch.rand(4, 6, 4, dtype=torch.float64), torch.rand(4, 6, 4, dtype=torch.float64)
    same = torch.tensor([True, False, True, False])
    plain = ConsistencyLoss()(one, two, same)
    torch.testing.assert_close(plain.loss, plain.distances[same].mean())
    pushed = ConsistencyLoss(margin=2.0)(one, two, same)
    want = plain.loss + (2.0 - plain.distances[~same]).clamp(min=0).mean()
    torch.testing.assert_close(pushed.loss, want)
    assert ConsistencyLoss()(one, two, ~same & same).loss == 0
    assert ConsistencyLoss()(one[:0], two[:0], same[:0]).loss == 0


def test_a_constant_map_counts_zero_and_has_no_gradient():
    flat = torch.full((2, 5, 3), 0.7, requires_grad=True)
    other = torch.rand(2, 5, 3, requires_grad=True)
    out = ConsistencyLoss()(flat, other, torch.tensor([True, True]))
    assert out.loss == 0 and not out.defined.any()
    for gradient in torch.autograd.grad(out.loss, [flat, other]):
        assert torch.equal(gradient, torch.zeros(2, 5, 3))
    erased = SoftErase()(torch.ones(2, 3, 10, 6), torch.zeros(2, 5, 3))
    assert erased.constant.all() and torch.allclose(erased.images, torch.sigmoid(torch.tensor(5.0)))


def test_soft_erase_is_its_formula_image_by_image():
    maps, images = torch.rand(3, 4, 2, dtype=torch.float64), torch.randn(3, 3, 8, 4, dtype=torch.float64)
    for i in range(3):
        m = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        t = torch.sigmoid(10 * (functional.interpolate(m[None, None], (8, 4), mode="bilinear")[0, 0] - 0.5))
        torch.testing.assert_close(SoftErase()(images, maps).images[i], images[i] * (1 - t))
    whole = (maps - maps.min()) / (maps.max() - maps.min())
    torch.testing.assert_close(SoftErase(normalisation="batch").normalise(maps)[0], whole)
    torch.testing.assert_close(SoftErase().normalise(5 * maps)[0], SoftErase().normalise(maps)[0])


def test_attention_loss_is_its_formula():
    logits, labels = torch.randn(3, 2, 5), torch.tensor([4, 0, 2])
    probability = sum(logits[i, p].softmax(0)[labels[i]] for i in range(3) for p in range(2)) / 6
    torch.testing.assert_close(AttentionLoss()(logits, labels), probability)
    sigmoid = sum(logits[i, p, labels[i]].sigmoid() for i in range(3) for p in range(2)) / 6
    torch.testing.assert_close(AttentionLoss("sigmoid")(logits, labels), sigmoid)
    torch.testing.assert_close(AttentionLoss()(logits[:, 0], labels), AttentionLoss()(logits[:, :1], labels))
    assert AttentionLoss()(logits[:0], labels[:0]) == 0


def test_gradcheck_of_the_plain_losses():
    one = torch.rand(3, 6, 4, dtype=torch.float64, requires_grad=True)
    two = torch.rand(3, 6, 4, dtype=torch.float64, requires_grad=True)
    same = torch.tensor([True, False, True])
    for span in ("crop", "mask", "none"):
        loss = ConsistencyLoss(span=span, margin=1.5)
        assert torch.autograd.gradcheck(lambda a, b, loss=loss: loss(a, b, same).loss, (one, two))
    images = torch.randn(3, 3, 12, 8, dtype=torch.float64, requires_grad=True)
    for normalisation in ("image", "batch"):
        erase = SoftErase(normalisation=normalisation)
        assert torch.autograd.gradcheck(lambda x, m, erase=erase: erase(x, m).images, (images, one))
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    for score in ("probability", "sigmoid"):
        assert torch.autograd.gradcheck(AttentionLoss(score), (logits, torch.tensor([0, 3, 1])))


PAIRS = (torch.tensor([0, 1, 0, 2]), torch.tensor([2, 3, 1, 3]), 2)


@pytest.mark.parametrize("base", ["ide", "pcb"])
@pytest.mark.parametrize("backbone", [Tiny, TinyWithNeck])
@pytest.mark.parametrize(
    "weights",
    [
        {"attention": 1.0, "siamese": 0.0},
        {"attention": 0.0, "siamese": 1.0, "consistency": 0.0},
        {"attention": 0.0, "siamese": 1.0, "consistency": 1.0, "margin": 3.0},
        {"attention": 0.5, "siamese": 0.7, "consistency": 0.9},
    ],
    ids=["attention", "verification", "consistency", "all"],
)
def test_total_loss_has_the_gradient_of_finite_differences(base, backbone, weights):
    """In every parameter, along random directions: first order of the losses, second order of the maps inside."""
    model, loss = tiny_casn(base, backbone), CASNLoss(**weights)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 0.0  # the maps count the running statistics as constants
    images, labels = tiny_batch()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def value(step, directions):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
        out = loss(model, images, labels, *PAIRS).total
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=step)
        return out.item()

    gradients = torch.autograd.grad(loss(model, images, labels, *PAIRS).total, parameters, allow_unused=True)
    for turn in range(3):
        torch.manual_seed(turn)
        directions = [torch.randn_like(p) for p in parameters]
        numeric = (value(1e-6, directions) - value(-1e-6, directions)) / 2e-6
        ours = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None).item()
        assert ours == pytest.approx(numeric, rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("base", ["ide", "pcb"])
def test_every_parameter_learns_from_the_attention_losses(base):
    model = tiny_casn(base)
    images, labels = tiny_batch()
    cells = model.backbone.forward_map(images)
    maps = model.identity_attention(cells, labels)
    names = [n for n, p in model.base.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(maps.square().sum(), list(model.base.parameters()), allow_unused=True)
    silent = {n for n, g in zip(names, gradients, strict=True) if g is None or not g.abs().sum() > 0}
    # a bias moves the map of a piecewise linear head nowhere but at its kinks
    assert all(n.endswith("bias") or n.startswith("embed.0.b") for n in silent), silent
    assert any("classifier" in n for n in names if n not in silent) and "backbone.conv1.weight" not in silent


def test_terms_and_weights_add_up():
    model, (images, labels) = tiny_casn("pcb"), tiny_batch()
    state = {n: b.clone() for n, b in model.named_buffers()}

    def run(**options):
        model.load_state_dict(state, strict=False)
        attentive = options.pop("attentive", True)
        return CASNLoss(**options)(model, images, labels, *PAIRS, attentive=attentive)

    everything = run(attention=0.5, siamese=0.3, consistency=0.2)
    t = everything.terms
    want = t["identification"] + 0.5 * t["attention"] + 0.3 * (t["verification"] + 0.2 * t["consistency"])
    torch.testing.assert_close(everything.total, want)
    assert set(run(attention=0.0, siamese=0.0).terms) == {"identification"}
    assert set(run(attentive=False).terms) == {"identification", "verification"}
    assert set(run(attention=0.0, consistency=0.0).terms) == {"identification", "verification"}
    assert {"constant_maps", "indicator", "pair_accuracy", "undefined_pairs"} < set(everything.watched)
    torch.testing.assert_close(run(classes="predicted").terms["identification"], t["identification"])
    with pytest.raises(ValueError, match="places of pairs"):
        CASNLoss()(model, images, labels)


@pytest.mark.parametrize("mode", ["train", "batch", "eval"])
def test_mask_forward_leaves_the_statistics_alone_unless_asked(mode):
    model, (images, labels) = tiny_casn("ide"), tiny_batch()
    norm = model.backbone.bn1
    before = norm.running_mean.clone()
    with torch.no_grad():
        x = model.backbone.conv1(images)
        once = 0.9 * before + 0.1 * x.mean((0, 2, 3))
    loss = CASNLoss(attention=1.0, siamese=0.0, mask_forward=mode)
    out = loss(model, images, labels)
    assert norm.momentum == 0.1 and all(m.training for m in model.modules())
    assert torch.allclose(norm.running_mean, once) == (mode != "train")
    assert 0 < out.terms["attention"] < 1


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: ConsistencyLoss(span="cut"), "span"),
        (lambda: ConsistencyLoss(threshold=0.0), "threshold"),
        (lambda: ConsistencyLoss(margin=-1.0), "margin"),
        (lambda: SoftErase(alpha=0.0), "alpha"),
        (lambda: SoftErase(normalisation="row"), "normalisation"),
        (lambda: AttentionLoss("logit"), "score"),
        (lambda: CASNLoss(attention=-1.0), "weights"),
        (lambda: CASNLoss(mask_forward="none"), "mask_forward"),
        (lambda: ConsistencyLoss()(torch.rand(2, 3, 4), torch.rand(2, 3, 5), YES), "two"),
        (lambda: SoftErase()(torch.rand(2, 3, 4, 4), torch.rand(1, 2, 2)), "maps"),
        (lambda: AttentionLoss()(torch.rand(2, 3), torch.zeros(3).long()), "labels"),
    ],
)
def test_rejects(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_step_in_mixed_precision(closed_form):
    model, (images, labels) = tiny_casn("pcb", closed_form=closed_form).float(), tiny_batch()
    exact = CASNLoss()(model, images.float(), labels, *PAIRS).total
    with torch.autocast("cpu", torch.bfloat16):
        total = CASNLoss()(model, images.float(), labels, *PAIRS).total
    total.backward()
    assert total.item() == pytest.approx(exact.item(), rel=0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
