# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast report`: one HTML page with the figures, the CMC curve and ranked lists in pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from reidfast.evaluation import METRICS, PROTOCOLS

from ._common import (
    add_command,
    add_ranking,
    check_choice,
    check_writable,
    positive,
    set_threads,
)

ORDERS = ("worst", "best", "first", "random")


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "report", run, "write one HTML page: figures, CMC curve, ranked lists in pictures")
    parser.add_argument("features", metavar="FEATURES", help="a feature file with query and gallery")
    parser.add_argument("--out", default="report.html", metavar="HTML", help="the page (default: report.html)")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the images, where the file does not know it")
    parser.add_argument("--queries", type=positive, default=20, metavar="N", help="ranked lists shown (default: 20)")
    parser.add_argument("--k", type=positive, default=10, help="length of the lists (default: 10)")
    parser.add_argument("--order", default="worst", help=f"{', '.join(ORDERS)}: which queries (default: worst)")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--protocol", default="market1501", help=f"{', '.join(PROTOCOLS)} (default: market1501)")
    parser.add_argument("--picture", metavar="PNG", help="also the ranked lists as one picture")
    add_ranking(parser)
    from ._common import add_threads

    add_threads(parser)


def run(args: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from reidfast.engine import read_features
    from reidfast.report import draw_ranked_lists, rank_queries, write_page
    from reidfast.report.rankings import choose_queries, image_roots

    from .evaluate import score, title

    set_threads(args)
    check_choice("--metric", args.metric, METRICS)
    check_choice("--protocol", args.protocol, PROTOCOLS)
    check_choice("--order", args.order, ORDERS)
    check_writable(Path(args.out), "--out", (".html", ".htm"))
    if args.picture:
        check_writable(Path(args.picture), "--picture", (".png", ".jpg"))
    file = read_features(args.features)
    roots = image_roots(file, args.root)
    rule = not args.no_camera_rule
    result = score(file, metric=args.metric, protocol=args.protocol, camera_rule=rule)
    rows = choose_queries(result["AP"], args.queries, args.order, args.seed)
    lists = rank_queries(file, rows, args.k, metric=args.metric, camera_rule=rule)
    write_page(Path(args.out), title(file, args.features), result, file, lists, roots)
    print(args.out)
    if args.picture:
        draw_ranked_lists(file, lists, roots).save(args.picture)
        print(args.picture)
