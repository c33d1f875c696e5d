# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CASN part by part: what of its gain is the batch, the verification loss, the erasing, the consistency.

    python -m studies.casn run --weights osnet.npz --out runs/casn-cpu                 on a CPU
    python -m studies.casn run --preset full --weights resnet50.pth --out runs/casn    on a GPU
    python -m studies.casn table --out runs/casn-cpu --json results.json
    python -m studies.casn holdout --ids 100 --test-ids 100 --json tuning.json
    python -m studies.casn measure --runs runs/ide runs/casn-ide
    python -m studies.casn figure --runs runs/ide runs/casn-ide --png attention.png

Arms over PCB: `ce`, every image once an epoch, cross-entropy alone; `sampler`, the same loss on 8 x 4 batches dealt
over cameras; then `bce` (verification of pairs), `ia` (identification attention), `sa` (verification and consistency),
`all`. `ide` and `ide-all` over IDE. `sa-default` is `sa` with casn.yaml's indicator and no margin. Same weights, seeds
and number of steps for all. Reported are R1, mAP and what `casn_attention` measures. An arm that was stopped goes on
from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reidfast.data import IdentitySampler, Records, ReidData, ShuffleSampler, World, load_dataset, split_identities
from reidfast.engine.methods import find_method
from reidfast.engine.training import train
from reidfast.evaluation import Ranking, rank
from reidfast.models import CASN, create_model, load_weights
from reidfast.report import draw_attention
from studies import _study
from studies._study import JSON, OUT, Results, Run, argument, compare, keep, markdown, spread
from studies.casn_attention import (
    KINDS,
    Looked,
    consistency,
    fit_pair_head,
    identity_maps,
    look,
    mass_on_person,
    rendered,
    shift_response,
)

study = _study.Study("casn", __doc__)
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
    "sa-default": ("casn", ["--loss.attention=0", "--model.indicator=gradient", "--loss.margin=null"]),
}


class Compared(NamedTuple):
    """An arm, what it is compared with, and what has been added."""

    arm: str
    control: str
    what: str


STEPS = [
    Compared("sampler", "ce", "batches of pairs"),
    Compared("bce", "sampler", "verification"),
    Compared("ia", "sampler", "identification attention"),
    Compared("sa", "bce", "consistency"),
    Compared("all", "bce", "both attentions"),
    Compared("all", "sampler", "all losses"),
    Compared("bce", "ce", "batches of pairs and verification"),
    Compared("all", "ce", "CASN over PCB"),
    Compared("ide-all", "ide", "CASN over IDE"),
    Compared("sa-default", "bce", "consistency by casn.yaml's rule"),
]
MEASURED = ("rank1", "mAP", *KINDS)
CPU = [
    "--model.backbone=osnet_x0_25",
    "--model.options={last_stride: 1}",  # a 16 x 8 map, as of 256 x 128
    "--model.unfold=256",
    "--data.augment=batch",
    "--data.height=128",
    "--data.width=64",
    "--optim.optimizer=adam",
    "--optim.lr=0.001",
    "--optim.backbone_factor=0.3",
    "--optim.epochs=20",
    "--optim.milestones=[16]",
    "--loss.start=5",
    # chosen on training identities: docs/methods/casn.md
    "--loss.siamese=0.5",
    "--loss.consistency=1.0",
    "--loss.margin=1.5",
    "--model.indicator=contribution",
    "--loss.mask_forward=batch",
]
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"set": CPU, "pcb": ["--model.base_options={parts: 4, reduced: 128}"],
            "ide": ["--model.base_options={hidden: 256}"], "ids": 250, "test_ids": 0},
    "full": {"set": [], "pcb": [], "ide": [], "ids": 0, "test_ids": 0},
}  # fmt: skip


