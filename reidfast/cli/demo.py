# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`reidfast demo`: the whole way on rendered people, with no download: images, training, evaluation, pictures."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from reidfast._files import write_whole

from ._common import add_command, add_json, add_threads, positive, print_json, print_table, set_threads
from .data import write_with_progress
from .evaluate import score

SIZE = (64, 32)  # of the network's input; people are rendered at twice that
STRIPES = "colour histograms of 12 horizontal stripes; nothing is learned"
NETWORK = "OSNet x0.25 under a strong baseline's head"
MARKER = "demo.json"


def add(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = add_command(
        subparsers, "demo", run, "render people, train a network on some, find the others, draw it all"
    )
    parser.add_argument("--out", default="demo", metavar="FOLDER", help="folder for everything (default: demo)")
    parser.add_argument("--ids", type=positive, default=50, help="identities searched for (default: 50)")
    parser.add_argument("--train-ids", type=positive, default=200, help="other ones to train on (default: 200)")
    parser.add_argument("--cameras", type=positive, default=6)
    parser.add_argument("--images", type=positive, default=2, help="of each identity by each camera (default: 2)")
    parser.add_argument("--epochs", type=positive, default=30, help="of training (default: 30, some two minutes)")
    parser.add_argument("--difficulty", type=float, default=0.5, help="of the rendered people, 0 (easy) to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the people and of the training")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """The whole way."""
    import torch

    from reidfast.data.synthetic import write_synthetic
    from reidfast.engine import extract
    from reidfast.models import create_model, load_trained
    from reidfast.report import draw_ranked_lists, rank_queries
    from reidfast.report.rankings import choose_queries, image_roots

    set_threads(args)
    start = time.perf_counter()
    if args.cameras < 2 or args.images < 2:
        raise ValueError("expected at least 2 cameras and 2 images: a query needs a match seen by another camera")
    if args.train_ids < 2:
        raise ValueError("--train-ids: expected at least 2, since training tells people apart")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    people = out / "people"
    total = args.ids + args.train_ids
    data = write_with_progress(
        write_synthetic,
        people,
        workers=os.cpu_count() or 1,
        overwrite=True,
        ids=total,
        cameras=args.cameras,
        images=args.images,
        difficulty=args.difficulty,
        seed=args.seed,
        test=args.ids / total,
    )
    trained = learn(args, out, people)
    tables = {"query": data.query, "gallery": data.gallery}
    models: dict[str, tuple[str, Any]] = {"color_stripes": (STRIPES, create_model("color_stripes"))}
    if trained is not None:
        model, card, _ = load_trained(out / "run")
        torch.manual_seed(args.seed)
        models["untrained"] = (f"{NETWORK}, as it was born", create_model(**flat(card["model"])))
        models["trained"] = (f"the same after {args.epochs} epochs on {args.train_ids} other people", model)
    results, files = {}, {}
    for name, (what, model) in models.items():
        meta = {"model": name, "data": "synthetic", "roots": {k: str(t.root.absolute()) for k, t in tables.items()}}
        print(f"{name}: {what}", file=sys.stderr)
        files[name] = extract(model, tables, out / f"features_{name}.npz", size=SIZE, meta=meta, overwrite=True)
        results[name] = score(files[name])
    shown = "trained" if trained is not None else "color_stripes"
    file = files[shown]
    rows = choose_queries(results[shown]["AP"], 8, "random")
    lists = rank_queries(file, rows, 10)
    roots = image_roots(file)
    draw_ranked_lists(file, lists, roots).save(out / "ranked_lists.png")
    made = ["metrics.json", "ranked_lists.png"]
    try:
        from reidfast.report import plot_cmc, write_page

        plot_cmc({name: result["cmc"] for name, result in results.items()}, out / "cmc.png")
        write_page(out / "report.html", f"{shown} on rendered people", results[shown], file, lists, roots)
        made += ["cmc.png", "report.html"]
    except ImportError as error:
        print(f"note: no curve, no page: {error}", file=sys.stderr)
    if trained is not None:
        made.append("run/ (checkpoints, weights, logs)")
    seconds = time.perf_counter() - start
    counts = {
        "identities": args.ids,
        "training_identities": args.train_ids,
        "training_images": len(data.train),
        "cameras": args.cameras,
        "queries": len(data.query),
        "gallery": len(data.gallery),
    }
    chance = _chance(data)
    metrics = {
        "people": counts,
        "training": trained,
        "extractors": {name: {"what": models[name][0], **result} for name, result in results.items()},
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
        (name, *(f"{100 * results[name][key]:.1f}" for key in ("R1", "mAP", "mINP")), models[name][0])
        for name in results
    ]
    print_table(
        ("", "R1", "mAP", "mINP", ""), [*values, ("chance", f"{100 * chance:.1f}", "-", "-", "a random gallery image")]
    )
    print(f"{seconds:.0f} s; look into {out.resolve()}: {', '.join(made)}")


def learn(args: argparse.Namespace, out: Path, people: Path) -> dict[str, Any] | None:
    """Train in `out`/run, or go on with what an interrupted demo left there; None where training is not installed."""
    folder, marker = out / "run", out / MARKER
    wanted = {k: v for k, v in vars(args).items() if isinstance(v, int | float) and k not in ("json", "threads")}
    before = json.loads(marker.read_text()) if marker.exists() else None
    if folder.exists() and before is None:
        raise ValueError(f"--out: {out} holds a run that is not a demo's; choose another folder")
    if before not in (None, wanted):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        from reidfast.engine.methods import find_method
        from reidfast.engine.training import train

        method = find_method("strong_baseline")
        settings = method.parse(demo_settings(args, people, folder))
        with write_whole(marker) as stream:
            stream.write(json.dumps(wanted).encode())
        print(f"training on {args.train_ids} people, {args.epochs} epochs", file=sys.stderr)
        started = time.perf_counter()
        with redirect_stdout(sys.stderr):  # Lightning's progress is no result
            metrics = train(method, settings)
    except ImportError as error:
        print(f"note: no training: {error}", file=sys.stderr)
        return None
    seconds = time.perf_counter() - started
    return {"before": metrics["before"], "history": metrics["history"], "seconds": seconds, "folder": str(folder)}


def demo_settings(args: argparse.Namespace, people: Path, folder: Path) -> list[str]:
    """Settings of a strong baseline that is small and quick, and learns from nothing."""
    epochs = args.epochs
    return [
        "--data.name=synthetic",
        f"--data.root={people}",
        f"--data.height={SIZE[0]}",
        f"--data.width={SIZE[1]}",
        f"--data.ids={min(16, args.train_ids)}",
        "--data.images=4",
        "--data.pad=4",
        "--data.erase=0",
        "--data.augment=batch",
        "--model.backbone=osnet_x0_25",
        "--model.options={feature_size: null}",
        "--optim.lr=0.0035",
        "--optim.warmup=2",
        f"--optim.milestones=[{max(1, round(0.75 * epochs))}, {max(1, round(0.95 * epochs))}]",
        f"--optim.epochs={epochs}",
        f"--evaluate_every={max(1, epochs // 4)}",
        f"--seed={args.seed}",
        "--accelerator=auto",
        f"--out={folder}",
        "--resume=true",
    ]


def flat(made: dict[str, Any]) -> dict[str, Any]:
    """A card's model as arguments of `create_model`."""
    return {"name": made["name"], **made["options"]}


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
