# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""PAUL against its ablations and controls: an OSNet trained elsewhere, adapted to a target without labels.

python -m studies.paul run --weights osnet.npz --out runs/paul --arms controls adabn pedal ipfl both
python -m studies.paul table --out runs/paul
python -m studies.paul validation --target cuhk03_np_detected --ids 200 --to validation.json

An arm that was stopped goes on from its last epoch. Settings after `--set` hold for all arms of the folder. An arm may
bring settings of its own, and for a cached run what it does otherwise than its method (`cached.Choices`):
--arms "pedal loss.k=5" "both cached.settle=true".
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reidfast.data import load_dataset as load_data
from reidfast.engine.methods import find_method
from reidfast.engine.methods.paul import ViewsDataModule
from reidfast.engine.training import train
from reidfast.evaluation import Ranking, rank, rank_reranked, subtract_camera_mean
from reidfast.models import create_model, load_weights, read_card
from studies._study import (
    JSON,
    OUT,
    TRAINING,
    Clock,
    Results,
    Run,
    Study,
    argument,
    compare,
    keep,
    markdown,
    setting,
    spread,
)
from studies.cached import Choices, adapt, make_cache, settle
from studies.watch import Watch

study = Study("paul", __doc__)
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
QUOTED = {"epoch", "rank1", "mAP", "rank", "share/camera", "across/identity"}  # columns of a curve that a summary keeps
QUOTED |= {"near/identity", "near/camera", "near/across"}
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
            raise SystemExit(f"{arm}: expected --source, a run of `reidfast train paul-source` (docs/methods/paul.md)")
        own = [*LEARNED, f"--source_checkpoint={options.source}", *own]
    given = [*CLUSTER, *options.set_cluster] if method == "cluster_contrast" else options.set
    return find_method(method).parse([*common, *given, *own])


def result(ranking: Ranking, pids: Any) -> Run:
    """What a file holds of an evaluation: the scores, and each query's, for the bootstrap."""
    return {
        "rank1": float(ranking.cmc[0]),
        "mAP": ranking.mean_ap,
        "ap": [round(float(a), 6) for a in ranking.ap],
        "first": [int(f) for f in ranking.first_match],
        "pids": [int(p) for p in pids],
    }


@study.command(
    "a split of training identities alone, to choose settings on",
    argument("--target", required=True),
    argument("--ids", type=int, default=200, help="so many identities, the last ones, are looked for"),
    argument("--to", type=Path, required=True, metavar="FILE", help="a .json, to be given as --target"),
)
def validation(options: argparse.Namespace) -> None:
    """The last identities are queries (of each identity and camera the first image) and gallery, the others train."""
    images = load_data(options.target).train
    known = np.unique(images.pids)
    if not 0 < options.ids < len(known):
        raise SystemExit(f"validation: expected --ids from 1 to {len(known) - 1}, got {options.ids}")
    parts: dict[str, list[Any]] = {"train": [], "query": [], "gallery": []}
    seen = set()
    for path, pid, camera in zip(images.paths, images.pids.tolist(), images.camids.tolist(), strict=True):
        part = "train" if pid < known[-options.ids] else "gallery" if (pid, camera) in seen else "query"
        seen.add((pid, camera))
        parts[part].append([str((Path(images.root) / path).absolute()), pid, camera])
    keep(options.to, {"name": options.to.stem, "fields": ["path", "pid", "camid"], **parts})


