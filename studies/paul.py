# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL against its ablations and controls: an OSNet trained elsewhere, adapted to a target without labels.

python -m studies.paul run --weights osnet.npz --out runs/paul --arms controls adabn pedal ipfl both
python -m studies.paul table --out runs/paul
python -m studies.paul validation --target cuhk03_np_detected --ids 200 --to validation.json

Every arm and seed leaves one JSON file, written whole, in the folder; those that are there are not run again, and an
arm that was stopped goes on from its last epoch. Settings after `--set` hold for all arms of the folder; they are kept
in settings.json, and a folder with others is refused. An arm may bring settings of its own, and for a cached run what
it does otherwise than its method (`cached.Choices`): --arms "pedal loss.k=5" "both cached.settle=true".
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reidfast._files import write_whole
from reidfast.data import load as load_data
from reidfast.engine import paired_bootstrap
from reidfast.engine.config import parse
from reidfast.engine.methods import module_of
from reidfast.engine.methods.paul import ViewsDataModule
from reidfast.engine.training import train
from reidfast.evaluation import Ranking, rank, rank_reranked, subtract_camera_mean
from reidfast.models import create_model, load_weights, read_card
from studies.cached import Choices, adapt, make_cache, settle
from studies.watch import Watch

# arm -> (method, settings over the method's file)
ARMS: dict[str, tuple[str, list[str]]] = {
    "adabn": ("paul-osnet", ["--optim.lr=0"]),
    "pedal": ("paul-osnet", ["--loss.ipfl=0"]),
    "ipfl": ("paul-osnet", ["--loss.pedal=0"]),
    "both": ("paul-osnet", []),
    "adabn-random": ("paul-osnet", ["--optim.lr=0", "--model.patches=random"]),
    "both-random": ("paul-osnet", ["--model.patches=random"]),
    "both-frozen": ("paul-osnet", ["--optim.backbone_factor=0"]),
    **{f"scale-{s}": ("paul-osnet", [f"--loss.scale={s}"]) for s in (2, 5, 10, 15, 30)},
    **{f"k-{k}": ("paul-osnet", [f"--loss.k={k}"]) for k in (2, 5, 10, 20)},
    **{f"r-{r}": ("paul-osnet", [f"--loss.r={r}"]) for r in (1, 3, 6)},
    "learned-adabn": ("paul-osnet", ["--optim.lr=0"]),
    "learned-both": ("paul-osnet", []),
    "cluster-contrast": ("cluster_contrast", ["--model.neck=backbone"]),
    "cluster-stripes": ("cluster_contrast", ["--model.neck=stripes"]),
}
CACHED = "cached."  # settings of an arm that begin so are `cached.Choices`
CONTROLS = (
    "untrained",
    "minus mean",
    "minus camera means",
    "k-reciprocal",
    "camera means + k-reciprocal",
    "batch norms of real images",
)
LEARNED = [  # branches and patches of a pre-training on labelled images, `--source`
    "--model.patches=learned",
    "--model.branches=new",
    "--model.dim=256",
    "--model.embedding=128",
    "--loss.ipfl_embedding=official",
]
CLUSTER = [  # cluster-contrast at the size of the other arms
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--model.unfold=256",
    "--data.ids=16",
    "--data.images=4",
    "--data.steps=0",
    "--data.pad=4",
    "--optim.milestones=[]",
]


def settings_of(arm: str, seed: int, options: argparse.Namespace) -> Any:
    """The configuration of a run."""
    name, *more = arm.split()
    method, own = ARMS[name]
    own = [*own, *(f"--{item}" for item in more if not item.startswith(CACHED))]
    common = [
        f"--data.name={options.target}",
        f"--data.train_ids={options.train_ids}",
        f"--data.height={options.height}",
        f"--data.width={options.width}",
        f"--model.weights={options.weights}",
        f"--optim.epochs={options.epochs}",
        f"--seed={seed}",
        f"--out={options.out / 'work' / f'{arm}-{seed}'}",
        "--accelerator=auto",
        "--evaluate_every=1",
        "--deterministic=false",
        "--resume=true",
    ]
    if arm.startswith("learned"):
        if not options.source:
            raise SystemExit(
                f"{arm}: expected --source, a run of `reidfast train paul-source` (see docs/methods/paul.md)"
            )
        own = [*LEARNED, f"--source_checkpoint={options.source}", *own]
    mine = options.set if method.startswith("paul") else options.set_cluster
    return parse(method, [*common, *(CLUSTER if method == "cluster_contrast" else []), *mine, *own])


