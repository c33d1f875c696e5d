# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""NPSM against two-stage search on the same network: rendered scenes, PETS 2009, and the time of a pair.

python -m studies.npsm run --weights osnet.npz --out runs/npsm --seeds 0 1 2
python -m studies.npsm pets --weights osnet.npz --out runs/npsm
python -m studies.npsm time --out runs/npsm
python -m studies.npsm table --out runs/npsm --results studies/results/npsm.json
python -m studies.npsm figure --out runs/npsm --gif docs/img/npsm.gif

For each seed the scenes, the draw of pairs and the new parameters differ. First the embedding is trained by OIM (the
two-stage baseline), then NPSM's attention on top of that embedding, which stays: what differs between the arms
is the search alone. Every arm leaves one JSON file, written whole; those that are there are not made again; training
that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reidfast._files import write_whole
from reidfast.data import SearchData, load_search
from reidfast.data.images import EvalTransform
from reidfast.data.proposals import create_proposals, recall
from reidfast.engine.compare import paired_bootstrap
from reidfast.engine.config import parse
from reidfast.engine.person_search import PersonSearcher, SceneMaps, Shrinkage, Sizing, nearest_boxes
from reidfast.engine.training import train
from reidfast.evaluation import Detections, PersonSearch, box_iou, person_search
from reidfast.models import create_model, load_weights
from reidfast.models.npsm import RegionEmbedder

SCENES = {"ids": 40, "train": 100, "gallery": 40, "cameras": 4}
CUT: dict[str, Any] = {"size": [16, 8], "embedding": None, "train_shallow": False}
ATTENTION = {
    "npsm": {"query_form": "mean", "correlation": True},
    "npsm-paper": {"query_form": "map", "correlation": False},
}
SMALL = {"grid": 14, "hidden": 32, "steps": 3, "clusters": 4}
SCALE = 2.0
PETS_GRID = 28  # people there are small: a cell is 27 x 21 pixels of the video
PROPOSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "objectness": ("objectness", {"count": 150}),
    "simulated": ("simulated", {}),
    "oracle": ("oracle", {}),
    "random": ("random", {"count": 50}),
}


def keep(path: Path, content: Any) -> None:
    """Write a result whole."""
    with write_whole(path) as stream:
        stream.write((json.dumps(content) + "\n").encode())


def scenes(seed: int) -> SearchData:
    """The rendered scenes of a seed."""
    return load_search("synthetic_scenes", **SCENES, seed=seed)


def common(seed: int, out: Path, epochs: int) -> list[str]:
    """Settings of every run."""
    return [
        "--data.name=synthetic_scenes",
        f"--data.options={json.dumps({**SCENES, 'seed': seed})}",
        "--data.short=0",
        f"--data.scale={SCALE}",
        "--data.proposal_options={count: 150}",
        "--data.pairs=8",
        "--data.keep=float16",
        "--model.backbone=osnet_x0_25",
        "--model.options={}",
        "--optim.optimizer=adam",
        "--optim.weight_decay=0.0005",
        f"--optim.epochs={epochs}",
        f"--optim.milestones=[{max(1, round(0.75 * epochs))}]",
        f"--evaluate_every={epochs}",
        "--accelerator=cpu",
        f"--seed={seed}",
        f"--out={out}",
        f"--resume={'true' if (out / 'last.ckpt').exists() else 'false'}",
    ]


def trained(method: str, arguments: list[str], out: Path) -> Path:
    """The weights of a run, which is made, or gone on with, where they are not there."""
    weights = out / "weights.safetensors"
    if not weights.exists():
        begin, cpu = time.perf_counter(), time.process_time()
        metrics = train(parse(method, arguments))
        seconds = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
        keep(out / "run.json", {**seconds, "before": metrics["before"], "history": metrics["history"]})
    return weights


