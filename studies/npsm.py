# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""NPSM against two-stage search on the same network: rendered scenes, PETS 2009, and the time of a pair.

    python -m studies.npsm run --weights osnet.npz --out runs/npsm --seeds 0 1 2
    python -m studies.npsm pets --weights osnet.npz --out runs/npsm
    python -m studies.npsm time --out runs/npsm
    python -m studies.npsm table --out runs/npsm --results studies/results/npsm.json
    python -m studies.npsm figure --out runs/npsm --gif docs/img/npsm.gif

For each seed the scenes, the draw of pairs and the new parameters differ. First the embedding is trained by OIM (the
two-stage baseline), then NPSM's attention on top of that embedding, which stays: what differs between the arms is the
search alone. Training that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reidfast.data import SearchData, load_search
from reidfast.data.images import EvalTransform
from reidfast.data.proposals import create_proposals, recall
from reidfast.engine.compare import paired_bootstrap
from reidfast.engine.methods import find_method
from reidfast.engine.person_search import PersonSearcher, SceneMaps, Shrinkage, Sizing, nearest_boxes
from reidfast.engine.training import train
from reidfast.evaluation import Detections, PersonSearch, box_iou, person_search
from reidfast.models import create_model, load_weights
from reidfast.models.npsm import RegionEmbedder
from studies._study import OUT, SEEDS, Clock, Results, Run, Study, argument, choose, keep, markdown, spread

study = Study("npsm", __doc__)
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
        clock, definition = Clock(), find_method(method)
        metrics = train(definition, definition.parse(arguments))
        seconds = {"seconds": clock.wall, "cpu_seconds": clock.cpu}
        keep(out / "run.json", {**seconds, "before": metrics["before"], "history": metrics["history"]})
    return weights


