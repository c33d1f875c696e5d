# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A network small enough for gradcheck, and CASN over it."""

import torch
from torch import nn

from reidfast.models import CASN, Backbone


class Tiny(Backbone):
    """8 x 4 maps of 16 x 8 pixels; smooth, so that finite differences meet no kink on the way."""

    out_channels, feature_size, stride = 5, 5, 2

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, 1, 1)

    def forward_map(self, images):
        return nn.functional.softplus(self.conv2(torch.tanh(self.bn1(self.conv1(images)))))


class TinyWithNeck(Tiny):
    """Pools through a layer of its own, as OSNet does."""

    feature_size = 7

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU())

    def pool(self, features):
        return self.fc(super().pool(features))


class TinyOther(Tiny):
    """Pools by the largest cell: no closed form over it."""

    def pool(self, features):
        return features.amax((2, 3))


def lively(model):
    """Weights and statistics away from their initial values, so that nothing is right by accident."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7)
            nn.init.normal_(module.bias, std=0.3)
    return model


def tiny_casn(base="ide", backbone=Tiny, classes=4, seed=0, dropout=0.0, **options):
    torch.manual_seed(seed)
    sizes = {"hidden": 6} if base == "ide" else {"parts": 3, "reduced": 4}
    model = CASN(backbone(), classes, base=base, base_options={**sizes, "dropout": dropout}, **options)
    lively(model)
    nn.init.normal_(model.pair.weight, std=0.5)
    return model.double()


def tiny_batch(batch=4, classes=4):
    images = torch.randn(batch, 3, 16, 8, dtype=torch.float64)
    return images, torch.arange(batch) % 2 % classes