@study.command(
    "where the patches of a run of paul-source lie",
    argument("--source", required=True, help="run of paul-source"),
    argument("--target", default="market751_holdout", help="whose training images are looked at"),
    argument("--height", type=int, default=128),
    argument("--width", type=int, default=64),
    argument("--images", type=int, default=256),
    argument("--json", type=Path, required=True, metavar="FILE"),
)
@torch.no_grad()
def patches(options: argparse.Namespace) -> None:
    """Mean and spread over images of the patches [M, 6] that the network finds, and where they were before training."""
    net = create_model("paul", **read_card(options.source)["model"]["options"]).eval()
    size = {"height": options.height, "width": options.width}
    settings = [f"--data.name={options.target}", *(f"--data.{k}={v}" for k, v in size.items())]
    config = find_method("paul-osnet").parse(settings)
    images = ViewsDataModule(load_data(options.target), config.data).plain_images(options.images)
    start = net.transforms(images[:1])[0]
    load_weights(net, Path(options.source) / "weights.safetensors")
    thetas = net.transforms(images).flatten(2)
    rows = {"start": start.flatten(1), "mean": thetas.mean(0), "spread": thetas.std(0)}
    content = {"source": Path(options.source).name, "target": options.target, **size, "images": len(images)}
    keep(options.json, content | {k: [[round(v, 4) for v in row] for row in x.tolist()] for k, x in rows.items()})


def run_controls(options: argparse.Namespace) -> None:
    """The network before any training, and what can be done to its features without any.

    The last one is AdaBN on 640 training images as they are; the arm `adabn` sees their surrogates too.
    """
    results = Results(options.out)
    if all(results.path(name, 0).exists() for name in CONTROLS):
        return
    config = settings_of("both", 0, options)
    method = find_method("paul-osnet")
    data = method.load(config)
    task, module = method.build(config, data)
    ids = (data.query.pids, data.gallery.pids, data.query.camids, data.gallery.camids)
    cameras = np.concatenate([data.query.camids, data.gallery.camids])

    def embedded() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.cat([task.embed(data.query), task.embed(data.gallery)]), dim=1)

    def ranked(x: torch.Tensor, by: Any = rank) -> Ranking:
        return by(x[: len(data.query)], x[len(data.query) :], *ids)

    def settled() -> Ranking:
        task.prepare(module)
        settle(task.model, module.plain_images(640))
        return ranked(embedded())

    unit = embedded()
    centred = subtract_camera_mean(unit, cameras)
    ways = (
        lambda: ranked(unit),
        lambda: ranked(subtract_camera_mean(unit, np.zeros(len(unit), np.int64))),
        lambda: ranked(centred),
        lambda: ranked(unit, rank_reranked),
        lambda: ranked(centred, rank_reranked),
        settled,
    )
    for name, way in zip(CONTROLS, ways, strict=True):
        results.run(name, 0, line, lambda way: result(way(), data.query.pids), way)


def line(run: Run) -> str:
    """A result in one line of text."""
    curve = " ".join(f"{100 * row['mAP']:.1f}" for row in run.get("curve", ()))
    more = f"   mAP by epoch {curve}   {run['seconds']} s" if curve else ""
    return f"rank-1 {100 * run['rank1']:5.1f}   mAP {100 * run['mAP']:5.1f}{more}"


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """One arm with one seed."""
    config, choices, clock = settings_of(arm, seed, options), choices_of(arm), Clock()
    method = find_method(ARMS[arm.split()[0]][0])
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
        metrics = train(method, config)
        task, _ = method.build(config, data)
        load_weights(task.model, Path(config.out) / "weights.safetensors")
        ranking = task.evaluate()
        curve = [{key: row[key] for key in ("epoch", "rank1", "mAP")} for row in metrics["history"]]
        settings = metrics["config"]
    seconds = {"seconds": round(clock.wall), "cpu_seconds": round(clock.cpu)}
    if not options.keep:
        shutil.rmtree(config.out, ignore_errors=True)
    return {"curve": curve, **seconds, "config": settings, **result(ranking, data.query.pids)}


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
        method = find_method("paul-osnet")
        options.cache = make_cache(*method.build(config, method.load(config)), options.out / "maps.pt")
    return options.cache


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
    runs = Results(folder).read()
    if leave_out:
        without(runs, set(load_data(leave_out).query.pids.tolist()))
    rows = []
    for arm in dict.fromkeys(arm for arm in (*CONTROLS, *ARMS, *runs) if arm in runs):
        group = runs[arm]
        row: dict[str, Any] = {"arm": arm, "seeds": [run["seed"] for run in group]}
        row |= {key: [round(100 * run[key], 2) for run in group] for key in ("rank1", "mAP")}
        if "curve" in group[0]:
            row["cpu_seconds"] = [run["cpu_seconds"] for run in group]
            curves = (run["curve"] for run in group)
            row["curves"] = [[{k: round(v, 4) for k, v in at.items() if k in QUOTED} for at in c] for c in curves]
        if against in runs and arm != against:
            d = compare(*([run["ap"] for run in runs[name]] for name in (against, arm)), runs[against][0]["pids"])
            row |= {"gain": round(100 * d.mean, 2), "low": round(100 * d.low, 2), "high": round(100 * d.high, 2)}
            row |= {"p": round(d.p_value, 4), "identities": d.identities}
        rows.append(row)
    return rows


