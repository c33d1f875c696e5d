# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""A gallery in shards, one per process of a torch.distributed group: what the processes tell each other.

An error in one process is raised in all of them, so that none waits for another. A call begins by comparing digests of
what all processes must have in common, so that processes that disagree get an error and not wrong scores.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIGEST, _FACTS = 16, 24  # bytes per fact, facts per call: the exchange has one size, whatever is called
_ERRORS = {"ValueError": ValueError, "TypeError": TypeError, "NotImplementedError": NotImplementedError}


class Shards:
    """The processes that share a gallery, this one being number ``index`` of ``count``."""

    index: int
    count: int

    def starts(self, n: int) -> tuple[int, int]:
        """First global position of this process's n items, and the number of all."""
        raise NotImplementedError

    def concatenate(self, x: Tensor) -> Tensor:
        """The tensors of all processes, in order of their index, along the first axis; on the device of ``x``."""
        raise NotImplementedError

    def add(self, x: Tensor) -> Tensor:
        """Sum over processes, integer exact; on the device of ``x``."""
        raise NotImplementedError

    def first_error(self, error: Exception | None) -> None:
        """Raise in every process what any process met."""
        raise NotImplementedError

    def compare(self, facts: Facts, error: Exception | None) -> None:
        """Raise in every process what any process met, or that the processes disagree on ``facts``."""
        raise NotImplementedError

    def sum(self, *values: int) -> tuple[int, ...]:
        """Sums of integers over processes."""
        return tuple(self.add(torch.tensor(values)).tolist())


class Facts:
    """Digests, by name, of what all processes must pass alike. The first fact is the function that was called."""

    def __init__(self, op: str, wanted: bool) -> None:
        self.op, self.wanted = op, wanted
        self.digests: dict[str, bytes] = {}
        self.add(**{"function": op})

    def add(self, **values: Any) -> None:
        """Add tensors, None, or values whose repr says all there is."""
        if not self.wanted:
            return
        for name, value in values.items():
            self.digests[name] = _digest(value)

    def packed(self) -> Tensor:
        """uint8 (_FACTS + 1, _DIGEST): a row per fact, zeros behind them."""
        raw = b"".join(self.digests.values())
        return torch.tensor(list(raw.ljust((_FACTS + 1) * _DIGEST, b"\0")), dtype=torch.uint8).view(-1, _DIGEST)


def _digest(value: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            for block in part.split(1 << 12) if part.ndim else [part]:
                digest.update(block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.digest()


class LocalShards(Shards):
    """One process holds the whole gallery."""

    index, count = 0, 1

    def starts(self, n: int) -> tuple[int, int]:
        return 0, n

    def concatenate(self, x: Tensor) -> Tensor:
        return x

    def add(self, x: Tensor) -> Tensor:
        return x

    def first_error(self, error: Exception | None) -> None:
        if error is not None:
            raise error

    def compare(self, facts: Facts, error: Exception | None) -> None:
        self.first_error(error)


class DistributedShards(Shards):
    """The processes of ``group``: each passes the same queries and its own shard of the gallery."""

    def __init__(self, op: str, group: Any) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(f"{op}: expected torch.distributed to be initialised beside group=, it is not")
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"{op}: expected group to be a torch.distributed process group, got {type(group).__name__}")
        self.dist, self.group = dist, group
        self.index, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.index < 0:
            raise ValueError(f"{op}: expected this process to be in the process group")
        backend = str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in backend else torch.device("cpu")

    def _gather(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.count)]
        self.dist.all_gather(parts, x, group=self.group)
        return parts

    def starts(self, n: int) -> tuple[int, int]:
        counts = self.concatenate(torch.tensor([n]))
        return int(counts[: self.index].sum()), int(counts.sum())

    def concatenate(self, x: Tensor) -> Tensor:
        sizes = [int(n) for n in self._gather(torch.tensor([len(x)], device=self.device))]
        longest = max(sizes)
        if longest == 0:
            return x
        # Bytes, so that any dtype travels; every process sends as much as the longest has.
        item = x.element_size() * int(np.prod(x.shape[1:], dtype=np.int64))
        sent = torch.zeros(longest * item, dtype=torch.uint8, device=self.device)
        if len(x):
            sent[: len(x) * item] = x.contiguous().reshape(-1).view(torch.uint8)
        raw = torch.cat([part[: n * item] for part, n in zip(self._gather(sent), sizes, strict=True)])
        return raw.view(x.dtype).reshape(-1, *x.shape[1:]).to(x.device)

    def add(self, x: Tensor) -> Tensor:
        total = x.to(self.device, copy=True).contiguous()
        self.dist.all_reduce(total, group=self.group)
        return total.to(x.device)

    def first_error(self, error: Exception | None) -> None:
        if self.sum(error is not None)[0]:
            self._raise_first(error)

    def _raise_first(self, error: Exception | None) -> None:
        messages: list[Any] = [None] * self.count
        message = None if error is None else (type(error).__name__, str(error))
        self.dist.all_gather_object(messages, message, group=self.group)
        if error is not None:
            raise error
        index, (kind, text) = next((i, m) for i, m in enumerate(messages) if m is not None)
        raise _ERRORS.get(kind, RuntimeError)(f"{text} (on process {index})")

    def compare(self, facts: Facts, error: Exception | None) -> None:
        rows = facts.packed()
        rows[-1, 0] = error is not None
        everyone = torch.stack(self._gather(rows.to(self.device)))
        if bool(everyone[:, -1, 0].any()):
            self._raise_first(error)
        differ = (everyone != everyone[0]).any(2)  # (processes, facts)
        if not bool(differ.any()):
            return
        process = int(differ.any(1).nonzero()[0])
        if bool(differ[:, 0].any()):
            raise ValueError(
                f"{facts.op}: expected every process of group to call the same function, got another one on process "
                f"{process} than on process 0"
            )
        wrong = [name for name, differs in zip(facts.digests, differ.any(0).tolist(), strict=False) if differs]
        raise ValueError(
            f"{facts.op}: expected the same {', '.join(wrong)} on every process of group, got others on process "
            f"{process} than on process 0"
        )


def shards_of(op: str, group: Any) -> Shards:
    """The processes that take part: this one alone where ``group`` is None."""
    return LocalShards() if group is None else DistributedShards(op, group)


@contextlib.contextmanager
def raise_everywhere(shards: Shards) -> Iterator[None]:
    """An error of one process becomes an error of all."""
    try:
        yield
    except Exception as error:
        shards.first_error(error)
        raise
    else:
        shards.first_error(None)


@contextlib.contextmanager
def agreement(op: str, shards: Shards) -> Iterator[Facts]:
    """Where a call reads what it was given: an error of one process, or facts that differ, become an error of all."""
    facts = Facts(op, shards.count > 1)
    try:
        yield facts
    except Exception as error:
        shards.compare(facts, error)
        raise
    else:
        shards.compare(facts, None)
