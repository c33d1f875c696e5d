# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Arguments of `reidfast train` for a run of seconds, a backbone of three layers, short cuts to parse and to train."""

from torch import nn

from reidfast.models import Backbone, list_models, register_model

SMALL_BACKBONE = "small_test_backbone"


class Small(Backbone):
    """Three convolutions: enough for the colours of clothes."""

    out_channels = feature_size = 32
    stride = 8

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for channels in (16, 32, 32):
            layers += [nn.Conv2d(before, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        self.layers = nn.Sequential(*layers)

    def forward_map(self, images):
        return self.layers(images)


if SMALL_BACKBONE not in list_models():
    register_model(SMALL_BACKBONE, Small)


def parse(name, arguments=()):
    """The settings of a method."""
    from reidfast.engine.methods import find_method

    return find_method(name).parse(arguments)


def run(name, arguments):
    """Train, and what metrics.json holds."""
    from reidfast.engine.methods import find_method
    from reidfast.engine.training import train

    return train(find_method(name), parse(name, arguments))


SMALL = [
    "--data.name=synthetic",
    "--data.options={ids: 12, cameras: 3, images: 2, height: 64, width: 32, seed: 1}",
    "--data.height=64",
    "--data.width=32",
    "--data.ids=3",
    "--data.images=2",
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--accelerator=cpu",
    "--evaluate_every=1",
    "--optim.epochs=1",
]
