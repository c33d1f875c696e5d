# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""QAN on real sets with spoilt frames: CUHK03-NP, a set = all images of one person and view.

    python -m studies.qan --weights OSNET.npz --out studies/results/qan.json

Query: the 700 test persons' sets of view 1, gallery: their sets of view 2. Each frame is spoilt with probability 0, 20
or 40 %, in one of three ways (`studies.corruption`; which one is a fixed draw for each image), in
training and at test; no quality label is used.
The backbone (OSNet x0.25, MSMT17) is frozen: its features and maps are extracted once, then heads train on them.
Everything goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
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
from reidfast._files import write_whole
from reidfast.data import Tracklets, concatenate, decode, load
from reidfast.data.images import normalize, resize, to_float
from reidfast.data.registry import cache_folder
from reidfast.engine.progress import progress
from reidfast.evaluation import rank
from reidfast.losses import SetTripletLoss
from reidfast.models import QAN, create_model
from reidfast.nn import QualityPool
from studies.corruption import KINDS, spoil

VERSIONS = ("clean", "spoilt")
SIZE = (256, 128)
RATES = [0.0, 0.2, 0.4]


def kinds_of(n: int) -> NDArray[np.int64]:
    """In which of the `KINDS` each image of a table is spoilt, where it is."""
    rng = np.random.Generator(np.random.Philox(key=[0x91, n]))
    return (rng.random(n) * len(KINDS)).astype(np.int64)