def write_split(path: Path, name: str, tables: dict[str, Records]) -> None:
    """Tables as a split file."""
    rows = {split: list(zip(t.paths, t.pids.tolist(), t.camids.tolist(), strict=True)) for split, t in tables.items()}
    keep(path, {"name": name, "fields": ["path", "pid", "camid"], **rows})


def people(table: Records, count: int, rng: np.random.Generator) -> Any:
    """So many identities of a table, drawn; 0: all."""
    ids = np.unique(table.pids)
    return rng.permutation(ids)[:count] if count else ids


def part(table: Records, ids: Any) -> Records:
    """The pictures of these identities."""
    return table.select(np.flatnonzero(np.isin(table.pids, ids)))


def subset(data: ReidData, ids: int, test_ids: int, seed: int) -> dict[str, Records]:
    """So many training and test identities, drawn once; 0: all."""
    rng = np.random.default_rng(seed)
    training, testing = people(data.train, ids, rng), people(data.query, test_ids, rng)
    return {
        "train": part(data.train, training),
        "query": part(data.query, testing),
        "gallery": part(data.gallery, testing),
    }


def held_out(data: ReidData, ids: int, test_ids: int, seed: int) -> dict[str, Records]:
    """Training identities alone, some to train on and others to test on: for choosing settings."""
    drawn = people(data.train, ids + test_ids, np.random.default_rng(seed))
    tested = split_identities(part(data.train, drawn[ids:]), test=1.0, seed=seed)
    return {"train": part(data.train, drawn[:ids]), "query": tested.query, "gallery": tested.gallery}


def source(options: argparse.Namespace) -> ReidData:
    """The data set that was asked for."""
    return load_dataset(options.data, None, **({"images": options.images} if options.images else {}))


def images_of(options: argparse.Namespace) -> str:
    """The folder of the images."""
    return options.images or str(source(options).train.root)


def prepared(options: argparse.Namespace) -> ReidData:
    """The part of the data set that is used, written down as two split files: all of it, and what training sees."""
    whole = options.out / "split.json"
    if not whole.exists():
        preset, data = PRESETS[options.preset], source(options)
        counts = [preset[n] if getattr(options, n) is None else getattr(options, n) for n in ("ids", "test_ids")]
        tables = subset(data, *counts, 0)
        write_split(options.out / "train.json", f"{data.name}, training part", {"train": tables["train"]})
        write_split(whole, f"{data.name}, part", tables)
    return load_dataset(str(whole), None, images=images_of(options))


def settings_of(arm: str, seed: int, options: argparse.Namespace) -> Any:
    """The configuration of a run."""
    method, own = ARMS[arm]
    preset = PRESETS[options.preset]
    data = prepared(options)
    common = [
        *preset["set"],
        *preset["pcb" if method == "casn" else "ide"],
        f"--data.name={options.out / 'train.json'}",  # no test images: they are looked at once, at the end
        f"--data.options={json.dumps({'images': images_of(options)})}",
        f"--model.weights={options.weights or 'null'}",
        f"--seed={seed}",
        f"--out={options.out / 'work' / f'{arm}-{seed}'}",
        "--evaluate_every=1000000",
        "--deterministic=false",
        "--resume=true",
    ]
    config = find_method(method).parse([*common, *options.set, *own])
    return same_steps(config, data.train) if config.data.sampler == "shuffle" else config


def same_steps(config: Any, train_images: Records) -> Any:
    """Every image once makes longer epochs than groups of K: fewer of them, for the same number of steps."""
    d, o = config.data, config.optim
    one = len(IdentitySampler(train_images.pids, d.ids, d.images))
    factor = one / len(ShuffleSampler(len(train_images), d.ids * d.images))
    milestones = [max(1, round(factor * m)) for m in o.milestones]
    return replace(config, optim=replace(o, epochs=max(1, round(factor * o.epochs)), milestones=milestones))


