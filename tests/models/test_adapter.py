# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Baselines over networks that know nothing of reidfast."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from reidfast.models import Adapter, create_model
from reidfast.models.backbones.adapter import token_grid


def to_map():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())


class Tokens(nn.Module):
    """A vision transformer's outside: patches, a class token before them."""

    def __init__(self, prefix=1, patch=8):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, patch, patch)
        self.first = nn.Parameter(torch.randn(1, prefix, 6))

    def forward(self, images):
        cells = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(images), -1, -1), cells], 1)


class Last(nn.Module):
    """A Swin-like map, channels last."""

    output_fmt = "Format.NHWC"

    def __init__(self):
        super().__init__()
        self.net = to_map()

    def forward(self, images):
        return self.net(images).permute(0, 2, 3, 1)


IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 32).view(2, 3, 64, 32)


@pytest.mark.parametrize("head", ["ide", "strong_baseline", "pcb"])
@pytest.mark.parametrize(
    "module,options,shape",
    [
        (to_map, {}, (8, 8, 4)),
        (Tokens, {"prefix": 1}, (6, 8, 4)),
        (lambda: Tokens(0), {"grid": (16, 2)}, (6, 16, 2)),
        (Last, {"layout": "map_last"}, (8, 8, 4)),
    ],
    ids=["map", "tokens", "grid", "channels last"],
)
def test_any_module_under_any_head(head, module, options, shape):
    torch.manual_seed(0)
    options = options | {"size": (64, 32)}
    model = create_model(head, backbone=module(), backbone_options=options, num_classes=5)
    assert model.backbone.forward_map(IMAGES).shape == (2, *shape)
    assert model.backbone.out_channels == shape[0] and model.backbone.stride == 64 // shape[1]
    out = model(IMAGES)
    assert out.logits.shape == (2, 6 if head == "pcb" else 1, 5)
    out.logits.sum().backward()
    assert all(p.grad is not None for p in model.backbone.module.parameters() if p.dim() == 4)
    assert model.eval()(IMAGES).shape == (2, model.feature_size)


def test_tokens_keep_their_places_and_the_class_token_is_the_feature():
    torch.manual_seed(0)
    net = Tokens(2)
    backbone = Adapter(net, size=(64, 32), prefix=2, feature="class")
    cells = backbone.forward_map(IMAGES)
    torch.testing.assert_close(cells, net.patches(IMAGES))
    assert torch.equal(backbone(IMAGES), net(IMAGES)[:, 0])
    mean = Adapter(net, size=(64, 32), prefix=2)
    torch.testing.assert_close(mean(IMAGES), net.patches(IMAGES).mean((2, 3)))


def test_a_vector_is_a_map_of_one_cell():
    net = nn.Sequential(to_map(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Adapter(net, size=(64, 32)).eval()
    assert backbone.layout == "vector" and backbone.feature_size == 8
    assert backbone.forward_map(IMAGES).shape == (2, 8, 1, 1)
    torch.testing.assert_close(backbone(IMAGES), net(IMAGES))
    pcb = create_model("pcb", backbone=net, backbone_options={"size": (64, 32)}, num_classes=3)
    with pytest.raises(ValueError, match="PCB: expected a map of at least 6 rows, got 1"):
        pcb(IMAGES)


def test_the_module_is_tried_in_evaluation_mode_and_left_as_it_was():
    net = to_map()
    Adapter(net, size=(64, 32))
    assert net.training and float(net[1].num_batches_tracked) == 0


def test_several_results_need_select():
    class Two(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)), images

    with pytest.raises(ValueError, match="expected one tensor from Two, got tuple; give select"):
        Adapter(Two(), size=(8, 8))
    assert Adapter(Two(), size=(8, 8), select=lambda out: out[0]).feature_size == 3


@pytest.mark.parametrize(
    "count,size,grid",
    [(128, (256, 128), (16, 8)), (196, (224, 224), (14, 14)), (49, (256, 128), (7, 7)), (144, (384, 96), (24, 6))],
)
def test_token_grid(count, size, grid):
    assert token_grid(count, *size) == grid


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: Adapter(Tokens(1), size=(64, 32)), "33 tokens of a 64 x 32 image form neither"),
        (lambda: Adapter(Tokens(1), size=(64, 32), prefix=1, grid=(4, 4)), "expected 4 x 4 tokens after 1 of prefix"),
        (lambda: Adapter(to_map(), size=(64, 32), layout="tokens"), "layout tokens"),
        (lambda: Adapter(to_map(), size=(64, 32), layout="round"), "expected layout in auto, map"),
        (lambda: Adapter(to_map(), size=(64, 32), feature="class"), "expected prefix of at least 1"),
        (lambda: Adapter(to_map(), size=(64, 32), feature="class", prefix=1), "expected tokens with feature='class'"),
        (lambda: Adapter(nn.Flatten(0), size=(8, 8)), r"got \(192,\)"),
    ],
)
def test_wrong_modules_and_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_timm_by_name(monkeypatch):
    made = {}

    def timm_create(name, **options):
        made[name] = options
        if name == "vit":
            net = Tokens(1)
            net.num_prefix_tokens = 1
            return net
        if name == "swin":
            return Last()
        raise RuntimeError(f"Unknown model ({name})")

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=timm_create))
    vit = create_model("timm:vit", img_size=(64, 32), feature="class")
    assert vit.forward_map(IMAGES).shape == (2, 6, 8, 4) and torch.equal(vit(IMAGES), vit.module(IMAGES)[:, 0])
    assert made["vit"] == {"pretrained": False, "num_classes": 0, "global_pool": "", "img_size": (64, 32)}
    model = create_model("strong_baseline", backbone="timm:swin", num_classes=4)
    assert model(IMAGES).logits.shape == (2, 1, 4) and model.backbone.layout == "map_last"
    with pytest.raises(ValueError, match="timm:nothing: Unknown model"):
        create_model("timm:nothing")


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm:vit: the package timm is not installed; pip install timm"):
        create_model("ide", backbone="timm:vit", num_classes=2)
