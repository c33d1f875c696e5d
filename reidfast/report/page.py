# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""One HTML page that needs nothing beside it: pictures are inside."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from reidfast._files import write_whole
from reidfast.data import decode
from reidfast.engine.features import FeatureFile
from reidfast.version import __version__

from .plots import plot_cmc
from .rankings import RankedList

__all__ = ["write_page"]


def write_page(
    out: str | os.PathLike[str],
    title: str,
    result: Mapping[str, Any],
    file: FeatureFile,
    lists: Sequence[RankedList],
    roots: Mapping[str, Path],
) -> None:
    """Write the page.

    Args:
        out: The file.
        title: What was evaluated.
        result: As `reidfast evaluate --json` prints it.
        file: The features.
        lists: From `rank_queries`.
        roots: The folders of the images, "query" and "gallery".

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError('write_page: the page needs jinja2: pip install "reidfast[report]"') from error
    curve = BytesIO()
    plot_cmc({title: result["cmc"]}, curve)
    shown: dict[Path, str] = {}

    def picture(path: Path) -> str:
        if path not in shown:
            small = decode(path)
            small.thumbnail((96, 192))
            stream = BytesIO()
            small.save(stream, "JPEG", quality=88)
            shown[path] = _inline(stream.getvalue(), "jpeg")
        return shown[path]

    query, gallery = file.query, file.gallery
    rows = []
    for found in lists:
        answers = zip(found.rows, found.distances, found.matches, strict=True)
        rows.append(
            {
                "picture": picture(roots["query"] / query.paths[found.query]),
                "path": query.paths[found.query],
                "pid": int(query.pids[found.query]),
                "camid": int(query.camids[found.query]),
                "ap": result["AP"][found.query],
                "answers": [
                    {
                        "picture": picture(roots["gallery"] / gallery.paths[row]),
                        "path": gallery.paths[row],
                        "pid": int(gallery.pids[row]),
                        "camid": int(gallery.camids[row]),
                        "distance": float(distance),
                        "match": bool(match),
                    }
                    for row, distance, match in answers
                ],
            }
        )
    environment = Environment(loader=PackageLoader("reidfast.report", "."), autoescape=True)
    page = environment.get_template("page.html.j2").render(
        title=title,
        result=result,
        curve=_inline(curve.getvalue(), "png"),
        rows=rows,
        ranks=[k for k in (1, 5, 10, 20) if k <= len(result["cmc"])],
        version=__version__,
    )
    with write_whole(out) as stream:
        stream.write(page.encode())


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
