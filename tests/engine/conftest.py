# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One small run that several tests look at."""

from __future__ import annotations

import pytest

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


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Caches of this session, for it and the processes it starts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def small_run(caches, tmp_path_factory):
    """The folder of a run of one epoch."""
    pytest.importorskip("lightning", reason="needs the extra [train]")
    pytest.importorskip("jsonargparse", reason="needs the extra [train]")
    from reidfast.engine.config import parse
    from reidfast.engine.training import train

    out = tmp_path_factory.mktemp("runs") / "small"
    train(parse("strong_baseline", [*SMALL, f"--out={out}"]))
    return out
