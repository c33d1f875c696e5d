# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What DRSTA and RRU + STIM claim, on synthetic walks in which the occlusion is known.

    python -m benchmarks.experiments.video maps WEIGHTS --cache DIR      frames to feature maps, once
    python -m benchmarks.experiments.video run --cache DIR --out DIR     every arm and seed that is not there yet
    python -m benchmarks.experiments.video report --out DIR --json FILE  tables, and one file of all results
    python -m benchmarks.experiments.video picture --cache DIR --png FILE  attention and temporal weights of two walks

People walk past three cameras while others, poles and walls come between. Each walk of 16 frames is two tracklets of 8:
the first half is searched for among the second halves, so that what makes the search hard is occlusion and not the
change of cameras. In each tracklet somebody else stands in the way in a run of 3 to 5 frames (`corruption.occlude`; the
same silhouette at the same place in the whole run). The backbone (OSNet x0.25, pictures of 128 x 64, maps of 128 x 8 x
4) is frozen, as in DRSTA's last two stages; the arms train heads on its maps. Identities 1..n/2 train, the rest test.
One JSON for each arm and seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.experiments.corruption import occlude
from reidfast._files import write_whole
from reidfast.data import IdentitySampler, load
from reidfast.data.clips import chunk_frames, clip_frames
from reidfast.data.images import EvalTransform, decode, normalize
from reidfast.data.synthetic.figure import PARTS
from reidfast.engine.compare import paired_bootstrap
from reidfast.evaluation import rank_distances
from reidfast.losses import DiversityLoss, KLDiversityLoss, OIMLoss, RRUSTIMLoss
from reidfast.models import Backbone, create_model
from reidfast.models.drsta import DRSTA
from reidfast.models.rru_stim import RRUSTIM

WORLD = {
    "ids": 240,
    "cameras": 3,
    "frames": 16,
    "trouble": 0.5,
    "events": ["person", "pole", "wall"],
    "difficulty": 0.5,
}
GRID = (8, 4)
FRAMES, CLIP = 6, 8
HALF = 8  # frames of a tracklet
DRSTA_STEPS, RRU_STEPS = (150, 250), 300
DRSTA_RATE, DRSTA_SCALE, DRSTA_PENALTY = 0.005, 20.0, 0.01  # chosen on seed 0

# ---------------------------------------------------------------- the arms

