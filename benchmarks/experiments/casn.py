# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CASN part by part: what of its gain is the batch, the verification loss, the erasing, the consistency.

    python -m benchmarks.experiments.casn run --weights osnet.npz --out runs/casn-cpu                 on a CPU
    python -m benchmarks.experiments.casn run --preset full --weights resnet50.pth --out runs/casn    on a GPU
    python -m benchmarks.experiments.casn table --out runs/casn-cpu --json results.json
    python -m benchmarks.experiments.casn measure --runs runs/ide runs/casn-ide
    python -m benchmarks.experiments.casn figure --runs runs/ide runs/casn-ide --png attention.png

Arms over PCB: `ce`, every image once an epoch, cross-entropy alone; `sampler`, the same loss on 8 x 4 batches dealt
over cameras; then `bce` (verification of pairs), `ia` (identification attention), `sa` (verification and consistency),
`all`. `ide` and `ide-all` over IDE. Same weights, budget and seeds for all. Besides R1 and mAP, for the attention of
the trained networks on identities they have not seen: the profile distance of negative minus positive pairs, whether
the profile follows a picture that is moved down by a known number of rows, and on rendered people, whose masks are
known, the share of attention on the person.

Every arm and seed leaves one JSON file, written whole; those that are there are not run again, and an arm that was
stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reidfast._files import write_whole
from reidfast.data import EvalTransform, ReidData, World, decode, load
from reidfast.data.images import normalize, resize, to_float
from reidfast.engine import paired_bootstrap
from reidfast.engine.config import parse
from reidfast.engine.methods import module_of
from reidfast.engine.training import train
from reidfast.losses import ConsistencyLoss
from reidfast.losses.consistency import row_profile
from reidfast.models import CASN, create_model, load_weights
from reidfast.report import draw_attention

PLAIN = ["--loss.attention=0", "--loss.siamese=0"]
# arm -> (method, settings); weights of the losses that an arm has come from the preset
ARMS: dict[str, tuple[str, list[str]]] = {
    "ce": ("casn", [*PLAIN, "--data.sampler=shuffle"]),
    "sampler": ("casn", PLAIN),
    "bce": ("casn", ["--loss.attention=0", "--loss.consistency=0"]),
    "ia": ("casn", ["--loss.siamese=0"]),
    "sa": ("casn", ["--loss.attention=0"]),
    "all": ("casn", []),
    "ide": ("casn-ide", [*PLAIN, "--data.sampler=shuffle"]),
    "ide-all": ("casn-ide", []),
}
CPU = [
    "--model.backbone=osnet_x0_25",
    "--model.options={}",
    "--model.unfold=256",
    "--data.height=128",
    "--data.width=64",
    "--optim.optimizer=adam",
    "--optim.lr=0.001",
    "--optim.backbone_factor=0.3",
    "--optim.epochs=20",
    "--optim.milestones=[16]",
    "--loss.start=5",
]
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"set": CPU, "pcb": ["--model.base_options={parts: 4, reduced: 128}"],
            "ide": ["--model.base_options={hidden: 256}"], "ids": 250, "test_ids": 0},
    "full": {"set": [], "pcb": [], "ide": [], "ids": 0, "test_ids": 0},
}  # fmt: skip