def result(ranking: Ranking, pids: Any) -> dict[str, Any]:
    """What a file holds of an evaluation: the scores, and each query's, for the bootstrap."""
    return {
        "rank1": float(ranking.cmc[0]),
        "mAP": ranking.mean_ap,
        "ap": [round(float(a), 6) for a in ranking.ap],
        "first": [int(f) for f in ranking.first_match],
        "pids": [int(p) for p in pids],
    }


def write_validation(name: str, ids: int, path: Path) -> None:
    """A split to choose settings on: the last `ids` training identities of a set are its queries (of each identity and
    camera the first image) and its gallery; the identities before them are left for training."""
    train = load_data(name).train
    known = np.unique(train.pids)
    if not 0 < ids < len(known):
        raise SystemExit(f"validation: expected --ids from 1 to {len(known) - 1}, got {ids}")
    parts: dict[str, list[Any]] = {"train": [], "query": [], "gallery": []}
    seen = set()
    for at, pid, camera in zip(train.paths, train.pids.tolist(), train.camids.tolist(), strict=True):
        part = "train" if pid < known[-ids] else "gallery" if (pid, camera) in seen else "query"
        seen.add((pid, camera))
        parts[part].append([str((Path(train.root) / at).absolute()), pid, camera])
    keep(path, {"name": path.stem, "fields": ["path", "pid", "camid"], **parts})