class Maps:
    """Features and maps of both versions of every image, in files that are filled block by block.

    features [V, n, 512] float32, early [V, n, 96, 16, 8] and late [V, n, 128, 16, 8] float16.
    """

    def __init__(self, folder: Path, n: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.n = folder, n
        shapes = {"features": (512, "f4"), "early": (96, 16, 8, "f2"), "late": (128, 16, 8, "f2")}
        self.arrays: dict[str, Any] = {}
        for name, (*shape, kind) in shapes.items():
            path, whole = folder / f"{name}.npy", (len(VERSIONS), n, *shape)
            if path.exists():
                self.arrays[name] = np.lib.format.open_memmap(path, "r+")
            else:
                self.arrays[name] = np.lib.format.open_memmap(path, "w+", kind, whole)  # type: ignore[arg-type]
        self.done_at = folder / "done.json"
        self.done: set[str] = set(json.loads(self.done_at.read_text())) if self.done_at.exists() else set()

    def mark(self, block: str) -> None:
        for array in self.arrays.values():
            array.flush()
        self.done.add(block)
        with write_whole(self.done_at) as stream:
            stream.write(json.dumps(sorted(self.done)).encode())


@torch.inference_mode()
def extract(records: Any, weights: str, folder: Path, stop: int, batch: int = 64, block: int = 1024) -> Maps:
    """Fill the maps of both versions of a table's images, up to row `stop`."""
    n = len(records)
    kinds = kinds_of(n)
    maps = Maps(folder, n)
    todo = [(v, s) for s in range(0, stop, block) for v in range(len(VERSIONS)) if f"{v}/{s}" not in maps.done]
    if not todo:
        return maps
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
        for version, start in todo:
            stop = min(start + block, n)
            parts = [range(a, min(a + batch, stop)) for a in range(start, stop, batch)]
            made = pool.map(lambda part, v=version: torch.stack([picture(v, r) for r in part]), parts)
            for part, images in zip(parts, made, strict=True):
                early.clear()
                late = model.forward_map(normalize(images))
                rows = slice(part.start, part.stop)
                maps.arrays["features"][version, rows] = model.pool(late).numpy()
                maps.arrays["early"][version, rows] = early[0].half().numpy()
                maps.arrays["late"][version, rows] = late.half().numpy()
                advance(len(part))
            maps.mark(f"{version}/{start}")
    return maps


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
    def of(sets: Tracklets, maps: Maps) -> Frames:
        kept = maps.folder / f"pooled{len(maps.done)}.npy"
        features = torch.from_numpy(np.array(maps.arrays["features"]))
        if kept.exists():
            return Frames(sets, features, torch.from_numpy(np.load(kept)), kinds_of(maps.n))
        pooled = torch.zeros(len(VERSIONS), maps.n, 96, 8, 4, dtype=torch.float16)
        for version in range(len(VERSIONS)):
            for rows in torch.arange(int(sets.rows.max()) + 1).split(1024):
                part = torch.from_numpy(maps.arrays["early"][version, rows[0] : rows[-1] + 1]).float()
                pooled[version, rows] = functional.avg_pool2d(part, 2).half()
        with write_whole(kept) as stream:
            np.save(stream, pooled.numpy())
        return Frames(sets, features, pooled, kinds_of(maps.n))


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


class Scores:
    """Per-query results of one run at one rate of spoilt frames: hits at rank 1 and AP, by way of pooling."""

    def __init__(self) -> None:
        self.hit: dict[str, NDArray[np.float64]] = {}
        self.ap: dict[str, NDArray[np.float64]] = {}


@torch.inference_mode()
def evaluate(model: QAN, data: Frames, rate: float, seed: int) -> Scores:
    """Pooled by the model, by consistency, and by who knows the clean frames."""
    model.eval()
    sets = data.sets
    rows, offsets = torch.from_numpy(sets.rows.copy()), torch.from_numpy(sets.offsets.copy())
    bad = spoilt_rows(len(data.kinds), rate, 1000 + seed)[sets.rows]
    version = torch.from_numpy(bad.astype(np.int64))
    x = data.features[version, rows]
    x = x if model.embed is None else model.embed(x)
    z = model.scores(data.maps[version, rows].float())
    clean = torch.from_numpy(~bad).float()
    none = torch.zeros(len(sets)).index_add_(0, torch.repeat_interleave(torch.arange(len(sets)), offsets.diff()), clean)
    all_bad = (none == 0).repeat_interleave(offsets.diff())
    ways = {
        "model": model.pool_frames(x, z, offsets),
        "mean": pooled(x, torch.ones(len(x)), offsets),
        "max": functional.normalize(QualityPool("max")(x, z, offsets), dim=1),
        "consistency": pooled(x, consistency(x, offsets), offsets),
        "oracle": pooled(x, torch.where(all_bad, torch.ones(len(x)), clean), offsets),
    }
    out, view = Scores(), sets.camids
    q, g = np.flatnonzero(view == 1), np.flatnonzero(view == 2)
    for name, e in ways.items():
        ranking = rank(e[q], e[g], sets.pids[q], sets.pids[g], view[q], view[g])
        out.hit[name] = (ranking.first_match == 1).astype(np.float64)
        out.ap[name] = ranking.ap
    return out


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
    from scipy.stats import rankdata

    model.eval()
    z = [torch.cat([model.scores(m.float())[:, 0] for m in data.maps[v].split(1024)]).numpy() for v in (0, 1)]
    found = {}
    for k, kind in enumerate(KINDS):
        good, worse = z[0], z[1][data.kinds == k]
        ranks = rankdata(np.r_[good, worse])[: len(good)]
        found[kind] = float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(worse)))
    return found


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


def run_path(run: Run, seed: int, steps: int, folder: Path) -> Path:
    return folder / f"{name_of(run).replace(' ', '-')}-seed{seed}-steps{steps}.npz"


