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
and number of steps for all. Besides R1 and mAP, for the attention of the trained networks on identities they have not
seen: the profile distances of positive and negative pairs, whether the profile follows a picture that is moved down by
a known number of rows, and on rendered people, whose masks are known, the share of attention on the person.

Distances alone say little, for a network whose maps are all alike has small ones. So for every query its distances to
all pictures of the same person by another camera are compared with those to drawn pictures of others: `closer` is the
share of these comparisons that the positive pair wins (0.5 is chance; it does not change with the scale of the
distances), `relative` the mean gap over the mean distance.

Every arm and seed leaves one JSON file, written whole; those that are there are not run again, and an arm that was
stopped goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reidfast._files import write_whole
from reidfast.data import (
    EvalTransform,
    IdentitySampler,
    ImageCache,
    ImageDataset,
    Records,
    ReidData,
    ShuffleSampler,
    World,
    decode,
    load,
    split_identities,
)
from reidfast.data.images import normalize, resize, to_float
from reidfast.engine import paired_bootstrap
from reidfast.engine.config import parse
from reidfast.engine.methods import module_of
from reidfast.engine.training import train
from reidfast.evaluation import Ranking, rank
from reidfast.losses import ConsistencyLoss
from reidfast.losses.consistency import row_profile
from reidfast.models import CASN, create_model, load_weights
from reidfast.report import draw_attention

PLAIN = ["--loss.attention=0", "--loss.siamese=0"]
KINDS = ("pair", "identity", "feature")
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
    rows = {
        split: [[p, int(i), int(c)] for p, i, c in zip(t.paths, t.pids, t.camids, strict=True)]
        for split, t in tables.items()
    }
    with write_whole(path) as stream:
        stream.write(json.dumps({"name": name, "fields": ["path", "pid", "camid"], **rows}).encode())


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


def holdout(data: ReidData, ids: int, test_ids: int, seed: int) -> dict[str, Records]:
    """Training identities alone, some to train on and others to test on: for choosing settings."""
    drawn = people(data.train, ids + test_ids, np.random.default_rng(seed))
    tested = split_identities(part(data.train, drawn[ids:]), test=1.0, seed=seed)
    return {"train": part(data.train, drawn[:ids]), "query": tested.query, "gallery": tested.gallery}


def source(options: argparse.Namespace) -> ReidData:
    """The data set that was asked for."""
    return load(options.data, None, **({"images": options.images} if options.images else {}))


def prepared(options: argparse.Namespace) -> ReidData:
    """The part of the data set that is used, written down as two split files: all of it, and what training sees."""
    whole = options.out / "split.json"
    if not whole.exists():
        preset, data = PRESETS[options.preset], source(options)
        tables = subset(data, preset["ids"] if options.ids is None else options.ids,
                        preset["test_ids"] if options.test_ids is None else options.test_ids, 0)  # fmt: skip
        write_split(options.out / "train.json", f"{data.name}, training part", {"train": tables["train"]})
        write_split(whole, f"{data.name}, part", tables)
    return load(str(whole), None, images=images_of(options))


def images_of(options: argparse.Namespace) -> str:
    """The folder of the images."""
    return options.images or str(source(options).train.root)


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
    config = parse(method, [*common, *options.set, *own])
    return same_steps(config, data.train) if config.data.sampler == "shuffle" else config


def same_steps(config: Any, train_images: Records) -> Any:
    """Every image once makes longer epochs than groups of K: fewer of them, for the same number of steps."""
    d, o = config.data, config.optim
    one = len(IdentitySampler(train_images.pids, d.ids, d.images))
    factor = one / len(ShuffleSampler(len(train_images), d.ids * d.images))
    milestones = [max(1, round(factor * m)) for m in o.milestones]
    return replace(config, optim=replace(o, epochs=max(1, round(factor * o.epochs)), milestones=milestones))


# --- what the attention is like


@torch.no_grad()
def identity_maps(model: CASN, images: Tensor) -> Tensor:
    """Grad-CAM of the class that the network believes in (these persons are none of its classes)."""
    cells = model.backbone.forward_map(images)
    return model.identity_attention(cells, model.predicted(cells))