def attention_settings(head: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Of every training of the attention alone: the embedding stays."""
    return [
        f"--model.head_options={json.dumps({**CUT, **SMALL, **head})}",
        "--loss.weight=0",
        "--loss.identity=oim",
        f"--loss.ramp={options.ramp}",
        f"--optim.lr={options.lr}",
        "--optim.backbone_factor=0.0",
    ]


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
    """The attention on top of a trained embedding."""
    out = options.out / f"{arm}-{seed}"
    settings = [*common(seed, out, options.epochs), f"--model.weights={weights}"]
    return trained("npsm", [*settings, *attention_settings(ATTENTION[arm], options)], out)


def model_of(arm: str, weights: Path | None, final: str | None = None, **options: Any) -> RegionEmbedder:
    """A trained model; `final`: the rule that chooses NPSM's final box."""
    head = {} if arm == "two-stage" else {**SMALL, **ATTENTION[arm]} | ({"final_box": final} if final else {})
    name = "npsm" if head else "two_stage"
    made = create_model(name, backbone="osnet_x0_25", weights=weights, **{**CUT, **head, **options})
    assert isinstance(made, RegionEmbedder)
    return made.eval()


def result(got: PersonSearch, pids: Any, shrinkage: Shrinkage | None = None) -> Run:
    """What a file holds of a search: the scores, and each query's, for the bootstrap."""
    scores: Run = {"mAP": got.mean_ap, "top1": float(got.cmc[0]), "recall": got.recall}
    scores["ap"] = [None if np.isnan(a) else round(float(a), 6) for a in got.ap]
    scores["pids"] = [int(p) for p in pids]
    if shrinkage is None:
        return scores
    steps = {k: [round(float(x), 4) for x in v] for k, v in shrinkage._asdict().items() if k != "pairs"}
    return scores | {"shrinkage": steps}


def evaluate(data: SearchData, boxes: Detections, features: Any = None, **options: Any) -> PersonSearch:
    """CUHK-SYSU's protocol over the set's usual galleries."""
    queries = data.queries.with_features(features)
    return person_search(queries, boxes, data.gallery.truth, galleries=data.gallery_lists(), **options)


def line(run: Run) -> str:
    """The mAP of every part of a result."""
    return str({k: round(v["mAP"], 4) for k, v in run.items() if isinstance(v, dict)})


def two_stage(data: SearchData, proposals: Any, maps: SceneMaps) -> Run:
    """Two-stage search: all boxes of an image are ranked, or the one nearest to the query."""
    lists, searcher = data.gallery_lists(), PersonSearcher(maps.model, data.gallery, proposals, maps=maps)
    features, boxes = searcher.two_stage(data.queries, lists)
    single = nearest_boxes(data.queries, features, boxes, lists)
    return {
        "all boxes": result(evaluate(data, boxes, features), data.queries.pids),
        "one box": result(evaluate(data, single), data.queries.pids),
    }


def shrinking(data: SearchData, maps: SceneMaps, model: Any, proposals: Any) -> Run:
    """NPSM's search, the final box chosen by attention or by identity: `model` makes the network of a rule.

    `maps` has the shallow part, which is the same for all.
    """
    run = {}
    for final in ("attention", "identity"):
        network = model(final)
        own = SceneMaps(network, data.gallery, Sizing(0, 0, SCALE), keep="float16")
        own._maps = maps._maps
        searcher = PersonSearcher(network, data.gallery, proposals, maps=own)
        boxes, shrinkage = searcher.search(data.queries, data.gallery_lists())
        run[f"final box by {final}"] = result(evaluate(data, boxes), data.queries.pids, shrinkage)
    return run


def show(options: argparse.Namespace) -> None:
    """Prints the tables and writes the results."""
    for data in ("synthetic", "pets"):
        print("\n".join([f"{data}:", *rows_of(options.out / data)]))
    write_results(options)


WEIGHTS = argument("--weights", type=Path, required=True, help="of osnet_x0_25, trained on MSMT17")
TRAINING = (
    argument("--lr", type=float, default=0.002),
    argument("--ramp", type=float, default=1.0),
    argument("--results", type=Path, help="one file of everything that the documents quote"),
    argument("--short", type=Path, help="folder of shorter runs, whose scores the results hold too"),
)


@study.command(
    "all arms on rendered scenes",
    OUT,
    SEEDS,
    WEIGHTS,
    choose(ATTENTION),
    argument("--epochs", type=int, default=10, help="of the attention"),
    argument("--embedding-epochs", type=int, default=2),
    *TRAINING,
)
def run(options: argparse.Namespace) -> None:
    """Trains what is missing, then searches with every arm."""
    for seed in options.seeds:
        run_seed(seed, options)
    show(options)


def run_seed(seed: int, options: argparse.Namespace) -> None:
    """The two-stage baselines, then every arm, searched with three steps, as trained, and with two."""
    data, embedding, results = scenes(seed), train_embedding(seed, options), Results(options.out / "synthetic")
    base = model_of("two-stage", embedding)
    maps = SceneMaps(base, data.gallery, Sizing(0, 0, SCALE), keep="float16")
    proposals = {name: create_proposals(kind, **settings) for name, (kind, settings) in PROPOSALS.items()}

    def baseline(provider: Any) -> Run:
        share, count = recall(provider, data.gallery)
        return {"recall": share, "boxes": count, **two_stage(data, provider, maps)}

    for name, provider in proposals.items():
        results.run(f"two-stage, {name}", seed, line, baseline, provider)
    for arm in options.arms:
        weights = train_attention(arm, seed, embedding, options)
        for name, steps in itertools.product(("objectness", "simulated"), (3, 2)):
            label = f"{arm}, {name}" + ("" if steps == 3 else f", T = {steps}")
            model = partial(model_of, arm, weights, steps=steps)
            results.run(label, seed, line, shrinking, data, maps, model, proposals[name])


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


def crops(options: argparse.Namespace, data: SearchData, detector: Any) -> Run:
    """OSNet on crops of public detections."""
    images = np.arange(len(data.gallery))
    boxes = {int(i): np.maximum(detector(data.gallery, int(i)).boxes, 0) for i in images}
    embedded = embed_crops(options.weights, data, boxes)
    detections = Detections(
        np.repeat(images, [len(boxes[int(i)]) for i in images]),
        np.concatenate([boxes[int(i)] for i in images]),
        features=torch.cat([embedded[int(i)] for i in images]),
    )
    where = {int(i): data.queries.boxes[data.queries.images == i] for i in np.unique(data.queries.images)}
    features = torch.empty(len(data.queries), 512)
    for image, vectors in embed_crops(options.weights, data, where).items():
        features[torch.from_numpy(np.flatnonzero(data.queries.images == image))] = vectors
    scores = result(evaluate(data, detections, features), data.queries.pids)
    return {"split": data.info["split"], "all boxes": scores}


@study.command(
    "search in PETS",
    OUT,
    SEEDS,
    WEIGHTS,
    argument("--every", type=int, default=10, help="frame of PETS that is taken, one in so many"),
    argument("--pets-epochs", type=int, default=6, help="of the attention trained on PETS; 0: leave it out"),
    *TRAINING,
)
def pets(options: argparse.Namespace) -> None:
    """Trained on rendered scenes only, or on the video's first part; the embedding is OSNet's own."""
    data, results = load_search("pets09_s2l1", every=options.every), Results(options.out / "pets")
    detector = create_proposals("detector")
    results.run("OSNet on crops, public detections", 0, line, crops, options, data, detector)
    base = model_of("two-stage", None, backbone_weights=options.weights)
    maps = SceneMaps(base, data.gallery, Sizing(0, 0, SCALE), keep="float16")
    for name in ("detector", "oracle"):
        results.run(f"two-stage, {name}", 0, line, two_stage, data, create_proposals(name), maps)
    runs = [("rendered scenes", seed, options.out / f"npsm-{seed}") for seed in options.seeds]
    if options.pets_epochs:
        runs.append(("PETS, first part", 0, train_pets(options)))

    def model(weights: Path, final: str) -> Any:
        made = model_of("npsm", weights, final, grid=PETS_GRID)
        load_weights(made.backbone, options.weights, drop_classifier=True)  # the embedding as it came
        return made

    for trained_on, seed, folder in runs:
        weights = folder / "weights.safetensors"
        if weights.exists():
            arm = f"npsm trained on {trained_on}, detector"
            results.run(arm, seed, line, shrinking, data, maps, partial(model, weights), detector)
    show(options)


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
        *attention_settings({**ATTENTION["npsm"], "grid": PETS_GRID}, options),
    ]
    trained("npsm", arguments, out)
    return out