def work(run: Run, seed: int, train: Frames, test: Frames, steps: int, folder: Path) -> Path:
    """One run, kept in a file; nothing where it is there."""
    at = run_path(run, seed, steps, folder)
    if at.exists():
        return at
    begin = time.process_time()
    model = train_head(run, train, seed, steps)
    arrays: dict[str, Any] = {"cpu_s": time.process_time() - begin}
    rates = RATES if run[0] == "mean" and not run[1] else [run[2]]
    for rate in rates:
        scores = evaluate(model, test, rate, seed)
        for way in scores.hit:
            arrays[f"hit/{rate:g}/{way}"], arrays[f"ap/{rate:g}/{way}"] = scores.hit[way], scores.ap[way]
    if run[0] == "quality":
        arrays |= {f"auc/{kind}": value for kind, value in aucs(model, test).items()}
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(at) as stream:
        np.savez(stream, **arrays)
    r1 = {k: round(100 * float(v.mean()), 1) for k, v in arrays.items() if k.startswith("hit/")}
    print(f"{name_of(run)}, seed {seed}: {arrays['cpu_s']:.0f} s, {r1}", flush=True)
    return at


def interval(values: NDArray[np.float64]) -> list[float]:
    return [round(float(v), 2) for v in np.percentile(values, (2.5, 97.5))]


