# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What users hand in: features and distances of torch, numpy, cupy or files, ids of anything integer.

Arrays become torch tensors that share their memory; files are mapped, not read. Nothing here copies features, except
arrays with negative strides or foreign byte order, which torch cannot view.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

METRICS = ("cosine", "euclidean", "sqeuclidean", "dot")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_SAFETENSORS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def found(x: Any) -> str:
    """What was handed in, in a few words."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or dtype is None:
        return f"{type(x).__name__} {x!r:.60}"
    return f"{type(x).__name__} {str(dtype).removeprefix('torch.')} {tuple(shape)}"


class _Writable:
    """The same memory as a read-only array, without the flag: torch warns of such arrays, and we only read."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.base = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.__array_interface__["data"][0], False)}


def _from_numpy(op: str, name: str, x: NDArray[Any]) -> Tensor:
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    if any(s < 0 or s % max(1, x.itemsize) for s in x.strides):
        x = np.ascontiguousarray(x)
    try:
        return torch.from_numpy(np.asarray(x if x.flags.writeable else _Writable(x)))
    except TypeError:
        raise TypeError(f"{op}: expected {name} to be an array of numbers, got {found(x)}") from None


def _load_npy(op: str, name: str, path: Path) -> Tensor:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{op}: {name}: {path} is not a complete .npy file of numbers: {error}") from None
    return _from_numpy(op, name, array)


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
    tensor = _from_numpy(op, name, array)
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
        return _from_numpy(op, name, x)
    if hasattr(x, "__dlpack__"):
        return torch.from_dlpack(x).detach()
    if hasattr(x, "__cuda_array_interface__"):
        return torch.as_tensor(x, device="cuda")
    if hasattr(x, "__array__") or isinstance(x, (list, tuple)):
        try:
            return _from_numpy(op, name, np.asarray(x))
        except ValueError as error:
            raise ValueError(f"{op}: expected {name} to be an array, got {found(x)}: {error}") from None
    raise TypeError(
        f"{op}: expected {name} to be a torch tensor, a numpy or cupy array, or .npy or .safetensors files, "
        f"got {found(x)}"
    )


