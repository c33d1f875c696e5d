# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What DRSTA and RRU + STIM claim, on synthetic walks in which the occlusion is known.

    python -m benchmarks.experiments.video maps WEIGHTS --cache DIR      frames to feature maps, once
    python -m benchmarks.experiments.video run --cache DIR --out DIR     every arm and seed that is not there yet
    python -m benchmarks.experiments.video report --out DIR --json FILE  tables, and one file of all results
    python -m benchmarks.experiments.video picture --cache DIR --png FILE  attention and temporal weights of two walks

People walk past three cameras while others, poles and walls come between. The backbone (OSNet x0.25, pictures of 128 x
64, maps of 128 x 8 x 4) is frozen, as in DRSTA's last two stages; the arms train heads on its maps. Identities 1..n/2
train, the rest test; query: the tracklets of each test identity and camera, gallery: those of the other cameras. One
JSON for each arm and seed.
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
from torch import Tensor, nn

from reidfast._files import write_whole
from reidfast.data import IdentitySampler, load
from reidfast.data.clips import chunk_frames, clip_frames
from reidfast.data.images import EvalTransform, decode, normalize
from reidfast.data.synthetic.figure import PARTS
from reidfast.engine.compare import paired_bootstrap
from reidfast.evaluation import rank
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
DRSTA_STEPS, RRU_STEPS = (400, 400), 500

# ---------------------------------------------------------------- the arms

Arm = dict[str, Any]
ARMS: dict[str, Arm] = {
    # DRSTA and what it is compared with; 6 frames, one of each sixth of the track
    "drsta": {"method": "drsta"},
    "drsta no penalty": {"method": "drsta", "penalty": None},
    "drsta kl": {"method": "drsta", "penalty": "kl"},
    "drsta paper_mean": {"method": "drsta", "penalty": "paper_mean"},
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
    "rru+stim, clips of 16": {"method": "rru_stim", "clip": 16},
    "rru+stim, frames shuffled": {"method": "rru_stim", "shuffle": True},
    "rru alone, frames shuffled": {"method": "rru_stim", "model": {"time": "average"}, "shuffle": True},
}


class Given(Backbone):
    """Stands for the frozen backbone: what comes in is its maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = self.feature_size = channels

    def forward_map(self, images: Tensor) -> Tensor:
        return images


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
        with write_whole(cache / f"{split}.npz") as stream:
            np.savez(stream, **arrays)


class Tracks:
    """Maps [S, frames, C, h, w] of tracklets of one length, and their labels."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.length = int(WORLD["frames"])
        self.maps = torch.from_numpy(self.arrays["maps"]).unflatten(0, (-1, self.length))
        self.pids = self.arrays["pids"][:: self.length]
        self.camids = self.arrays["camids"][:: self.length]

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