class Looked(NamedTuple):
    """What a trained network sees in the images of a table.

    Attributes:
        embeddings: (n, D).
        cells: Feature maps, (n, C, h, w).
    """

    embeddings: Tensor
    cells: Tensor


@torch.no_grad()
def look(model: CASN, records: Records, size: tuple[int, int], device: str) -> Looked:
    """One pass over the images of a table."""
    images = ImageDataset(records, EvalTransform(*size), ImageCache(records, *size))
    embeddings, maps = [], []
    for start in range(0, len(records), 64):
        batch = torch.stack([images[i][0] for i in range(start, min(start + 64, len(records)))]).to(device)
        cells = model.backbone.forward_map(batch)
        embeddings.append(embedding_of(model, cells).cpu())
        maps.append(cells.cpu().contiguous())
    return Looked(torch.cat(embeddings), torch.cat(maps))


def embedding_of(model: CASN, cells: Tensor) -> Tensor:
    """What the model in evaluation mode makes of a feature map."""
    backbone: Any = model.backbone
    backbone.forward_map = lambda images: images
    try:
        return model(cells)  # type: ignore[no-any-return]
    finally:
        del backbone.forward_map


class DrawnPairs(NamedTuple):
    """Pairs of a query and a gallery image by another camera.

    Attributes:
        query: Rows, (N,).
        gallery: Rows, (N,).
        same: One person, (N,).
    """

    query: Any
    gallery: Any
    same: Any


def draw_test_pairs(data: ReidData, negatives: int, seed: int) -> DrawnPairs:
    """For every query all images of the same person by other cameras, and so many of other persons."""
    rng = np.random.default_rng(seed)
    query, gallery = data.query, data.gallery
    first, second, same = [], [], []
    for i in range(len(query)):
        other = gallery.camids != query.camids[i]
        own = gallery.pids == query.pids[i]
        positive, negative = np.flatnonzero(other & own), np.flatnonzero(other & ~own & (gallery.pids >= 0))
        if len(positive) and len(negative):
            drawn = rng.choice(negative, min(negatives, len(negative)), replace=False)
            first += [i] * (len(positive) + len(drawn))
            second += [*positive, *drawn]
            same += [True] * len(positive) + [False] * len(drawn)
    return DrawnPairs(np.array(first, np.int64), np.array(second, np.int64), np.array(same, bool))


