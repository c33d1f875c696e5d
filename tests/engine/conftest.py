# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One small run that several tests look at."""

from __future__ import annotations

import pytest
from small_settings import SMALL, run


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
    out = tmp_path_factory.mktemp("runs") / "small"
    run("strong_baseline", [*SMALL, f"--out={out}"])
    return out
