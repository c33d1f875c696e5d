# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast evaluate`: CMC, mAP and mINP of a feature file, or of a model on images."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from reidfast.evaluation import AP_RULES, METRICS, PROTOCOLS

from ._common import (
    add_command,
    add_data,
    add_json,
    add_model,
    add_ranking,
    check_choice,
    check_writable,
    load_data,
    positive,
    print_json,
    print_table,
    run_extract,
    set_threads,
)
from ._launched import launched_group, part_of

RANKS = (1, 5, 10, 20)


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(subparsers, "evaluate", run, "evaluate a feature file, or a model on the images of a data set")
    parser.add_argument("features", metavar="FEATURES", nargs="?", help="a feature file; or give --data and --model")
    parser.add_argument("--save-features", metavar="FILE", help="with --data: keep the features here, resumable")
    parser.add_argument("--protocol", default="market1501", help=f"{', '.join(PROTOCOLS)} (default: market1501)")
    parser.add_argument("--ap", metavar="RULE", help=f"{', '.join(AP_RULES)} (default: the protocol's own)")
    parser.add_argument("--max-rank", type=positive, default=50, metavar="N", help="length of the CMC (default: 50)")
    parser.add_argument("--plot", metavar="PNG", help="draw the CMC curve")
    parser.add_argument(
        "--compare",
        metavar="FEATURES",
        nargs="+",
        help="a second feature file on the same queries (or two, and none before): is it better? By bootstrap",
    )
    parser.add_argument(
        "--by-camera",
        action="store_true",
        help="also rank-1 and mAP of every query camera against every gallery camera",
    )
    tricks = parser.add_argument_group("test-time options (each says so in the result)")
    tricks.add_argument("--camera-mean", action="store_true", help="subtract the mean feature of each camera")
    tricks.add_argument("--query-expansion", type=positive, metavar="K", help="move queries towards their K nearest")
    tricks.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_ranking(parser)
    add_json(parser)
    add_data(parser, required=False)
    add_model(parser, required=False)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    set_threads(args)
    check_choice("--metric", args.metric, METRICS)
    check_choice("--protocol", args.protocol, PROTOCOLS)
    check_choice("--ap", args.ap, AP_RULES)
    if args.plot:
        check_writable(Path(args.plot), "--plot", (".png", ".svg", ".pdf"))
    other = None
    if args.compare:
        from reidfast.engine import read_features

        wanted = 1 if args.features is not None or args.data else 2
        if len(args.compare) != wanted:
            raise ValueError(f"--compare: expected {wanted} feature file(s) here, got {len(args.compare)}")
        args.features = args.features if wanted == 1 else args.compare[0]
        other = read_features(args.compare[-1])
    if args.rerank and args.metric != "cosine":
        raise ValueError(f"--rerank: it has its own metric, leave out --metric {args.metric}")
    if args.rerank and args.by_camera:
        raise ValueError("--by-camera: it ranks pairs of cameras on their own; leave out --rerank")
    group = launched_group(args.device)
    file = features_of(args, group)
    options = {
        "metric": args.metric,
        "protocol": args.protocol,
        "average_precision": args.ap,
        "max_rank": args.max_rank,
        "camera_rule": not args.no_camera_rule,
        "camera_mean": args.camera_mean,
        "query_expansion": args.query_expansion,
        "rerank": args.rerank,
    }
    result = score(file, **options, group=group)
    name = title(file, args.features)
    if other is not None:
        if not np.array_equal(other.query.pids, file.query.pids) or not np.array_equal(
            other.query.camids, file.query.camids
        ):
            raise ValueError(f"--compare: expected the same queries in {args.compare[-1]}, in the same order")
        result["compared"] = {
            "with": args.compare[-1],
            **compare(result, score(other, **options, group=group), file.query.pids),
        }
    first = group is None or group.rank() == 0
    if args.by_camera and first:
        result["by_camera"] = by_camera(file, **options)
    if first:
        if args.plot:
            from reidfast.report import plot_cmc

            plot_cmc({name: result["cmc"]}, Path(args.plot))
        if args.json:
            print_json(result)
        else:
            print_result(result, name)
    if group is not None:
        from reidfast.engine.training import leave_processes

        leave_processes()


