# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Arrays that users pass become torch tensors, and results go back in the same kind.

torch, numpy and cupy arrays share their memory with the tensor; .npy and .safetensors files are mapped, not read.
Nothing is copied but arrays with negative strides or foreign byte order, which torch cannot view.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_SAFETENSORS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def describe(x: Any) -> str:
    """Type, dtype and shape of a value, for error messages."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or dtype is None:
        return f"{type(x).__name__} {x!r:.60}"
    return f"{type(x).__name__} {str(dtype).removeprefix('torch.')} {tuple(shape)}"


class _Writable:
    """A read-only array without its flag: torch warns of read-only memory, and it is only read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.base = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}


def from_numpy(op: str, name: str, x: NDArray[Any]) -> Tensor:
    """A tensor over the memory of ``x``."""
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if any(s < 0 or s % max(1, x.itemsize) for s in x.strides):
        x = np.ascontiguousarray(x)
    try:
        return torch.from_numpy(np.asarray(x if x.flags.writeable else _Writable(x)))
    except TypeError:
        raise TypeError(f"{op}: expected {name} to be an array of numbers, got {describe(x)}") from None


def _load_npy(op: str, name: str, path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{op}: {name}: {path} is not a complete .npy file of numbers: {error}") from None
    return from_numpy(op, name, array)


def _load_safetensors(op: str, name: str, path: Path) -> Tensor:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise ValueError("its header does not fit the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        key = "features" if "features" in header else next(iter(header)) if len(header) == 1 else None
        if key is None:
            raise ValueError(f"expected one tensor, or one named 'features', got {', '.join(sorted(header)) or 'none'}")
        entry = header[key]
        if entry["dtype"] not in _SAFETENSORS:
            raise TypeError(f"{op}: expected {name} of a floating-point dtype, got {entry['dtype']} in {path}")
        begin, end = entry["data_offsets"]
        kind, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(entry["shape"])
        if end - begin != kind.itemsize * int(np.prod(shape, dtype=np.int64)) or 8 + length + end > size:
            raise ValueError("the file is shorter than its header says")
        if begin == end:
            array = np.empty(shape, kind)
        else:
            offset = 8 + length + begin
            raw = np.memmap(path, np.uint8, "c", offset=offset, shape=(end - begin,))
            array = np.ndarray(shape, kind, buffer=raw)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{op}: {name}: {path} is not a complete .safetensors file: {error}") from None
    tensor = from_numpy(op, name, array)
    return tensor.view(torch.bfloat16) if entry["dtype"] == "BF16" else tensor


def to_tensor(op: str, name: str, x: Any) -> Tensor:
    """``x`` as a torch tensor on its own device, without a copy where torch can view it."""
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, (str, os.PathLike)):
        path = Path(x)
        if path.suffix == ".npy":
            return _load_npy(op, name, path)
        if path.suffix == ".safetensors":
            return _load_safetensors(op, name, path)
        raise ValueError(f"{op}: expected {name} to name a .npy or .safetensors file, got {str(path)!r}")
    if isinstance(x, np.ndarray):
        return from_numpy(op, name, x)
    if hasattr(x, "__dlpack__"):
        return torch.from_dlpack(x).detach()
    if hasattr(x, "__cuda_array_interface__"):
        return torch.as_tensor(x, device="cuda")
    if hasattr(x, "__array__") or isinstance(x, (list, tuple)):
        try:
            return from_numpy(op, name, np.asarray(x))
        except ValueError as error:
            raise ValueError(f"{op}: expected {name} to be an array, got {describe(x)}: {error}") from None
    raise TypeError(
        f"{op}: expected {name} to be a torch tensor, a numpy or cupy array, or .npy or .safetensors files, "
        f"got {describe(x)}"
    )


def to_numpy(x: Any) -> NDArray[Any]:
    """``x`` as a numpy array in host memory; bfloat16 becomes float32."""
    if isinstance(x, Tensor):
        x = x.detach()
        return np.asarray((x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy())
    return np.asarray(x.get() if hasattr(x, "__cuda_array_interface__") and hasattr(x, "get") else x)


def like(source: Any, result: Tensor) -> Any:
    """``result`` as the kind of array that ``source`` (or its first shard) is: torch, on its device; numpy; cupy."""
    first = source[0] if isinstance(source, (list, tuple)) and source else source
    if isinstance(first, Tensor):
        return result.to(first.device)
    if hasattr(first, "__cuda_array_interface__"):
        import cupy

        return cupy.from_dlpack(result.cuda())
    return result.cpu().numpy()
