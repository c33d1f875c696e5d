# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast search`: the nearest gallery images of queries, or of pictures of your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from reidfast.evaluation import METRICS

from ._common import (
    add_command,
    add_json,
    add_model,
    add_ranking,
    build_model,
    check_choice,
    positive,
    print_json,
    print_table,
    set_threads,
)


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "search", run, "list the nearest gallery images of queries or of other pictures")
    parser.add_argument("features", metavar="FEATURES", help="a feature file with a gallery")
    parser.add_argument("--k", type=positive, default=10, help="how many (default: 10)")
    parser.add_argument(
        "--query", type=int, nargs="+", metavar="ROW", help="rows of the query split (default: the first)"
    )
    parser.add_argument("--image", nargs="+", metavar="FILE", help="pictures instead; needs the gallery's own --model")
    add_ranking(parser)
    add_json(parser)
    add_model(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Search and print."""
    from reidfast.engine import read_features
    from reidfast.report.rankings import rank_queries

    set_threads(args)
    check_choice("--metric", args.metric, METRICS)
    file = read_features(args.features)
    if args.image:
        lists = search_images(args, file)
    else:
        if args.model:
            raise ValueError("--model: expected --image beside it, got none")
        rows = args.query or [0]
        count = len(file.query)
        outside = [row for row in rows if not 0 <= row < count]
        if outside:
            raise ValueError(f"--query: expected rows from 0 to {count - 1}, got {outside[0]}")
        lists = []
        for found in rank_queries(file, rows, args.k, metric=args.metric, camera_rule=not args.no_camera_rule):
            query = file.query
            path = query.paths[found.query] if query.paths else None
            asked = {"row": found.query, "path": path}
            asked |= {"pid": int(query.pids[found.query]), "camid": int(query.camids[found.query])}
            lists.append((asked, found.rows, found.distances, found.matches.tolist()))
    gallery = file.gallery
    answer = []
    for asked, rows, distances, matches in lists:
        results = [
            {
                "rank": i + 1,
                "distance": float(distance),
                "row": int(row),
                "pid": int(gallery.pids[row]),
                "camid": int(gallery.camids[row]),
                "path": gallery.paths[row] if gallery.paths else None,
                "match": match,
            }
            for i, (row, distance, match) in enumerate(zip(rows, distances, matches, strict=True))
        ]
        answer.append({"query": asked, "results": results})
    if args.json:
        print_json(answer)
        return
    marks = {True: "match", False: "-", None: ""}
    for item in answer:
        asked = item["query"]
        who = f", pid {asked['pid']}, camera {asked['camid']}" if "pid" in asked else ""
        print(f"query {asked.get('row', '')} {asked['path'] or ''}{who}".replace("  ", " "))
        head = ("rank", "distance", "pid", "camera", "", "path")
        print_table(
            head,
            [
                (r["rank"], f"{r['distance']:.4f}", r["pid"], r["camid"], marks[r["match"]], r["path"] or r["row"])
                for r in item["results"]
            ],
        )
        print()


def search_images(args: argparse.Namespace, file: Any) -> list[Any]:
    """Nearest rows of pictures that are in no feature file."""
    from reidfast.data import Records
    from reidfast.engine import extract
    from reidfast.evaluation import search

    if not args.model:
        made_by = file.meta.get("model")
        hint = f" (the gallery was made with {made_by})" if made_by else ""
        raise ValueError(f"--image: expected --model beside it, got none{hint}")
    made_by = file.meta.get("model")
    if made_by and made_by != args.model:
        raise ValueError(f"--model: expected {made_by}, which made the gallery, got {args.model}")
    paths = [Path(name).absolute() for name in args.image]
    nobody = np.zeros(len(paths), np.int64)
    records = Records(Path("/"), tuple(path.as_posix() for path in paths), nobody, nobody)
    model = build_model(args)
    options = {name: getattr(args, name) for name in ("size", "filter", "batch", "device", "flip", "workers")}
    found = extract(model, records, None, show_progress=False, **options)
    features, gallery = found.gallery.features, file.gallery.features
    if features.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"--model: expected features of {gallery.shape[1]} numbers as in the gallery, got {features.shape[1]}"
        )
    k = min(args.k, len(gallery))
    distances, indices = search(features, gallery.astype(features.dtype), k, metric=args.metric)
    rows = zip(args.image, np.asarray(indices), np.asarray(distances), strict=True)
    return [({"path": name}, index, distance, [None] * k) for name, index, distance in rows]
