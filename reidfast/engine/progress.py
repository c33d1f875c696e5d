# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""How far long work has come: a bar on a terminal, a line now and then elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Advance", "progress"]

Advance = Callable[[int], None]


@contextmanager
def progress(
    total: int, label: str, *, unit: str = "images", done: int = 0, show: bool = True, every: float = 5.0
) -> Iterator[Advance]:
    """Yield a function that is told how many more are done.

    Args:
        total: How many there are.
        label: What is being done.
        unit: What is counted.
        done: How many were done before.
        show: False shows nothing.
        every: Seconds between the lines where stderr is no terminal, or rich is not installed.
    """
    if not show:
        yield lambda count: None
        return
    bar = _rich_bar() if sys.stderr.isatty() else None
    if bar is None:
        lines = _Lines(total, label, unit, done, every, sys.stderr)
        yield lines.advance
        lines.finish()
    else:
        with bar:
            task = bar.add_task(label, total=total, completed=done, unit=unit)
            yield lambda count: bar.advance(task, count)


def _rich_bar():  # noqa: ANN202  (rich's type, which need not be installed)
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Lines:
    """The plain form: one line at most every so many seconds, and one at the end."""

    def __init__(self, total: int, label: str, unit: str, done: int, every: float, stream: TextIO):
        self.total, self.label, self.unit, self.done = total, label, unit, done
        self.every, self.stream = every, stream
        self.start = self.said = time.monotonic()
        self.before = self.last = done

    def advance(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.said >= self.every:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        self.last = self.done
        rate = (self.done - self.before) / max(self.said - self.start, 1e-9)
        share = f"{self.done:,} of {self.total:,} {self.unit}"
        print(f"{self.label}: {share}, {rate:,.0f}/s", file=self.stream, flush=True)

    def finish(self) -> None:
        if self.last != self.done:
            self.say()
