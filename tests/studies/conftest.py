# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Caches of the studies' tests stay out of the user's folder."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Caches of this session, for it and the processes it starts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()
