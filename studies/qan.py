# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QAN on real sets with spoilt frames: CUHK03-NP, a set = all images of one person and view.

    python -m studies.qan run --weights OSNET.npz --json studies/results/qan.json

Query: the 700 test persons' sets of view 1, gallery: their sets of view 2. Each frame is spoilt with probability 0, 20
or 40 %, in one of three ways (`studies.corruption`; which one is a fixed draw for each image), in training and at test;
no quality label is used.
The backbone (OSNet x0.25, MSMT17) is frozen: its features and maps are extracted once, then heads train on them.
Everything goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from reidfast import ops
from reidfast.data import Records, Tracklets, concatenate, decode, load_dataset
from reidfast.data.images import normalize, resize, to_float
from reidfast.data.registry import cache_folder
from reidfast.engine.progress import progress
from reidfast.evaluation import rank
from reidfast.losses import SetTripletLoss
from reidfast.models import QAN, create_model
from reidfast.nn import QualityPool
from studies._study import JSON, Clock, Results, Study, argument, keep, keep_arrays, ordered
from studies._study import Run as Result
from studies.corruption import KINDS, spoil

study = Study("qan", __doc__)
VERSIONS = ("clean", "spoilt")
SIZE = (256, 128)
RATES = [0.0, 0.2, 0.4]


def kinds_of(n: int) -> NDArray[np.int64]:
    """In which of the `KINDS` each image of a table is spoilt, where it is."""
    rng = np.random.Generator(np.random.Philox(key=[0x91, n]))
    return (rng.random(n) * len(KINDS)).astype(np.int64)