def train_embedding(seed: int, options: argparse.Namespace) -> Path:
    """OIM on the deep part: the two-stage baseline."""
    out = options.out / f"embedding-{seed}"
    arguments = [
        *common(seed, out, options.embedding_epochs),
        f"--model.weights={options.weights}",
        f"--model.head_options={json.dumps(CUT)}",
        "--data.proposals=simulated",  # of the evaluation: training takes true boxes
        "--data.proposal_options={}",
        "--loss.identity=oim",
        "--loss.boxes=all",
        "--loss.oim_scale=30",
        "--loss.oim_queue=500",
        "--optim.lr=0.0003",
    ]
    return trained("two_stage", arguments, out)


def train_attention(arm: str, seed: int, weights: Path, options: argparse.Namespace) -> Path:
    """The attention alone: the embedding stays."""
    out = options.out / f"{arm}-{seed}"
    arguments = [
        *common(seed, out, options.epochs),
        f"--model.weights={weights}",
        f"--model.head_options={json.dumps({**CUT, **SMALL, **ATTENTION[arm]})}",
        "--loss.weight=0",
        "--loss.identity=oim",
        f"--loss.ramp={options.ramp}",
        f"--optim.lr={options.lr}",
        "--optim.backbone_factor=0.0",
    ]
    return trained("npsm", arguments, out)


def model_of(arm: str, weights: Path | None, **options: Any) -> RegionEmbedder:
    """A trained model."""
    head = "two_stage" if arm == "two-stage" else "npsm"
    settings = {**CUT, **options, **({**SMALL, **ATTENTION[arm], **options} if head == "npsm" else {})}
    made = create_model(head, backbone="osnet_x0_25", weights=weights, **settings)
    assert isinstance(made, RegionEmbedder)
    return made.eval()


def result(got: PersonSearch, pids: Any, shrinkage: Shrinkage | None = None) -> dict[str, Any]:
    """What a file holds of a search: the scores, and each query's, for the bootstrap."""
    out: dict[str, Any] = {
        "mAP": got.mean_ap,
        "top1": float(got.cmc[0]),
        "recall": got.recall,
        "ap": [None if np.isnan(a) else round(float(a), 6) for a in got.ap],
        "pids": [int(p) for p in pids],
    }
    if shrinkage is not None:
        out["shrinkage"] = {k: [round(float(x), 4) for x in v] for k, v in shrinkage._asdict().items() if k != "pairs"}
    return out


def evaluate(data: SearchData, found: Detections, features: Any = None, **options: Any) -> PersonSearch:
    """CUHK-SYSU's protocol over the set's usual galleries."""
    queries = data.queries.with_features(features)
    return person_search(queries, found, data.gallery.truth, galleries=data.gallery_lists(), **options)


