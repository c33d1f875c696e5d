# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Fixtures for all tests: one seed, real data where it is, and a count of what ran per backend."""

import os
import sys
from pathlib import Path

import pytest
import torch

# Before cuBLAS starts: without it, it refuses to work under deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Before anything imports a Triton kernel: without a GPU they run in Triton's interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]
# What several folders of tests share.
sys.path[:0] = [str(ROOT / "tests" / "_support"), str(ROOT / "tests" / "ops")]
# Real data beside the checkout, for tests and what they start; REIDFAST_DATA names another folder.
BESIDE = ROOT.parent / "shared" / "data"
if BESIDE.is_dir():
    os.environ.setdefault("REIDFAST_DATA", str(BESIDE))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20261)


@pytest.fixture(scope="session")
def reidfast_data() -> Path:
    """Folder with the real data; tests that need it skip, saying so, where it is absent."""
    folder = os.environ.get("REIDFAST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data (set REIDFAST_DATA)")
    return Path(folder)


def device_is_usable() -> bool:
    """False after an error that sticks to this process's CUDA context, or a capture that never ended."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.rand(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@pytest.hookimpl(trylast=True)  # when the test's outcome has been sent
def pytest_runtest_logfinish(nodeid, location):
    """A worker that can no longer use the GPU ends, so that the tests after this one get another worker."""
    if "PYTEST_XDIST_WORKER" in os.environ and not device_is_usable():
        os._exit(3)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