def summarise(files: dict[tuple[Run, int], Path], seeds: int, draws: int = 2000) -> dict[str, Any]:
    """Means over the seeds; differences by a paired bootstrap over persons and seeds."""
    loaded = {key: dict(np.load(path)) for key, path in files.items()}

    def table(run: Run, rate: float, way: str, what: str = "hit") -> NDArray[np.float64]:
        """[seeds, queries] in percent."""
        return 100 * np.stack([loaded[run, s][f"{what}/{rate:g}/{way}"] for s in range(seeds)])

    rng = np.random.default_rng(0)
    queries = table(("mean", False, 0.0, None), 0.0, "mean").shape[1]
    picks = [(rng.integers(0, seeds, seeds), rng.integers(0, queries, queries)) for _ in range(draws)]

    def boot(*tables: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return [np.array([t[s][:, q].mean() for s, q in picks]) for t in tables]

    rows, compared = [], {}
    for rate in RATES:
        frozen, mean, qan = ("mean", False, 0.0, None), ("mean", True, rate, None), ("quality", True, rate, None)
        ways = {
            "frozen features, mean": (frozen, "mean"),
            "frozen features, max": (frozen, "max"),
            "frozen features, consistency": (frozen, "consistency"),
            "frozen features, oracle": (frozen, "oracle"),
            "trained head, mean": (mean, "mean"),
            "trained head, max": (mean, "max"),
            "trained head, consistency": (mean, "consistency"),
            "trained head, oracle": (mean, "oracle"),
            "QAN": (qan, "model"),
            "QAN's head, mean": (qan, "mean"),
            "QAN's head, consistency": (qan, "consistency"),
            "QAN's head, oracle": (qan, "oracle"),
        }
        if rate:
            ways["frozen features, quality"] = (("quality", False, rate, None), "model")
        ways = {name: w for name, w in ways.items() if all((w[0], s) in loaded for s in range(seeds))}
        found = {name: table(run, rate, way) for name, (run, way) in ways.items()}
        for name, (run, way) in ways.items():
            each = found[name].mean(1)
            rows.append(
                {
                    "spoilt": rate,
                    "pooling": name,
                    "rank1": round(float(each.mean()), 2),
                    "rank1_seeds": [round(float(v), 2) for v in each],
                    "mAP": round(float(np.nanmean(table(run, rate, way, "ap"))), 2),
                }
            )
        if not {"QAN", "trained head, mean"} <= set(found):
            continue  # not all runs are there
        oracle = max(("trained head, oracle", "QAN's head, oracle"), key=lambda n: found[n].mean())
        b_qan, b_mean, b_best, b_cons, b_cons2 = boot(
            *(
                found[n]
                for n in ("QAN", "trained head, mean", oracle, "trained head, consistency", "QAN's head, consistency")
            )
        )
        best_consistency = max(("trained head, consistency", "QAN's head, consistency"), key=lambda n: found[n].mean())
        gap = found[oracle].mean() - found["trained head, mean"].mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (b_qan - b_mean) / (b_best - b_mean)
        compared[f"{rate:g}"] = {
            "oracle": oracle,
            "qan_minus_mean": round(float((found["QAN"] - found["trained head, mean"]).mean()), 2),
            "qan_minus_mean_95": interval(b_qan - b_mean),
            "best_consistency": best_consistency,
            "qan_minus_consistency": round(float((found["QAN"] - found[best_consistency]).mean()), 2),
            "qan_minus_consistency_95": interval(b_qan - np.maximum(b_cons, b_cons2)),
            "gap": round(float(gap), 2),
            "share_of_gap_closed": round(float((found["QAN"] - found["trained head, mean"]).mean() / gap), 3)
            if rate
            else None,
            "share_of_gap_closed_95": interval(share) if rate else None,
        }
    auc: dict[str, Any] = {}
    for label, run in (
        ("QAN, all kinds in training", ("quality", True, RATES[-1], None)),
        ("frozen features, all kinds in training", ("quality", False, RATES[-1], None)),
    ):
        auc[label] = {k: _mean_auc(loaded, run, k, seeds) for k in KINDS}
    auc["the kind itself left out of training"] = {
        k: _mean_auc(loaded, ("quality", True, RATES[-1], k), k, seeds) for k in KINDS
    }
    seconds = sum(float(v["cpu_s"]) for v in loaded.values())
    return {"rank1": rows, "compared": compared, "auc": auc, "training_cpu_s": round(seconds)}


def _mean_auc(loaded: Any, run: Run, kind: str, seeds: int) -> dict[str, Any]:
    values = [float(loaded[run, s][f"auc/{kind}"]) for s in range(seeds) if (run, s) in loaded]
    return {"mean": round(float(np.mean(values)), 4), "seeds": [round(v, 4) for v in values]}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.qan", description=__doc__)
    parser.add_argument("--weights", required=True, help="OSNet x0.25 trained on MSMT17")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "experiments" / "qan")
    parser.add_argument("--out", type=Path, help="the result; without it only what is missing is computed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--persons", type=int, default=767, help="training persons that are used")
    parser.add_argument("--extract-only", action="store_true")
    parser.add_argument("--no-training", action="store_true", help="sum up the runs that are there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    data = load("cuhk03_sets")
    test = concatenate([data.query, data.gallery], offset=False)
    persons = np.unique(data.train.pids)[: args.persons]
    train_sets = Tracklets.of(data.train)
    train_sets = train_sets.select(np.isin(train_sets.pids, persons))
    maps = {"test": extract(test, args.weights, args.cache / "test", len(test))}
    maps["train"] = extract(data.train, args.weights, args.cache / "train", int(train_sets.rows.max()) + 1)
    if args.extract_only:
        return
    train_frames = Frames.of(train_sets, maps["train"])
    # numbered apart: view 1 and view 2 were grouped one after the other
    test_frames = Frames.of(Tracklets.of(test), maps["test"])
    files = {}
    # what the comparison needs comes first, of all seeds
    order = sorted(((run, seed) for seed in range(args.seeds) for run in runs()), key=lambda r: (_urgency(r[0]), r[1]))
    for run, seed in order:
        if args.no_training and not run_path(run, seed, args.steps, args.cache / f"runs{args.persons}").exists():
            continue
        files[run, seed] = work(run, seed, train_frames, test_frames, args.steps, args.cache / f"runs{args.persons}")
    result = {
        "what": __doc__.split("\n")[0],
        "command": f"python -m studies.qan --weights {Path(args.weights).name} --steps {args.steps} "
        f"--seeds {args.seeds} --persons {args.persons}",
        "data": {
            "train_persons": args.persons,
            "train_sets": len(train_frames.sets),
            "query_sets": int((test_frames.sets.camids == 1).sum()),
        },
        **summarise(files, args.seeds),
    }
    if args.out:
        with write_whole(args.out) as stream:
            stream.write((json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result["compared"], indent=1))


if __name__ == "__main__":
    main()