def run_seed(seed: int, options: argparse.Namespace) -> None:
    """All arms on rendered scenes."""
    data, lists = scenes(seed), scenes(seed).gallery_lists()
    embedding = train_embedding(seed, options)
    sizing = Sizing(0, 0, SCALE)
    base = model_of("two-stage", embedding)
    maps = SceneMaps(base, data.gallery, sizing, keep="float16")
    for name, (provider, settings) in PROPOSALS.items():
        path = options.out / f"synthetic-two-stage-{name}-{seed}.json"
        if path.exists():
            continue
        proposals = create_proposals(provider, **settings)
        searcher = PersonSearcher(base, data.gallery, proposals, maps=maps)
        features, everything = searcher.two_stage(data.queries, lists)
        single = nearest_boxes(data.queries, features, everything, lists)
        found, count = recall(proposals, data.gallery)
        content = {"arm": f"two-stage, {name}", "data": "synthetic", "seed": seed, "recall": found, "boxes": count}
        content["all boxes"] = result(evaluate(data, everything, features), data.queries.pids)
        content["one box"] = result(evaluate(data, single), data.queries.pids)
        keep(path, content)
        print(path.name, {k: round(content[k]["mAP"], 4) for k in ("all boxes", "one box")}, flush=True)
    for arm in options.arms:
        weights = train_attention(arm, seed, embedding, options)
        for name in ("objectness", "simulated"):
            for steps in (3, 2):  # trained with three, searched with three or two
                mark = "" if steps == 3 else f"-T{steps}"
                path = options.out / f"synthetic-{arm}-{name}{mark}-{seed}.json"
                if path.exists():
                    continue
                provider, settings = PROPOSALS[name]
                label = f"{arm}, {name}" + ("" if steps == 3 else f", T = {steps}")
                content = {"arm": label, "data": "synthetic", "seed": seed}
                for final in ("attention", "identity"):
                    model = model_of(arm, weights, final_box=final, steps=steps)
                    mine = SceneMaps(model, data.gallery, sizing, keep="float16")
                    mine._maps = maps._maps  # the same shallow part
                    searcher = PersonSearcher(model, data.gallery, create_proposals(provider, **settings), maps=mine)
                    found, shrinkage = searcher.search(data.queries, lists)
                    content[f"final box by {final}"] = result(evaluate(data, found), data.queries.pids, shrinkage)
                keep(path, content)
                scores = {k: round(v["mAP"], 4) for k, v in content.items() if isinstance(v, dict)}
                print(path.name, scores, flush=True)


def embed_crops(weights: Path, data: SearchData, boxes: dict[int, np.ndarray]) -> dict[int, torch.Tensor]:
    """Features of crops resized to 256 x 128: the re-ID network as it is meant to be used."""
    network = create_model("osnet_x0_25", weights=weights).eval()
    transform, out = EvalTransform(256, 128), {}
    with torch.inference_mode():
        for image, at in boxes.items():
            picture = data.gallery.image(image)
            crops = [transform(picture.crop(tuple(int(round(v)) for v in box))) for box in at]
            parts = [network(torch.stack(crops[i : i + 32])) for i in range(0, len(crops), 32)]
            out[image] = torch.nn.functional.normalize(torch.cat(parts), dim=1) if parts else torch.empty(0, 512)
    return out