def fit_pair_head(model: CASN, seen: Looked, records: Records, device: str, steps: int = 300) -> None:
    """The verification of a network that trained none: its head alone, on frozen features of the training images.

    So that pair attention means the same in all arms: without, the head's weights are still all alike.
    """
    with torch.no_grad():
        features = torch.cat([model.frozen_features(c.to(device)) for c in seen.cells.split(256)])
    pids, cams = records.pids, records.camids
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero((pids == p) & (cams != c)) for p, c in zip(pids, cams, strict=True)]
    anchors = np.array([i for i, r in enumerate(rows) if len(r)])
    head = model.pair
    head.requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    same = torch.arange(512, device=device) < 256
    for _ in range(steps):
        i = rng.choice(anchors, 512)
        j = np.array([rng.choice(rows[k]) if n < 256 else rng.integers(len(pids)) for n, k in enumerate(i)])
        right = torch.from_numpy(pids[i] == pids[j]).to(device) == same  # of the drawn others a few are the same
        q = head(features[torch.from_numpy(i).to(device)], features[torch.from_numpy(j).to(device)])
        loss = functional.binary_cross_entropy_with_logits(q, same.to(q.dtype), right.to(q.dtype))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def pair_distances(
    model: CASN, pairs: DrawnPairs, query: Looked, gallery: Looked, device: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Profile distances of test pairs, NaN where a map has no profile, by three attentions; and the predicted classes.

    identity: of the class that each image is taken for. feature: of the sum of all elements of the feature, so that
    neither classes nor partners play a part. pair: of the elements that the verification marks.
    """
    loss = ConsistencyLoss()
    found: dict[str, Any] = {}
    classes = [torch.cat([model.predicted(c.to(device)) for c in side.cells.split(256)]) for side in (query, gallery)]

    def identity(cells: Tensor, chosen: Tensor) -> Tensor:
        return model.identity_attention(cells, chosen)

    def feature(cells: Tensor, chosen: Tensor) -> Tensor:
        return model._attention(cells, torch.ones_like(model.frozen_features(cells)))

    for name, attention in (("identity", identity), ("feature", feature)):
        profiles, constant = [], []
        for side, chosen in zip((query, gallery), classes, strict=True):
            made = [
                loss.profile(attention(c.to(device), k))
                for c, k in zip(side.cells.split(256), chosen.split(256), strict=True)
            ]
            profiles.append(torch.cat([m[0] for m in made]).cpu())
            constant.append(torch.cat([m[1] for m in made]).cpu())
        d = (profiles[0][pairs.query] - profiles[1][pairs.gallery]).norm(dim=1)
        found[name] = d.masked_fill(constant[0][pairs.query] | constant[1][pairs.gallery], torch.nan).numpy()

    features = [
        torch.cat([model.frozen_features(c.to(device)) for c in side.cells.split(256)]) for side in (query, gallery)
    ]
    distances, shares = [], []
    for start in range(0, len(pairs.query), 1024):
        i, j = (torch.from_numpy(rows[start : start + 1024]) for rows in (pairs.query, pairs.gallery))
        chosen = model.pair.indicator(features[0][i.to(device)], features[1][j.to(device)])
        one = model._attention(query.cells[i].to(device), chosen.first)
        two = model._attention(gallery.cells[j].to(device), chosen.second)
        out = loss(one, two, torch.ones(len(i), dtype=torch.bool, device=device))
        distances.append(torch.where(out.defined, out.distances, torch.nan).cpu())
        shares.append(chosen.share.cpu())
    found["pair"] = torch.cat(distances).numpy()
    agree = classes[0].cpu()[pairs.query] == classes[1].cpu()[pairs.gallery]
    extra = {
        "indicator": float(torch.cat(shares).mean()),
        "same_class_positive": float(agree[pairs.same].float().mean()),
        "same_class_negative": float(agree[~pairs.same].float().mean()),
    }
    return found, extra


def by_query(distances: Any, pairs: DrawnPairs) -> dict[str, list[float]]:
    """Of each query its mean positive and negative distance, and the share of comparisons that the positive wins.

    A comparison is one positive and one negative pair of the query; equal ones count half. NaN: nothing to compare.
    """
    rows: dict[str, list[float]] = {"positive": [], "negative": [], "closer": []}
    cuts = np.flatnonzero(np.diff(pairs.query)) + 1
    for d, same in zip(np.split(distances, cuts), np.split(pairs.same, cuts), strict=True):
        valid = np.isfinite(d)
        p, n = d[same & valid], d[~same & valid]
        both = len(p) > 0 and len(n) > 0
        wins = (p[:, None] < n).mean() + 0.5 * (p[:, None] == n).mean() if both else np.nan
        for key, value in (("positive", p.mean() if both else np.nan), ("negative", n.mean() if both else np.nan),
                           ("closer", wins)):  # fmt: skip
            rows[key].append(round(float(value), 5))
    return rows


def summary(rows: dict[str, list[float]]) -> dict[str, float]:
    """Means over the queries."""
    positive, negative, closer = (float(np.nanmean(rows[k])) for k in ("positive", "negative", "closer"))
    gap = negative - positive
    relative = gap / max(1e-9, (negative + positive) / 2)
    return {"positive": positive, "negative": negative, "gap": gap, "relative": relative, "closer": closer}


def consistency(model: CASN, data: ReidData, query: Looked, gallery: Looked, negatives: int, device: str) -> Any:
    """Profile distances of test pairs by every attention, and per query, for the bootstrap."""
    pairs = draw_test_pairs(data, negatives, 0)
    found, result = pair_distances(model, pairs, query, gallery, device)
    result["pids"] = [int(p) for p in data.query.pids[np.unique(pairs.query)]]
    for name, d in found.items():
        rows = by_query(d, pairs)
        result[name] = {**summary(rows), "undefined": float(np.isnan(d).mean()), "queries": rows}
    return result


def best_lag(v: Tensor, moved: Tensor, most: int) -> Tensor:
    """By how many rows profiles (B, h) have moved down: the lag with the highest correlation of what overlaps."""
    scores = []
    rows = v.shape[1]
    for lag in range(-most, most + 1):
        a = v[:, max(0, -lag) : rows - max(0, lag)]
        b = moved[:, max(0, lag) : rows - max(0, -lag)]
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        scores.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-9))
    return torch.stack(scores, 1).argmax(1) - most


def shift_response(model: CASN, data: ReidData, size: tuple[int, int], count: int, device: str) -> dict[str, float]:
    """Pictures moved down by whole rows of the map, the upper edge repeated: does the attention move along?"""
    prepare = EvalTransform(*size)
    rows = np.random.default_rng(1).permutation(len(data.query))[:count]
    images = torch.stack([prepare(decode(data.query.absolute(int(i)))) for i in rows])
    down = max(1, round(0.125 * size[0] / model.backbone.stride))  # rows of the map
    pixels = down * model.backbone.stride
    moved = torch.cat([images[:, :, :1].expand(-1, -1, pixels, -1), images[:, :, :-pixels]], 2)
    loss = ConsistencyLoss()
    lags, aligned, raw = [], [], []
    for a, b in zip(images.split(64), moved.split(64), strict=True):
        one, two = (identity_maps(model, x.to(device)) for x in (a, b))
        p, q = row_profile(one).values, row_profile(two).values
        lags += best_lag(p, q, max(2, down + 1)).tolist()
        raw += (p - q).norm(dim=1).tolist()
        aligned += loss(one, two, torch.ones(len(one), dtype=torch.bool, device=device)).distances.tolist()
    return {
        "rows": down,
        "followed": float(np.mean(np.array(lags) == down)),
        "mean_lag": float(np.mean(lags)),
        "distance": float(np.mean(raw)),
        "distance_aligned": float(np.mean(aligned)),
    }


def mass_on_person(model: CASN, size: tuple[int, int], count: int, device: str) -> dict[str, float]:
    """Share of the identity attention that lies on rendered persons, beside the share of the picture they fill."""
    world = World(seed=11, difficulty=0.5, height=size[0], width=size[1])
    shots = [world.render(1 + i % 40, 1 + i % 6, i // 40) for i in range(count)]
    images = torch.stack([normalize(to_float(resize(_picture(s.image), *size))) for s in shots])
    masks = torch.stack([torch.from_numpy(s.mask.astype(np.float32)) for s in shots])
    maps = torch.cat([identity_maps(model, x.to(device)).cpu() for x in images.split(64)])
    share = functional.adaptive_avg_pool2d(masks.unsqueeze(1), maps.shape[1:]).squeeze(1)
    total = maps.sum((1, 2))
    seen = total > 0
    mass = ((maps * share).sum((1, 2)) / total.clamp(min=1e-30))[seen]
    return {
        "mass": float(mass.mean()),
        "person": float(masks.mean()),
        "cells": float(share[seen].mean()),
        "empty": float((~seen).float().mean()),
    }


def _picture(image: Any) -> Any:
    from PIL import Image

    return Image.fromarray(image)


# --- runs


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> None:
    """One arm with one seed, unless its file is there."""
    path = options.out / f"{arm}-{seed}.json"
    if path.exists():
        return
    config = settings_of(arm, seed, options)
    metrics = train(config)
    task, _ = module_of(ARMS[arm][0]).build(config, load(config.data.name, None, **config.data.options))
    load_weights(task.model, Path(config.out) / "weights.safetensors")
    content = {
        "arm": arm,
        "seed": seed,
        "seconds": {k: round(v) for k, v in metrics["seconds"].items()},
        "config": metrics["config"],
        **measures(task.model.eval(), prepared(options), config, options),
    }
    with write_whole(path) as stream:
        stream.write((json.dumps(content) + "\n").encode())
    if not options.keep:
        shutil.rmtree(config.out)
    print(f"{arm:<8} seed {seed}  {line(content)}  {content['seconds']['wall']} s", flush=True)


def line(content: dict[str, Any]) -> str:
    """A result in one line of text."""
    c, s, m = content["consistency"], content["shift"], content["mass"]
    seen = "  ".join(
        f"{k} {c[k]['positive']:.3f} {c[k]['negative']:.3f} closer {100 * c[k]['closer']:.1f} %" for k in KINDS
    )
    return (
        f"rank-1 {100 * content['rank1']:5.1f}  mAP {100 * content['mAP']:5.1f}  {seen}  follows "
        f"{100 * s['followed']:.0f} %  mass {100 * m['mass']:.1f} %"
    )


def start(options: argparse.Namespace) -> None:
    """Scores of the weights that PCB starts from, whose embedding needs no trained head."""
    path = options.out / "before.json"
    if path.exists():
        return
    config = settings_of("sampler", 0, options)
    task, module = module_of("casn").build(config, load(config.data.name, None, **config.data.options))
    task.prepare(module)
    ranking, _, _ = scores(task.model.eval(), prepared(options), config, "cpu")
    with write_whole(path) as stream:
        stream.write((json.dumps({"rank1": float(ranking.cmc[0]), "mAP": ranking.mean_ap}) + "\n").encode())


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The finished runs by arm."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        content = json.loads(path.read_text())
        runs.setdefault(content["arm"], []).append(content)
    return runs


def columns(runs: list[dict[str, Any]], kind: str) -> Any:
    """Positive, negative, closer of each query, averaged over seeds: (queries, 3)."""
    keys = ("positive", "negative", "closer")
    each = [[run["consistency"][kind]["queries"][k] for k in keys] for run in runs]
    return np.mean(np.array(each, np.float64), 0).T


def bootstrap(a: Any, b: Any, ids: Any, statistic: Any, draws: int = 4000) -> tuple[float, float, float]:
    """statistic(means of b) - statistic(means of a) and its 95 % interval over drawn identities; a, b (Q, columns)."""
    valid = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    who, index = np.unique(np.asarray(ids)[valid], return_inverse=True)
    both = np.concatenate([a, b, np.ones((len(a), 1))], 1)[valid]
    total = np.stack([np.bincount(index, c, len(who)) for c in both.T], 1)  # (identities, columns)
    times = np.random.default_rng(0).multinomial(len(who), np.full(len(who), 1 / len(who)), draws)

    def difference(sums: Any) -> Any:
        means = sums[..., :-1] / sums[..., -1:]
        return statistic(means[..., a.shape[1] :]) - statistic(means[..., : a.shape[1]])

    low, high = np.quantile(difference(times @ total), [0.025, 0.975])
    return float(difference(total.sum(0))), float(low), float(high)


def differences(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of every step whose two arms are there, in per cent: difference, its 95 % interval, the difference of each seed.

    Scores of a query are averaged over the seeds, then identities are drawn: the interval says what other persons would
    change, the seeds what another run would.
    """
    found = []
    for step in STEPS:
        if step.arm not in runs or step.control not in runs:
            continue
        new, old = ({run["seed"]: run for run in runs[arm]} for arm in (step.arm, step.control))
        seeds = sorted(set(new) & set(old))
        one, two = [old[s] for s in seeds], [new[s] for s in seeds]
        row: dict[str, Any] = {**step._asdict(), "seeds": seeds}
        for name, of in (
            ("rank1", lambda run: (np.array(run["first"]) == 1).astype(float)),
            ("mAP", lambda r: r["ap"]),
        ):
            first, second = (100 * np.array([of(run) for run in group]) for group in (one, two))
            d = paired_bootstrap(first.mean(0), second.mean(0), one[0]["pids"])
            row[name] = [d.mean, d.low, d.high, *(second.mean(1) - first.mean(1)).tolist()]
        for kind in KINDS:
            ids = one[0]["consistency"]["pids"]
            d3 = bootstrap(columns(one, kind), columns(two, kind), ids, lambda means: 100 * means[..., 2])
            each = [100 * (b["consistency"][kind]["closer"] - a["consistency"][kind]["closer"])
                    for a, b in zip(one, two, strict=True)]  # fmt: skip
            row[kind] = [*d3, *each]
        found.append({k: [round(x, 3) for x in v] if k in MEASURED else v for k, v in row.items()})
    return found


def table(runs: dict[str, list[dict[str, Any]]], steps: list[dict[str, Any]]) -> list[str]:
    """Markdown: mean and spread over seeds; what each part changes; the distances behind it."""
    lines = [
        "| arm | rank-1 | mAP | pairs: closer | identities: closer | features: closer | follows a shift "
        "| mass on the person | seconds |",
        "|" + "---|" * 9,
    ]
    arms = [arm for arm in ARMS if arm in runs]
    for arm in arms:
        found = runs[arm]
        cells = [
            arm,
            spread([100 * run["rank1"] for run in found], 1),
            spread([100 * run["mAP"] for run in found], 1),
            *(spread([100 * run["consistency"][kind]["closer"] for run in found], 1) for kind in KINDS),
            spread([100 * run["shift"]["followed"] for run in found], 0),
            spread([100 * run["mass"]["mass"] for run in found], 1),
            f"{statistics.mean(run['seconds']['cpu'] for run in found):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| step | rank-1 | mAP | pairs: closer | identities: closer | features: closer |", "|" + "---|" * 6]
    for row in steps:
        told = [f"{d:+.1f} ({low:+.1f} .. {high:+.1f})" for d, low, high in (row[k][:3] for k in MEASURED)]
        lines.append("| " + " | ".join([f"{row['what']}: {row['arm']} - {row['control']}", *told]) + " |")
    for kind in KINDS:
        lines += ["", f"| {kind} attention | positive | negative | gap | relative gap |", "|" + "---|" * 5]
        for arm in arms:
            found = [run["consistency"][kind] for run in runs[arm]]
            told = [spread([c[k] for c in found], 3) for k in ("positive", "negative", "gap", "relative")]
            lines.append("| " + " | ".join([arm, *told]) + " |")
    return lines


def spread(values: list[float], digits: int) -> str:
    """Mean, and the standard deviation where there are several."""
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{more}"


def without_folders(value: Any) -> Any:
    """Settings with file names where they had paths."""
    if isinstance(value, dict):
        return {k: without_folders(v) for k, v in value.items()}
    return Path(value).name if isinstance(value, str) and "/" in value else value


def brief(run: dict[str, Any]) -> dict[str, Any]:
    """A result without what it holds of every query."""
    kept = {k: without_folders(v) for k, v in run.items() if k not in ("ap", "first", "pids")}
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


def scores(model: CASN, data: ReidData, config: Any, device: str) -> tuple[Ranking, Looked, Looked]:
    """R1 and mAP, and what the network saw in queries and gallery."""
    size = (config.data.height, config.data.width)
    model.to(device)
    query, gallery = (look(model, records, size, device) for records in (data.query, data.gallery))
    q, g = data.query, data.gallery
    ranking = rank(query.embeddings, gallery.embeddings, q.pids, g.pids, q.camids, g.camids, protocol=config.protocol)
    return ranking, query, gallery


def measures(model: CASN, data: ReidData, config: Any, options: argparse.Namespace) -> dict[str, Any]:
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


def measure(options: argparse.Namespace) -> None:
    """Scores and attention of trained networks, on the test identities of the data they were trained with."""
    found = []
    for run in options.runs:
        stored = json.loads((run / "metrics.json").read_text())["config"]
        name = json.loads((run / "card.json").read_text())["model"]["options"]["base"]
        config = module_of("casn").Config()
        known = stored["data"]
        config.data.height, config.data.width = known["height"], known["width"]
        config.protocol, config.loss.siamese = stored["protocol"], stored["loss"]["siamese"]
        model, _ = trained(run)
        data = load(known["name"], known["root"], **known["options"])
        result = {"run": run.name, "base": name, "config": stored, **measures(model, data, config, options)}
        found.append(brief(result))
        print(f"{run.name:<16} {line(result)}", flush=True)
    if options.json:
        with write_whole(options.json) as stream:
            stream.write((json.dumps({"runs": found}) + "\n").encode())


def figure(runs: list[Path], png: Path, pairs: int) -> None:
    """Identity attention of trained networks (folders of `reidfast train`) on rendered people, two cameras each."""
    world = World(seed=11, difficulty=0.4)
    shots = [world.render(pid, camid) for pid in range(1, pairs + 1) for camid in (1, 4)]
    shown: dict[str, Any] = {}
    for run in runs:
        model, size = trained(run)
        images = torch.stack([normalize(to_float(resize(_picture(s.image), *size))) for s in shots])
        shown[run.name] = identity_maps(model, images).numpy()
    sheet = draw_attention([s.image for s in shots], shown)
    sheet.quantize(128).save(png, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m studies.casn", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the arms that have no result yet")
    running.add_argument("--preset", choices=list(PRESETS), default="cpu")
    running.add_argument("--weights", help="of the backbone; none: random")
    running.add_argument("--data", default="cuhk03_np_detected", help="a name, or a .json")
    running.add_argument("--images", help="of a .json: the folder of its images")
    running.add_argument("--ids", type=int, help="training identities, 0: all; default: the preset's")
    running.add_argument("--test-ids", type=int, help="test identities, 0: all; default: the preset's")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--negatives", type=int, default=10, help="pairs of two persons for each query")
    running.add_argument("--moved", type=int, default=500, help="pictures that are moved down")
    running.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all arms")
    running.add_argument("--keep", action="store_true", help="keep checkpoints and weights of finished runs")
    shown = commands.add_parser("table", help="mean, spread and paired bootstrap of what is finished")
    shown.add_argument("--out", type=Path, required=True)
    shown.add_argument("--json", type=Path, help="write the table and all results into one file")
    drawn = commands.add_parser("figure", help="attention of trained networks on rendered people")
    drawn.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of reidfast train")
    drawn.add_argument("--png", type=Path, required=True)
    drawn.add_argument("--pairs", type=int, default=5)
    weighed = commands.add_parser("measure", help="scores and attention of trained networks")
    weighed.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of reidfast train")
    weighed.add_argument("--negatives", type=int, default=10)
    weighed.add_argument("--moved", type=int, default=500)
    weighed.add_argument("--json", type=Path)
    held = commands.add_parser("holdout", help="a split of training identities alone, to choose settings with")
    held.add_argument("--data", default="cuhk03_np_detected")
    held.add_argument("--images")
    held.add_argument("--ids", type=int, default=100)
    held.add_argument("--test-ids", type=int, default=100)
    held.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.command == "measure":
        measure(options)
        return
    if options.command == "holdout":
        data = source(options)
        write_split(options.json, f"{data.name}, training identities", holdout(data, options.ids, options.test_ids, 0))
        print(data.train.root)
        return
    if options.command == "figure":
        figure(options.runs, options.png, options.pairs)
        return
    if options.command == "table":
        found = read(options.out)
        steps = differences(found)
        lines = table(found, steps)
        print("\n".join(lines))
        if options.json:
            runs = [brief(run) for group in found.values() for run in group]
            settings, before = (json.loads((options.out / f"{n}.json").read_text()) for n in ("settings", "before"))
            content = {"settings": settings, "before": before, "table": lines, "steps": steps, "runs": runs}
            with write_whole(options.json) as stream:
                stream.write((json.dumps(content, indent=1) + "\n").encode())
        return
    options.set = [f"--{item.removeprefix('--')}" for item in options.set]
    options.out.mkdir(parents=True, exist_ok=True)
    mine = {n: getattr(options, n) for n in ("preset", "data", "ids", "test_ids", "negatives", "moved", "set")}
    kept = options.out / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != mine:
        raise SystemExit(f"{options.out} holds runs with other settings ({kept}); choose another --out")
    with write_whole(kept) as stream:
        stream.write((json.dumps(mine) + "\n").encode())
    start(options)
    for seed in options.seeds:  # seed by seed, so that a table over all arms is there early
        for arm in options.arms:
            run_arm(arm, seed, options)


if __name__ == "__main__":
    sys.exit(main())
