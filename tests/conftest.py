# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Fixtures for all tests: one seed, real data where it is, and a count of what ran per backend."""

import os
from pathlib import Path

import pytest
import torch

# Before anything imports a Triton kernel: without a GPU they run in Triton's interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20261)


@pytest.fixture(scope="session")
def reidfast_data() -> Path:
    """Folder with the real data; tests that need it skip, saying so, where it is absent."""
    folder = Path(os.environ.get("REIDFAST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set REIDFAST_DATA)")
    return folder


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