@study.command(
    "seconds of a search by queries and images",
    OUT,
    SEEDS,
    argument("--queries", type=int, nargs="+", default=[1, 8, 32, 64]),
    argument("--images", type=int, nargs="+", default=[10, 20, 40]),
    argument("--repeats", type=int, default=5),
)
def time(options: argparse.Namespace) -> None:
    """Interleaved over the sizes, the median of `repeats`; maps and proposals, made once for all queries, apart.

    For comparison what two-stage search pays once an image: the embeddings of all its proposals (its cosines cost next
    to nothing).
    """
    seed = options.seeds[0]
    data, most = scenes(seed), max(options.images)
    weights = options.out / f"npsm-{seed}" / "weights.safetensors"
    provider = create_proposals("objectness", count=150)
    searcher = PersonSearcher(model_of("npsm", weights), data.gallery, provider, Sizing(0, 0, SCALE))

    def seconds(step: Any, count: int) -> list[float]:
        """Of the processor, for each image."""
        spent = []
        for i in range(count):
            clock = Clock()
            step(i)
            spent.append(clock.cpu)
        return spent

    with torch.no_grad():
        per_map = sum(seconds(searcher.maps.shallow, most)) / most
    per_proposals = sum(seconds(searcher.boxes, most)) / most
    load = os.getloadavg()[0]
    embedding = seconds(lambda i: searcher.embed_boxes(i, searcher.boxes(i)), min(most, options.repeats))
    sizes = [(q, g) for q in options.queries for g in options.images]
    taken: dict[tuple[int, int], list[tuple[float, float]]] = {size: [] for size in sizes}
    states = {}
    for queries in options.queries:
        chosen = data.queries.select(np.arange(queries) % len(data.queries))
        states[queries] = (chosen, searcher.query_states(chosen))
    for _ in range(options.repeats):
        for queries, images in sizes:
            chosen, state = states[queries]
            clock = Clock()
            searcher.search(chosen, [np.arange(images)] * queries, state=state)
            taken[queries, images].append((clock.wall, clock.cpu))
    rows = []
    for (queries, images), times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append({"queries": queries, "images": images, "seconds": wall, "cpu_seconds": cpu})
        print(rows[-1], f"{1e3 * cpu / (queries * images):.2f} ms of processor time a pair", flush=True)
    content = {
        "cpu_seconds_a_map": per_map,
        "cpu_seconds_of_proposals": per_proposals,
        "cpu_seconds_of_150_embeddings": statistics.median(embedding),
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "load": load,
    }
    print(content, flush=True)
    keep(options.out / "time.json", {"rows": rows, **content})


def read(folder: Path) -> dict[str, list[Run]]:
    """The parts of the finished arms by name, one entry a seed."""
    arms: dict[str, list[Run]] = {}
    for arm, runs in Results(folder).read().items():
        for content in runs:
            for part, value in content.items():
                if isinstance(value, dict) and "mAP" in value:
                    arms.setdefault(f"{arm}, {part}", []).append({"seed": content["seed"], **value})
    return arms