@torch.inference_mode()
def extract(records: Records, weights: str, folder: Path, stop: int, batch: int = 64, block: int = 1024) -> None:
    """Features and pooled maps of both versions of a table's images, up to row `stop`, in files of a block of rows."""
    n = len(records)
    kinds = kinds_of(n)
    blocks = [(v, range(s, min(s + block, n))) for s in range(0, stop, block) for v in range(len(VERSIONS))]
    todo = [(v, rows, at) for v, rows in blocks if not (at := folder / f"{VERSIONS[v]}-{rows.start}.npz").exists()]
    if not todo:
        return
    model: Any = create_model("osnet_x0_25", weights=weights).eval()
    early: list[Tensor] = []
    model.conv3.register_forward_hook(lambda m, i, out: early.append(out))

    def picture(version: int, row: int) -> Tensor:
        image = decode(records.absolute(row))
        if version:
            # somebody else: the row half the table away, or the next one that is another person
            other = (row + n // 2) % n
            while records.pids[other] == records.pids[row]:
                other = (other + 1) % n
            image = spoil(image, KINDS[kinds[row]], row, 0, decode(records.absolute(other)))
        return to_float(resize(image, *SIZE))

    with ThreadPoolExecutor(1) as pool, progress(len(todo) * block, f"extract {folder.name}") as advance:
        for version, rows, at in todo:
            parts = [rows[a : a + batch] for a in range(0, len(rows), batch)]
            features, maps = [], []
            for images in pool.map(lambda part, v=version: torch.stack([picture(v, r) for r in part]), parts):
                early.clear()
                features.append(model.pool(model.forward_map(normalize(images))))
                maps.append(functional.avg_pool2d(early[0].half().float(), 2).half())
                advance(len(images))
            keep_arrays(at, {"features": torch.cat(features).numpy(), "maps": torch.cat(maps).numpy()})


@dataclass
class Frames:
    """What the heads see of a table's images, clean and spoilt.

    Attributes:
        sets: The sets.
        features: [2, n, 512].
        maps: Early maps, 2 x 2 cells averaged, [2, n, 96, 8, 4] float16.
        kinds: Index into `KINDS` of how each image is spoilt, [n].
    """

    sets: Tracklets
    features: Tensor
    maps: Tensor
    kinds: NDArray[np.int64]

    @staticmethod
    def of(sets: Tracklets, n: int, folder: Path) -> Frames:
        """From the files of `extract`; rows that no set needs may be missing, and stay zero."""
        features = torch.zeros(len(VERSIONS), n, 512)
        maps = torch.zeros(len(VERSIONS), n, 96, 8, 4, dtype=torch.float16)
        for version, name in enumerate(VERSIONS):
            for path in folder.glob(f"{name}-*.npz"):
                start = int(path.stem.rsplit("-")[-1])
                with np.load(path) as block:
                    rows = slice(start, start + len(block["features"]))
                    features[version, rows] = torch.from_numpy(block["features"])
                    maps[version, rows] = torch.from_numpy(block["maps"])
        return Frames(sets, features, maps, kinds_of(n))


def spoilt_rows(n: int, rate: float, seed: int) -> NDArray[np.bool_]:
    """Which images are spoilt; those of a lower rate are among those of a higher one."""
    return np.random.Generator(np.random.Philox(key=[seed, 0xBAD])).random(n) < rate


# A run: pooling, whether a linear layer on the features is trained, share of spoilt frames in training, kind left out.
Run = tuple[str, bool, float, str | None]


def make_head(run: Run, classes: int, seed: int) -> QAN:
    """A QAN whose backbone stays unused: features and maps come from the cache."""
    torch.manual_seed(seed)
    pooling, trained, _, _ = run
    backbone: Any = create_model("osnet_x0_25")
    dim = 512 if trained else None
    return QAN(
        backbone, classes if trained else None, pooling=pooling, split="conv3", hidden=48, dim=dim, size=(128, 64)
    )


def train_head(run: Run, data: Frames, seed: int, steps: int) -> QAN:
    """Both sets of 24 persons a step: cross-entropy of the frames, and triplets of the sets.

    The negative is the nearest set of somebody else in the step.
    """
    _, trained, rate, left_out = run
    labels, pids = data.sets.labels()
    model = make_head(run, len(pids), seed).train()
    parameters = [p for p in model.head_parameters() if p.requires_grad]
    if not parameters:
        return model
    optimizer = torch.optim.Adam(parameters, lr=1e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    triplet, smooth = SetTripletLoss(0.6), torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    usable = np.ones(len(data.kinds), bool) if left_out is None else data.kinds != KINDS.index(left_out)
    for step in range(steps):
        rng = np.random.Generator(np.random.Philox(key=[seed, 0x57E9], counter=[0, step, 0, 0]))
        people = rng.choice(len(pids), 24, replace=False)
        chosen = data.sets.select(np.flatnonzero(np.isin(labels, people)))
        rows, offsets = torch.from_numpy(chosen.rows.copy()), torch.from_numpy(chosen.offsets.copy())
        # an image of the kind left out stays clean, and the others are spoilt more often: the share is the same
        bad = rng.random(len(rows)) < rate / max(usable.mean(), 1e-9)
        version = torch.from_numpy((bad & usable[chosen.rows]).astype(np.int64))
        out = forward(model, data, version, rows, offsets)
        who = torch.from_numpy(labels[np.isin(labels, people)])
        anchor, positive, negative = nearest_negatives(out.sets, who)
        loss = triplet(out.sets[anchor], out.sets[positive], out.sets[negative])
        if out.logits is not None:
            loss = loss + smooth(out.logits, who.repeat_interleave(offsets.diff()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def forward(model: QAN, data: Frames, version: Tensor, rows: Tensor, offsets: Tensor) -> Any:
    """The head on cached frames."""
    features = data.features[version, rows]
    features = features if model.embed is None else model.embed(features)
    return model.forward_frames(features, model.scores(data.maps[version, rows].float()), offsets)


def nearest_negatives(x: Tensor, who: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of anchors, of their positives (the person's other set) and of the nearest set of somebody else."""
    same = who[:, None] == who
    distance = torch.cdist(x.detach(), x.detach())
    negative = distance.masked_fill(same, math.inf).argmin(1)
    positive = distance.masked_fill(~same | torch.eye(len(x), dtype=torch.bool), -math.inf).argmax(1)
    has = same.sum(1) > 1
    rows = torch.arange(len(x))
    return rows[has], positive[has], negative[has]


@torch.inference_mode()
def evaluate(model: QAN, data: Frames, rate: float, seed: int) -> Result:
    """{"hit": {way: 1 where rank 1 is right}, "ap": {way: AP}} of each query at one rate of spoilt frames.

    The ways to pool: by the model, by the mean and the maximum, by consistency, and by who knows the clean frames.
    """
    model.eval()
    sets = data.sets
    rows, offsets = torch.from_numpy(sets.rows.copy()), torch.from_numpy(sets.offsets.copy())
    bad = spoilt_rows(len(data.kinds), rate, 1000 + seed)[sets.rows]
    version = torch.from_numpy(bad.astype(np.int64))
    x = data.features[version, rows]
    x = x if model.embed is None else model.embed(x)
    z = model.scores(data.maps[version, rows].float())
    clean = torch.from_numpy(~bad).float()
    count = torch.zeros(len(sets)).index_add_(
        0, torch.repeat_interleave(torch.arange(len(sets)), offsets.diff()), clean
    )
    all_bad = (count == 0).repeat_interleave(offsets.diff())
    ways = {
        "model": model.pool_frames(x, z, offsets),
        "mean": pooled(x, torch.ones(len(x)), offsets),
        "max": functional.normalize(QualityPool("max")(x, z, offsets), dim=1),
        "consistency": pooled(x, consistency(x, offsets), offsets),
        "oracle": pooled(x, torch.where(all_bad, torch.ones(len(x)), clean), offsets),
    }
    scores: Result = {"hit": {}, "ap": {}}
    view = sets.camids
    q, g = np.flatnonzero(view == 1), np.flatnonzero(view == 2)
    for name, e in ways.items():
        ranking = rank(e[q], e[g], sets.pids[q], sets.pids[g], view[q], view[g])
        scores["hit"][name] = (ranking.first_match == 1).tolist()
        scores["ap"][name] = ranking.ap.tolist()
    return scores


def pooled(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return functional.normalize(ops.set_pool(x, weights, offsets, weighting="linear"), dim=1)


def consistency(x: Tensor, offsets: Tensor) -> Tensor:
    """exp(8 x mean cosine to the other frames of the set); nothing is trained."""
    unit, out = functional.normalize(x, dim=1), torch.ones(len(x))
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if b - a > 1:
            out[a:b] = (8 * (unit[a:b] @ unit[a:b].T - torch.eye(b - a)).sum(1) / (b - a - 1)).exp()
    return out


@torch.inference_mode()
def aucs(model: QAN, data: Frames) -> dict[str, float]:
    """Share of (clean, spoilt) pairs of test frames that the scores order rightly, for each way of spoiling."""
    model.eval()
    z = [torch.cat([model.scores(m.float())[:, 0] for m in data.maps[v].split(1024)]).numpy() for v in (0, 1)]
    return {kind: ordered(z[0], z[1][data.kinds == k]) for k, kind in enumerate(KINDS)}


def runs() -> list[Run]:
    """All of them."""
    listed: list[Run] = [("mean", False, 0.0, None)]
    for rate in RATES:
        listed += [("mean", True, rate, None), ("quality", True, rate, None)]
        if rate:
            listed.append(("quality", False, rate, None))
    return listed + [("quality", True, RATES[-1], kind) for kind in KINDS]


def _urgency(run: Run) -> int:
    pooling, trained, rate, left_out = run
    if left_out:
        return 4
    if not trained:
        return 0 if pooling == "mean" else 3
    return 2 if rate == RATES[1] else 1


def name_of(run: Run) -> str:
    pooling, trained, rate, left_out = run
    return f"{pooling} {'trained' if trained else 'frozen'} {rate:g}" + (f" without {left_out}" if left_out else "")


def work(run: Run, seed: int, train: Frames, test: Frames, steps: int) -> Result:
    """One run: its scores at each rate of spoilt frames, and how well it knows them."""
    clock = Clock()
    model = train_head(run, train, seed, steps)
    result: Result = {"cpu_s": clock.cpu}
    rates = RATES if run[0] == "mean" and not run[1] else [run[2]]
    result["rates"] = {f"{rate:g}": evaluate(model, test, rate, seed) for rate in rates}
    return result | ({"auc": aucs(model, test)} if run[0] == "quality" else {})


def line(result: Result) -> str:
    """R1 by rate and way."""
    r1 = {
        f"{rate}/{way}": round(100 * float(np.mean(hit)), 1)
        for rate, scores in result["rates"].items()
        for way, hit in scores["hit"].items()
    }
    return f"{result['cpu_s']:.0f} s, {r1}"


def interval(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 %."""
    return [round(float(v), 2) for v in np.percentile(values, (2.5, 97.5))]


def ways_of(rate: float) -> dict[str, tuple[Run, str]]:
    """What is compared at a rate: a name -> a run and a way to pool its features."""
    frozen, mean, qan = ("mean", False, 0.0, None), ("mean", True, rate, None), ("quality", True, rate, None)
    plain = ("mean", "max", "consistency", "oracle")
    ways: dict[str, tuple[Run, str]] = {f"frozen features, {way}": (frozen, way) for way in plain}
    ways |= {f"trained head, {way}": (mean, way) for way in plain}
    ways |= {"QAN": (qan, "model")} | {f"QAN's head, {way}": (qan, way) for way in plain if way != "max"}
    return ways | ({"frozen features, quality": (("quality", False, rate, None), "model")} if rate else {})


def summarise(results: dict[tuple[Run, int], Result], seeds: int, draws: int = 2000) -> dict[str, Any]:
    """Means over the seeds; differences by a paired bootstrap over persons and seeds."""

    def table(run: Run, rate: float, way: str, what: str = "hit") -> NDArray[np.float64]:
        """[seeds, queries] in percent."""
        rows = [results[run, s]["rates"][f"{rate:g}"][what][way] for s in range(seeds)]
        return 100 * np.array(rows, np.float64)

    rng = np.random.default_rng(0)
    queries = table(("mean", False, 0.0, None), 0.0, "mean").shape[1]
    picks = [(rng.integers(0, seeds, seeds), rng.integers(0, queries, queries)) for _ in range(draws)]

    def boot(name: str) -> NDArray[np.float64]:
        return np.array([hits[name][s][:, q].mean() for s, q in picks])

    rows, compared = [], {}
    for rate in RATES:
        ways = {n: w for n, w in ways_of(rate).items() if all((w[0], s) in results for s in range(seeds))}
        hits = {name: table(run, rate, way) for name, (run, way) in ways.items()}
        for name, (run, way) in ways.items():
            each = hits[name].mean(1)
            row = {"spoilt": rate, "pooling": name, "rank1": round(float(each.mean()), 2)}
            row["rank1_seeds"] = [round(float(v), 2) for v in each]
            rows.append(row | {"mAP": round(float(np.nanmean(table(run, rate, way, "ap"))), 2)})
        if not {"QAN", "trained head, mean"} <= set(hits):
            continue  # not all runs are there
        oracle, constant = (
            max((f"trained head, {way}", f"QAN's head, {way}"), key=lambda name: hits[name].mean())
            for way in ("oracle", "consistency")
        )
        gain = float((hits["QAN"] - hits["trained head, mean"]).mean())
        gap = float(hits[oracle].mean() - hits["trained head, mean"].mean())
        qan, mean = boot("QAN"), boot("trained head, mean")
        best = np.maximum(boot("trained head, consistency"), boot("QAN's head, consistency"))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (qan - mean) / (boot(oracle) - mean)
        compared[f"{rate:g}"] = {
            "oracle": oracle,
            "qan_minus_mean": round(gain, 2),
            "qan_minus_mean_95": interval(qan - mean),
            "best_consistency": constant,
            "qan_minus_consistency": round(float((hits["QAN"] - hits[constant]).mean()), 2),
            "qan_minus_consistency_95": interval(qan - best),
            "gap": round(gap, 2),
            "share_of_gap_closed": round(gain / gap, 3) if rate else None,
            "share_of_gap_closed_95": interval(share) if rate else None,
        }
    auc = {
        label: {k: mean_auc(results, ("quality", trained, RATES[-1], k if alone else None), k, seeds) for k in KINDS}
        for label, trained, alone in (
            ("QAN, all kinds in training", True, False),
            ("frozen features, all kinds in training", False, False),
            ("the kind itself left out of training", True, True),
        )
    }
    seconds = sum(float(result["cpu_s"]) for result in results.values())
    return {"rank1": rows, "compared": compared, "auc": auc, "training_cpu_s": round(seconds)}


def mean_auc(results: Any, run: Run, kind: str, seeds: int) -> dict[str, Any]:
    """Over the seeds that are there, and each."""
    values = [float(results[run, s]["auc"][kind]) for s in range(seeds) if (run, s) in results]
    return {"mean": round(float(np.mean(values)), 4), "seeds": [round(v, 4) for v in values]}


def finished(results: Results, seeds: int) -> Iterator[tuple[tuple[Run, int], Result]]:
    """The runs that are there."""
    for run in runs():
        for seed in range(seeds):
            if (path := results.path(name_of(run), seed)).exists():
                yield (run, seed), json.loads(path.read_text())


@study.command(
    "extract what is missing, make the runs that are missing, sum up",
    JSON,
    argument("--weights", required=True, help="OSNet x0.25 trained on MSMT17"),
    argument("--cache", type=Path, default=cache_folder() / "studies" / "qan"),
    argument("--seeds", type=int, default=3),
    argument("--steps", type=int, default=300, help="of each training"),
    argument("--persons", type=int, default=767, help="training persons that are used"),
    argument("--extract-only", action="store_true"),
    argument("--no-training", action="store_true", help="sum up the runs that are there"),
    argument("--threads", type=int, default=1),
)
def run(options: argparse.Namespace) -> None:
    """What the comparison needs comes first, of all seeds."""
    torch.set_num_threads(options.threads)
    data = load_dataset("cuhk03_sets")
    test = concatenate([data.query, data.gallery], offset=False)
    persons = np.unique(data.train.pids)[: options.persons]
    train_sets = Tracklets.of(data.train)
    train_sets = train_sets.select(np.isin(train_sets.pids, persons))
    extract(test, options.weights, options.cache / "test", len(test))
    extract(data.train, options.weights, options.cache / "train", int(train_sets.rows.max()) + 1)
    if options.extract_only:
        return
    # numbered apart: view 1 and view 2 were grouped one after the other
    test_frames = Frames.of(Tracklets.of(test), len(test), options.cache / "test")
    train_frames = Frames.of(train_sets, len(data.train), options.cache / "train")
    results = Results(options.cache / f"runs-{options.persons}-persons-{options.steps}-steps")
    if not options.no_training:
        for one, seed in sorted(itertools.product(runs(), range(options.seeds)), key=lambda r: (_urgency(r[0]), r[1])):
            results.run(name_of(one), seed, line, work, one, seed, train_frames, test_frames, options.steps)
    summary = summarise(dict(finished(results, options.seeds)), options.seeds)
    sizes = f"--steps {options.steps} --seeds {options.seeds} --persons {options.persons}"
    sets = {"train_persons": options.persons, "train_sets": len(train_sets)}
    sets["query_sets"] = int((test_frames.sets.camids == 1).sum())
    content = {"what": (__doc__ or "").split("\n")[0], "data": sets, **summary}
    content["command"] = f"python -m studies.qan run --weights {Path(options.weights).name} {sizes}"
    if options.json:
        keep(options.json, content, indent=1)
    print(json.dumps(summary["compared"], indent=1))


if __name__ == "__main__":
    study.main()