def subset(data: ReidData, ids: int, test_ids: int, seed: int, path: Path) -> None:
    """A split file of so many training and test identities, drawn once; 0: all."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[list[Any]]] = {}
    chosen: dict[str, Any] = {}
    for split, count in (("train", ids), ("query", test_ids)):
        people = np.unique(getattr(data, split).pids)
        chosen[split] = people if not count else rng.permutation(people)[:count]
    chosen["gallery"] = chosen["query"]
    for split, people in chosen.items():
        table = getattr(data, split)
        kept = np.flatnonzero(np.isin(table.pids, people))
        rows[split] = [[table.paths[i], int(table.pids[i]), int(table.camids[i])] for i in kept]
    with write_whole(path) as stream:
        stream.write(json.dumps({"name": f"{data.name}, part", "fields": ["path", "pid", "camid"], **rows}).encode())


def settings_of(arm: str, seed: int, options: argparse.Namespace) -> Any:
    """The configuration of a run."""
    method, own = ARMS[arm]
    preset = PRESETS[options.preset]
    data = load(options.data)
    split = options.out / "split.json"
    if not split.exists():
        subset(data, preset["ids"] if options.ids is None else options.ids,
               preset["test_ids"] if options.test_ids is None else options.test_ids, 0, split)  # fmt: skip
    common = [
        *preset["set"],
        *preset["pcb" if method == "casn" else "ide"],
        f"--data.name={split}",
        f"--data.options={json.dumps({'images': str(data.train.root)})}",
        f"--model.weights={options.weights or 'null'}",
        f"--seed={seed}",
        f"--out={options.out / 'work' / f'{arm}-{seed}'}",
        "--evaluate_every=1000000",
        "--deterministic=false",
        "--resume=true",
    ]
    return parse(method, [*common, *options.set, *own])


# --- what the attention is like


@torch.no_grad()
def identity_maps(model: CASN, images: Tensor) -> Tensor:
    """Grad-CAM of the class that the network believes in (these persons are none of its classes)."""
    cells = model.backbone.forward_map(images)
    return model.identity_attention(cells, model.predicted(cells))


@torch.no_grad()
def pair_maps(model: CASN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of the pairs (0, 1), (2, 3), ..."""
    cells = model.backbone.forward_map(images)
    first = torch.arange(0, len(images), 2, device=images.device)
    return model.pair_attention(cells, first, first + 1)[:2]


def draw_test_pairs(data: ReidData, count: int, seed: int) -> list[tuple[Path, Path, int, bool]]:
    """(query image, gallery image, query pid, same person): as many of one person, across cameras, as of two."""
    rng = np.random.default_rng(seed)
    query, gallery = data.query, data.gallery
    pairs = []
    for i in rng.permutation(len(query)):
        other = gallery.camids != query.camids[i]
        for same in (True, False):
            rows = np.flatnonzero(other & ((gallery.pids == query.pids[i]) == same))
            if len(rows):
                j = int(rng.choice(rows))
                pairs.append((query.absolute(int(i)), gallery.absolute(j), int(query.pids[i]), same))
        if len(pairs) >= 2 * count:
            break
    return pairs


def consistency(model: CASN, data: ReidData, size: tuple[int, int], count: int, device: str) -> dict[str, Any]:
    """Profile distances of pairs, by identity and by pair attention; per pair, for the bootstrap."""
    pairs = draw_test_pairs(data, count, 0)
    prepare, loss = EvalTransform(*size), ConsistencyLoss()
    found: dict[str, list[float]] = {"identity": [], "pair": []}
    for start in range(0, len(pairs), 32):
        part = pairs[start : start + 32]
        images = torch.stack([prepare(decode(p)) for a, b, _, _ in part for p in (a, b)]).to(device)
        same = torch.tensor([p[3] for p in part], device=device)
        maps = identity_maps(model, images)
        for name, (one, two) in (("identity", (maps[0::2], maps[1::2])), ("pair", pair_maps(model, images))):
            out = loss(one, two, same)
            found[name] += torch.where(out.defined, out.distances, torch.nan).tolist()
    same = np.array([p[3] for p in pairs])
    result: dict[str, Any] = {"pids": [p[2] for p in pairs], "same": same.tolist()}
    for name, values in found.items():
        d = np.array(values)
        positive, negative = np.nanmean(d[same]), np.nanmean(d[~same])
        result[name] = {
            "positive": float(positive),
            "negative": float(negative),
            "gap": float(negative - positive),
            "undefined": float(np.isnan(d).mean()),
            "distances": [round(v, 5) for v in values],
        }
    return result


def best_lag(v: Tensor, moved: Tensor, most: int) -> Tensor:
    """By how many rows profiles (B, h) have moved down: the lag with the highest correlation of what overlaps."""
    scores = []
    rows = v.shape[1]
    for lag in range(-most, most + 1):
        a = v[:, max(0, -lag) : rows - max(0, lag)]
        b = moved[:, max(0, lag) : rows - max(0, -lag)]
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        scores.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9))
    return torch.stack(scores, 1).argmax(1) - most