def features_of(args: argparse.Namespace, group: Any = None) -> Any:
    """From the file named, or from images; `group`: the processes that share in it."""
    from reidfast.engine import read_features

    if args.features is not None:
        if args.data or args.model:
            raise ValueError("expected a feature file, or --data with --model, got both")
        return read_features(args.features)
    if not (args.data and args.model):
        raise ValueError("expected a feature file, or --data with --model, got neither in full")
    out = Path(args.save_features) if args.save_features else None
    data = load_data(args)
    for name in ("query", "gallery"):
        if not len(data.splits[name]):
            raise ValueError(f"--data: {data.name} has no {name} images to evaluate on")
    return run_extract(args, data, out, group=group)


def score(
    file: Any,
    *,
    metric: str = "cosine",
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    camera_rule: bool = True,
    camera_mean: bool = False,
    query_expansion: int | None = None,
    rerank: bool = False,
    group: Any = None,
) -> dict[str, Any]:
    """Everything that `--json` prints; fractions, not per cent. With `group`, each process takes a shard."""
    from reidfast import evaluation

    query, gallery = file.query, file.gallery
    cameras = (query.camids, gallery.camids) if camera_rule else (None, None)
    start = time.perf_counter()
    asked, found = prepared(file, camera_mean, query_expansion)
    own: dict[str, Any] = {} if rerank else {"metric": metric}
    part = slice(None) if group is None else part_of(len(gallery), group)
    ranking = (evaluation.rank_reranked if rerank else evaluation.rank)(
        asked,
        found[part],
        query.pids,
        gallery.pids[part],
        cameras[0],
        None if cameras[1] is None else cameras[1][part],
        **own,
        group=group,
        protocol=protocol,
        average_precision=average_precision,
        max_rank=max_rank,
    )
    seconds = time.perf_counter() - start
    cmc = [float(value) for value in ranking.cmc]
    settings = file.meta.get("settings", {})
    return {
        "data": file.meta.get("data"),
        "model": file.meta.get("model"),
        "weights": file.meta.get("weights"),
        "image_size": settings.get("size"),
        "filter": settings.get("filter"),
        "flip": settings.get("flip"),
        "metric": "k-reciprocal" if rerank else metric,
        "camera_mean": camera_mean,
        "query_expansion": query_expansion,
        "protocol": protocol,
        "average_precision": average_precision or "the protocol's own",
        "camera_rule": camera_rule,
        "feature_size": int(query.features.shape[1]),
        "queries": len(query),
        "gallery": len(gallery),
        "valid_queries": int(ranking.valid.sum()),
        "skipped": [int(i) for i in ranking.skipped],
        "R1": cmc[0],
        "mAP": float(ranking.mean_ap),
        "mINP": float(ranking.mean_inp),
        "cmc": cmc,
        "mAP_bounds": [float(bound) for bound in ranking.bounds],
        "first_match": [int(i) for i in ranking.first_match],
        "AP": [None if math.isnan(value) else float(value) for value in ranking.ap],
        "seconds": seconds,
    }


def prepared(file: Any, camera_mean: bool, query_expansion: int | None) -> tuple[Any, Any]:
    """Features of queries and gallery after the test-time options."""
    from reidfast import evaluation

    query, gallery = file.query, file.gallery
    asked, found = query.features, gallery.features
    if camera_mean:
        both = evaluation.subtract_camera_mean(
            np.concatenate([asked, found]), np.concatenate([query.camids, gallery.camids])
        )
        asked, found = both[: len(asked)], both[len(asked) :]
    if query_expansion:
        asked, found = evaluation.query_expansion(asked, found, k=query_expansion), found.astype(np.float32)
    return asked, found


