# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Video evaluation at MARS's size, and a training step of QAN on sets of different sizes.

python -m benchmarks.run video_rank video_pool qan_step    times
python -m benchmarks.entries.video --out FILE               peak memory of the evaluation
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import peers
from benchmarks.harness.registry import register
from reidfast import ops
from reidfast.evaluation import rank
from reidfast.losses import SetTripletLoss
from reidfast.models import create_model

# MARS: 12,180 test tracklets (870 junk, 3,248 distractors, 634 persons), 1,980 of them queries, 681,089 frames.
MARS = {"gallery": 12180, "queries": 1980, "ids": 634, "junk": 870, "distractors": 3248, "cameras": 6}
RANK_SHAPES = {
    "mars": {**MARS, "dim": 2048},
    "quick": {"gallery": 2000, "queries": 300, "ids": 100, "junk": 100, "distractors": 500, "cameras": 6, "dim": 512},
    "tiny": {"gallery": 40, "queries": 5, "ids": 6, "junk": 2, "distractors": 6, "cameras": 3, "dim": 8},
}
POOL_SHAPES = {
    "mars tenth": {"sets": 1218, "mean": 55.9, "dim": 2048},
    "quick": {"sets": 200, "mean": 20.0, "dim": 512},
    "tiny": {"sets": 4, "mean": 3.0, "dim": 8},
}
# 8 triplets of sets of 2 to 16 frames; OSNet x0.25 at the pictures' native size.
STEP_SHAPES = {
    "8 triplets": {"triplets": 8, "most": 16, "height": 128, "width": 64},
    "tiny": {"triplets": 1, "most": 3, "height": 64, "width": 32},
}


def labels(shape):
    """Identity and camera of every gallery tracklet, and which of them are queries."""
    rng = np.random.default_rng(0)
    n, special = shape["gallery"], shape["junk"] + shape["distractors"]
    pids = rng.integers(1, shape["ids"] + 1, n)
    pids[: shape["junk"]] = -1
    pids[shape["junk"] : special] = 0
    camids = rng.integers(1, shape["cameras"] + 1, n)
    query = np.sort(rng.permutation(np.arange(special, n))[: shape["queries"]])
    return pids, camids, query


def rank_steps(shape, device):
    pids, camids, query = labels(shape)
    g = torch.randn(shape["gallery"], shape["dim"], generator=torch.Generator().manual_seed(0)).to(device)
    q = g[torch.from_numpy(query).to(device)]
    given = pids[query], pids, camids[query], camids
    out = torch.empty(len(q), len(g), device=device)

    def peer():
        x, y = torch.nn.functional.normalize(q), torch.nn.functional.normalize(g)
        distances = (1 - x @ y.T).cpu().numpy()
        keep = pids != -1  # torchreid's reader leaves junk out
        return peers.torchreid_cython().market1501(
            np.ascontiguousarray(distances[:, keep]), pids[query], pids[keep], camids[query], camids[keep], 50
        )

    return {
        "reidfast": lambda: rank(q, g, *given, protocol="mars"),
        "q @ g.T and torchreid cython (restated)": peer,
        "q @ g.T alone": lambda: torch.mm(q, g.T, out=out),
    }


def lengths(shape):
    """Track lengths as MARS's: from 2, mean 55.9, a long tail."""
    rng = np.random.default_rng(1)
    return 2 + np.minimum(rng.exponential(shape["mean"] - 2, shape["sets"]), 918).astype(np.int64)


def pool_steps(shape, device):
    sizes = lengths(shape)
    offsets = torch.from_numpy(np.r_[0, np.cumsum(sizes)]).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(int(sizes.sum()), shape["dim"], generator=generator).to(device)
    z = torch.randn(len(x), generator=generator).to(device)
    sets = torch.repeat_interleave(torch.arange(len(sizes), device=device), offsets.diff())
    cuts = sizes.tolist()

    def loop():  # torchreid, Video-Person-ReID: one tracklet at a time
        rows = []
        for part, scores in zip(x.split(cuts), z.split(cuts), strict=True):
            weight = scores.sigmoid()
            rows.append((weight.unsqueeze(1) * part).sum(0) / weight.sum())
        return torch.stack(rows)

    def index_add():
        weight = z.sigmoid()
        total = torch.zeros(len(cuts), device=device).index_add_(0, sets, weight)
        out = torch.zeros(len(cuts), x.shape[1], device=device)
        return out.index_add_(0, sets, (weight / total[sets]).unsqueeze(1) * x)

    return {
        "reidfast": lambda: ops.set_pool(x, z, offsets, weighting="sigmoid"),
        "a tracklet at a time": loop,
        "eager index_add": index_add,
    }