def shift_response(model: CASN, data: ReidData, size: tuple[int, int], count: int, device: str) -> dict[str, float]:
    """Pictures moved down by whole rows of the map, the upper edge repeated: does the attention move along?"""
    prepare = EvalTransform(*size)
    rows = np.random.default_rng(1).permutation(len(data.query))[:count]
    images = torch.stack([prepare(decode(data.query.absolute(int(i)))) for i in rows])
    down = max(1, round(0.125 * size[0] / model.backbone.stride))  # rows of the map
    pixels = down * model.backbone.stride
    moved = torch.cat([images[:, :, :1].expand(-1, -1, pixels, -1), images[:, :, :-pixels]], 2)
    loss = ConsistencyLoss()
    lags, aligned, raw = [], [], []
    for a, b in zip(images.split(64), moved.split(64), strict=True):
        one, two = (identity_maps(model, x.to(device)) for x in (a, b))
        p, q = row_profile(one).values, row_profile(two).values
        lags += best_lag(p, q, max(2, down + 1)).tolist()
        raw += (p - q).norm(dim=1).tolist()
        aligned += loss(one, two, torch.ones(len(one), dtype=torch.bool, device=device)).distances.tolist()
    return {
        "rows": down,
        "followed": float(np.mean(np.array(lags) == down)),
        "mean_lag": float(np.mean(lags)),
        "distance": float(np.mean(raw)),
        "distance_aligned": float(np.mean(aligned)),
    }