def network(method: str, config: Any) -> tuple[Any, Any]:
    """The task of a run and its data module."""
    return find_method(method).build(config, load_dataset(config.data.name, None, **config.data.options))


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> Run:
    """One arm with one seed."""
    config = settings_of(arm, seed, options)
    metrics = train(find_method(ARMS[arm][0]), config)
    task, _ = network(ARMS[arm][0], config)
    load_weights(task.model, Path(config.out) / "weights.safetensors")
    seconds = {k: round(v) for k, v in metrics["seconds"].items()}
    measured = measures(task.model.eval(), prepared(options), config, options)
    if not options.keep:
        shutil.rmtree(config.out)
    return {"seconds": seconds, "config": metrics["config"], **measured}


def line(run: Run) -> str:
    """A result in one line of text."""
    c, more = run["consistency"], f"  {run['seconds']['wall']} s" if "seconds" in run else ""
    seen = "  ".join(
        f"{k} {c[k]['positive']:.3f} {c[k]['negative']:.3f} closer {100 * c[k]['closer']:.1f} %" for k in KINDS
    )
    attention = f"follows {100 * run['shift']['followed']:.0f} %  mass {100 * run['mass']['mass']:.1f} %"
    return f"rank-1 {100 * run['rank1']:5.1f}  mAP {100 * run['mAP']:5.1f}  {seen}  {attention}{more}"


