# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Where a training step of PAUL spends its time: loader, backbone, patches, memory, mining.

python -m benchmarks.paul_step                                      # OSNet x0.25 at 128 x 64, N = 12,936
python -m benchmarks.paul_step --paper --rows 126441 --images 4     # ResNet-50 at 384 x 128, MSMT17's size

The last three are taken beside the released code's way, restated here, in turn in one run: six affine_grid and
grid_sample calls at the map's own size and a mean; a bank that is a list of rows found by the images' names and stacked
on every step, with a full sort; a loop over anchors and candidates.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.entries.memory_loss import SCALE
from benchmarks.entries.memory_loss import paul as sorted_loss
from benchmarks.entries.pool_patches import six_calls_and_mean
from benchmarks.harness import timing
from reidfast.data import SurrogateTransform, TrainTransform, Views, write_synthetic
from reidfast.engine.methods.paul import PatchDataConfig, ViewsDataModule
from reidfast.losses import IPFL, PEDAL
from reidfast.models import create_model
from reidfast.nn import MemoryBank, PatchGenerator
from reidfast.ops import pool_patches

PEER = "the released code's way"
Steps = dict[str, Callable[[], Any]]


def gradients(step: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """A step with its gradients, into fresh tensors."""

    def run() -> Any:
        return torch.autograd.grad(step(*inputs).sum(), inputs)

    return run


def loader(images: int, height: int, width: int, folder: Path) -> Steps:
    """A batch of images and surrogates from the cache of decoded pictures."""
    data = write_synthetic(folder / "people", ids=12, cameras=4, images=4, test=0.0)
    config = PatchDataConfig(height=height, width=width, batch=images)
    batches = itertools.chain.from_iterable(ViewsDataModule(data, config).loader(e) for e in itertools.count())
    views = Views(TrainTransform(height, width, pad=0, erase=0.0), SurrogateTransform(height, width))
    assert len(views.transforms) == 2
    return {"reidfast": lambda: next(batches)}


def backbone(name: str, images: int, height: int, width: int) -> Steps:
    """Forward and backward of the backbone over images and surrogates."""
    model = create_model(name).train()
    x = torch.randn(2 * images, 3, height, width)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> Any:
        return torch.autograd.grad(model.forward_map(x).square().mean(), parameters, allow_unused=True)

    return {"reidfast": run}


def patches(channels: int, views: int, rows: int, columns: int) -> dict[str, Steps]:
    """Where the patches are, and their means; gradients for the map and for the transforms."""
    generator = PatchGenerator(channels)
    features = torch.randn(views, channels, rows, columns).relu().requires_grad_()
    theta = (generator.stripes().expand(views, -1, -1, -1) + 0.02 * torch.randn(views, 6, 2, 3)).requires_grad_()
    generator.requires_grad_(False)
    return {
        "localisation": {"reidfast": gradients(generator.transforms, features)},
        "patches": {
            "reidfast": gradients(pool_patches, features, theta),
            PEER: gradients(six_calls_and_mean, features, theta),
        },
    }


class NamedRows:
    """The released bank: lists of rows and of names; a row is found by its name, taken out and put back."""

    def __init__(self, bank: Tensor) -> None:
        self.names = [f"{i:07d}_c1s1_000000_00.jpg" for i in range(bank.shape[1])]
        self.parts = [list(part) for part in bank]

    def update(self, names: list[str], values: Tensor) -> Tensor:
        """Blend and put back; where the rows are."""
        places = []
        for i, name in enumerate(names):
            for part, value in zip(self.parts, values, strict=True):
                place = self.names.index(name)
                part.insert(place, 0.9 * part.pop(place) + 0.1 * value[i])
            places.append(self.names.index(name))
        return torch.tensor(places)


def memory(rows: int, images: int, dim: int, k: int) -> Steps:
    """Update of the bank, then PEDAL with its gradient."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: normalize(torch.randn(6, n, dim, generator=generator), dim=2)  # noqa: E731
    bank = MemoryBank(rows, dim, parts=6, k=1)
    bank.bank.copy_(draw(rows))
    x, own = draw(images).requires_grad_(), torch.randperm(rows, generator=generator)[:images]
    named, loss = NamedRows(bank.bank), PEDAL(k, SCALE)
    names = [named.names[i] for i in own.tolist()]

    def ours() -> Any:
        bank.update(own, x.detach())
        return torch.autograd.grad(loss(x, bank, own), x)

    def theirs() -> Any:
        places = named.update(names, x.detach())
        return torch.autograd.grad(sorted_loss(x, named.parts, places, k).mean(), x)

    return {"reidfast": ours, PEER: theirs}


def loop(embeddings: Tensor, centres: Tensor, own: list[int], r: int, candidates: int, margin: float) -> Tensor:
    """The released loss: a loop over anchors, and over candidates until one is accepted."""
    losses = []
    for f, u in zip(embeddings, own, strict=True):
        d = (f - centres).square().sum(1).sqrt()
        negative = torch.zeros(())
        order = d.argsort()
        for v in order[order != u][:candidates]:
            if u not in (centres[v] - centres).square().sum(1).sqrt().argsort()[:r]:
                negative = d[v]
                break
        losses.append((margin + d[u] - negative).clamp(min=0))
    return torch.stack(losses).mean()


def mining(images: int, dim: int) -> Steps:
    """IPFL with its gradient, anchors near their centres, some centres near each other."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(max(1, images // 4), dim, generator=generator)[torch.arange(images) % max(1, images // 4)]
    centres = normalize(groups + 0.7 * torch.randn(images, dim, generator=generator), dim=1) * 6**0.5
    own = torch.arange(images).repeat_interleave(2)
    anchors = (centres[own] + 0.02 * torch.randn(2 * images, dim, generator=generator)).requires_grad_()
    loss = IPFL()
    return {
        "reidfast": lambda: torch.autograd.grad(loss(anchors, centres, own), anchors),
        PEER: lambda: torch.autograd.grad(loop(anchors, centres, own.tolist(), 3, 15, 2.0), anchors),
    }


def scaled(times: dict[str, Any], factor: float) -> dict[str, Any]:
    """Times of a part of the batch as those of the whole."""
    whole = {key: value * factor for key, value in times.items() if key.startswith("p")}
    return {**times, **whole, "scaled_by": factor}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paul_step", description=__doc__.split("\n")[0])
    parser.add_argument("--paper", action="store_true", help="ResNet-50 at 384 x 128, d = 256, 42 images")
    parser.add_argument("--rows", type=int, default=12_936, help="N, training images")
    parser.add_argument("--images", type=int, help="in the backbone's batch, where 42 do not fit; scaled to 42")
    parser.add_argument("--skip", nargs="*", default=[], help="parts to leave out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    name, (height, width), channels, dim, images = "osnet_x0_25", (128, 64), 128, 512, 40
    if options.paper:
        name, (height, width), channels, dim, images = "resnet50", (384, 128), 2048, 256, 42
    few = min(options.images or images, images)
    torch.manual_seed(0)
    parts: dict[str, tuple[float, Callable[[], Steps]]] = {
        "backbone": (images / few, lambda: backbone(name, few, height, width)),
        "localisation": (images / few, lambda: patches(channels, 2 * few, height // 16, width // 16)["localisation"]),
        "patches": (images / few, lambda: patches(channels, 2 * few, height // 16, width // 16)["patches"]),
        "memory": (1, lambda: memory(options.rows, images, dim, 10)),
        "mining": (1, lambda: mining(images, 6 * dim)),
    }
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="reidfast-bench-") as folder:
        made = {"loader": (1.0, lambda: loader(images, height, width, Path(folder))), **parts}
        for part, (factor, make) in made.items():
            if part not in options.skip:
                times = timing.measure(make(), rounds=options.rounds, budget=120)
                rows[part] = {k: scaled(t, factor) for k, t in times.items()}
    report = {
        "environment": timing.environment(),
        "sizes": {
            "backbone": name,
            "height": height,
            "width": width,
            "dim": dim,
            "images": images,
            "rows": options.rows,
        },
        "parts": rows,
    }
    total = sum(times["reidfast"]["p50"] for times in rows.values())
    print(
        f"{name} {height}x{width}, {images} images + {images} surrogates, N={options.rows}, d={dim}, load "
        f"{report['environment']['load_1min']}"
    )  # type: ignore[index]
    for part, times in rows.items():
        ours, peer = times["reidfast"]["p50"], times.get(PEER, {}).get("p50")
        beside = f"   {PEER} {1e3 * peer:9.1f} ms   {peer / ours:6.1f}x" if peer else ""
        note = f"   ({few} images, scaled)" if times["reidfast"]["scaled_by"] > 1 else ""
        print(f"{part:<14}{1e3 * ours:9.1f} ms  {100 * ours / total:5.1f} %{beside}{note}")
    print(f"{'step':<14}{1e3 * total:9.1f} ms")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