def mass_on_person(model: CASN, size: tuple[int, int], count: int, device: str) -> dict[str, float]:
    """Share of the identity attention that lies on rendered persons, beside the share of the picture they fill."""
    world = World(seed=11, difficulty=0.5, height=size[0], width=size[1])
    shots = [world.render(1 + i % 40, 1 + i % 6, i // 40) for i in range(count)]
    images = torch.stack([normalize(to_float(resize(_picture(s.image), *size))) for s in shots])
    masks = torch.stack([torch.from_numpy(s.mask.astype(np.float32)) for s in shots])
    maps = torch.cat([identity_maps(model, x.to(device)).cpu() for x in images.split(64)])
    share = functional.adaptive_avg_pool2d(masks.unsqueeze(1), maps.shape[1:]).squeeze(1)
    total = maps.sum((1, 2))
    seen = total > 0
    mass = ((maps * share).sum((1, 2)) / total.clamp(min=1e-30))[seen]
    return {
        "mass": float(mass.mean()),
        "person": float(masks.mean()),
        "cells": float(share[seen].mean()),
        "empty": float((~seen).float().mean()),
    }


def _picture(image: Any) -> Any:
    from PIL import Image

    return Image.fromarray(image)


# --- runs


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> None:
    """One arm with one seed, unless its file is there."""
    path = options.out / f"{arm}-{seed}.json"
    if path.exists():
        return
    config = settings_of(arm, seed, options)
    begin, cpu = time.perf_counter(), time.process_time()
    metrics = train(config)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    method = module_of(ARMS[arm][0])
    data = load(config.data.name, None, **config.data.options)
    task, _ = method.build(config, data)
    load_weights(task.model, Path(config.out) / "weights.safetensors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task.to(device).eval()
    size = (config.data.height, config.data.width)
    ranking = task.evaluate()
    content = {
        "arm": arm,
        "seed": seed,
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),
        "config": metrics["config"],
        "before": metrics["before"],
        "rank1": float(ranking.cmc[0]),
        "mAP": ranking.mean_ap,
        "ap": [round(float(a), 6) for a in ranking.ap],
        "first": [int(f) for f in ranking.first_match],
        "pids": [int(p) for p in data.query.pids],
        **measures(task.model, data, size, options.pairs, device),
    }
    with write_whole(path) as stream:
        stream.write((json.dumps(content) + "\n").encode())
    if not options.keep:
        shutil.rmtree(config.out)
    c, s, m = content["consistency"], content["shift"], content["mass"]
    print(
        f"{arm:<8} seed {seed}  rank-1 {100 * content['rank1']:5.1f}  mAP {100 * content['mAP']:5.1f}  gap identity "
        f"{c['identity']['gap']:.3f} pair {c['pair']['gap']:.3f}  follows {100 * s['followed']:.0f} %  mass "
        f"{100 * m['mass']:.1f} %  {seconds:.0f} s",
        flush=True,
    )


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished runs by arm."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        content = json.loads(path.read_text())
        runs.setdefault(content["arm"], []).append(content)
    return runs


def gaps(runs: list[dict[str, Any]], which: str) -> tuple[Any, Any]:
    """Negative minus positive distance of each query that has both, averaged over seeds; the queries' identities."""
    c = runs[0]["consistency"]
    same, pids = np.array(c["same"]), np.array(c["pids"])
    d = np.nanmean([run["consistency"][which]["distances"] for run in runs], 0)
    twice = np.flatnonzero(same[:-1] & ~same[1:] & (pids[:-1] == pids[1:]))  # drawn one after the other
    return d[twice + 1] - d[twice], pids[twice]


def table(folder: Path, against: str) -> list[str]:
    """Markdown: mean over seeds, and paired bootstraps over identities against one arm."""
    runs = read(folder)
    lines = [
        f"| arm | seeds | rank-1 | mAP | mAP - {against} (95 %) | gap, identity | gap, pair "
        f"| gap, pair - {against} (95 %) | follows a shift | mass on the person |",
        "|" + "---|" * 10,
    ]
    base = runs.get(against)
    for arm in (arm for arm in ARMS if arm in runs):
        found = runs[arm]

        def mean(of: Any, scale: float = 100.0, digits: int = 1, found: Any = found) -> str:
            values = [scale * of(run) for run in found]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        other = ["", ""]
        if base and arm != against:
            first, second = (np.mean([run["ap"] for run in group], 0) for group in (base, found))
            d = paired_bootstrap(first, second, base[0]["pids"])
            other[0] = f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} .. {100 * d.high:+.1f})"
            (a, ids), (b, _) = gaps(base, "pair"), gaps(found, "pair")
            d = paired_bootstrap(a, b, ids)
            other[1] = f"{d.mean:+.3f} ({d.low:+.3f} .. {d.high:+.3f})"
        cells = [
            arm,
            str(len(found)),
            mean(lambda run: run["rank1"]),
            mean(lambda run: run["mAP"]),
            other[0],
            mean(lambda run: run["consistency"]["identity"]["gap"], 1, 3),
            mean(lambda run: run["consistency"]["pair"]["gap"], 1, 3),
            other[1],
            mean(lambda run: run["shift"]["followed"], 100, 0) + " %",
            mean(lambda run: run["mass"]["mass"]) + " %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def trained(run: Path) -> tuple[CASN, tuple[int, int]]:
    """The network in a folder of `reidfast train`, and the size of its input."""
    card = json.loads((run / "card.json").read_text())
    model = create_model(card["model"]["name"], weights=run / "weights.safetensors", **card["model"]["options"])
    if not isinstance(model, CASN):
        raise SystemExit(f"{run}: expected a run of casn or casn-ide, got {card['model']['name']}")
    return model.eval(), (card["size"][0], card["size"][1])


def measures(model: CASN, data: ReidData, size: tuple[int, int], pairs: int, device: str) -> dict[str, Any]:
    """Everything about the attention."""
    return {
        "consistency": consistency(model, data, size, pairs, device),
        "shift": shift_response(model, data, size, pairs, device),
        "mass": mass_on_person(model, size, 240, device),
    }


def measure(runs: list[Path], pairs: int, path: Path | None) -> None:
    """Scores and attention of trained networks, on the test identities of the data they were trained with."""
    found = []
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        config = metrics["config"]["data"]
        model, size = trained(run)
        data = load(config["name"], config["root"], **config["options"])
        result = {"run": run.name, **metrics, **measures(model, data, size, pairs, "cpu")}
        found.append(result)
        c, s, m, scores = result["consistency"], result["shift"], result["mass"], metrics["history"][-1]
        print(
            f"{run.name:<16} rank-1 {100 * scores['rank1']:5.1f}  mAP {100 * scores['mAP']:5.1f}  distance of positive "
            f"and negative pairs, identity {c['identity']['positive']:.3f} {c['identity']['negative']:.3f} pair "
            f"{c['pair']['positive']:.3f} "
            f"{c['pair']['negative']:.3f}  follows {100 * s['followed']:3.0f} %  "
            f"mass {100 * m['mass']:.1f} % (person {100 * m['cells']:.1f} %)",
            flush=True,
        )
    if path:
        with write_whole(path) as stream:
            stream.write((json.dumps({"runs": found}) + "\n").encode())


def figure(runs: list[Path], png: Path, pairs: int) -> None:
    """Identity attention of trained networks (folders of `reidfast train`) on rendered people, two cameras each."""
    world = World(seed=11, difficulty=0.4)
    shots = [world.render(pid, camid) for pid in range(1, pairs + 1) for camid in (1, 4)]
    shown: dict[str, Any] = {}
    for run in runs:
        model, size = trained(run)
        images = torch.stack([normalize(to_float(resize(_picture(s.image), *size))) for s in shots])
        shown[run.name] = identity_maps(model, images).numpy()
    sheet = draw_attention([s.image for s in shots], shown)
    sheet.quantize(128).save(png, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.casn", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the arms that have no result yet")
    running.add_argument("--preset", choices=list(PRESETS), default="cpu")
    running.add_argument("--weights", help="of the backbone; none: random")
    running.add_argument("--data", default="cuhk03_np_detected")
    running.add_argument("--ids", type=int, help="training identities, 0: all; default: the preset's")
    running.add_argument("--test-ids", type=int, help="test identities, 0: all; default: the preset's")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--pairs", type=int, default=500, help="test pairs of each kind for the attention's figures")
    running.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all arms")
    running.add_argument("--keep", action="store_true", help="keep checkpoints and weights of finished runs")
    shown = commands.add_parser("table", help="mean, spread and paired bootstrap of what is finished")
    shown.add_argument("--out", type=Path, required=True)
    shown.add_argument("--against", default="sampler")
    shown.add_argument("--json", type=Path, help="write the table and all results into one file")
    drawn = commands.add_parser("figure", help="attention of trained networks on rendered people")
    drawn.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of reidfast train")
    drawn.add_argument("--png", type=Path, required=True)
    drawn.add_argument("--pairs", type=int, default=5)
    weighed = commands.add_parser("measure", help="scores and attention of trained networks")
    weighed.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of reidfast train")
    weighed.add_argument("--pairs", type=int, default=500)
    weighed.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "measure":
        measure(options.runs, options.pairs, options.json)
        return
    if options.command == "figure":
        figure(options.runs, options.png, options.pairs)
        return
    if options.command == "table":
        lines = table(options.out, options.against)
        print("\n".join(lines))
        if options.json:
            runs = [run for found in read(options.out).values() for run in found]
            with write_whole(options.json) as stream:
                settings = json.loads((options.out / "settings.json").read_text())
                stream.write((json.dumps({"settings": settings, "table": lines, "runs": runs}) + "\n").encode())
        return
    options.set = [f"--{item.removeprefix('--')}" for item in options.set]
    options.out.mkdir(parents=True, exist_ok=True)
    mine = {n: getattr(options, n) for n in ("preset", "data", "ids", "test_ids", "pairs", "set")}
    kept = options.out / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != mine:
        raise SystemExit(f"{options.out} holds runs with other settings ({kept}); choose another --out")
    with write_whole(kept) as stream:
        stream.write((json.dumps(mine) + "\n").encode())
    for seed in options.seeds:  # seed by seed, so that a table over all arms is there early
        for arm in options.arms:
            run_arm(arm, seed, options)


if __name__ == "__main__":
    sys.exit(main())
