# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What DRSTA and RRU + STIM claim, on synthetic walks in which the occlusion is known.

    python -m studies.video maps WEIGHTS --cache DIR      frames to feature maps, once
    python -m studies.video run --cache DIR --out DIR     every arm and seed that is not there yet
    python -m studies.video tune 'NAME={"scale": 50}' ... --cache DIR --out DIR  settings of DRSTA
    python -m studies.video report --out DIR --json FILE  tables, and one file of all results
    python -m studies.video picture --cache DIR --png FILE  attention and temporal weights of two walks

People walk past three cameras while others, poles and walls come between. Each walk of 16 frames is two tracklets of 8:
the first half is searched for among the second halves, so that what makes the search hard is occlusion and not the
change of cameras. In each tracklet somebody else stands in the way in a run of 3 to 5 frames (`corruption.occlude`; the
same silhouette at the same place in the whole run). The backbone (OSNet x0.25, pictures of 128 x 64, maps of 128 x 8 x
4) is frozen, as in DRSTA's last two stages; the arms train heads on its maps. Identities 1..n/2 train, the rest test.
DRSTA's arms also train on the people of a second world, and each of their tracklets has several strangers, one of which
is drawn each time; its settings were chosen on other people of that second world (`tune`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from reidfast.data import IdentitySampler, load_dataset
from reidfast.data.clips import chunk_frames, clip_frames
from reidfast.data.images import EvalTransform, decode, normalize
from reidfast.data.synthetic.figure import PARTS
from reidfast.evaluation import rank_distances
from reidfast.losses import DiversityLoss, KLDiversityLoss, OIMLoss, RRUSTIMLoss
from reidfast.models import Backbone, create_model
from reidfast.models.drsta import DRSTA
from reidfast.models.rru_stim import RRUSTIM
from studies._study import JSON, SEEDS, Clock, Results, Run, Study, argument, choose, compare, keep, keep_arrays
from studies.corruption import occlude

study = Study("video", __doc__)
CACHE = argument("--cache", type=Path, default=Path("runs/video/maps"), help="folder of the maps")
OUT = argument("--out", type=Path, default=Path("runs/video/arms"), help="folder of the results")
WORLD = {
    "ids": 240,
    "cameras": 3,
    "frames": 16,
    "trouble": 0.5,
    "events": ["person", "pole", "wall"],
    "difficulty": 0.5,
}
MORE = WORLD | {"ids": 160, "seed": 1, "test": 0.25}  # training and validation people of DRSTA
STRANGERS = 4  # of each training tracklet, of which one is drawn
GRID = (8, 4)
FRAMES, CLIP = 6, 8
HALF = 8  # frames of a tracklet
RRU_STEPS = 300

Arm = dict[str, Any]

# How DRSTA's arms train unless they say otherwise, chosen on the validation people over 3 seeds: the largest weight of
# the penalty at which mAP was not below that without a penalty and both AUCs of the temporal weights were above 0.8.
CHOSEN: Arm = {
    "steps": (150, 600),  # of the stages "spatial" and "joint"
    "rate": 0.001,
    "slow": 1.0,  # factor of the rate in stage "joint" of all but the temporal attention
    "decay": 5e-4,
    "scale": 20.0,  # of the temporal scores
    "oim": 30.0,  # of OIM's logits
    "penalty": "official",
    "weight": 0.007,
    "model": {"final": False},  # the last layer overfits so few people
}

ARMS: dict[str, Arm] = {
    # DRSTA and what it is compared with; 6 frames, one of each sixth of the track
    "drsta": {"method": "drsta"},
    "drsta no penalty": {"method": "drsta", "penalty": None},
    "drsta penalty 0.01": {"method": "drsta", "weight": 0.01},
    "drsta penalty 0.02": {"method": "drsta", "weight": 0.02},
    "drsta penalty 0.05": {"method": "drsta", "weight": 0.05},
    "drsta penalty 1": {"method": "drsta", "weight": 1.0},
    "drsta mean penalty 0.01": {"method": "drsta", "penalty": "paper_mean", "weight": 0.01},
    "drsta mean penalty 0.03": {"method": "drsta", "penalty": "paper_mean", "weight": 0.03},
    "drsta mean penalty 0.1": {"method": "drsta", "penalty": "paper_mean", "weight": 0.1},
    "drsta kl 0.001": {"method": "drsta", "penalty": "kl", "weight": 0.001},
    "drsta kl 0.01": {"method": "drsta", "penalty": "kl", "weight": 0.01},
    "drsta kl 0.1": {"method": "drsta", "penalty": "kl", "weight": 0.1},
    "drsta kl 1": {"method": "drsta", "penalty": "kl", "weight": 1.0},
    "drsta three maps": {"method": "drsta", "model": {"maps": 3}},
    "drsta final layer": {"method": "drsta", "model": {"final": True}},
    "drsta fewer people": {"method": "drsta", "more": False, "strangers": 1},
    "spatial only": {"method": "drsta", "model": {"time": "average"}},
    "temporal only": {"method": "drsta", "model": {"spatial": "average"}},
    "average (oim)": {"method": "drsta", "model": {"spatial": "average", "time": "average"}},
    "max (oim)": {"method": "drsta", "model": {"spatial": "average", "time": "max"}},
    "lstm (oim)": {"method": "drsta", "model": {"spatial": "average", "time": "lstm"}},
    "gru (oim)": {"method": "drsta", "model": {"spatial": "average", "time": "gru"}},
    # RRU + STIM and what it is compared with; clips of 8 frames, the whole track at test
    "rru+stim": {"method": "rru_stim"},
    "rru alone": {"method": "rru_stim", "model": {"time": "average"}},
    "stim alone": {"method": "rru_stim", "model": {"refine": False}},
    "average": {"method": "rru_stim", "model": {"refine": False, "time": "average"}},
    "max": {"method": "rru_stim", "model": {"refine": False, "time": "max"}},
    "lstm": {"method": "rru_stim", "model": {"refine": False, "time": "lstm"}},
    "gru": {"method": "rru_stim", "model": {"refine": False, "time": "gru"}},
    "rru+stim, clips of 2": {"method": "rru_stim", "clip": 2},
    "rru+stim, clips of 4": {"method": "rru_stim", "clip": 4},
    "rru+stim, frames shuffled": {"method": "rru_stim", "shuffle": True},
    "rru alone, frames shuffled": {"method": "rru_stim", "model": {"time": "average"}, "shuffle": True},
}
# The same with DRSTA's training tracklets, and with three times the steps as well (chosen on the validation people).
RRU_ARMS = [n for n, _arm in ARMS.items() if _arm["method"] == "rru_stim"]
_MORE: Arm = {"more": True, "strangers": STRANGERS}
for _name in ("rru+stim", "rru alone", "stim alone", "average", "max", "lstm"):
    ARMS[f"{_name}, more people"] = ARMS[_name] | _MORE
for _name in RRU_ARMS:
    ARMS[f"{_name}, longer"] = ARMS[_name] | _MORE | {"steps": 3 * RRU_STEPS}


class Given(Backbone):
    """Stands for the frozen backbone: its maps come in, and are brought to mean 0 and deviation 1 in each channel.

    With `learns`, a 1x1 convolution, batch norm and ReLU follow, so that every arm, the mean of frames among them, has
    something to learn in each frame.
    """

    def __init__(self, maps: Tensor, learns: bool) -> None:
        super().__init__()
        self.out_channels = self.feature_size = channels = maps.shape[2]
        x = maps.float()
        self.register_buffer("mean", x.mean((0, 1, 3, 4)).view(1, channels, 1, 1))
        self.register_buffer("std", x.std((0, 1, 3, 4)).view(1, channels, 1, 1).clamp_min(1e-3))
        self.layer = nn.Sequential()
        if learns:
            conv = nn.Conv2d(channels, channels, 1, bias=False)
            self.layer = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

    def forward_map(self, images: Tensor) -> Tensor:
        return self.layer((images - self.mean) / self.std)

    def of(self, maps: Tensor) -> Tensor:
        """Maps [B, T, C, h, w] of clips."""
        return self(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_map(images)


# Name of a part, its world, its table, and whether masks and clean renders are kept.
PIECES = (
    ("train", WORLD, "train", False),
    ("gallery", WORLD, "gallery", True),
    ("validation", MORE, "gallery", True),
    ("more", MORE, "train", False),
)


def cells(mask: NDArray[Any]) -> NDArray[np.float32]:
    """Share of each cell's pixels."""
    h, w = mask.shape
    return mask.reshape(GRID[0], h // GRID[0], GRID[1], w // GRID[1]).mean((1, 3)).astype(np.float32)


@study.command("frames to feature maps, once", argument("weights", help="checkpoint of OSNet x0.25"), CACHE)
def maps(options: argparse.Namespace) -> None:
    """The maps of every frame of every walk, those of the test frames without occlusion, and where people are seen."""
    torch.set_num_threads(1)
    model = create_model("osnet_x0_25", weights=options.weights).eval()
    for name, world, split, known in PIECES:
        data = load_dataset("synthetic_tracklets", None, **world)
        spec, table = data.info["synthetic_tracklets"], getattr(data, split)
        base = options.cache / f"base-{name}.npz"
        if not base.exists():
            keep_arrays(base, _plain(model, table, spec, known))
        for k in range(1 if known else STRANGERS):
            target = options.cache / (f"{name}-{k}.npz" if k else f"{name}.npz")
            if target.exists():
                continue
            with np.load(base) as file:
                arrays = {column: file[column] for column in file.files}
            key = [3, split == "train", k] if k or world is MORE else [3, split == "train"]
            arrays["mask"], changed = _with_strangers(model, table, spec, arrays["maps"], np.random.default_rng(key))
            print(f"{target.stem}: {changed} of {len(table)} frames with somebody in the way", flush=True)
            keep_arrays(target, {"maps": arrays["maps"]} if k else arrays)


@torch.inference_mode()
def _maps(model: nn.Module, images: list[Tensor]) -> NDArray[np.float16]:
    parts = torch.stack(images).split(64)
    return np.concatenate([model.forward_map(part).half().numpy() for part in parts])  # type: ignore[operator]


def _plain(model: nn.Module, table: Any, spec: Any, known: bool) -> dict[str, NDArray[Any]]:
    """A table's maps and labels; where `known`, also the clean renders' maps and where in them people are seen."""
    transform = EvalTransform(spec.height, spec.width)
    columns: dict[str, list[Any]] = {"maps": []}
    columns |= {name: [] for name in ("clean", "seen", "person", "part")} if known else {}
    for start in range(0, len(table), 256):
        rows = range(start, min(start + 256, len(table)))
        columns["maps"].append(_maps(model, [transform(decode(table.absolute(i))) for i in rows]))
        if not known:
            continue
        frames = []
        for i in rows:
            walk = spec.track(int(table.pids[i]), int(table.camids[i]))
            frame = walk.frame(int(table.extra["frame"][i]))
            frames.append(normalize(torch.from_numpy(frame.clean.copy()).permute(2, 0, 1).float().div_(255)))
            columns["person"].append(cells(frame.clean_parts > 0))
            columns["seen"].append(cells((frame.clean_parts > 0) & (frame.photograph.parts > 0)))
            columns["part"].append(np.stack([cells(frame.clean_parts == 1 + p) for p in range(len(PARTS))]))
        columns["clean"].append(_maps(model, frames))
    arrays = {name: (np.concatenate if name in ("maps", "clean") else np.stack)(x) for name, x in columns.items()}
    arrays |= {"pids": table.pids, "camids": table.camids, "tracklet": table.extra["tracklet"]}
    return arrays | {"visibility": table.extra["visibility"], "visible": table.extra["visible"]}


def strangers(table: Any, rng: np.random.Generator) -> list[tuple[range, int, int]]:
    """For each tracklet the rows of the frames in which somebody stands in the way, whose row it is, and a seed."""
    drawn = []
    for start in range(0, len(table), HALF):
        long = int(rng.integers(3, 6))
        first, seed = int(rng.integers(0, HALF - long + 1)), int(rng.integers(0, 2**31))
        other = int(rng.integers(0, len(table)))
        while table.pids[other] == table.pids[start]:
            other = int(rng.integers(0, len(table)))
        drawn.append((range(start + first, start + first + long), other, seed))
    return drawn


def _with_strangers(
    model: nn.Module, table: Any, spec: Any, maps: NDArray[Any], rng: np.random.Generator
) -> tuple[NDArray[np.float32], int]:
    """Somebody else in 3 to 5 frames of each tracklet: writes their maps, gives the changed cells, and how many."""
    transform, mask = EvalTransform(spec.height, spec.width), np.zeros((len(table), *GRID), np.float32)
    todo: list[tuple[int, Image.Image, Image.Image]] = []
    for rows, other, seed in strangers(table, rng):
        stranger = decode(table.absolute(other))
        for row in rows:
            plain = decode(table.absolute(row))
            todo.append((row, plain, occlude(plain, stranger, np.random.default_rng(seed))))
    for at in range(0, len(todo), 64):
        part = todo[at : at + 64]
        maps[[row for row, _, _ in part]] = _maps(model, [transform(spoilt) for _, _, spoilt in part])
        for row, plain, spoilt in part:
            change = np.abs(np.asarray(plain, np.int16) - np.asarray(spoilt, np.int16)).max(2) > 12
            mask[row] = cells(change)
    return mask, len(todo)


class Tracks:
    """Maps [S, frames, C, h, w] of tracklets of one length, and their labels.

    With `more`, a second file's tracklets follow, of other people. With `strangers` above 1, `others` holds the maps of
    the same tracklets with other strangers in the way.
    """

    def __init__(self, path: Path, more: Path | None = None, strangers: int = 1) -> None:
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.length = HALF
        self.others: list[Tensor] = []
        for k in range(1, strangers):
            with np.load(path.with_stem(f"{path.stem}-{k}")) as file:
                self.others.append(torch.from_numpy(file["maps"]).unflatten(0, (-1, self.length)))
        if "seen" in self.arrays:  # by cells: what was seen before somebody stood in the way, and still is
            a = self.arrays
            a["seen"] = a["seen"] * (1 - a["mask"])
            share = (a["seen"] / np.maximum(a["person"], 1e-6))[:, None]
            total = a["part"].sum((2, 3))
            a["visibility"] = np.where(total > 0.02, (a["part"] * share).sum((2, 3)) / np.maximum(total, 1e-6), np.nan)
            a["visible"] = a["seen"].sum((1, 2)) / np.maximum(a["person"].sum((1, 2)), 1e-6)
        self.maps = torch.from_numpy(self.arrays["maps"]).unflatten(0, (-1, self.length))
        self.pids = self.arrays["pids"][:: self.length]
        self.camids = self.arrays["camids"][:: self.length]
        self.halves = np.arange(len(self.pids)) % 2
        if more is not None:
            other = Tracks(more, None, strangers)
            self.maps = torch.cat([self.maps, other.maps])
            self.others = [torch.cat(pair) for pair in zip(self.others, other.others, strict=True)]
            self.pids = np.r_[self.pids, other.pids + self.pids.max() + 1]
            self.camids, self.halves = np.r_[self.camids, other.camids], np.r_[self.halves, other.halves]

    def of(self, name: str) -> Any:
        """A column [S, frames, ...]."""
        values = self.arrays[name]
        return values.reshape(-1, self.length, *values.shape[1:])


def clips_of(tracks: Tracks, rows: NDArray[Any], arm: Arm, rng: np.random.Generator) -> Tensor:
    """Maps [B, T, C, h, w] of the frames that an arm trains on."""
    picked = []
    for row in rows % len(tracks.pids):
        if arm["method"] == "drsta":
            frames = chunk_frames(tracks.length, FRAMES, rng)
        else:
            frames = clip_frames(tracks.length, arm.get("clip", CLIP), rng)
        if arm.get("shuffle"):
            frames = rng.permutation(frames)
        maps = tracks.maps
        if tracks.others and (k := int(rng.integers(0, 1 + len(tracks.others)))):
            maps = tracks.others[k - 1]
        picked.append(maps[int(row), torch.from_numpy(frames)])
    return torch.stack(picked).float()


def _penalty(kind: str | None, weight: float) -> nn.Module | None:
    if kind is None:
        return None
    return KLDiversityLoss(weight=weight) if kind == "kl" else DiversityLoss(kind, weight=weight)


def train_drsta(arm: Arm, tracks: Tracks, seed: int) -> tuple[DRSTA, list[float]]:
    """Stages 2 and 3: spatial attention with the mean over time, then both; OIM, SGD, the rate falls to a tenth."""
    torch.manual_seed(seed)
    s = CHOSEN | arm
    model = DRSTA(Given(tracks.maps, False), temporal_scale=s["scale"], **(CHOSEN["model"] | s["model"]))
    classes, labels = np.unique(tracks.pids, return_inverse=True)
    oim = OIMLoss(len(classes), model.feature_size, scale=s["oim"])
    kind, rate = s["penalty"], s["rate"]
    penalty = _penalty(kind, s["weight"])
    over_time = {id(p) for p in model.time.parameters()}
    groups = [{"params": [p for p in model.parameters() if (id(p) in over_time) == which]} for which in (False, True)]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=s["decay"])
    first, second = s["steps"]
    sampler = IdentitySampler(labels, 16, 2, camids=tracks.halves, camera_aware=True, steps=first + second, seed=seed)
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for step, rows in enumerate(sampler):
        joint = step >= first
        if step in (0, first):
            model.set_stage("joint" if joint else "spatial")
            for group, factor in zip(optimizer.param_groups, (s["slow"] if joint else 1.0, 1.0), strict=True):
                group["lr"] = rate * factor
        if step == 0:
            fill(oim, model, tracks, labels)
        if step == (first + second * 3 // 4 if joint else first * 3 // 4):
            for group in optimizer.param_groups:
                group["lr"] /= 10
        index = np.asarray(rows)
        out = model.forward_maps(model.backbone.of(clips_of(tracks, index, arm, rng)))
        loss = oim(out.embedding, torch.from_numpy(labels[index % len(labels)]))
        losses.append(float(loss.detach()))
        if penalty is not None and out.overlap is not None:
            loss = loss + penalty(out.attention if kind == "kl" else out.overlap)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
    return model, losses


@torch.no_grad()
def fill(oim: OIMLoss, model: DRSTA, tracks: Tracks, labels: NDArray[Any]) -> None:
    """Each row of OIM's table: the mean of its identity before training. From a table of zeros every arm collapsed."""
    frames = torch.from_numpy(chunk_frames(tracks.length, FRAMES))
    parts = [model.backbone.of(part.float()) for part in tracks.maps[:, frames].split(64)]
    x = torch.cat([model.eval().embed_maps(part) for part in parts])
    oim.table.zero_().index_add_(0, torch.from_numpy(labels), x)
    oim.table.copy_(nn.functional.normalize(oim.table, dim=1))
    model.train()


def train_rru_stim(arm: Arm, tracks: Tracks, seed: int) -> tuple[RRUSTIM, list[float]]:
    """The four-part loss (no auxiliary classifier), SGD at 0.01, constant."""
    torch.manual_seed(seed)
    classes, labels = np.unique(tracks.pids, return_inverse=True)
    options = {"dim": 128, "stim": {"hidden": 64}, "rru": {"hidden": 64}} | arm.get("model", {})
    model = RRUSTIM(Given(tracks.maps, True), GRID, len(classes), hidden=256, **options)
    loss = RRUSTIMLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = arm.get("steps", RRU_STEPS)
    sampler = IdentitySampler(labels, 10, 2, camids=tracks.halves, camera_aware=True, steps=steps, seed=seed)
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for rows in sampler:
        index = np.asarray(rows)
        out = model.forward_maps(model.backbone.of(clips_of(tracks, index, arm, rng)))
        terms = loss(*out, torch.from_numpy(labels[index % len(labels)]))
        losses.append(float(terms.total.detach()))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    return model, losses


def ranked(features: Tensor, tracks: Tracks) -> dict[str, Any]:
    """R1 and mAP of first halves among second halves and the reverse, and the AP and hit of each query.

    A walk is an identity of its own here: other walks of that person, by other cameras, are left out as junk.
    """
    walks, pids = np.arange(len(tracks.pids)) // 2, tracks.pids
    x = nn.functional.normalize(features.double(), dim=1)
    distance = (1 - x @ x.t()).numpy()
    distance[(pids[:, None] == pids[None, :]) & (walks[:, None] != walks[None, :])] = np.inf
    ap, first = np.empty(len(x)), np.empty(len(x), np.int64)
    for half in (0, 1):
        rows, columns = np.flatnonzero(tracks.halves == half), np.flatnonzero(tracks.halves != half)
        ranking = rank_distances(distance[np.ix_(rows, columns)], walks[rows], walks[columns])
        ap[rows], first[rows] = ranking.ap, ranking.first_match
    return {
        "rank1": float((first == 1).mean()),
        "mAP": float(ap.mean()),
        "ap": [round(float(v), 5) for v in ap],
        "hit": [int(v == 1) for v in first],
    }


AUCS = ("region", "part", "looked", "frame")


def ordered_pairs(value: NDArray[Any], good: NDArray[Any], bad: NDArray[Any]) -> tuple[float, float]:
    """Pairs of a good and a bad frame of one track, [S, n]: how many there are, and how many `value` orders right."""
    pairs = good[:, :, None] & bad[:, None, :]
    higher = (value[:, :, None] > value[:, None, :]) + 0.5 * (value[:, :, None] == value[:, None, :])
    return float(pairs.sum()), float((higher * pairs).sum())


@torch.inference_mode()
def judge_drsta(model: DRSTA, tracks: Tracks, seed: int) -> Run:
    """Scores; overlap of the maps; whether the temporal weights follow what can be seen."""
    model.eval()
    frames = chunk_frames(tracks.length, FRAMES)
    parts = model.backbone.of(tracks.maps[:, torch.from_numpy(frames)].float()).split(64)
    scores = ranked(torch.cat([model.embed_maps(part) for part in parts]), tracks)
    if model.attend is not None:
        overlap = torch.cat([model.attend(part.flatten(0, 1)).overlap for part in parts])
        scores["overlap"] = float(overlap.mean()) / (model.k * (model.k - 1))
    if not hasattr(model.time, "weights"):
        return scores
    clean = model.backbone.of(torch.from_numpy(tracks.of("clean"))[:, torch.from_numpy(frames)].float())
    explained = [model.explain(part) for part in parts]
    weights = torch.cat([e.weights for e in explained]).numpy()  # [S, n, K]
    attention = torch.cat([e.attention for e in explained]).numpy()
    undisturbed = torch.cat([model.explain(part).attention for part in clean.split(64)]).numpy()
    person, seen, part, known, visible = (
        tracks.of(name)[:, frames] for name in ("person", "seen", "part", "visibility", "visible")
    )
    pairs, by_part = np.zeros((4, 2)), {}
    for k in range(model.k):
        w, where = weights[:, :, k], undisturbed[:, :, k]
        # what share of the person's cells that this map looks at, nothing in the way, is not hidden
        share = (where * seen).sum((2, 3)) / np.maximum((where * person).sum((2, 3)), 1e-6)
        # the body part that it looks at most for its size, and that part's known visibility
        on = (where[:, :, None] * part).sum((0, 1, 3, 4)) / part.sum((0, 1, 3, 4))
        best = int(on[:5].argmax())
        of_part = ordered_pairs(w, known[:, :, best] > 0.8, known[:, :, best] < 0.4)
        by_part[f"{k} {PARTS[best]}"] = of_part[1] / max(1.0, of_part[0])
        now = (attention[:, :, k] * seen).sum((2, 3))  # what it looks at in the frame as it is
        pairs += [
            ordered_pairs(w, share > 0.8, share < 0.4),
            of_part,
            ordered_pairs(w, now > 0.5, now < 0.25),
            ordered_pairs(w, visible > 0.8, visible < 0.4),  # the whole person
        ]
    auc = {f"auc_{name}": row[1] / max(1.0, row[0]) for name, row in zip(AUCS, pairs.tolist(), strict=True)}
    spread = float(np.abs(weights - 1 / FRAMES).mean())
    return {**scores, **auc, "pairs": pairs[:, 0].tolist(), "auc_by_map": by_part, "weights_from_uniform": spread}


@torch.inference_mode()
def judge_rru_stim(model: RRUSTIM, tracks: Tracks, seed: int) -> dict[str, Any]:
    """Scores over whole tracks, in order and shuffled; the distance of the refined maps to the clean ones."""
    model.eval()
    maps = model.backbone.of(tracks.maps.float())

    def embed(x: Tensor) -> Tensor:
        return torch.cat([model.embed_maps(part) for part in x.split(32)])

    scores = ranked(embed(maps), tracks)
    rng = np.random.default_rng([seed, 11])
    orders = torch.from_numpy(np.stack([rng.permutation(tracks.length) for _ in range(len(maps))]))
    shuffled = torch.stack([x[order] for x, order in zip(maps, orders, strict=True)])
    other = ranked(embed(shuffled), tracks)
    scores |= {"rank1_shuffled": other["rank1"], "mAP_shuffled": other["mAP"], "ap_shuffled": other["ap"]}
    if model.rru is not None:
        clean = model.backbone.of(torch.from_numpy(tracks.of("clean")).float())
        person, seen = (torch.from_numpy(tracks.of(name)) for name in ("person", "seen"))
        hidden = ((person > 0.3) & (seen < 0.3 * person)).unsqueeze(2)  # cells of the person behind something
        occluded = (seen.sum((2, 3)) < 0.6 * person.sum((2, 3)))[:, :, None, None, None]
        occluded[:, 0] = False  # nothing was seen before the first frame
        refined = torch.cat([model.refine(part) for part in maps.split(32)])
        unshuffled = torch.empty_like(refined)
        for i, x in enumerate(torch.cat([model.refine(part) for part in shuffled.split(32)])):
            unshuffled[i, orders[i]] = x
        free = (~hidden & (person > 0.3).unsqueeze(2)) & occluded

        def error(x: Tensor, mask: Tensor) -> float:
            return float((((x - clean).square() * mask).sum() / (clean.square() * mask).sum()).sqrt())

        for name, mask in (("hidden cells", hidden & occluded), ("seen cells", free), ("frames", occluded)):
            scores[f"error {name}"] = {
                "raw": error(maps, mask),
                "refined": error(refined, mask),
                "refined shuffled": error(unshuffled, mask),
            }
        flat = [x.mean((3, 4)) for x in (maps, refined, clean)]
        cosine = [nn.functional.cosine_similarity(x, flat[2], dim=2)[occluded.flatten(1).bool()] for x in flat[:2]]
        scores["cosine to clean, occluded frames"] = {
            "raw": float(cosine[0].mean()),
            "refined": float(cosine[1].mean()),
        }
    return scores


def measure(name: str, seed: int, arms: dict[str, Arm], training: Training, test: Tracks) -> Run:
    """Train an arm and judge it."""
    clock, arm = Clock(), arms[name]
    learn: Callable[..., Any] = train_drsta if arm["method"] == "drsta" else train_rru_stim
    judge: Callable[..., Run] = judge_drsta if arm["method"] == "drsta" else judge_rru_stim
    try:
        model, losses = learn(arm, training(arm), seed)
        judged = judge(model, test, seed)
        judged["loss"] = [round(float(np.mean(losses[i : i + 50])), 4) for i in range(0, len(losses), 50)]
    except FloatingPointError as error:
        judged = {"failed": str(error)}
    return judged | {"seconds": round(clock.wall, 1), "settings": arm}


def line(run: Run) -> str:
    """A result without what it holds of every query."""
    left_out = ("arm", "seed", "ap", "hit", "ap_shuffled", "settings", "pairs")
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in run.items() if k not in left_out}
    return json.dumps(shown)


class Training:
    """The tracklets that an arm trains on, read when they are asked for first.

    DRSTA's arms: the people of both worlds, several strangers; RRU + STIM's: those of the first, one stranger. An arm's
    `more` and `strangers` say otherwise.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.read: dict[tuple[bool, int], Tracks] = {}

    def __call__(self, arm: Arm) -> Tracks:
        drsta = arm["method"] == "drsta"
        more, strangers = arm.get("more", drsta), arm.get("strangers", STRANGERS if drsta else 1)
        if (more, strangers) not in self.read:
            second = self.cache / "more.npz" if more else None
            self.read[more, strangers] = Tracks(self.cache / "train.npz", second, strangers)
        return self.read[more, strangers]


@study.command("every arm and seed that is not there yet", CACHE, OUT, SEEDS, choose(ARMS))
def run(options: argparse.Namespace) -> None:
    """Tested on the gallery's people."""
    torch.set_num_threads(1)
    test = Tracks(options.cache / "gallery.npz")
    Results(options.out).sweep(options.arms, options.seeds, line, measure, ARMS, Training(options.cache), test)


@study.command("settings of DRSTA", argument("trials", nargs="+", metavar="NAME={JSON}"), CACHE, OUT, SEEDS)
def tune(options: argparse.Namespace) -> None:
    """Judged on the validation people."""
    torch.set_num_threads(1)
    trials = {}
    for trial in options.trials:
        name, _, settings = trial.partition("=")
        trials[name] = CHOSEN | {"method": "drsta"} | json.loads(settings or "{}")
    test = Tracks(options.cache / "validation.npz")
    Results(options.out / "tune").sweep(trials, options.seeds, line, measure, trials, Training(options.cache), test)


MEASURES = ("rank1", "mAP", "rank1_shuffled", "mAP_shuffled", "overlap", "weights_from_uniform", "seconds")


def _summary(runs: list[Run]) -> dict[str, Any]:
    """Mean and deviation over the seeds of one arm's results."""
    summary: dict[str, Any] = {"seeds": [r["seed"] for r in runs]}
    for key in (*MEASURES, *(k for k in runs[0] if k.startswith("auc") and k != "auc_by_map")):
        values = [r[key] for r in runs if r.get(key)]  # an AUC of 0 stands for no pairs
        if values:
            summary[key] = [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]
    for key in (k for k in runs[0] if k.startswith(("error", "cosine"))):
        summary[key] = {w: round(float(np.mean([r[key][w] for r in runs])), 4) for w in runs[0][key]}
    return summary


def pairs_of(ap: dict[str, Any]) -> list[tuple[str, str]]:
    """Which arms are compared: the second with the first."""
    drsta = [n for n in ap if ARMS.get(n, {}).get("method") == "drsta"]
    pairs = [("average (oim)", b) for b in drsta]
    pairs += [("drsta no penalty", b) for b in drsta if "drsta" in b or b == "temporal only"]
    pairs += [(a, "drsta") for a in ("spatial only", "temporal only", "max (oim)", "lstm (oim)", "gru (oim)")]
    pairs += [(a, "drsta") for a in ("drsta fewer people", "drsta final layer")]
    for end in ("", ", more people", ", longer"):
        both = f"rru+stim{end}"
        pairs += [(f"average{end}", f"{n}{end}") for n in RRU_ARMS]
        pairs += [(f"{n}{end}", both) for n in ("lstm", "gru", "max", "stim alone", "rru alone")]
        pairs += [(both, f"rru+stim, clips of {n}{end}") for n in (2, 4)]
        pairs += [(f"{n}{end}, shuffled at test", f"{n}{end}") for n in RRU_ARMS]
        for n in ("rru+stim", "rru alone", "stim alone"):
            blind = f"{n}, frames shuffled{end}, shuffled at test"
            pairs += [(f"{n}, frames shuffled{end}", f"{n}{end}"), (blind, f"{n}{end}"), (f"average{end}", blind)]
            pairs += [(f"average{end}", f"{n}{end}, shuffled at test")]
    return pairs


def _compared(ap: dict[str, dict[int, NDArray[Any]]], ids: NDArray[Any]) -> dict[str, Any]:
    """Paired bootstraps over test identities of the mean AP over the seeds that both arms have."""
    compared: dict[str, Any] = {}
    for a, b in pairs_of(ap):
        common = sorted(ap.get(a, {}).keys() & ap.get(b, {}).keys())
        if a == b or not common or (ap[a][common[0]] == ap[b][common[0]]).all():
            continue
        first, second = (np.stack([ap[n][s] for s in common]) for n in (a, b))
        d = compare(first, second, ids)
        each = {s: round(100 * float(gain), 2) for s, gain in zip(common, (second - first).mean(1), strict=True)}
        interval = [round(100 * v, 2) for v in (d.mean, d.low, d.high)]
        compared[f"{b} - {a}"] = {"mean, low, high": interval, "p": round(d.p_value, 4), "each seed": each}
    return compared


@study.command("tables, and one file of all results", CACHE, OUT, JSON)
def report(options: argparse.Namespace) -> None:
    """Means over seeds, differences of arms with their intervals, and the settings that were tried."""
    with np.load(options.cache / "gallery.npz") as file:
        ids = file["pids"][::HALF]
    rows = Results(options.out).read()
    good = {n: [r for r in rows[n] if "failed" not in r] for n in ARMS if n in rows}
    summary = {name: _summary(runs) for name, runs in good.items() if runs}
    ap: dict[str, dict[int, NDArray[Any]]] = {}
    for name in summary:
        for key, mark in (("ap", ""), ("ap_shuffled", ", shuffled at test")):
            if key in good[name][0]:
                ap[name + mark] = {r["seed"]: np.array(r[key], np.float64) for r in good[name]}
    compared = _compared(ap, ids)
    shown, usual = ("mAP", "rank1", "overlap", "auc_region", "auc_part"), json.loads(json.dumps(CHOSEN))
    tried = {}
    for name, runs in Results(options.out / "tune").read().items():
        for r in runs:
            settings = {k: v for k, v in r["settings"].items() if usual.get(k) != v}
            scores = {k: r[k] for k in shown if k in r}
            tried[f"{name}, seed {r['seed']}"] = scores | {"settings": settings, "failed": r.get("failed")}
    for name, values in summary.items():
        print(f"{name:<30}" + "  ".join(f"{k} {v}" for k, v in values.items()))
    for name, d in compared.items():
        print(f"mAP {name}: {d}")
    content = {
        "command": "python -m studies.video {maps WEIGHTS | tune ... | run | report} --cache DIR --out DIR",
        "backbone": "osnet_x0_25, MSMT17 weights, frozen, 128 x 64",
        "settings": {"world": WORLD, "more people": MORE, "strangers": STRANGERS, "frames": FRAMES, "clip": CLIP}
        | {"drsta": CHOSEN, "rru_steps": RRU_STEPS},
        "arms": {name: ARMS[name] for name in summary},
        "summary": summary,
        "failed": {n: [r["failed"] for r in runs if "failed" in r] for n, runs in rows.items()},
        "mAP difference in %, bootstrap over identities": compared,
        "DRSTA's settings tried on validation people": tried,
    }
    if options.json:
        keep(options.json, content)


@study.command(
    "attention and temporal weights of two walks",
    CACHE,
    argument("--png", type=Path, default=Path("attention.png")),
)
def picture(options: argparse.Namespace) -> None:
    """A test walk in which somebody comes between: where DRSTA looks, without the penalty (left) and with it."""
    from reidfast.report.tracklet_attention import draw_tracklet_attention

    torch.set_num_threads(1)
    training, test = Training(options.cache), Tracks(options.cache / "gallery.npz")
    frames = chunk_frames(test.length, FRAMES)
    seen = test.of("visible")[:, frames]
    row = int(np.argmax(seen.max(1) - seen.min(1)))
    table = load_dataset("synthetic_tracklets", None, **WORLD).gallery
    rows, other, drawn = strangers(table, np.random.default_rng([3, False]))[row]
    images = [decode(table.absolute(HALF * row + int(i))) for i in frames]
    for k, i in enumerate(frames):
        if HALF * row + int(i) in rows:
            images[k] = occlude(images[k], decode(table.absolute(other)), np.random.default_rng(drawn))
    notes, sheets = [f"{100 * v:.0f} % seen" for v in seen[row]], []
    for name in ("drsta no penalty", "drsta"):
        model, _ = train_drsta(ARMS[name], training(ARMS[name]), 0)
        maps = test.maps[row, torch.from_numpy(frames)].float().unsqueeze(0)
        said = model.eval().explain(model.backbone.of(maps))
        sheets.append(
            draw_tracklet_attention(images, said.attention[0].numpy(), said.weights[0].numpy(), notes=notes, height=112)
        )
    sheet = Image.new("RGB", (sum(s.width for s in sheets), sheets[0].height), "white")
    for k, part in enumerate(sheets):
        sheet.paste(part, (k * sheets[0].width, 0))
    sheet.quantize(128).save(options.png, optimize=True)


if __name__ == "__main__":
    study.main()