@torch.no_grad()
def where_patches_are(source: str, name: str, height: int, width: int, count: int) -> dict[str, Any]:
    """Of the patches [M, 6] that a pre-trained network finds in some training images: mean and spread over images, and
    where they were at its beginning."""
    net = create_model("paul", **read_card(source)["model"]["options"]).eval()
    sizes = [f"--data.name={name}", f"--data.height={height}", f"--data.width={width}"]
    config = parse("paul-osnet", sizes)
    images = ViewsDataModule(load_data(name), config.data).plain_images(count)
    start = net.transforms(images[:1])[0]
    load_weights(net, Path(source) / "weights.safetensors")
    found = net.transforms(images).flatten(2)
    rows = {"start": start.flatten(1), "mean": found.mean(0), "spread": found.std(0)}
    made = {"source": Path(source).name, "target": name, "height": height, "width": width, "images": len(images)}
    return made | {key: [[round(v, 4) for v in row] for row in value.tolist()] for key, value in rows.items()}


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write a result whole."""
    with write_whole(path) as stream:
        stream.write((json.dumps(content) + "\n").encode())


def run_controls(options: argparse.Namespace) -> None:
    """The network before any training, and what can be done to its features without any.

    The last one is AdaBN on 640 training images as they are; the arm `adabn` sees their surrogates too.
    """
    missing = [name for name in CONTROLS if not (options.out / f"{name}-0.json").exists()]
    if not missing:
        return
    config = settings_of("both", 0, options)
    method = module_of("paul-osnet")
    data = method.load(config)
    task, module = method.build(config, data)
    ids = (data.query.pids, data.gallery.pids, data.query.camids, data.gallery.camids)
    cameras = np.concatenate([data.query.camids, data.gallery.camids])
    n = len(data.query)

    def embedded() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.cat([task.embed(data.query), task.embed(data.gallery)]), dim=1)

    unit = embedded()
    centred = subtract_camera_mean(unit, np.zeros(len(unit), np.int64))
    by_camera = subtract_camera_mean(unit, cameras)

    def settled() -> Ranking:
        task.prepare(module)
        settle(task.model, module.plain_images(640))
        found = embedded()
        return rank(found[:n], found[n:], *ids)

    made = {
        "untrained": lambda: rank(unit[:n], unit[n:], *ids),
        "minus mean": lambda: rank(centred[:n], centred[n:], *ids),
        "minus camera means": lambda: rank(by_camera[:n], by_camera[n:], *ids),
        "k-reciprocal": lambda: rank_reranked(unit[:n], unit[n:], *ids),
        "camera means + k-reciprocal": lambda: rank_reranked(by_camera[:n], by_camera[n:], *ids),
        "batch norms of real images": settled,
    }
    for name in missing:
        ranking = made[name]()
        keep(options.out / f"{name}-0.json", {"arm": name, "seed": 0, **result(ranking, data.query.pids)})
        print(f"{name:<28} rank-1 {100 * ranking.cmc[0]:5.1f}   mAP {100 * ranking.mean_ap:5.1f}", flush=True)


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> None:
    """One arm with one seed, unless its file is there."""
    path = options.out / f"{arm}-{seed}.json"
    if path.exists():
        return
    config = settings_of(arm, seed, options)
    choices = choices_of(arm)
    begin, cpu = time.perf_counter(), time.process_time()
    method = module_of(ARMS[arm.split()[0]][0])
    data = method.load(config)
    if options.cached:
        torch.manual_seed(seed)
        curve = []
        task, _ = method.build(config, data)
        watch = Watch() if options.watch else None
        for epoch, ranking in adapt(task, cache_of(options), choices, watch):
            seen = watch.rows[-1] if watch else {}
            curve.append({"epoch": epoch, "rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap, **seen})
        settings = asdict(config)
    else:
        metrics = train(config)
        task, _ = method.build(config, data)
        load_weights(task.model, Path(config.out) / "weights.safetensors")
        ranking = task.evaluate()
        curve = [{key: row[key] for key in ("epoch", "rank1", "mAP")} for row in metrics["history"]]
        settings = metrics["config"]
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    content = {"arm": arm, "seed": seed, "curve": curve, "seconds": round(seconds), "cpu_seconds": round(cpu_seconds)}
    keep(path, {**content, "config": settings, **result(ranking, data.query.pids)})
    if not options.keep:
        shutil.rmtree(config.out, ignore_errors=True)
    by_epoch = " ".join(f"{100 * row['mAP']:.1f}" for row in curve)
    print(
        f"{arm:<20} seed {seed}   rank-1 {100 * ranking.cmc[0]:5.1f}   mAP {100 * ranking.mean_ap:5.1f}"
        f"   mAP by epoch {by_epoch}   {seconds:.0f} s",
        flush=True,
    )


def choices_of(arm: str) -> Choices:
    """What a cached arm does otherwise than its method."""
    given = [item.removeprefix(CACHED).split("=", 1) for item in arm.split()[1:] if item.startswith(CACHED)]
    known = {f.name for f in fields(Choices)}
    unknown = [key for key, *_ in given if key not in known]
    if unknown:
        raise SystemExit(f"{arm}: expected {CACHED}{{{', '.join(sorted(known))}}}, got {', '.join(unknown)}")
    return Choices(**{key: {"true": True, "false": False}.get(value, value) for key, value in given})


def cache_of(options: argparse.Namespace) -> dict[str, Any]:
    """The maps that `--cached` trains on; made by the first run."""
    if "cache" not in options:
        config = settings_of("both", 0, options)
        method = module_of("paul-osnet")
        options.cache = make_cache(*method.build(config, method.load(config)), options.out / "maps.pt")
    return options.cache


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished runs by arm."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name != "settings.json":
            content = json.loads(path.read_text())
            runs.setdefault(content["arm"], []).append(content)
    return runs


def without(runs: dict[str, list[dict[str, Any]]], pids: set[int]) -> None:
    """Leave queries of some identities out of the scores."""
    for run in itertools.chain.from_iterable(runs.values()):
        kept = [i for i, pid in enumerate(run["pids"]) if pid not in pids]
        run.update({key: [run[key][i] for i in kept] for key in ("ap", "first", "pids")})
        valid = [i for i, first in enumerate(run["first"]) if first > 0]
        run["rank1"] = float(np.mean([run["first"][i] == 1 for i in valid]))
        run["mAP"] = float(np.mean([run["ap"][i] for i in valid]))


def summary(folder: Path, against: str, leave_out: str | None = None) -> list[dict[str, Any]]:
    """Of each arm: the scores of its seeds, and a paired bootstrap over identities against one arm."""
    runs = read(folder)
    if leave_out:
        without(runs, set(load_data(leave_out).query.pids.tolist()))
    order = [*CONTROLS, *(arm for arm in ARMS if arm in runs), *(arm for arm in runs if arm not in ARMS)]
    base, rows = runs.get(against), []
    for arm in dict.fromkeys(arm for arm in order if arm in runs):
        found = runs[arm]
        row: dict[str, Any] = {"arm": arm, "seeds": [run["seed"] for run in found]}
        row |= {key: [round(100 * run[key], 2) for run in found] for key in ("rank1", "mAP")}
        if "curve" in found[0]:
            row["cpu_seconds"] = [run["cpu_seconds"] for run in found]
            row["curves"] = [[{k: round(v, 4) for k, v in at.items()} for at in run["curve"]] for run in found]
        if base and arm != against:
            first, second = (np.mean([run["ap"] for run in group], 0) for group in (base, found))
            d = paired_bootstrap(first, second, base[0]["pids"])
            row |= {"gain": round(100 * d.mean, 2), "low": round(100 * d.low, 2), "high": round(100 * d.high, 2)}
            row |= {"p": round(d.p_value, 4), "identities": d.identities}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], against: str) -> list[str]:
    """A Markdown table of a summary: mean and spread over seeds, gain over one arm."""
    lines = [
        f"| arm | seeds | rank-1 | mAP | mAP - {against} | 95 % interval | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["arm"], str(len(row["seeds"]))]
        for key in ("rank1", "mAP"):
            spread = f" ± {statistics.stdev(row[key]):.1f}" if len(row[key]) > 1 else ""
            cells.append(f"{statistics.mean(row[key]):.1f}{spread}")
        if "gain" in row:
            cells += [
                f"{row['gain']:+.1f}",
                f"{row['low']:+.1f} .. {row['high']:+.1f}",
                f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001",
            ]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def check_settings(options: argparse.Namespace) -> None:
    """A folder holds runs of one setting only."""
    names = ("target", "train_ids", "height", "width", "epochs", "cached", "set", "set_cluster")
    mine = {name: getattr(options, name) for name in names}
    path = options.out / "settings.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        there = json.loads(path.read_text())
        differing = [name for name in names if there.get(name) != mine[name]]
        if differing:
            raise SystemExit(f"{options.out} holds runs with other {', '.join(differing)}; choose another --out")
    keep(path, mine)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.paul", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the arms that have no result yet")
    running.add_argument("--weights", required=True, help="OSNet x0.25 trained elsewhere")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--arms", nargs="+", default=["controls", "adabn", "pedal", "ipfl", "both"], metavar="ARM")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--source", help="run of paul-source over the same OSNet, for the arms called learned")
    running.add_argument("--target", default="market751_holdout")
    running.add_argument("--train-ids", type=int, default=0)
    running.add_argument("--height", type=int, default=128)
    running.add_argument("--width", type=int, default=64)
    running.add_argument("--epochs", type=int, default=6)
    running.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of PAUL's arms")
    running.add_argument("--set-cluster", nargs="*", default=[], metavar="KEY=VALUE", help="of cluster-contrast")
    running.add_argument(
        "--cached", action="store_true", help="train from the third stage on, on cached maps: a CPU's size"
    )
    running.add_argument(
        "--watch", action="store_true", help="cached runs: what happens to the features, in each file's curve"
    )
    running.add_argument("--keep", action="store_true", help="keep checkpoints and weights of finished runs")
    shown = commands.add_parser("table", help="mean, spread and paired bootstrap of what is finished")
    shown.add_argument("--out", type=Path, required=True)
    shown.add_argument("--against", default="adabn")
    shown.add_argument(
        "--without", metavar="DATA", help="leave out the query identities of a set: settings were chosen on it"
    )
    shown.add_argument("--json", type=Path, metavar="FILE", help="keep the summary")
    chosen = commands.add_parser("validation", help="a split of training identities alone, to choose settings on")
    chosen.add_argument("--target", required=True)
    chosen.add_argument("--ids", type=int, default=200, help="so many identities, the last ones, are looked for")
    chosen.add_argument("--to", type=Path, required=True, metavar="FILE", help="a .json, to be given as --target")
    looked = commands.add_parser("patches", help="where the patches of a run of paul-source lie: figures, no picture")
    looked.add_argument("--source", required=True, help="run of paul-source")
    looked.add_argument("--target", default="market751_holdout", help="whose training images are looked at")
    looked.add_argument("--height", type=int, default=128)
    looked.add_argument("--width", type=int, default=64)
    looked.add_argument("--images", type=int, default=256)
    looked.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.command == "validation":
        write_validation(options.target, options.ids, options.to)
        return
    if options.command == "patches":
        size = (options.height, options.width, options.images)
        keep(options.json, where_patches_are(options.source, options.target, *size))
        return
    if options.command == "table":
        rows = summary(options.out, options.against, options.without)
        print("\n".join(table(rows, options.against)))
        if options.json:
            settings = json.loads((options.out / "settings.json").read_text())
            keep(options.json, {"against": options.against, "without": options.without, **settings, "arms": rows})
        return
    options.set = [f"--{item.removeprefix('--')}" for item in options.set]
    options.set_cluster = [f"--{item.removeprefix('--')}" for item in options.set_cluster]
    unknown = [arm for arm in options.arms if arm.split()[0] not in ARMS and arm != "controls"]
    if unknown:
        raise SystemExit(f"expected arms among controls, {', '.join(ARMS)}; got {', '.join(unknown)}")
    check_settings(options)
    for seed in options.seeds:  # seed by seed, so that a table over all arms is there early
        for arm in options.arms:
            if arm == "controls":
                run_controls(options)
            else:
                run_arm(arm, seed, options)


if __name__ == "__main__":
    sys.exit(main())