def rows_of(folder: Path) -> list[str]:
    """Mean and spread over seeds."""
    keys = ("mAP", "top1", "recall")
    rows = (
        [arm, str(len(runs)), *(spread([100 * run[key] for run in runs]) for key in keys)]
        for arm, runs in read(folder).items()
    )
    return markdown(("arm", "seeds", "mAP", "top-1", "found"), rows)


def difference(folder: Path, first: str, second: str) -> dict[str, float] | None:
    """Second minus first in AP, by a bootstrap over persons of all seeds together."""
    arms = read(folder)
    if first not in arms or second not in arms:
        return None
    a, b = ({run["seed"]: run for run in arms[name]} for name in (first, second))
    shared = sorted(set(a) & set(b))

    def joined(runs: dict[int, Any]) -> np.ndarray:
        return np.array([np.nan if x is None else x for seed in shared for x in runs[seed]["ap"]])

    pids = np.array([seed * 100_000 + p for seed in shared for p in a[seed]["pids"]])
    return paired_bootstrap(joined(a), joined(b), pids)._asdict()


COMMANDS = (
    "run --weights osnet_x0_25_msmt17.npz --seeds 0 1 2 --arms npsm --epochs 60",
    "run --weights osnet_x0_25_msmt17.npz --seeds 0 1 2 --arms npsm --epochs 10 --out runs/npsm-short",
    "run --weights osnet_x0_25_msmt17.npz --seeds 0 --arms npsm-paper --epochs 10 --out runs/npsm-short",
    "pets --weights osnet_x0_25_msmt17.npz --seeds 0 --pets-epochs 6",
    "time --seeds 0 --queries 1 8 32 --images 4 16 --repeats 3",
    "table --results studies/results/npsm-2026-11-21.json --short runs/npsm-short",
)
ATTENTIVE = "npsm, objectness, final box by attention"
ONE_BOX = "two-stage, objectness, one box"
COMPARED = {
    "npsm by attention - two-stage, one box": (ONE_BOX, ATTENTIVE),
    "npsm by attention, T = 2 - two-stage, one box": (ONE_BOX, "npsm, objectness, T = 2, final box by attention"),
    "npsm by identity - two-stage, one box": (ONE_BOX, "npsm, objectness, final box by identity"),
    "npsm by attention - npsm-paper": ("npsm-paper, objectness, final box by attention", ATTENTIVE),
}


def write_results(options: argparse.Namespace) -> None:
    """One JSON file with everything that the documents quote."""
    if not options.results:
        return

    def shown(folder: Path) -> dict[str, Any]:
        return {
            arm: [{k: v for k, v in run.items() if k not in ("ap", "pids")} for run in runs]
            for arm, runs in read(folder).items()
        }

    commands = (f"python -m studies.npsm {c}" + ("" if "--out" in c else " --out runs/npsm") for c in COMMANDS)
    content: dict[str, Any] = {"commands": list(commands)}
    content |= {data: shown(options.out / data) for data in ("synthetic", "pets")}
    if options.short:
        content["synthetic, shorter training"] = shown(options.short / "synthetic")
    for path in sorted(options.out.glob("*/run.json")):
        content.setdefault("training", {})[path.parent.name] = json.loads(path.read_text())
    pairs = {name: difference(options.out / "synthetic", *pair) for name, pair in COMPARED.items()}
    content["paired differences of AP"] = {name: value for name, value in pairs.items() if value}
    if (options.out / "time.json").exists():
        content["time"] = json.loads((options.out / "time.json").read_text())
    content["settings"] = {"scenes": SCENES, "model": {**CUT, **SMALL}, "scale": SCALE}
    keep(options.results, content, indent=1)


@study.command("mean and spread over seeds of what is finished", OUT, *TRAINING[2:])
def table(options: argparse.Namespace) -> None:
    """The tables of both sets."""
    show(options)


@study.command(
    "searches that find the person, drawn step by step",
    OUT,
    SEEDS,
    argument("--gif", type=Path),
    argument("--png", type=Path),
    argument("--count", type=int, default=3),
    argument("--width", type=int, default=420),
    argument("--colors", type=int, default=64),
)
def figure(options: argparse.Namespace) -> None:
    """The first persons of the set that are found."""
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


if __name__ == "__main__":
    study.main()