def columns(row: dict[str, Any]) -> list[str]:
    """A row of the Markdown table."""
    cells = [row["arm"], str(len(row["seeds"])), spread(row["rank1"]), spread(row["mAP"])]
    if "gain" not in row:
        return [*cells, "", "", ""]
    p = f"{row['p']:.3f}" if row["p"] >= 0.001 else "< 0.001"
    return [*cells, f"{row['gain']:+.1f}", f"{row['low']:+.1f} .. {row['high']:+.1f}", p]


@study.command(
    "mean, spread and paired bootstrap of what is finished",
    OUT,
    JSON,
    argument("--against", default="adabn"),
    argument("--without", metavar="DATA", help="leave out the query identities of a set: settings were chosen on it"),
)
def table(options: argparse.Namespace) -> None:
    """Mean and spread over seeds, gain over one arm."""
    rows = summary(options.out, options.against, options.without)
    header = ("arm", "seeds", "rank-1", "mAP", f"mAP - {options.against}", "95 % interval", "p")
    print("\n".join(markdown(header, map(columns, rows))))
    if options.json:
        settings = json.loads((options.out / "settings.json").read_text())
        keep(options.json, {"against": options.against, "without": options.without, **settings, "arms": rows})


@study.command(
    "run the arms that have no result yet",
    *TRAINING,
    argument("--weights", required=True, help="OSNet x0.25 trained elsewhere"),
    argument("--arms", nargs="+", default=["controls", "adabn", "pedal", "ipfl", "both"], metavar="ARM"),
    argument("--source", help="run of paul-source over the same OSNet, for the arms called learned"),
    argument("--target", default="market751_holdout"),
    argument("--train-ids", type=int, default=0),
    argument("--height", type=int, default=128),
    argument("--width", type=int, default=64),
    argument("--epochs", type=int, default=6),
    argument("--set-cluster", nargs="*", type=setting, default=[], metavar="KEY=VALUE", help="of cluster-contrast"),
    argument("--cached", action="store_true", help="train from the third stage on, on cached maps: a CPU's size"),
    argument("--watch", action="store_true", help="cached runs: what happens to the features, in each file's curve"),
)
def run(options: argparse.Namespace) -> None:
    """Seed by seed, so that a table over all arms is there early."""
    unknown = [arm for arm in options.arms if arm.split()[0] not in ARMS and arm != "controls"]
    if unknown:
        raise SystemExit(f"expected arms among controls, {', '.join(ARMS)}; got {', '.join(unknown)}")
    names = ("target", "train_ids", "height", "width", "epochs", "cached", "set", "set_cluster")
    results = Results(options.out)
    results.hold({name: getattr(options, name) for name in names})
    if "controls" in options.arms:
        run_controls(options)
    arms = [arm for arm in options.arms if arm != "controls"]
    results.sweep(arms, options.seeds, line, run_arm, options)


if __name__ == "__main__":
    study.main()
