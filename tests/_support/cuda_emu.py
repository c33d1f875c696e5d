# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CUDA kernels on CPU tensors, through the emulation in tests/csrc (its README tells how to use this for an op)."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reidfast.ops import _backends
from reidfast.ops._op import Op

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
ASAN = os.environ.get("REID_CUDA_EMU_ASAN") == "1"


def build(target: str = "cuda_emu") -> Path:
    """Build the emulation library, which is quick when it is up to date; skip where it cannot be built."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("the CUDA emulation is built from a checkout")
    toolkits = Path("/usr/local/cuda"), Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not any((toolkit / "include" / "cuda_bf16.h").is_file() for toolkit in toolkits):
        pytest.skip("the CUDA emulation needs the CUDA toolkit's headers in /usr/local/cuda or CUDA_HOME")
    environment = {**os.environ, "REIDFAST_CUDA": "0", "REIDFAST_TARGET": target, "REIDFAST_BUILD_DIR": str(BUILD)}
    environment.pop("LD_PRELOAD", None)  # AddressSanitizer is for this process, not for the compiler
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"building {target} failed:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return BUILD / "cpu" / f"libreidfast_{target}.so"


@functools.cache
def _load() -> None:
    torch.ops.load_library(str(build("cuda_emu_asan" if ASAN else "cuda_emu")))


def emulated(op: str) -> Callable:
    """The op's CUDA implementation for CPU tensors: differentiable where the op is, else ``torch.ops.reidfast_emu``."""
    _load()
    entry = _backends.ENTRIES.get(op)
    if isinstance(entry, Op):
        return entry.bind(torch.ops.reidfast_emu)
    return getattr(
        torch.ops.reidfast_emu if hasattr(torch.ops.reidfast_emu, op) else torch.ops.reidfast_eval_emu, op
    ).default