def start(options: argparse.Namespace) -> None:
    """Scores of the weights that PCB starts from, whose embedding needs no trained head."""
    path = options.out / "before.json"
    if not path.exists():
        config = settings_of("sampler", 0, options)
        task, module = network("casn", config)
        task.prepare(module)
        ranking, _, _ = scores(task.model.eval(), prepared(options), config, "cpu")
        keep(path, {"rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap})


def scores(model: CASN, data: ReidData, config: Any, device: str) -> tuple[Ranking, Looked, Looked]:
    """R1 and mAP, and what the network saw in queries and gallery."""
    size = (config.data.height, config.data.width)
    model.to(device)
    query, gallery = (look(model, records, size, device) for records in (data.query, data.gallery))
    q, g = data.query, data.gallery
    ranking = rank(query.embeddings, gallery.embeddings, q.pids, g.pids, q.camids, g.camids, protocol=config.protocol)
    return ranking, query, gallery


def measures(model: CASN, data: ReidData, config: Any, options: argparse.Namespace) -> Run:
    """Scores and everything about the attention of a trained network, on the test identities."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = (config.data.height, config.data.width)
    ranking, query, gallery = scores(model, data, config, device)
    if not config.loss.siamese:
        fit_pair_head(model, look(model, data.train, size, device), data.train, device)
    return {
        "rank1": float(ranking.cmc[0]),
        "mAP": ranking.mean_ap,
        "ap": [round(float(a), 6) for a in ranking.ap],
        "first": [int(f) for f in ranking.first_match],
        "pids": [int(p) for p in data.query.pids],
        "consistency": consistency(model, data, query, gallery, options.negatives, device),
        "shift": shift_response(model, data, size, options.moved, device),
        "mass": mass_on_person(model, size, 240, device),
    }


def by_query(runs: list[Run], kind: str) -> Any:
    """Positive, negative, closer of each query, averaged over seeds: (queries, 3)."""
    keys = ("positive", "negative", "closer")
    each = [[run["consistency"][kind]["queries"][k] for k in keys] for run in runs]
    return np.mean(np.array(each, np.float64), 0).T


def differences(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Of every step whose two arms are there, in per cent: difference, its 95 % interval, the difference of each seed.

    Scores of a query are averaged over the seeds, then identities are drawn: the interval says what other persons would
    change, the seeds what another run would.
    """
    rows = []
    for step in STEPS:
        if step.arm not in runs or step.control not in runs:
            continue
        new, old = ({run["seed"]: run for run in runs[arm]} for arm in (step.arm, step.control))
        seeds = sorted(set(new) & set(old))
        pair = [old[s] for s in seeds], [new[s] for s in seeds]
        values: dict[str, list[float]] = {}
        hits = [[np.equal(run["first"], 1) for run in group] for group in pair]
        for name, each in (("rank1", hits), ("mAP", [[run["ap"] for run in group] for group in pair])):
            first, second = (100 * np.array(group, float) for group in each)
            d = compare(first, second, pair[0][0]["pids"])
            values[name] = [d.mean, d.low, d.high, *(second.mean(1) - first.mean(1)).tolist()]
        for kind in KINDS:
            ids = pair[0][0]["consistency"]["pids"]
            tables = (by_query(group, kind) for group in pair)
            closer = ([100 * run["consistency"][kind]["closer"] for run in group] for group in pair)
            each_seed = [b - a for a, b in zip(*closer, strict=True)]
            values[kind] = [*_study.bootstrap(*tables, ids, lambda means: 100 * means[..., 2]), *each_seed]
        rows.append({**step._asdict(), "seeds": seeds} | {name: [round(x, 3) for x in v] for name, v in values.items()})
    return rows


def tables(runs: dict[str, list[Run]], steps: list[dict[str, Any]]) -> list[str]:
    """Markdown: mean and spread over seeds; what each part changes; the distances behind it."""
    closer = [f"{name}: closer" for name in ("pairs", "identities", "features")]
    arms = {arm: runs[arm] for arm in ARMS if arm in runs}

    def percent(group: list[Run], part: str | None, key: str, digits: int = 1) -> str:
        return spread([100 * (run[part] if part else run)[key] for run in group], digits)

    lines = markdown(
        ("arm", "rank-1", "mAP", *closer, "follows a shift", "mass on the person", "seconds"),
        (
            (
                arm,
                percent(group, None, "rank1"),
                percent(group, None, "mAP"),
                *(spread([100 * run["consistency"][kind]["closer"] for run in group]) for kind in KINDS),
                percent(group, "shift", "followed", 0),
                percent(group, "mass", "mass"),
                f"{statistics.mean(run['seconds']['cpu'] for run in group):.0f}",
            )
            for arm, group in arms.items()
        ),
    )
    lines += ["", *markdown(("step", "rank-1", "mAP", *closer), map(change, steps))]
    for kind in KINDS:
        keys = ("positive", "negative", "gap", "relative")
        rows = ((arm, *(spread([r["consistency"][kind][k] for r in g], 3) for k in keys)) for arm, g in arms.items())
        lines += ["", *markdown((f"{kind} attention", *keys[:3], "relative gap"), rows)]
    return lines


def change(step: dict[str, Any]) -> list[str]:
    """A row of what one part changes."""
    changes = [f"{d:+.1f} ({low:+.1f} .. {high:+.1f})" for d, low, high in (step[k][:3] for k in MEASURED)]
    return [f"{step['what']}: {step['arm']} - {step['control']}", *changes]


def brief(run: Run) -> Run:
    """A result without its settings and what it holds of every query."""
    kept = {k: v for k, v in run.items() if k not in ("config", "ap", "first", "pids")}
    seen = {k: v for k, v in run["consistency"].items() if k != "pids"}
    for kind in KINDS:
        seen[kind] = {k: v for k, v in seen[kind].items() if k != "queries"}
    return kept | {"consistency": seen}


def trained(run: Path) -> tuple[CASN, tuple[int, int]]:
    """The network in a folder of `reidfast train`, and the size of its input."""
    card = json.loads((run / "card.json").read_text())
    model = create_model(card["model"]["name"], weights=run / "weights.safetensors", **card["model"]["options"])
    if not isinstance(model, CASN):
        raise SystemExit(f"{run}: expected a run of casn or casn-ide, got {card['model']['name']}")
    return model.eval(), (card["size"][0], card["size"][1])


DATA = (
    argument("--data", default="cuhk03_np_detected", help="a name, or a .json"),
    argument("--images", help="of a .json: the folder of its images"),
)
RUNS = argument("--runs", nargs="+", type=Path, required=True, help="folders of reidfast train")
MEASURING = (
    argument("--negatives", type=int, default=10, help="pairs of two persons for each query"),
    argument("--moved", type=int, default=500, help="pictures that are moved down"),
)


@study.command(
    "run the arms that have no result yet",
    *_study.TRAINING,
    *DATA,
    *MEASURING,
    _study.choose(ARMS),
    argument("--preset", choices=list(PRESETS), default="cpu"),
    argument("--weights", help="of the backbone; none: random"),
    argument("--ids", type=int, help="training identities, 0: all; default: the preset's"),
    argument("--test-ids", type=int, help="test identities, 0: all; default: the preset's"),
)
def run(options: argparse.Namespace) -> None:
    """The network before training, then every arm and seed."""
    results, names = Results(options.out), ("preset", "data", "ids", "test_ids", "negatives", "moved", "set")
    results.hold({name: getattr(options, name) for name in names})
    start(options)
    results.sweep(options.arms, options.seeds, line, run_arm, options)


@study.command("mean, spread and paired bootstrap of what is finished", OUT, JSON)
def table(options: argparse.Namespace) -> None:
    """The tables, and with --json one file of them and of all results."""
    runs = Results(options.out).read()
    steps = differences(runs)
    lines = tables(runs, steps)
    print("\n".join(lines))
    if options.json:
        settings, before = (json.loads((options.out / f"{n}.json").read_text()) for n in ("settings", "before"))
        content = {"settings": settings, "before": before, "table": lines, "steps": steps}
        keep(options.json, content | {"runs": [brief(run) for group in runs.values() for run in group]})


@study.command("scores and attention of trained networks", RUNS, *MEASURING, JSON)
def measure(options: argparse.Namespace) -> None:
    """On the test identities of the data that they were trained with."""
    measured = []
    for folder in options.runs:
        stored = json.loads((folder / "metrics.json").read_text())["config"]
        base = json.loads((folder / "card.json").read_text())["model"]["options"]["base"]
        config, known = find_method("casn").config(), stored["data"]
        config.data.height, config.data.width = known["height"], known["width"]
        config.protocol, config.loss.siamese = stored["protocol"], stored["loss"]["siamese"]
        data = load_dataset(known["name"], known["root"], **known["options"])
        result = measures(trained(folder)[0], data, config, options)
        measured.append(
            {"config": _study.without_folders(stored), **brief({"run": folder.name, "base": base, **result})}
        )
        print(f"{folder.name:<16} {line(result)}", flush=True)
    if options.json:
        keep(options.json, {"runs": measured})


@study.command(
    "identity attention of trained networks on rendered people, two cameras each",
    RUNS,
    argument("--png", type=Path, required=True),
    argument("--pairs", type=int, default=5),
)
def figure(options: argparse.Namespace) -> None:
    """One row of maps for each network."""
    world = World(seed=11, difficulty=0.4)
    shots = [world.render(pid, camid) for pid in range(1, options.pairs + 1) for camid in (1, 4)]
    networks = ((folder.name, *trained(folder)) for folder in options.runs)
    shown: dict[str, Any] = {
        name: identity_maps(model, rendered(shots, size)).numpy() for name, model, size in networks
    }
    draw_attention([s.image for s in shots], shown).quantize(128).save(options.png, optimize=True)


@study.command(
    "a split of training identities alone, to choose settings with",
    *DATA,
    argument("--ids", type=int, default=100),
    argument("--test-ids", type=int, default=100),
    argument("--json", type=Path, required=True),
)
def holdout(options: argparse.Namespace) -> None:
    """Writes the split; prints the folder of its images."""
    data = source(options)
    tables = held_out(data, options.ids, options.test_ids, 0)
    write_split(options.json, f"{data.name}, training identities", tables)
    print(data.train.root)


if __name__ == "__main__":
    study.main()