def train_drsta(arm: Arm, tracks: Tracks, seed: int) -> tuple[DRSTA, list[float]]:
    """Stages 2 and 3: spatial attention with the mean over time, then both; OIM, SGD at 0.1, at 0.01 in the end."""
    torch.manual_seed(seed)
    model = DRSTA(Given(tracks.maps.shape[2]), temporal_scale=arm.get("scale", 1.0), **arm.get("model", {}))
    classes, labels = np.unique(tracks.pids, return_inverse=True)
    oim = OIMLoss(len(classes), model.feature_size)
    kind = arm.get("penalty", "official")
    penalty: nn.Module | None = None if kind is None else KLDiversityLoss() if kind == "kl" else DiversityLoss(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    first, second = DRSTA_STEPS
    sampler = IdentitySampler(labels, 16, 2, camids=tracks.camids, camera_aware=True, steps=first + second, seed=seed)
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for step, rows in enumerate(sampler):
        if step in (0, first):
            model.set_stage("spatial" if step == 0 else "joint")
            optimizer.param_groups[0]["lr"] = 0.1
        if step in (first * 3 // 4, first + second * 3 // 4):
            optimizer.param_groups[0]["lr"] = 0.01
        index = np.asarray(rows)
        out = model.forward_maps(clips_of(tracks, index, arm, rng))
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


def train_rru_stim(arm: Arm, tracks: Tracks, seed: int) -> tuple[RRUSTIM, list[float]]:
    """The four-part loss (no auxiliary classifier), SGD at 0.01, constant."""
    torch.manual_seed(seed)
    classes, labels = np.unique(tracks.pids, return_inverse=True)
    options = {"dim": 128, "stim": {"hidden": 128}, "rru": {"hidden": 64}} | arm.get("model", {})
    model = RRUSTIM(Given(tracks.maps.shape[2]), GRID, len(classes), hidden=256, **options)
    loss = RRUSTIMLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = arm.get("steps", RRU_STEPS)
    sampler = IdentitySampler(labels, 10, 2, camids=tracks.camids, camera_aware=True, steps=steps, seed=seed)
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for rows in sampler:
        index = np.asarray(rows)
        out = model.forward_maps(clips_of(tracks, index, arm, rng))
        terms = loss(*out, torch.from_numpy(labels[index % len(labels)]))
        losses.append(float(terms.total.detach()))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    return model, losses


# ---------------------------------------------------------------- judging


def ranked(features: Tensor, tracks: Tracks) -> dict[str, Any]:
    """R1 and mAP over all test tracklets, same person and camera left out, and the AP and hit of each query."""
    found = rank(features, features, tracks.pids, tracks.pids, tracks.camids, tracks.camids)
    return {
        "rank1": float(found.cmc[0]),
        "mAP": found.mean_ap,
        "ap": [round(float(v), 5) for v in found.ap],
        "hit": [int(v == 1) for v in found.first_match],
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
    maps = tracks.maps[:, torch.from_numpy(frames)].float()
    found = ranked(torch.cat([model.embed_maps(part) for part in maps.split(64)]), tracks)
    if model.attend is not None:
        overlap = torch.cat([model.attend(part.flatten(0, 1)).overlap for part in maps.split(64)])
        found["overlap"] = float(overlap.mean()) / (model.k * (model.k - 1))
    if isinstance(model.time, nn.Module) and hasattr(model.time, "weights"):
        clean = torch.from_numpy(tracks.of("clean"))[:, torch.from_numpy(frames)].float()
        seen_by = [model.explain(part) for part in maps.split(64)]
        weights = torch.cat([e.weights for e in seen_by]).numpy()  # [S, n, K]
        looked = torch.cat([model.explain(part).attention for part in clean.split(64)]).numpy()
        person, seen, part = (tracks.of(name)[:, frames] for name in ("person", "seen", "part"))
        known = tracks.of("visibility")[:, frames]  # [S, n, parts]
        names, total, right, by_part = [], np.zeros(2), np.zeros(2), {}
        spread = float(np.abs(weights - 1 / FRAMES).mean())
        for k in range(model.k):
            where = looked[:, :, k]
            # what share of the person's cells that this map looks at, nothing in the way, is not hidden
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
            "pairs": [total[0], total[1]],
            "auc_by_map": by_part,
            "weights_from_uniform": spread,
        }
    return found


@torch.inference_mode()
def judge_rru_stim(model: RRUSTIM, tracks: Tracks, seed: int) -> dict[str, Any]:
    """Scores over whole tracks, in order and shuffled; the distance of the refined maps to the clean ones."""
    model.eval()
    maps = tracks.maps.float()

    def embed(x: Tensor) -> Tensor:
        return torch.cat([model.embed_maps(part) for part in x.split(32)])

    found = ranked(embed(maps), tracks)
    rng = np.random.default_rng([seed, 11])
    orders = torch.from_numpy(np.stack([rng.permutation(tracks.length) for _ in range(len(maps))]))
    shuffled = torch.stack([x[order] for x, order in zip(maps, orders, strict=True)])
    other = ranked(embed(shuffled), tracks)
    found |= {"rank1_shuffled": other["rank1"], "mAP_shuffled": other["mAP"], "ap_shuffled": other["ap"]}
    if model.rru is not None:
        clean = torch.from_numpy(tracks.of("clean")).float()
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
        ids = file["pids"][:: int(WORLD["frames"])]
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
        for key in ("rank1", "mAP", "rank1_shuffled", "mAP_shuffled", "overlap", "auc_region", "auc_part", "seconds"):
            values = [r[key] for r in found if key in r]
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
        settings = {"world": WORLD, "frames": FRAMES, "clip": CLIP, "drsta_steps": DRSTA_STEPS, "rru_steps": RRU_STEPS}
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
    from PIL import Image

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
        said = model.explain(test.maps[int(row), torch.from_numpy(frames)].float().unsqueeze(0))
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