def run_pets(options: argparse.Namespace) -> None:
    """Searched in PETS: trained on rendered scenes only, or on the video's first part; the embedding is OSNet's own."""
    data = load_search("pets09_s2l1", every=options.every)
    lists, sizing = data.gallery_lists(), Sizing(0, 0, 2.0)
    path = options.out / "pets-osnet-crops.json"
    detector = create_proposals("detector")
    if not path.exists():
        wanted = np.arange(len(data.gallery))
        boxes = {int(i): np.maximum(detector(data.gallery, int(i)).boxes, 0) for i in wanted}
        found = embed_crops(options.weights, data, boxes)
        detections = Detections(
            np.repeat(wanted, [len(boxes[int(i)]) for i in wanted]),
            np.concatenate([boxes[int(i)] for i in wanted]),
            features=torch.cat([found[int(i)] for i in wanted]),
        )
        where = {int(i): data.queries.boxes[data.queries.images == i] for i in np.unique(data.queries.images)}
        cut = embed_crops(options.weights, data, where)
        features = torch.empty(len(data.queries), 512)
        for image, vectors in cut.items():
            features[torch.from_numpy(np.flatnonzero(data.queries.images == image))] = vectors
        got = evaluate(data, detections, features)
        content = {"arm": "OSNet on crops, public detections", "data": "pets", "seed": 0, "split": data.info["split"]}
        content["all boxes"] = result(got, data.queries.pids)
        keep(path, content)
        print(path.name, round(got.mean_ap, 4), flush=True)
    base = model_of("two-stage", None, backbone_weights=options.weights)
    maps = SceneMaps(base, data.gallery, sizing, keep="float16")
    for name in ("detector", "oracle"):
        path = options.out / f"pets-two-stage-{name}.json"
        if path.exists():
            continue
        searcher = PersonSearcher(base, data.gallery, create_proposals(name), maps=maps)
        features, everything = searcher.two_stage(data.queries, lists)
        single = nearest_boxes(data.queries, features, everything, lists)
        content = {"arm": f"two-stage, {name}", "data": "pets", "seed": 0}
        content["all boxes"] = result(evaluate(data, everything, features), data.queries.pids)
        content["one box"] = result(evaluate(data, single), data.queries.pids)
        keep(path, content)
        print(path.name, {k: round(content[k]["mAP"], 4) for k in ("all boxes", "one box")}, flush=True)
    runs = [("rendered scenes", seed, options.out / f"npsm-{seed}") for seed in options.seeds]
    if options.pets_epochs:
        runs.append(("PETS, first part", 0, train_pets(options)))
    for trained_on, seed, folder in runs:
        path = options.out / f"pets-npsm-{trained_on.split()[0].lower().strip(',')}-{seed}.json"
        if path.exists() or not (folder / "weights.safetensors").exists():
            continue
        content = {"arm": f"npsm trained on {trained_on}, detector", "data": "pets", "seed": seed}
        for final in ("attention", "identity"):
            model = model_of("npsm", folder / "weights.safetensors", final_box=final, grid=PETS_GRID)
            load_weights(model.backbone, options.weights, drop_classifier=True)  # the embedding as it came
            mine = SceneMaps(model, data.gallery, sizing, keep="float16")
            mine._maps = maps._maps
            searcher = PersonSearcher(model, data.gallery, create_proposals("detector"), maps=mine)
            found, shrinkage = searcher.search(data.queries, lists)
            content[f"final box by {final}"] = result(evaluate(data, found), data.queries.pids, shrinkage)
        keep(path, content)
        print(path.name, {k: round(v["mAP"], 4) for k, v in content.items() if isinstance(v, dict)}, flush=True)


def train_pets(options: argparse.Namespace) -> Path:
    """The attention, trained on the first part of the video."""
    out = options.out / "attention-pets"
    arguments = [
        *common(0, out, options.pets_epochs),
        "--data.name=pets09_s2l1",
        f"--data.options={json.dumps({'every': options.every})}",
        "--data.proposals=detector",
        "--data.proposal_options={}",
        f"--model.weights={options.weights}",
        f"--model.head_options={json.dumps({**CUT, **SMALL, **ATTENTION['npsm'], 'grid': PETS_GRID})}",
        "--loss.weight=0",
        "--loss.identity=oim",
        f"--loss.ramp={options.ramp}",
        f"--optim.lr={options.lr}",
        "--optim.backbone_factor=0.0",
    ]
    trained("npsm", arguments, out)
    return out