Arm = dict[str, Any]
ARMS: dict[str, Arm] = {
    # DRSTA and what it is compared with; 6 frames, one of each sixth of the track
    "drsta": {"method": "drsta"},
    "drsta no penalty": {"method": "drsta", "penalty": None},
    "drsta penalty 0.05": {"method": "drsta", "weight": 0.05},
    "drsta penalty 1": {"method": "drsta", "weight": 1.0},
    "drsta kl": {"method": "drsta", "penalty": "kl"},
    "drsta kl 0.05": {"method": "drsta", "penalty": "kl", "weight": 0.05},
    "drsta kl 1": {"method": "drsta", "penalty": "kl", "weight": 1.0},
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


# ---------------------------------------------------------------- maps


def make_maps(weights: str, cache: Path) -> None:
    """The maps of every frame of every walk, those of the test frames without occlusion, and where people are seen."""
    torch.set_num_threads(1)
    data = load("synthetic_tracklets", None, **WORLD)
    spec = data.info["synthetic_tracklets"]
    model = create_model("osnet_x0_25", weights=weights).eval()

    @torch.inference_mode()
    def maps(images: list[Tensor]) -> NDArray[np.float16]:
        return np.concatenate([model.forward_map(part).half().numpy() for part in torch.stack(images).split(64)])

    def cells(mask: NDArray[Any]) -> NDArray[np.float32]:
        """Share of each cell's pixels."""
        h, w = mask.shape
        return mask.reshape(GRID[0], h // GRID[0], GRID[1], w // GRID[1]).mean((1, 3)).astype(np.float32)

    transform = EvalTransform(spec.height, spec.width)
    for split in ("train", "gallery"):
        table = getattr(data, split)
        if (cache / f"base-{split}.npz").exists():
            continue
        found: dict[str, list[Any]] = {"maps": [], "clean": [], "seen": [], "person": [], "part": []}
        for start in range(0, len(table), 256):
            rows = range(start, min(start + 256, len(table)))
            found["maps"].append(maps([transform(decode(table.absolute(i))) for i in rows]))
            if split == "train":
                continue
            frames = []
            for i in rows:
                walk = spec.track(int(table.pids[i]), int(table.camids[i]))
                frame = walk.frame(int(table.extra["frame"][i]))
                frames.append(normalize(torch.from_numpy(frame.clean.copy()).permute(2, 0, 1).float().div_(255)))
                found["person"].append(cells(frame.clean_parts > 0))
                found["seen"].append(cells((frame.clean_parts > 0) & (frame.photograph.parts > 0)))
                found["part"].append(np.stack([cells(frame.clean_parts == 1 + p) for p in range(len(PARTS))]))
            found["clean"].append(maps(frames))
            print(f"{split} {rows.stop}/{len(table)}", flush=True)
        arrays = {"maps": np.concatenate(found["maps"])}
        if split == "gallery":
            arrays["clean"] = np.concatenate(found["clean"])
            arrays |= {name: np.stack(found[name]) for name in ("seen", "person", "part")}
        arrays |= {"pids": table.pids, "camids": table.camids, "tracklet": table.extra["tracklet"]}
        arrays |= {"visibility": table.extra["visibility"], "visible": table.extra["visible"]}
        cache.mkdir(parents=True, exist_ok=True)
        with write_whole(cache / f"base-{split}.npz") as stream:
            np.savez(stream, **arrays)
    for split in ("train", "gallery"):
        with np.load(cache / f"base-{split}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        table = getattr(data, split)
        arrays["mask"] = np.zeros((len(table), *GRID), np.float32)
        rng = np.random.default_rng([3, split == "train"])
        todo: list[tuple[int, Image.Image, Image.Image]] = []
        for start in range(0, len(table), HALF):
            long = int(rng.integers(3, 6))
            first, seed = int(rng.integers(0, HALF - long + 1)), int(rng.integers(0, 2**31))
            other = int(rng.integers(0, len(table)))
            while table.pids[other] == table.pids[start]:
                other = int(rng.integers(0, len(table)))
            stranger = decode(table.absolute(other))
            for row in range(start + first, start + first + long):
                plain = decode(table.absolute(row))
                todo.append((row, plain, occlude(plain, stranger, np.random.default_rng(seed))))
        for at in range(0, len(todo), 64):
            part = todo[at : at + 64]
            arrays["maps"][[row for row, _, _ in part]] = maps([transform(spoilt) for _, _, spoilt in part])
            for row, plain, spoilt in part:
                change = np.abs(np.asarray(plain, np.int16) - np.asarray(spoilt, np.int16)).max(2) > 12
                arrays["mask"][row] = cells(change)
        print(f"{split}: {len(todo)} of {len(table)} frames with somebody in the way", flush=True)
        with write_whole(cache / f"{split}.npz") as stream:
            np.savez(stream, **arrays)


class Tracks:
    """Maps [S, frames, C, h, w] of tracklets of one length, and their labels."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.length = HALF
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

    def of(self, name: str) -> Any:
        """A column [S, frames, ...]."""
        values = self.arrays[name]
        return values.reshape(-1, self.length, *values.shape[1:])


# ---------------------------------------------------------------- training


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
        picked.append(tracks.maps[int(row), torch.from_numpy(frames)])
    return torch.stack(picked).float()


def _penalty(kind: str, weight: float) -> nn.Module:
    return KLDiversityLoss(weight=weight) if kind == "kl" else DiversityLoss(kind, weight=weight)


def train_drsta(arm: Arm, tracks: Tracks, seed: int) -> tuple[DRSTA, list[float]]:
    """Stages 2 and 3: spatial attention with the mean over time, then both; OIM, SGD, the rate falls to a tenth."""
    torch.manual_seed(seed)
    model = DRSTA(Given(tracks.maps, False), temporal_scale=arm.get("scale", DRSTA_SCALE), **arm.get("model", {}))
    classes, labels = np.unique(tracks.pids, return_inverse=True)
    oim = OIMLoss(len(classes), model.feature_size)
    kind = arm.get("penalty", "official")
    penalty: nn.Module | None = None if kind is None else _penalty(kind, arm.get("weight", DRSTA_PENALTY))
    rate = arm.get("rate", DRSTA_RATE)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    first, second = DRSTA_STEPS
    sampler = IdentitySampler(labels, 16, 2, camids=tracks.halves, camera_aware=True, steps=first + second, seed=seed)
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for step, rows in enumerate(sampler):
        if step in (0, first):
            model.set_stage("spatial" if step == 0 else "joint")
            optimizer.param_groups[0]["lr"] = rate
        if step == 0:
            fill(oim, model, tracks, labels)
        if step in (first * 3 // 4, first + second * 3 // 4):
            optimizer.param_groups[0]["lr"] = rate / 10
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


# ---------------------------------------------------------------- judging


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
        found = rank_distances(distance[np.ix_(rows, columns)], walks[rows], walks[columns])
        ap[rows], first[rows] = found.ap, found.first_match
    return {
        "rank1": float((first == 1).mean()),
        "mAP": float(ap.mean()),
        "ap": [round(float(v), 5) for v in ap],
        "hit": [int(v == 1) for v in first],
    }


def ordered_pairs(value: NDArray[Any], good: NDArray[Any], bad: NDArray[Any]) -> tuple[float, float]:
    """Pairs of a good and a bad frame of one track, [S, n]: how many there are, and how many `value` orders right."""
    pairs = good[:, :, None] & bad[:, None, :]
    higher = (value[:, :, None] > value[:, None, :]) + 0.5 * (value[:, :, None] == value[:, None, :])
    return float(pairs.sum()), float((higher * pairs).sum())


@torch.inference_mode()
def judge_drsta(model: DRSTA, tracks: Tracks) -> dict[str, Any]:
    """Scores; overlap of the maps; whether the temporal weights follow what can be seen."""
    model.eval()
    frames = chunk_frames(tracks.length, FRAMES)
    maps = model.backbone.of(tracks.maps[:, torch.from_numpy(frames)].float())
    found = ranked(torch.cat([model.embed_maps(part) for part in maps.split(64)]), tracks)
    if model.attend is not None:
        overlap = torch.cat([model.attend(part.flatten(0, 1)).overlap for part in maps.split(64)])
        found["overlap"] = float(overlap.mean()) / (model.k * (model.k - 1))
    if isinstance(model.time, nn.Module) and hasattr(model.time, "weights"):
        clean = model.backbone.of(torch.from_numpy(tracks.of("clean"))[:, torch.from_numpy(frames)].float())
        seen_by = [model.explain(part) for part in maps.split(64)]
        weights = torch.cat([e.weights for e in seen_by]).numpy()  # [S, n, K]
        looked = torch.cat([model.explain(part).attention for part in clean.split(64)]).numpy()
        here = torch.cat([e.attention for e in seen_by]).numpy()
        person, seen, part = (tracks.of(name)[:, frames] for name in ("person", "seen", "part"))
        known = tracks.of("visibility")[:, frames]  # [S, n, parts]
        names, total, right, by_part = [], np.zeros(3), np.zeros(3), {}
        spread = float(np.abs(weights - 1 / FRAMES).mean())
        for k in range(model.k):
            where = looked[:, :, k]
            # what share of the person's cells that this map looks at, nothing in the way, is not hidden
            now = (here[:, :, k] * seen).sum((2, 3))
            pairs = ordered_pairs(weights[:, :, k], now > 0.5, now < 0.25)  # what it looks at in the frame as it is
            total[2] += pairs[0]
            right[2] += pairs[1]
            share = (where * seen).sum((2, 3)) / np.maximum((where * person).sum((2, 3)), 1e-6)
            pairs = ordered_pairs(weights[:, :, k], share > 0.8, share < 0.4)
            total[0] += pairs[0]
            right[0] += pairs[1]
            # the body part that it looks at most for its size, and that part's known visibility
            on = (where[:, :, None] * part).sum((0, 1, 3, 4)) / part.sum((0, 1, 3, 4))
            best = int(on[:5].argmax())
            names.append(PARTS[best])
            pairs = ordered_pairs(weights[:, :, k], known[:, :, best] > 0.8, known[:, :, best] < 0.4)
            total[1] += pairs[0]
            right[1] += pairs[1]
            by_part[f"{k} {PARTS[best]}"] = pairs[1] / max(1.0, pairs[0])
        found |= {
            "auc_region": right[0] / max(1.0, total[0]),
            "auc_part": right[1] / max(1.0, total[1]),
            "auc_looked": right[2] / max(1.0, total[2]),
            "pairs": total.tolist(),
            "auc_by_map": by_part,
            "weights_from_uniform": spread,
        }
    return found


@torch.inference_mode()
def judge_rru_stim(model: RRUSTIM, tracks: Tracks, seed: int) -> dict[str, Any]:
    """Scores over whole tracks, in order and shuffled; the distance of the refined maps to the clean ones."""
    model.eval()
    maps = model.backbone.of(tracks.maps.float())

    def embed(x: Tensor) -> Tensor:
        return torch.cat([model.embed_maps(part) for part in x.split(32)])

    found = ranked(embed(maps), tracks)
    rng = np.random.default_rng([seed, 11])
    orders = torch.from_numpy(np.stack([rng.permutation(tracks.length) for _ in range(len(maps))]))
    shuffled = torch.stack([x[order] for x, order in zip(maps, orders, strict=True)])
    other = ranked(embed(shuffled), tracks)
    found |= {"rank1_shuffled": other["rank1"], "mAP_shuffled": other["mAP"], "ap_shuffled": other["ap"]}
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
            found[f"error {name}"] = {
                "raw": error(maps, mask),
                "refined": error(refined, mask),
                "refined shuffled": error(unshuffled, mask),
            }
        flat = [x.mean((3, 4)) for x in (maps, refined, clean)]
        cosine = [nn.functional.cosine_similarity(x, flat[2], dim=2)[occluded.flatten(1).bool()] for x in flat[:2]]
        found["cosine to clean, occluded frames"] = {"raw": float(cosine[0].mean()), "refined": float(cosine[1].mean())}
    return found


# ---------------------------------------------------------------- commands


def run(cache: Path, out: Path, arms: list[str], seeds: list[int]) -> None:
    """Every arm and seed whose file is not there."""
    torch.set_num_threads(1)
    train, test = Tracks(cache / "train.npz"), Tracks(cache / "gallery.npz")
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in arms:
            path = out / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
            if path.exists():
                continue
            arm, start = ARMS[name], time.perf_counter()
            learn: Callable[..., Any] = train_drsta if arm["method"] == "drsta" else train_rru_stim
            try:
                model, losses = learn(arm, train, seed)
                judged = judge_drsta(model, test) if arm["method"] == "drsta" else judge_rru_stim(model, test, seed)
                judged["loss"] = [round(float(np.mean(losses[i : i + 50])), 4) for i in range(0, len(losses), 50)]
            except FloatingPointError as error:
                judged = {"failed": str(error)}
            judged |= {"arm": name, "seed": seed, "seconds": round(time.perf_counter() - start, 1), "settings": arm}
            with write_whole(path) as stream:
                stream.write((json.dumps(judged) + "\n").encode())
            shown = {k: v for k, v in judged.items() if k not in ("ap", "hit", "ap_shuffled", "settings", "loss")}
            print(json.dumps(shown), flush=True)


def report(cache: Path, out: Path, target: Path | None) -> None:
    """Means over seeds, and paired bootstraps over test identities of AP (mean over seeds)."""
    with np.load(cache / "gallery.npz") as file:
        ids = file["pids"][::HALF]
    rows: dict[str, Any] = {}
    for path in sorted(out.glob("*.json")):
        one = json.loads(path.read_text())
        rows.setdefault(one["arm"], []).append(one)
    summary: dict[str, Any] = {}
    ap: dict[str, NDArray[Any]] = {}
    for name in ARMS:
        found = [r for r in rows.get(name, []) if "failed" not in r]
        if not found:
            continue
        ap[name] = np.mean([np.array(r["ap"], np.float64) for r in found], 0)
        if "ap_shuffled" in found[0]:
            ap[f"{name}, shuffled at test"] = np.mean([np.array(r["ap_shuffled"], np.float64) for r in found], 0)
        summary[name] = {"seeds": len(found)}
        for key in (
            "rank1",
            "mAP",
            "rank1_shuffled",
            "mAP_shuffled",
            "overlap",
            "auc_region",
            "auc_part",
            "auc_looked",
            "seconds",
        ):
            values = [r[key] for r in found if r.get(key)]  # an AUC of 0 stands for no pairs
            if values:
                summary[name][key] = [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]
        for key in [k for k in found[0] if k.startswith(("error", "cosine"))]:
            means = {w: round(float(np.mean([r[key][w] for r in found])), 4) for w in found[0][key]}
            summary[name][key] = means
        print(f"{name:<30}" + "  ".join(f"{k} {v}" for k, v in summary[name].items()))
    pairs = [("average (oim)", b) for b in ap if ARMS.get(b, {}).get("method") == "drsta" and b != "average (oim)"]
    pairs += [("average", b) for b in ap if ARMS.get(b, {}).get("method") == "rru_stim" and b != "average"]
    pairs += [("lstm", "rru+stim"), ("drsta no penalty", "drsta"), ("drsta kl", "drsta"), ("stim alone", "rru+stim")]
    pairs += [(f"{n}, shuffled at test", n) for n in ("rru+stim", "rru alone", "stim alone", "lstm")]
    pairs += [("rru+stim, frames shuffled", "rru+stim"), ("rru alone, frames shuffled", "rru alone")]
    compared = {}
    for a, b in pairs:
        if a in ap and b in ap:
            d = paired_bootstrap(ap[a], ap[b], ids)
            compared[f"{b} - {a}"] = [round(v, 4) for v in (d.mean, d.low, d.high, d.p_value)]
            print(f"mAP {b} - {a}: {100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]  p {d.p_value:.4f}")
    if target is not None:
        settings = {
            "world": WORLD,
            "frames": FRAMES,
            "clip": CLIP,
            "drsta_steps": DRSTA_STEPS,
            "rru_steps": RRU_STEPS,
        } | {"drsta_rate": DRSTA_RATE, "drsta_temporal_scale": DRSTA_SCALE, "drsta_penalty": DRSTA_PENALTY}
        content = {
            "command": "python -m benchmarks.experiments.video {maps WEIGHTS | run | report} --cache DIR --out DIR",
            "backbone": "osnet_x0_25, MSMT17 weights, frozen, 128 x 64",
            "settings": settings,
            "arms": {name: ARMS[name] for name in summary},
            "summary": summary,
            "failed": {n: [r["failed"] for r in found if "failed" in r] for n, found in rows.items()},
            "mAP difference, [mean, low, high, p], bootstrap over identities": compared,
        }
        with write_whole(target) as stream:
            stream.write((json.dumps(content, indent=1) + "\n").encode())


def picture(cache: Path, target: Path, seed: int = 0) -> None:
    """Two test walks in which somebody comes between: what DRSTA looks at, and how much each frame counts."""
    from reidfast.report.tracklet_attention import draw_tracklet_attention, stack_pictures

    torch.set_num_threads(1)
    train, test = Tracks(cache / "train.npz"), Tracks(cache / "gallery.npz")
    model, _ = train_drsta(ARMS["drsta"] | {"model": {"maps": 3}}, train, seed)
    model.eval()
    frames = chunk_frames(test.length, FRAMES)
    seen = test.of("visible")[:, frames]
    spec = load("synthetic_tracklets", None, **WORLD).info["synthetic_tracklets"]
    sheets = []
    for row in np.argsort(-(seen.max(1) - seen.min(1)), kind="stable")[[0, 5]]:
        said = model.explain(model.backbone.of(test.maps[int(row), torch.from_numpy(frames)].float().unsqueeze(0)))
        walk = spec.track(int(test.pids[row]), int(test.camids[row]))
        images = [Image.fromarray(walk.frame(int(i)).image) for i in frames]
        notes = [f"{100 * v:.0f} % seen" for v in seen[row]]
        sheets.append(draw_tracklet_attention(images, said.attention[0].numpy(), said.weights[0].numpy(), notes=notes))
    stack_pictures(sheets).quantize(128).save(target, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("maps", "run", "report", "picture"))
    parser.add_argument("weights", nargs="?", help="OSNet x0.25 checkpoint, for maps")
    parser.add_argument("--cache", type=Path, default=Path("runs/video/maps"))
    parser.add_argument("--out", type=Path, default=Path("runs/video/arms"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, default=Path("attention.png"))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.what == "maps":
        make_maps(options.weights, options.cache)
    elif options.what == "run":
        run(options.cache, options.out, options.arms, options.seeds)
    elif options.what == "picture":
        picture(options.cache, options.png)
    else:
        report(options.cache, options.out, options.json)


if __name__ == "__main__":
    main()
