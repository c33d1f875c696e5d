# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Loads reidfast._C, or remembers why it cannot be loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

_INFO = Path(__file__).resolve().parents[1] / "_build_info.json"


def read_build_info() -> dict[str, Any]:
    """What setup.py wrote down when this copy was built: native, cuda, and the reason for each that is missing."""
    try:
        return dict(json.loads(_INFO.read_text()))
    except (OSError, ValueError):
        return {
            "native": False,
            "cuda": False,
            "native_reason": "this copy was never built",
            "cuda_reason": "this copy was never built",
        }


def _load() -> tuple[Any, str]:
    info = read_build_info()
    try:
        from reidfast import _C  # type: ignore[attr-defined]
    except ImportError as error:
        if info.get("native"):
            built = info.get("torch", "another version")
            reason = (
                f"reidfast._C was built for torch {built} and does not load beside torch {torch.__version__}: {error}"
            )
        else:
            reason = info.get("native_reason") or f"reidfast._C is not there: {error}"
        return None, reason
    return _C, ""


extension, native_reason = _load()
"""The compiled module or None, and in the second case why."""

if extension is None:
    warnings.warn(
        f"reidfast works without its compiled part, through plain PyTorch (correct, slower): {native_reason}. "
        "Install a C++20 compiler and reinstall; `reidfast info` shows the state.",
        RuntimeWarning,
        stacklevel=2,
    )

has_cuda: bool = extension is not None and bool(extension.build_info()["cuda"])
cuda_reason: str = "" if has_cuda else (read_build_info().get("cuda_reason") or native_reason or "built without CUDA")