def _is_shards(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and not isinstance(x[0], (int, float, list, tuple, np.number))


@dataclass
class Features:
    """Rows of features in one or several chunks; ``starts[i]`` is the first row of chunk i, ``starts[-1]`` the end."""

    name: str
    chunks: list[Tensor]
    starts: list[int]
    from_files: bool

    @property
    def n(self) -> int:
        return self.starts[-1]

    @property
    def dim(self) -> int:
        return int(self.chunks[0].shape[1])

    @property
    def device(self) -> torch.device:
        return self.chunks[0].device

    @property
    def wide(self) -> bool:
        return any(c.dtype == torch.float64 for c in self.chunks)


def read_features(op: str, name: str, x: Any) -> Features:
    """Features (n, D) from an array, a file, or a sequence of those (shards along n)."""
    sharded = _is_shards(x)
    parts = list(x) if sharded else [x]
    chunks = [to_tensor(op, f"{name}[{i}]" if sharded else name, part) for i, part in enumerate(parts)]
    starts = [0]
    for i, chunk in enumerate(chunks):
        label = f"{name}[{i}]" if sharded else name
        if chunk.ndim != 2:
            hint = "; pass one query as x[None]" if chunk.ndim == 1 else ""
            raise ValueError(f"{op}: expected {label} of shape (n, D), got {tuple(chunk.shape)}{hint}")
        if chunk.dtype not in FLOATS:
            raise TypeError(
                f"{op}: expected {label} of dtype float16, bfloat16, float32 or float64, "
                f"got {str(chunk.dtype).removeprefix('torch.')}; convert with .astype('float32') or .float()"
            )
        if chunk.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{op}: expected {label} on the CPU or a CUDA device, got {chunk.device}")
        if chunk.shape[1] == 0:
            raise ValueError(f"{op}: expected {label} with D >= 1 features per row, got {tuple(chunk.shape)}")
        if chunk.shape[1] != chunks[0].shape[1]:
            raise ValueError(
                f"{op}: expected every shard of {name} with D={chunks[0].shape[1]}, got {tuple(chunk.shape)} in {label}"
            )
        if chunk.device != chunks[0].device:
            raise ValueError(f"{op}: expected every shard of {name} on {chunks[0].device}, got {chunk.device}")
        starts.append(starts[-1] + len(chunk))
    mapped = any(isinstance(p, (str, os.PathLike, np.memmap)) for p in parts)
    return Features(name, chunks, starts, mapped)


def check_pair(op: str, query: Features, gallery: Features) -> None:
    """Query and gallery fit each other."""
    if query.dim != gallery.dim:
        raise ValueError(
            f"{op}: expected gallery with D={query.dim} features per row to match query, got D={gallery.dim}"
        )
    if query.device != gallery.device and not gallery.from_files:
        raise ValueError(
            f"{op}: expected gallery on query's device {query.device}, got {gallery.device}; move one with .to(device)"
        )
    if gallery.n == 0:
        raise ValueError(f"{op}: expected a gallery with at least one row, got an empty one, shape (0, {gallery.dim})")


def read_ids(op: str, name: str, x: Any, n: int, rows_of: str) -> NDArray[np.int64]:
    """Ids (n,) as int64 on the host."""
    if isinstance(x, Tensor):
        values: Any = x.detach().cpu().numpy() if x.dtype != torch.bfloat16 else x.detach().float().cpu().numpy()
    elif isinstance(x, np.ndarray):
        values = x
    elif hasattr(x, "__dlpack__") or hasattr(x, "__cuda_array_interface__"):
        values = to_tensor(op, name, x).cpu().numpy()
    else:
        try:
            values = np.asarray(x)
        except ValueError:
            raise ValueError(f"{op}: expected {name} to be a flat array of integers, got {found(x)}") from None
    if values.ndim != 1:
        raise ValueError(f"{op}: expected {name} of shape ({n},), got {tuple(values.shape)}")
    if len(values) != n:
        raise ValueError(f"{op}: expected {name} of shape ({n},) to match {rows_of} with {n} rows, got {values.shape}")
    if n == 0:
        return np.empty(0, np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{op}: expected {name} of an integer dtype, got {values.dtype}")
    if values.dtype == np.uint64 and n and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{op}: expected {name} within int64, got {values.max()}")
    return np.ascontiguousarray(values, dtype=np.int64)


@dataclass
class Labels:
    """Ids of queries and gallery, and cameras of both or neither."""

    query: NDArray[np.int64]
    gallery: NDArray[np.int64]
    query_cameras: NDArray[np.int64] | None
    gallery_cameras: NDArray[np.int64] | None


def read_labels(
    op: str, n_query: int, n_gallery: int, query_ids: Any, gallery_ids: Any, query_cameras: Any, gallery_cameras: Any
) -> Labels:
    """The four label arrays, checked."""
    if (query_cameras is None) != (gallery_cameras is None):
        given, missing = ("query", "gallery") if gallery_cameras is None else ("gallery", "query")
        raise ValueError(
            f"{op}: expected both camera arrays or neither, got {given}_cameras without {missing}_cameras; "
            "leave both out to turn the camera rule off"
        )
    query = read_ids(op, "query_ids", query_ids, n_query, "query")
    gallery = read_ids(op, "gallery_ids", gallery_ids, n_gallery, "gallery")
    if (query == -1).any():
        raise ValueError(
            f"{op}: expected queries with an identity, got pid -1 (junk) at query row {int(np.argmax(query == -1))}; "
            "drop junk queries"
        )
    if query_cameras is None:
        return Labels(query, gallery, None, None)
    return Labels(
        query,
        gallery,
        read_ids(op, "query_cameras", query_cameras, n_query, "query"),
        read_ids(op, "gallery_cameras", gallery_cameras, n_gallery, "gallery"),
    )


def check_choice(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{op}: expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(op: str, name: str, value: Any) -> int:
    """``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{op}: expected {name} to be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{op}: expected {name} >= 1, got {value}")
    return int(value)