def run_time(options: argparse.Namespace) -> None:
    """Seconds of a search by queries and images; maps and proposals apart, which are made once for all queries.

    Interleaved over the sizes, the median of `repeats`. For comparison what two-stage search pays once an image: the
    embeddings of all its proposals (its cosines cost next to nothing).
    """
    seed = options.seeds[0]
    data, most = scenes(seed), max(options.images)
    weights = options.out / f"npsm-{seed}" / "weights.safetensors"
    provider = create_proposals("objectness", count=150)
    searcher = PersonSearcher(model_of("npsm", weights), data.gallery, provider, Sizing(0, 0, SCALE))
    begin = time.process_time()
    with torch.no_grad():
        for i in range(most):
            searcher.maps.shallow(i)
    per_map = (time.process_time() - begin) / most
    begin = time.process_time()
    for i in range(most):
        searcher.boxes(i)
    per_proposals = (time.process_time() - begin) / most
    embedding, load = [], os.getloadavg()[0]
    for i in range(min(most, options.repeats)):
        begin = time.process_time()
        searcher.embed_boxes(i, searcher.boxes(i))
        embedding.append(time.process_time() - begin)
    sizes = [(q, g) for q in options.queries for g in options.images]
    taken: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    cpu_of: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    states = {}
    for queries in options.queries:
        chosen = data.queries.select(np.arange(queries) % len(data.queries))
        states[queries] = (chosen, searcher.query_states(chosen))
    for _ in range(options.repeats):
        for queries, images in sizes:
            chosen, state = states[queries]
            begin, used = time.perf_counter(), time.process_time()
            searcher.search(chosen, [np.arange(images)] * queries, state=state)
            taken[queries, images].append(time.perf_counter() - begin)
            cpu_of[queries, images].append(time.process_time() - used)
    rows = [
        {
            "queries": q,
            "images": g,
            "seconds": statistics.median(taken[q, g]),
            "cpu_seconds": statistics.median(cpu_of[q, g]),
        }
        for q, g in sizes
    ]
    for row in rows:
        pairs = row["queries"] * row["images"]
        print(row, f"{1e3 * row['cpu_seconds'] / pairs:.2f} ms of processor time a pair", flush=True)
    content = {
        "rows": rows,
        "cpu_seconds_a_map": per_map,
        "cpu_seconds_of_proposals": per_proposals,
        "cpu_seconds_of_150_embeddings": statistics.median(embedding),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "load": load,
    }
    print({k: v for k, v in content.items() if k != "rows"}, flush=True)
    keep(options.out / "time.json", content)


