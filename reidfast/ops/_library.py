# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Loads the native libraries, or remembers why they cannot be loaded.

``libreidfast.so`` holds the CPU kernels and serves every torch from 2.11 on and every Python; ``libreidfast_cuda.so``
holds the CUDA kernels and is loaded beside a torch that has CUDA; ``reidfast._C``, one per Python version, lets long
native loops notice Ctrl-C.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parents[1]
_ISAS = ("default", "avx2", "avx512")
_OLDEST_TORCH = (2, 11)


def read_build_info() -> dict[str, Any]:
    """What setup.py wrote down when this copy was built: native, cuda, and the reason for each that is missing."""
    try:
        return dict(json.loads((_FOLDER / "_build_info.json").read_text()))
    except (OSError, ValueError):
        reason = "this copy was never built (pip install . builds it)"
        return {"native": False, "cuda": False, "native_reason": reason, "cuda_reason": reason}


def _load(name: str, missing: str) -> str:
    """Load a library; why that failed, or an empty string."""
    path = _FOLDER / name
    if not path.is_file():
        return missing
    found = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    if found < _OLDEST_TORCH:
        return f"it needs torch 2.11 or newer, this is torch {torch.__version__}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{name} does not load beside torch {torch.__version__}: {error}"
    return ""


def _load_module() -> Any:
    try:
        from reidfast import _C  # type: ignore[attr-defined]
    except ImportError:
        return None
    torch.ops.reidfast_runtime.set_interrupt_check(_C.interrupt_check())
    return _C


_info = read_build_info()
native_reason: str = _load("libreidfast.so", _info.get("native_reason") or "libreidfast.so is not in this installation")
"""Why the CPU kernels are not there; empty where they are."""

loaded: bool = not native_reason
"""Whether the CPU kernels are there."""

if loaded and torch.version.cuda is None:
    cuda_reason = f"torch {torch.__version__} is a CPU build"
elif loaded:
    cuda_reason = _load("libreidfast_cuda.so", _info.get("cuda_reason") or "this is the CPU build of reidfast")
else:
    cuda_reason = native_reason
has_cuda: bool = not cuda_reason
"""Whether the CUDA kernels are there; else ``cuda_reason`` says why not."""

_module = _load_module() if loaded else None

if not loaded:
    warnings.warn(
        f"reidfast runs without its native part, through plain PyTorch (correct, slower): {native_reason}. "
        "`reidfast info` shows the state.",
        RuntimeWarning,
        stacklevel=2,
    )


def best_isa() -> str:
    """The widest instruction set that this processor, torch and ATEN_CPU_CAPABILITY allow: default, avx2 or avx512."""
    name = str(torch.backends.cpu.get_cpu_capability()).lower()
    return name if name in _ISAS else "default"


def isa() -> str:
    """The instruction set in force: default, avx2 or avx512."""
    return _ISAS[torch.ops.reidfast_runtime.isa()]


def set_isa(name: str) -> None:
    """Choose an instruction set, for tests and measurements.

    Raises:
        ValueError: Not one of default, avx2 and avx512, or wider than ``best_isa()``.
    """
    if name not in _ISAS:
        raise ValueError(f"set_isa: expected default, avx2 or avx512, got {name!r}")
    if _ISAS.index(name) > _ISAS.index(best_isa()):
        raise ValueError(
            f"set_isa: expected at most {best_isa()!r}, what this processor and ATEN_CPU_CAPABILITY allow, got {name!r}"
        )
    torch.ops.reidfast_runtime.set_isa(_ISAS.index(name))


def product_library() -> str:
    """What multiplies feature rows on the CPU: onednn or blas; "torch" where the kernels are not there."""
    return str(torch.ops.reidfast_runtime.product_library()) if loaded else "torch"


def cuda_architectures() -> str:
    """The architectures that the CUDA library was built for, "80-real 90"; empty where it is not loaded."""
    return str(torch.ops.reidfast_runtime.cuda_architectures()) if has_cuda else ""


def build_info() -> dict[str, Any]:
    """How the native parts were built, and why those that are missing are."""
    info = dict(_info)
    if loaded:
        info["compiler"] = str(torch.ops.reidfast_runtime.compiler())
    info |= {"native": loaded, "native_reason": native_reason, "cuda": has_cuda, "cuda_reason": cuda_reason}
    info |= {"module": _module is not None, "cuda_architectures": cuda_architectures()}
    return info


def raise_interrupt(error: BaseException) -> None:
    """If a native loop was stopped by Ctrl-C, raise what its handler raised (KeyboardInterrupt)."""
    if _module is None or "reidfast: interrupted" not in str(error):
        return
    raise (_module.take_interrupt() or KeyboardInterrupt()) from None


if loaded:
    set_isa(best_isa())