register(
    name="video_rank",
    shapes=RANK_SHAPES,
    providers=rank_steps,
    bytes=lambda s: 4 * s["gallery"] * s["dim"],
    flops=lambda s: 2 * s["queries"] * s["gallery"] * s["dim"],
    mode="forward",
    tests="tests/engine/test_sets.py",
    quick=("quick",),
)
register(
    name="video_pool",
    shapes=POOL_SHAPES,
    providers=pool_steps,
    bytes=lambda s: 4 * s["sets"] * s["mean"] * s["dim"],
    flops=lambda s: 2 * s["sets"] * s["mean"] * s["dim"],
    mode="forward",
    tests="tests/engine/test_sets.py",
    quick=("quick",),
)


def step_steps(shape, device):
    torch.manual_seed(0)
    size = (shape["height"], shape["width"])
    model = create_model("qan", backbone="osnet_x0_25", num_classes=100, size=size).to(device)
    sizes = np.random.default_rng(0).integers(2, shape["most"] + 1, 3 * shape["triplets"])
    cuts, longest = sizes.tolist(), int(sizes.max())
    offsets = torch.from_numpy(np.r_[0, np.cumsum(sizes)]).to(device)
    images = torch.randn(int(sizes.sum()), 3, *size).to(device)
    frame_labels = torch.randint(100, (len(images),)).to(device)
    padded = torch.zeros(len(sizes), longest, 3, *size, device=device)
    mask = torch.zeros(len(sizes), longest, device=device)
    for row, (part, n) in enumerate(zip(images.split(cuts), cuts, strict=True)):
        padded[row, :n], mask[row, :n] = part, 1
    triplet = SetTripletLoss(1.2)

    def finish(sets, logits):
        loss = torch.nn.functional.cross_entropy(logits, frame_labels) + triplet(sets[0::3], sets[1::3], sets[2::3])
        model.zero_grad()
        loss.backward()

    def ours():
        out = model(images, offsets)
        finish(out.sets, out.logits)

    def padding():
        features, scores = model.encode_frames(padded.flatten(0, 1))
        weight = scores.view(mask.shape).sigmoid() * mask
        weight = weight / weight.sum(1, keepdim=True)
        sets = torch.bmm(weight.unsqueeze(1), features.view(*mask.shape, -1)).squeeze(1)
        logits = model.classifier(features[mask.flatten() > 0])
        finish(torch.nn.functional.normalize(sets, dim=1), logits)

    def one_by_one():
        features, scores = model.encode_frames(images)
        sets = []
        for x, z in zip(features.split(cuts), scores[:, 0].split(cuts), strict=True):
            weight = z.sigmoid()
            sets.append((weight.unsqueeze(1) * x).sum(0) / weight.sum())
        finish(torch.nn.functional.normalize(torch.stack(sets), dim=1), model.classifier(features))

    return {"reidfast": ours, "padded to the longest set": padding, "pooled a set at a time": one_by_one}


register(
    name="qan_step",
    shapes=STEP_SHAPES,
    providers=step_steps,
    bytes=lambda s: 4 * 3 * s["triplets"] * s["most"] / 2 * 3 * s["height"] * s["width"],
    # OSNet x0.25 has 82 MFLOP of multiply-adds at 256 x 128; forward and backward are three times that
    flops=lambda s: 3 * s["triplets"] * s["most"] / 2 * 6 * 82e6 * s["height"] * s["width"] / (256 * 128),
    mode="forward+backward",
    tests="tests/models/test_qan.py",
    quick=("tiny",),
)


def memory() -> dict[str, int]:
    """Peak memory beyond the features, in bytes, of every way to pool and to rank at the largest size."""
    from reidfast.testing import peak_memory

    used = {}
    for function, shapes, shape in (("rank_steps", "RANK_SHAPES", "mars"), ("pool_steps", "POOL_SHAPES", "mars tenth")):
        for name in globals()[function](globals()[shapes]["tiny"], "cpu"):
            setup = f"""
            from benchmarks.entries import video
            video.{function}(video.{shapes}["tiny"], "cpu")[{name!r}]()
            step = video.{function}(video.{shapes}[{shape!r}], "cpu")[{name!r}]
            """
            used[f"{function.split('_')[0]} {shape}, {name}"] = found = peak_memory(setup, "kept = step()")
            print(f"{shape:<12} {name:<42} {found / 2**20:8.0f} MiB", flush=True)
    return used


if __name__ == "__main__":
    import argparse
    import json
    from pathlib import Path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    target = parser.parse_args().out
    content = {"command": f"python -m benchmarks.entries.video --out {target}", "peak memory, bytes": memory()}
    target.write_text(json.dumps(content, indent=1) + "\n")