def by_camera(
    file: Any,
    *,
    camera_mean: bool,
    query_expansion: int | None,
    rerank: bool,
    max_rank: int,
    **options: Any,
) -> dict[str, Any]:
    """Scores of every pair of cameras; None where no query has a match."""
    from reidfast.engine.tables import camera_pairs

    query, gallery = file.query, file.gallery
    asked, found = prepared(file, camera_mean, query_expansion)
    pairs = camera_pairs(asked, found, query.pids, gallery.pids, query.camids, gallery.camids, **options)

    def plain(table: Any) -> list[list[float | None]]:
        return [[None if math.isnan(value) else float(value) for value in row] for row in table]

    return {
        "query_cameras": pairs.query_cameras,
        "gallery_cameras": pairs.gallery_cameras,
        "R1": plain(pairs.rank1),
        "mAP": plain(pairs.mean_ap),
        "queries": pairs.queries.tolist(),
    }


def compare(a: dict[str, Any], b: dict[str, Any], pids: Any) -> dict[str, Any]:
    """Result b against a: the difference in mAP and R1 with its bootstrap over identities."""
    from reidfast.engine import paired_bootstrap

    answer: dict[str, Any] = {"R1": b["R1"], "mAP": b["mAP"], "difference": {}}
    for key in ("R1", "mAP"):
        values = [np.array([np.nan if v is None else v for v in result["AP"]]) for result in (a, b)]
        if key == "R1":
            firsts = [np.array(result["first_match"]) for result in (a, b)]
            values = [np.where(f > 0, (f == 1).astype(float), np.nan) for f in firsts]
        answer["difference"][key] = paired_bootstrap(values[0], values[1], pids)._asdict()
    return answer


def title(file: Any, path: str | None) -> str:
    """What was evaluated, in few words."""
    words = [str(file.meta[key]) for key in ("model", "data") if file.meta.get(key)]
    return " on ".join(words) or (Path(path).name if path else "features")


def print_result(result: dict[str, Any], name: str) -> None:
    """The table for people."""
    shown = [k for k in RANKS if k <= len(result["cmc"])]
    values = [result["cmc"][k - 1] for k in shown] + [result["mAP"], result["mINP"]]
    print_table(["%", *(f"R{k}" for k in shown), "mAP", "mINP"], [[name, *(f"{100 * v:.1f}" for v in values)]])
    rule = "same identity and camera left out" if result["camera_rule"] else "camera rule off"
    print(
        f"{result['valid_queries']:,} queries, {result['gallery']:,} gallery images, {result['feature_size']} numbers "
        f"each; {result['metric']}, {result['protocol']}, {rule}; ranked in {result['seconds']:.2f} s"
    )
    tricks = ["camera means subtracted"] if result["camera_mean"] else []
    tricks += [f"queries expanded by {result['query_expansion']} neighbours"] if result["query_expansion"] else []
    if tricks:
        print(", ".join(tricks))
    if result["filter"]:
        height, width = result["image_size"]
        print(f"images {height} x {width}, {result['filter']} resize{', mirrored too' if result['flip'] else ''}")
    if result["skipped"]:
        print(f"{len(result['skipped']):,} queries have no match in the gallery and count for nothing")
    if "compared" in result:
        other = result["compared"]
        print(f"{other['with']}: R1 {100 * other['R1']:.1f}, mAP {100 * other['mAP']:.1f}; difference to the above:")
        for key, d in other["difference"].items():
            print(
                f"  {key:4}{100 * d['mean']:+.1f}, 95 % interval {100 * d['low']:+.1f} to {100 * d['high']:+.1f}, "
                f"p = {d['p_value']:.4f} (10,000 draws of {d['identities']} identities)"
            )
    if "by_camera" in result:
        pairs = result["by_camera"]
        print("rank-1 / mAP of the queries of a camera (rows) in the gallery of a camera (columns):")
        cells = [
            ["-" if r is None or m is None else f"{100 * r:.1f} / {100 * m:.1f}" for r, m in zip(*two, strict=True)]
            for two in zip(pairs["R1"], pairs["mAP"], strict=True)
        ]
        head = ["", *(f"camera {b}" for b in pairs["gallery_cameras"])]
        print_table(head, [[f"camera {a}", *row] for a, row in zip(pairs["query_cameras"], cells, strict=True)])
    worst, best = result["mAP_bounds"]
    if best - worst > 5e-5:
        print(f"equal distances leave the mAP open between {100 * worst:.2f} and {100 * best:.2f}")