def read(folder: Path, data: str) -> dict[str, list[dict[str, Any]]]:
    """The finished arms by name, one entry a seed."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{data}-*.json")):
        content = json.loads(path.read_text())
        for part, value in content.items():
            if isinstance(value, dict) and "mAP" in value:
                arms.setdefault(f"{content['arm']}, {part}", []).append({"seed": content["seed"], **value})
    return arms


def table(folder: Path, data: str) -> list[str]:
    """Mean and spread over seeds."""
    lines = ["| arm | seeds | mAP | top-1 | found |", "|---|---|---|---|---|"]
    for arm, runs in read(folder, data).items():
        cells = [arm, str(len(runs))]
        for key in ("mAP", "top1", "recall"):
            values = [100 * run[key] for run in runs]
            cells.append(
                f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
            )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def differences(folder: Path, data: str, first: str, second: str) -> dict[str, float] | None:
    """Second minus first in AP, by a bootstrap over persons of all seeds together."""
    arms = read(folder, data)
    if first not in arms or second not in arms:
        return None
    a, b = ({run["seed"]: run for run in arms[name]} for name in (first, second))
    shared = sorted(set(a) & set(b))

    def joined(runs: dict[int, Any]) -> np.ndarray:
        return np.array([np.nan if x is None else x for seed in shared for x in runs[seed]["ap"]])

    pids = np.array([seed * 100_000 + p for seed in shared for p in a[seed]["pids"]])
    return paired_bootstrap(joined(a), joined(b), pids)._asdict()


def write_results(options: argparse.Namespace) -> None:
    """One JSON file with everything that the documents quote."""
    content: dict[str, Any] = {
        "commands": [
            f"python -m studies.npsm {part}" + ("" if "--out" in part else " --out runs/npsm")
            for part in (
                "run --weights osnet_x0_25_msmt17.npz --seeds 0 1 2 --arms npsm --epochs 60",
                "run --weights osnet_x0_25_msmt17.npz --seeds 0 1 2 --arms npsm --epochs 10 --out runs/npsm-short",
                "run --weights osnet_x0_25_msmt17.npz --seeds 0 --arms npsm-paper --epochs 10 --out runs/npsm-short",
                "pets --weights osnet_x0_25_msmt17.npz --seeds 0 --pets-epochs 6",
                "time --seeds 0 --queries 1 8 32 --images 4 16 --repeats 3",
                "table --results studies/results/npsm-2026-11-21.json --short runs/npsm-short",
            )
        ]
    }

    def shown(folder: Path, data: str) -> dict[str, Any]:
        return {
            arm: [{k: v for k, v in run.items() if k not in ("ap", "pids")} for run in runs]
            for arm, runs in read(folder, data).items()
        }

    for data in ("synthetic", "pets"):
        content[data] = shown(options.out, data)
    if options.short:
        content["synthetic, shorter training"] = shown(options.short, "synthetic")
    for path in sorted(options.out.glob("*/run.json")):
        content.setdefault("training", {})[path.parent.name] = json.loads(path.read_text())
    one = "two-stage, objectness, one box"
    compare = {
        "npsm by attention - two-stage, one box": (one, "npsm, objectness, final box by attention"),
        "npsm by attention, T = 2 - two-stage, one box": (one, "npsm, objectness, T = 2, final box by attention"),
        "npsm by identity - two-stage, one box": (one, "npsm, objectness, final box by identity"),
        "npsm by attention - npsm-paper": (
            "npsm-paper, objectness, final box by attention",
            "npsm, objectness, final box by attention",
        ),
    }
    found = {name: differences(options.out, "synthetic", *pair) for name, pair in compare.items()}
    content["paired differences of AP"] = {name: value for name, value in found.items() if value}
    if (options.out / "time.json").exists():
        content["time"] = json.loads((options.out / "time.json").read_text())
    content["settings"] = {"scenes": SCENES, "model": {**CUT, **SMALL}, "scale": SCALE}
    if options.results:
        with write_whole(options.results) as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())


def figure(options: argparse.Namespace) -> None:
    """Searches that find the person, drawn step by step."""
    from reidfast.report.shrinking import animate, draw_steps, trace_search

    seed = options.seeds[0]
    data = scenes(seed)
    model = model_of("npsm", options.out / f"npsm-{seed}" / "weights.safetensors")
    proposals = create_proposals("objectness", count=150)
    searcher = PersonSearcher(model, data.gallery, proposals, Sizing(0, 0, SCALE))
    picked, shown, tried = [], set(), 0
    for row, pid in enumerate(data.queries.pids):
        shows = data.gallery.box_images[data.gallery.pids == pid]
        if pid in shown or len(picked) == options.count:
            continue
        shown.add(pid)
        tried += 1
        made = trace_search(searcher, data.queries, row, int(shows[shows != data.queries.images[row]][0]))
        if made.truth is not None and box_iou(made.box, made.truth) >= 0.5:
            picked.append(made)
    print(f"{len(picked)} of the first {tried} persons were found in the first image that shows them; these are drawn")
    if options.gif:
        animate(picked, options.gif, width=options.width, colors=options.colors)
    if options.png:
        draw_steps(picked).save(options.png)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "pets", "time", "table", "figure"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of osnet_x0_25, trained on MSMT17")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ATTENTION), choices=list(ATTENTION))
    parser.add_argument("--epochs", type=int, default=10, help="of the attention")
    parser.add_argument("--embedding-epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--ramp", type=float, default=1.0)
    parser.add_argument("--every", type=int, default=10, help="frame of PETS that is taken, one in so many")
    parser.add_argument("--pets-epochs", type=int, default=6, help="of the attention trained on PETS; 0: leave it out")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--images", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--short", type=Path, help="folder of shorter runs, whose scores the results hold too")
    parser.add_argument("--gif", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--width", type=int, default=420)
    parser.add_argument("--colors", type=int, default=64)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.command in ("run", "pets") and options.weights is None:
        parser.error("--weights is needed")
    if options.command == "run":
        for seed in options.seeds:
            run_seed(seed, options)
    elif options.command == "pets":
        run_pets(options)
    elif options.command == "time":
        run_time(options)
    elif options.command == "figure":
        figure(options)
    if options.command in ("run", "pets", "table"):
        for data in ("synthetic", "pets"):
            print("\n".join([f"{data}:", *table(options.out, data)]))
        write_results(options)


if __name__ == "__main__":
    main()
