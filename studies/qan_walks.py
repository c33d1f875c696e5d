# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What a quality unit learns on synthetic walks, where the quality of every frame is known and never shown to it.

    python -m studies.qan_walks --weights OSNET.npz --out studies/results/qan_walks.json

The backbone (OSNet x0.25, trained on real people) is frozen; the unit learns from triplets of sets alone. Reported: how
well its scores order the test persons' frames by what is known (Spearman), and tell good from spoilt ones (AUC, for
each kind of trouble), beside what each kind does to the frozen features at all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reidfast._files import write_whole
from reidfast.data import EvalTransform, Records, Tracklets, decode, load
from reidfast.data.clips import set_frames
from reidfast.data.registry import cache_folder
from reidfast.engine.progress import progress
from reidfast.evaluation import rank
from reidfast.losses import SetTripletLoss
from reidfast.models import QAN, create_model

SIZE = (128, 64)
FRAMES = 6
WALKS: dict[str, Any] = {"ids": 240, "frames": 8, "trouble": 0.6, "difficulty": 0.3}


@torch.inference_mode()
def encode(model: QAN, records: Records, at: Path) -> tuple[Tensor, Tensor]:
    """Features and middle representations of a table, kept in a file."""
    if at.exists():
        kept = torch.load(at, weights_only=True)
        return kept["features"], kept["middle"]
    transform, features, middle = EvalTransform(*SIZE), [], []
    with progress(len(records), f"encode {at.stem}") as advance:
        for rows in np.array_split(np.arange(len(records)), max(1, len(records) // 64)):
            images = torch.stack([transform(decode(records.absolute(r))) for r in rows])
            maps, caught = model.trunk(images)
            features.append(model.frame_features(maps))
            middle.append(caught.half())
            advance(len(rows))
    made = {"features": torch.cat(features), "middle": torch.cat(middle)}
    at.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(at) as stream:
        torch.save(made, stream)
    return made["features"], made["middle"]


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
    from scipy.stats import rankdata, spearmanr

    known, event = records.extra["quality"], records.extra["event"]
    good = scores[known > 0.9]

    def auc(bad: np.ndarray) -> float | None:
        if len(bad) < 10:
            return None
        ranks = rankdata(np.r_[good, bad])[: len(good)]
        return round(float((ranks.sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))), 3)

    kinds = {str(k): auc(scores[(event == k) & (known < 0.6)]) for k in np.unique(event) if k != "none"}
    return {
        "spearman": round(float(spearmanr(scores, known)[0]), 3),
        "auc": auc(scores[known < 0.6]),
        "auc_kinds": kinds,
    }


def harm(features: Tensor, sets: Tracklets) -> dict[str, float]:
    """Mean cosine of a frame to the mean of its walk's good frames, by what is wrong with it.

    "none": of a good frame to the other good ones.
    """
    unit, records = torch.nn.functional.normalize(features, dim=1), sets.frames
    known, event = records.extra["quality"], records.extra["event"]
    found: dict[str, list[float]] = {}
    for tracklet in sets:
        rows = tracklet.rows
        good = rows[known[rows] > 0.9]
        for row in rows:
            others = good[good != row]
            if len(others) >= 2 and (known[row] > 0.9 or known[row] < 0.6):
                kind = str(event[row]) if known[row] < 0.6 else "none"
                middle = torch.nn.functional.normalize(unit[others].mean(0), dim=0)
                found.setdefault(kind, []).append(float(unit[row] @ middle))
    return {kind: round(float(np.mean(v)), 3) for kind, v in sorted(found.items()) if len(v) >= 10}


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.qan_walks", description=__doc__)
    parser.add_argument("--weights", required=True, help="OSNet x0.25 trained on MSMT17")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="a picture of some test walks with their scores")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "experiments" / "qan_walks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(arguments)
    data = load("synthetic_tracklets", **WALKS)
    train_sets, test_sets = Tracklets.of(data.train), Tracklets.of(data.gallery)
    found, model, hurt = [], None, None
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        model = QAN(create_model("osnet_x0_25", weights=args.weights), split="conv3", hidden=48, size=SIZE).eval()
        x, m = encode(model, data.train, args.cache / "train.pt")
        y, n = encode(model, data.gallery, args.cache / "test.pt")
        train(model, train_sets, x, m, seed, args.steps)
        hurt = hurt or harm(y, test_sets)
        with torch.inference_mode():
            scores = torch.cat([model.scores(part.float()) for part in n.split(256)])
            rows, offsets = torch.from_numpy(test_sets.rows.copy()), torch.from_numpy(test_sets.offsets.copy())
            row: dict[str, Any] = judge(scores[:, 0].numpy(), data.gallery)
            known = torch.from_numpy(np.asarray(data.gallery.extra["quality"]) > 0.9).float()[:, None]
            ways = {"QAN": scores, "mean": torch.zeros_like(scores), "oracle": (known - 1) * 30}
            for name, z in ways.items():
                e = model.pool_frames(y[rows], z[rows], offsets)
                ids, cams = test_sets.pids, test_sets.camids
                row[f"mAP {name}"] = round(100 * rank(e, e, ids, ids, cams, cams, protocol="mars").mean_ap, 2)
        found.append(row)
        print(row, flush=True)
    result = {
        "what": __doc__.split("\n")[0],
        "command": "python -m studies.qan_walks "
        f"--weights {Path(args.weights).name} --steps {args.steps} --seeds {args.seeds}",
        "data": {"synthetic_tracklets": WALKS, "train": "the first half of the persons", "test": "the others"},
        "cosine_to_good_frames": hurt,
        "seeds": found,
    }
    print(hurt)
    if args.out:
        with write_whole(args.out) as stream:
            stream.write((json.dumps(result, indent=1) + "\n").encode())
    if args.figure and model is not None:
        from reidfast.report import describe_tracklets, draw_tracklets

        # the first four walks of which three frames or more are hidden, cut or shifted, and none blurred
        event, known = data.gallery.extra["event"], data.gallery.extra["quality"]
        fit = [
            i
            for i, t in enumerate(test_sets)
            if "blur" not in event[t.rows] and (known[t.rows] < 0.6).sum() >= 3 and (known[t.rows] > 0.9).sum() >= 3
        ]
        rows_ = describe_tracklets(model, test_sets.select(fit[:4]), frames=8, size=SIZE)
        draw_tracklets(rows_).convert("P", palette=1, colors=128).save(args.figure, optimize=True)


if __name__ == "__main__":
    main()
