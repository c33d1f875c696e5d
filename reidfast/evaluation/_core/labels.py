# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Identities and cameras of queries and gallery, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast._arrays import describe, from_numpy, to_tensor
from reidfast._shards import Facts

JUNK = -1  # gallery pid that counts for nobody


def read_integers(op: str, name: str, x: Any, n: int, rows_of: str) -> Tensor:
    """Integers (n,) as contiguous int64 in host memory."""
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
            raise ValueError(f"{op}: expected {name} to be a flat array of integers, got {describe(x)}") from None
    if values.ndim != 1:
        raise ValueError(f"{op}: expected {name} of shape ({n},), got {tuple(values.shape)}")
    if len(values) != n:
        raise ValueError(f"{op}: expected {name} of shape ({n},) to match {rows_of} with {n} rows, got {values.shape}")
    if n == 0:
        return torch.empty(0, dtype=torch.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{op}: expected {name} of an integer dtype, got {values.dtype}")
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{op}: expected {name} within int64, got {values.max()}")
    return from_numpy(op, name, np.ascontiguousarray(values, dtype=np.int64))


@dataclass(frozen=True)
class Labels:
    """int64 identities of queries and gallery, and cameras of both or neither."""

    query_pids: Tensor
    gallery_pids: Tensor
    query_camids: Tensor | None
    gallery_camids: Tensor | None

    def of_queries(self, begin: int, end: int) -> Labels:
        """The same with queries [begin, end) alone."""
        camids = None if self.query_camids is None else self.query_camids[begin:end]
        return Labels(self.query_pids[begin:end], self.gallery_pids, camids, self.gallery_camids)

    def agree_on(self, facts: Facts) -> None:
        """What processes that share a gallery must pass alike: the labels of queries, and whether cameras are given."""
        facts.add(query_pids=self.query_pids, query_camids=self.query_camids)


def read_labels(
    op: str, n_query: int, n_gallery: int, query_pids: Any, gallery_pids: Any, query_camids: Any, gallery_camids: Any
) -> Labels:
    """The four label arrays, checked."""
    if (query_camids is None) != (gallery_camids is None):
        given, missing = ("query", "gallery") if gallery_camids is None else ("gallery", "query")
        raise ValueError(
            f"{op}: expected both camera arrays or neither, got {given}_camids without {missing}_camids; "
            "leave both out to turn the camera rule off"
        )
    query = read_integers(op, "query_pids", query_pids, n_query, "query")
    gallery = read_integers(op, "gallery_pids", gallery_pids, n_gallery, "gallery")
    junk = (query == JUNK).nonzero()
    if len(junk):
        raise ValueError(
            f"{op}: expected queries with an identity, got pid -1 (junk) at query row {int(junk[0])}; drop junk queries"
        )
    if query_camids is None:
        return Labels(query, gallery, None, None)
    return Labels(
        query,
        gallery,
        read_integers(op, "query_camids", query_camids, n_query, "query"),
        read_integers(op, "gallery_camids", gallery_camids, n_gallery, "gallery"),
    )
