# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Arguments of `reidfast train` for a run of seconds, and short cuts to parse and to train."""


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
