# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Curves, drawn by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import BinaryIO

from reidfast._files import write_whole

__all__ = ["plot_cmc"]


def plot_cmc(curves: Mapping[str, Sequence[float]], out: str | os.PathLike[str] | BinaryIO, *, ranks: int = 20) -> None:
    """CMC curves: the share of queries whose first match is among the k nearest, over k.

    Args:
        curves: Name of each curve and its values (fractions) for k = 1, 2, ...
        out: A file, its ending (.png, .svg, .pdf) saying which kind; or a stream, which gets a PNG.
        ranks: Up to which k.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('plot_cmc: drawing needs matplotlib: pip install "reidfast[report]"') from error
    figure = Figure(figsize=(6.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in curves.items():
        shown = [100 * value for value in list(values)[:ranks]]
        axes.plot(range(1, len(shown) + 1), shown, marker="o", markersize=3, label=name)
    axes.set(xlabel="rank k", ylabel="queries with a match among the k nearest, %", ylim=(0, 102))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(loc="lower right", fontsize="small")
    if hasattr(out, "write"):
        figure.savefig(out, format="png")
        return
    picture = BytesIO()
    figure.savefig(picture, format=os.path.splitext(os.fspath(out))[1].lstrip(".").lower() or "png")
    with write_whole(out) as stream:
        stream.write(picture.getvalue())
