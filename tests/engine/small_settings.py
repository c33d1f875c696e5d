# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Arguments of `reidfast train` for a run of seconds."""

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
