# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A gallery sharded over a torch.distributed process group: what ranks tell each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Solo:
    """One process holds the whole gallery."""

    rank, size = 0, 1

    def starts(self, n: int) -> tuple[int, int]:
        """First global position of this rank's n items, and the number of all."""
        return 0, n

    def concatenate(self, x: NDArray[Any]) -> NDArray[Any]:
        """The arrays of all ranks, in rank order, along the first axis."""
        return x

    def add(self, x: NDArray[Any]) -> NDArray[Any]:
        """Sum over ranks, integer exact."""
        return x

    def first_error(self, error: Exception | None) -> None:
        """Raises on every rank what any rank met, so that none waits for another."""
        if error is not None:
            raise error


class Group(Solo):
    """The ranks of ``group``; every rank passes the same queries and its own part of the gallery."""

    def __init__(self, op: str, group: Any) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(f"{op}: expected torch.distributed to be initialised beside group=, it is not")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"{op}: expected group to be a torch.distributed process group, got {type(group).__name__}")
        self.dist, self.group = dist, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(f"{op}: expected this process to be in the process group")
        backend = str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in backend else torch.device("cpu")

    def starts(self, n: int) -> tuple[int, int]:
        counts = self.concatenate(np.array([n], np.int64))
        return int(counts[: self.rank].sum()), int(counts.sum())

    def concatenate(self, x: NDArray[Any]) -> NDArray[Any]:
        x = np.ascontiguousarray(x)
        length = torch.tensor([len(x)], device=self.device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        self.dist.all_gather(lengths, length, group=self.group)
        sizes = [int(v) for v in lengths]
        longest = max(sizes)
        if longest == 0:
            return x
        # Bytes, so that any dtype travels; every rank sends as much as the longest has.
        item = x.dtype.itemsize * int(np.prod(x.shape[1:], dtype=np.int64))
        mine = torch.zeros(longest * item, dtype=torch.uint8, device=self.device)
        if len(x):
            mine[: len(x) * item] = torch.from_numpy(x.reshape(-1).view(np.uint8).copy()).to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        self.dist.all_gather(parts, mine, group=self.group)
        raw = [
            p[: n * item].cpu().numpy().view(x.dtype).reshape(n, *x.shape[1:])
            for p, n in zip(parts, sizes, strict=True)
        ]
        return np.concatenate(raw)

    def add(self, x: NDArray[Any]) -> NDArray[Any]:
        total = torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
        self.dist.all_reduce(total, group=self.group)
        return total.cpu().numpy()

    def first_error(self, error: Exception | None) -> None:
        if not int(self.add(np.array([error is not None], np.int64))[0]):
            return
        told: list[Any] = [None] * self.size
        self.dist.all_gather_object(
            told, None if error is None else (type(error).__name__, str(error)), group=self.group
        )
        if error is not None:
            raise error
        other = next(i for i, message in enumerate(told) if message is not None)
        kinds = {"ValueError": ValueError, "TypeError": TypeError, "NotImplementedError": NotImplementedError}
        raise kinds.get(told[other][0], RuntimeError)(f"{told[other][1]} (on rank {other})")


def ranks_of(op: str, group: Any) -> Solo:
    """The processes that take part: this one alone where ``group`` is None."""
    return Solo() if group is None else Group(op, group)
