# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What a quality unit learns on synthetic walks, where the quality of every frame is known and never shown to it.

    python -m studies.qan_walks run --weights OSNET.npz --json studies/results/qan_walks.json

The backbone (OSNet x0.25, trained on real people) is frozen; the unit learns from triplets of sets alone. Reported: how
well its scores order the test persons' frames by what is known (Spearman), and tell good from spoilt ones (AUC, for
each kind of trouble), beside what each kind does to the frozen features at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast.data import EvalTransform, Records, Tracklets, decode, load_dataset
from reidfast.data.clips import set_frames
from reidfast.data.registry import cache_folder
from reidfast.engine.progress import progress
from reidfast.evaluation import rank
from reidfast.losses import SetTripletLoss
from reidfast.models import QAN, create_model
from studies._study import JSON, Study, argument, keep, keep_arrays, ordered

study = Study("qan_walks", __doc__)
SIZE = (128, 64)
FRAMES = 6
WALKS: dict[str, Any] = {"ids": 240, "frames": 8, "trouble": 0.6, "difficulty": 0.3}


@torch.inference_mode()
def encode(model: QAN, records: Records, at: Path) -> tuple[Tensor, Tensor]:
    """Features and middle representations of a table, kept in a file."""
    if not at.exists():
        transform, features, middle = EvalTransform(*SIZE), [], []
        with progress(len(records), f"encode {at.stem}") as advance:
            for rows in np.array_split(np.arange(len(records)), max(1, len(records) // 64)):
                images = torch.stack([transform(decode(records.absolute(r))) for r in rows])
                maps, caught = model.trunk(images)
                features.append(model.frame_features(maps))
                middle.append(caught.half())
                advance(len(rows))
        keep_arrays(at, {"features": torch.cat(features).numpy(), "middle": torch.cat(middle).numpy()})
    with np.load(at) as kept:
        return torch.from_numpy(kept["features"]), torch.from_numpy(kept["middle"])


def train(model: QAN, sets: Tracklets, features: Tensor, middle: Tensor, seed: int, steps: int) -> None:
    """Two sets of each of 8 persons a step, of different cameras; the negative is the nearest set of somebody else."""
    assert model.quality is not None
    optimizer = torch.optim.Adam(model.quality.parameters(), lr=2e-3, weight_decay=5e-4)
    loss_of, (labels, pids) = SetTripletLoss(0.6), sets.labels()
    model.quality.train()
    for step in range(steps):
        rng = np.random.Generator(np.random.Philox(key=[seed, 0x3A1], counter=[0, step, 0, 0]))
        rows, who = [], []
        for person in rng.choice(len(pids), 8, replace=False):
            for s in rng.permutation(np.flatnonzero(labels == person))[:2]:
                tracklet = sets[int(s)].rows
                rows.append(tracklet[set_frames(len(tracklet), FRAMES, rng)])
                who.append(int(person))
        index = torch.from_numpy(np.stack(rows))
        x, z = features[index], model.scores(middle[index.flatten()].float()).view(*index.shape, 1)
        pooled, people = model.pool_frames(x, z), torch.tensor(who)
        same = people[:, None] == people
        distance = torch.cdist(pooled.detach(), pooled.detach())
        negative = distance.masked_fill(same, np.inf).argmin(1)
        positive = torch.arange(len(people)) ^ 1  # the person's other set stands beside it
        loss = loss_of(pooled, pooled[positive], pooled[negative])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def judge(scores: np.ndarray, records: Records) -> dict[str, Any]:
    """Agreement of scores with what is known of the frames."""
    from scipy.stats import spearmanr

    known, event = records.extra["quality"], records.extra["event"]
    good = scores[known > 0.9]

    def auc(bad: np.ndarray) -> float | None:
        return None if len(bad) < 10 else round(ordered(good, bad), 3)

    kinds = {str(k): auc(scores[(event == k) & (known < 0.6)]) for k in np.unique(event) if k != "none"}
    spearman = round(float(spearmanr(scores, known)[0]), 3)
    return {"spearman": spearman, "auc": auc(scores[known < 0.6]), "auc_kinds": kinds}


def harm(features: Tensor, sets: Tracklets) -> dict[str, float]:
    """Mean cosine of a frame to the mean of its walk's good frames, by what is wrong with it.

    "none": of a good frame to the other good ones.
    """
    unit, records = torch.nn.functional.normalize(features, dim=1), sets.frames
    known, event = records.extra["quality"], records.extra["event"]
    cosines: dict[str, list[float]] = {}
    for tracklet in sets:
        rows = tracklet.rows
        good = rows[known[rows] > 0.9]
        for row in rows:
            others = good[good != row]
            if len(others) >= 2 and (known[row] > 0.9 or known[row] < 0.6):
                kind = str(event[row]) if known[row] < 0.6 else "none"
                middle = torch.nn.functional.normalize(unit[others].mean(0), dim=0)
                cosines.setdefault(kind, []).append(float(unit[row] @ middle))
    return {kind: round(float(np.mean(v)), 3) for kind, v in sorted(cosines.items()) if len(v) >= 10}


def mean_aps(model: QAN, scores: Tensor, features: Tensor, sets: Tracklets) -> dict[str, float]:
    """mAP in per cent of sets pooled by the unit's scores, by the mean, and by who knows the good frames."""
    rows, offsets = torch.from_numpy(sets.rows.copy()), torch.from_numpy(sets.offsets.copy())
    known = torch.from_numpy(np.asarray(sets.frames.extra["quality"]) > 0.9).float()[:, None]
    ids, cams, aps = sets.pids, sets.camids, {}
    for name, z in (("QAN", scores), ("mean", torch.zeros_like(scores)), ("oracle", (known - 1) * 30)):
        e = model.pool_frames(features[rows], z[rows], offsets)
        aps[f"mAP {name}"] = round(100 * rank(e, e, ids, ids, cams, cams, protocol="mars").mean_ap, 2)
    return aps


def draw(model: QAN, sets: Tracklets, target: Path) -> None:
    """The first four walks of which three frames or more are hidden, cut or shifted, and none blurred."""
    from reidfast.report import describe_tracklets, draw_tracklets

    event, known = sets.frames.extra["event"], sets.frames.extra["quality"]
    fit = [
        i
        for i, t in enumerate(sets)
        if "blur" not in event[t.rows] and (known[t.rows] < 0.6).sum() >= 3 and (known[t.rows] > 0.9).sum() >= 3
    ]
    rows = describe_tracklets(model, sets.select(fit[:4]), frames=8, size=SIZE)
    draw_tracklets(rows).convert("P", palette=1, colors=128).save(target, optimize=True)


@study.command(
    "train and judge the unit with every seed",
    JSON,
    argument("--weights", required=True, help="OSNet x0.25 trained on MSMT17"),
    argument("--figure", type=Path, help="a picture of some test walks with their scores"),
    argument("--cache", type=Path, default=cache_folder() / "studies" / "qan_walks"),
    argument("--seeds", type=int, default=3),
    argument("--steps", type=int, default=200),
)
def run(options: argparse.Namespace) -> None:
    """All seeds in a minute: nothing is kept but the features."""
    data = load_dataset("synthetic_tracklets", **WALKS)
    train_sets, test_sets = Tracklets.of(data.train), Tracklets.of(data.gallery)
    results: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = QAN(create_model("osnet_x0_25", weights=options.weights), split="conv3", hidden=48, size=SIZE).eval()
        train(model, train_sets, *encode(model, data.train, options.cache / "train.npz"), seed, options.steps)
        features, middle = encode(model, data.gallery, options.cache / "test.npz")
        with torch.inference_mode():
            scores = torch.cat([model.scores(part.float()) for part in middle.split(256)])
            results.append(judge(scores[:, 0].numpy(), data.gallery) | mean_aps(model, scores, features, test_sets))
        print(results[-1], flush=True)
    sizes = f"--steps {options.steps} --seeds {options.seeds}"
    content = {
        "what": (__doc__ or "").split("\n")[0],
        "command": f"python -m studies.qan_walks run --weights {Path(options.weights).name} {sizes}",
        "data": {"synthetic_tracklets": WALKS, "train": "the first half of the persons", "test": "the others"},
        "cosine_to_good_frames": harm(features, test_sets),
        "seeds": results,
    }
    print(content["cosine_to_good_frames"])
    if options.json:
        keep(options.json, content, indent=1)
    if options.figure:
        draw(model, test_sets, options.figure)


if __name__ == "__main__":
    study.main()
