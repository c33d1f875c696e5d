# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast demo`: the whole way on rendered people, with no download: images, features, evaluation, pictures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from reidfast._files import write_whole

from ._common import add_command, add_json, add_threads, positive, print_json, print_table, set_threads
from .data import write_with_progress
from .evaluate import score

SIZE = (128, 64)  # as the people are rendered
# name -> model, what it is
EXTRACTORS = {
    "color_stripes": ("color_stripes", "colour histograms of 12 horizontal stripes; nothing is learned"),
    "osnet_random": ("osnet_x0_25", "OSNet x0.25 with random weights (seed 0): a network that was not trained"),
}


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "demo", run, "render people, extract features, evaluate and draw the ranked lists")
    parser.add_argument("--out", default="demo", metavar="FOLDER", help="folder for everything (default: demo)")
    parser.add_argument("--ids", type=positive, default=50, help="identities searched for (default: 50)")
    parser.add_argument("--cameras", type=positive, default=6)
    parser.add_argument("--images", type=positive, default=2, help="of each identity by each camera (default: 2)")
    parser.add_argument("--weights", metavar="FILE", help="weights for OSNet x0.25; adds a third row")
    parser.add_argument("--difficulty", type=float, default=0.5, help="of the rendered people, 0 (easy) to 1")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """The whole way."""
    import torch

    from reidfast.data.synthetic import write_synthetic
    from reidfast.engine import extract
    from reidfast.models import create_model
    from reidfast.report import draw_ranked_lists, rank_queries
    from reidfast.report.rankings import choose_queries, image_roots

    set_threads(args)
    start = time.perf_counter()
    if args.cameras < 2 or args.images < 2:
        raise ValueError("expected at least 2 cameras and 2 images: a query needs a match seen by another camera")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    people = out / "people"
    data = write_with_progress(
        write_synthetic,
        people,
        workers=os.cpu_count() or 1,
        overwrite=True,
        ids=args.ids,
        cameras=args.cameras,
        images=args.images,
        difficulty=args.difficulty,
        test=1.0,
    )
    tables = {"query": data.query, "gallery": data.gallery}
    extractors = dict(EXTRACTORS)
    if args.weights:
        extractors["osnet"] = ("osnet_x0_25", f"OSNet x0.25 with the weights {Path(args.weights).name}")
    results, files = {}, {}
    for name, (model_name, _) in extractors.items():
        torch.manual_seed(0)
        model = create_model(model_name, weights=args.weights if name == "osnet" else None)
        meta = {"model": name, "data": "synthetic", "roots": {k: str(t.root.absolute()) for k, t in tables.items()}}
        print(f"{name}: {extractors[name][1]}", file=sys.stderr)
        files[name] = extract(model, tables, out / f"features_{name}.npz", size=SIZE, meta=meta, overwrite=True)
        results[name] = score(files[name])
    best = max(results, key=lambda name: results[name]["mAP"])
    file = files[best]
    rows = choose_queries(results[best]["AP"], 8, "random")
    lists = rank_queries(file, rows, 10)
    roots = image_roots(file)
    draw_ranked_lists(file, lists, roots).save(out / "ranked_lists.png")
    made = ["metrics.json", "ranked_lists.png"]
    try:
        from reidfast.report import plot_cmc, write_page

        plot_cmc({name: result["cmc"] for name, result in results.items()}, out / "cmc.png")
        made.append("cmc.png")
        write_page(out / "report.html", f"{best} on rendered people", results[best], file, lists, roots)
        made.append("report.html")
    except ImportError as error:
        print(f"note: no curve, no page: {error}", file=sys.stderr)
    seconds = time.perf_counter() - start
    counts = {"identities": args.ids, "cameras": args.cameras, "queries": len(data.query), "gallery": len(data.gallery)}
    chance = results[best]["valid_queries"] and _chance(data)
    metrics = {
        "people": counts,
        "extractors": {name: {"what": text, **results[name]} for name, (_, text) in extractors.items()},
        "chance_R1": chance,
        "seconds": seconds,
    }
    with write_whole(out / "metrics.json") as stream:
        stream.write(json.dumps(metrics, indent=1).encode())
    if args.json:
        print_json(metrics)
        return
    print(f"{len(data.query)} queries, {len(data.gallery)} gallery images of {args.ids} rendered people, in %:")
    values = [
        (name, *(f"{100 * results[name][key]:.1f}" for key in ("R1", "mAP", "mINP")), text)
        for name, (_, text) in extractors.items()
    ]
    print_table(
        ("", "R1", "mAP", "mINP", ""), [*values, ("chance", f"{100 * chance:.1f}", "-", "-", "a random gallery image")]
    )
    print("No trained weights come with the package; give some to --weights. Rankings shown are those of " + best + ".")
    print(f"{seconds:.0f} s; look into {out.resolve()}: {', '.join(made)}")


def _chance(data: Any) -> float:
    """R1 of a random order: the mean share of right images among those that count."""
    import numpy as np

    query, gallery = data.query, data.gallery
    shares = []
    for pid, camid in zip(query.pids, query.camids, strict=True):
        kept = ~((gallery.pids == pid) & (gallery.camids == camid)) & (gallery.pids != -1)
        right = (gallery.pids == pid) & kept
        if right.any():
            shares.append(right.sum() / kept.sum())
    return float(np.mean(shares))
