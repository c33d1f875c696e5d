# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the attention of a trained CASN is like, on identities that it has not seen.

Distances alone say little, for a network whose maps are all alike has small ones. So for every query its distances to
all pictures of the same person by another camera are compared with those to drawn pictures of others: `closer` is the
share of these comparisons that the positive pair wins (0.5 is chance; it does not change with the scale of the
distances), `relative` the mean gap over the mean distance. Besides: whether the profile follows a picture that is moved
down by a known number of rows, and on rendered people, whose masks are known, the share of attention on the person.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from reidfast.data import EvalTransform, ImageCache, ImageDataset, Records, ReidData, World, decode
from reidfast.data.images import normalize, resize, to_float
from reidfast.losses import ConsistencyLoss
from reidfast.losses.consistency import row_profile
from reidfast.models import CASN

KINDS = ("pair", "identity", "feature")


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
    by_attention: dict[str, Any] = {}
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
        by_attention[name] = d.masked_fill(constant[0][pairs.query] | constant[1][pairs.gallery], torch.nan).numpy()

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
    by_attention["pair"] = torch.cat(distances).numpy()
    agree = classes[0].cpu()[pairs.query] == classes[1].cpu()[pairs.gallery]
    extra = {
        "indicator": float(torch.cat(shares).mean()),
        "same_class_positive": float(agree[pairs.same].float().mean()),
        "same_class_negative": float(agree[~pairs.same].float().mean()),
    }
    return by_attention, extra


def by_query(distances: Any, pairs: DrawnPairs) -> dict[str, list[float]]:
    """Of each query its mean positive and negative distance, and the share of comparisons that the positive wins.

    A comparison is one positive and one negative pair of the query; equal ones count half. NaN: nothing to compare.
    """
    rows: dict[str, list[float]] = {"positive": [], "negative": [], "closer": []}
    cuts = np.flatnonzero(np.diff(pairs.query)) + 1
    for d, same in zip(np.split(distances, cuts), np.split(pairs.same, cuts), strict=True):
        valid = np.isfinite(d)
        p, n = d[same & valid], d[~same & valid]
        values = [np.nan] * 3
        if len(p) and len(n):
            values = [p.mean(), n.mean(), (p[:, None] < n).mean() + 0.5 * (p[:, None] == n).mean()]
        for column, value in zip(rows.values(), values, strict=True):
            column.append(round(float(value), 5))
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
    distances, result = pair_distances(model, pairs, query, gallery, device)
    result["pids"] = [int(p) for p in data.query.pids[np.unique(pairs.query)]]
    for name, d in distances.items():
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


def rendered(shots: Any, size: tuple[int, int]) -> Tensor:
    """Rendered people as a network's input."""
    return torch.stack([normalize(to_float(resize(Image.fromarray(s.image), *size))) for s in shots])


def mass_on_person(model: CASN, size: tuple[int, int], count: int, device: str) -> dict[str, float]:
    """Share of the identity attention that lies on rendered persons, beside the share of the picture they fill."""
    world = World(seed=11, difficulty=0.5, height=size[0], width=size[1])
    shots = [world.render(1 + i % 40, 1 + i % 6, i // 40) for i in range(count)]
    images = rendered(shots, size)
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
