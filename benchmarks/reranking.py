# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Re-ranking at full size and evaluation against gallery size: ``python -m benchmarks.reranking [PART ...]``.

Parts, each minutes long: ``market`` (against torchreid's own code: time, peak memory, equality), ``msmt17``
(`rank_reranked` at 11,659 + 82,161), ``jaccard`` (against fast-reid's own faiss-and-dense code), ``real`` (features of
real images, where $REIDFAST_DATA has them) and ``size`` (time and memory up to 10^6 rows, re-ranking up to 10^5). With
--out, parts are written as they finish, and those of an earlier run stay in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import run
from benchmarks.entries import neighbours  # registers what is measured here
from benchmarks.harness import timing
from benchmarks.harness.registry import REGISTRY
from benchmarks.peers import dense_restated
from reidfast.evaluation import rank, rank_distances, rank_reranked, rerank, search
from reidfast.evaluation._core.rerank_variants import VARIANTS
from reidfast.testing import peak_memory
from reidfast.testing.reference import dense_rerank

Part = dict[str, list[dict[str, Any]]]
GIGA = 1e9


def fact(what: str, value: Any, wanted: str = "", met: bool | None = None) -> dict[str, Any]:
    """One line of the table of facts, printed as it is found."""
    verdict = "" if met is None else f"  wanted {wanted}: {'met' if met else 'MISSED'}"
    print(f"{what}: {value}{verdict}", flush=True)
    return {"what": what, "value": value, "wanted": wanted, "met": met}


def entry(name: str, shape: str, ceiling: dict[str, float], rounds: int = 5) -> dict[str, Any]:
    """A row of the registry, measured and printed."""
    row = run.run_entry(REGISTRY[name], shape, "cpu", ceiling, rounds)
    run.print_row(row)
    return row


def features(queries: int, gallery: int, dim: int) -> str:
    """Source that makes q, g and labels in another process and warms up."""
    return f"""
    import numpy
    from benchmarks.entries import neighbours
    from reidfast.evaluation import *
    x, ids, cameras = neighbours.people({queries + gallery}, {dim})
    q, g = x[:{queries}], x[{queries}:]
    labels = ids[:{queries}], ids[{queries}:], cameras[:{queries}], cameras[{queries}:]
    small = q[:64].clone(), g[:256].clone(), [1] * 64, [1] * 256
    rank_reranked(*small), rank(*small), search(*small[:2], 10)
    """


def market(ceiling: dict[str, float]) -> Part:
    """3368 + 15,913 at D = 2048 against torchreid."""
    q, g = 3368, 15913
    rows = [entry("rerank", "market and torchreid", ceiling)]
    setup = features(q, g, 2048)
    with tempfile.TemporaryDirectory() as folder:
        theirs_file = Path(folder) / "theirs.npy"
        call = f"name, step = neighbours.torchreid_rerank(q, g); numpy.save({str(theirs_file)!r}, step())"
        theirs_bytes = peak_memory(setup, call)
        theirs = np.load(theirs_file)
    ours_bytes = peak_memory(setup, 'kept = rerank(q, g, variant="torchreid").dense()')
    x, ids, cameras = neighbours.people(q + g, 2048)
    labels = ids[:q], ids[q:], cameras[:q], cameras[q:]
    ours = rerank(x[:q], x[q:], variant="torchreid").dense().numpy()
    exact = dense_restated.argsort_pattern(x[:q].double(), x[q:].double())
    largest, of_theirs = (float(np.abs(d - exact).max()) for d in (ours, theirs))
    others = float((np.abs(theirs - exact) > 1e-5).mean())
    before = rank(x[:q], x[q:], *labels).mean_ap
    ap = [rank_distances(d, *labels).mean_ap for d in (ours, exact, theirs)]
    share = ours_bytes / theirs_bytes
    return {
        "results": rows,
        "facts": [
            fact("market: peak memory beyond the features, ours with `.dense()`", f"{ours_bytes / GIGA:.3f} GB"),
            fact("market: peak memory beyond the features, torchreid", f"{theirs_bytes / GIGA:.2f} GB"),
            fact("market: ours / torchreid, memory", f"{share:.4f}", "at most 0.1", share <= 0.1),
            fact("market: largest difference from the dense float64 reference", f"{largest:.1e}", "at most 1e-5",
                 largest <= 1e-5),
            fact("market: torchreid's own largest difference from it, in float32", f"{of_theirs:.1e}"),
            fact("market: share of torchreid's distances that are off by more than 1e-5", f"{others:.1e}"),
            fact("market: mAP before re-ranking", f"{before:.6f}"),
            fact("market: mAP of ours, of the reference, of torchreid", ", ".join(f"{a:.7f}" for a in ap),
                 "within 1e-6", max(ap) - min(ap) <= 1e-6),
        ],
    }  # fmt: skip


def msmt17(ceiling: dict[str, float]) -> Part:
    """11,659 + 82,161 through rank_reranked."""
    rows, facts = [], []
    for dim in (512, 2048):
        rows.append(entry("rank_reranked", f"msmt17, D={dim}", ceiling))
        used = peak_memory(features(11659, 82161, dim), "rank_reranked(q, g, *labels)")
        what = f"msmt17, D={dim}: peak memory of `rank_reranked` beyond the features"
        facts.append(fact(what, f"{used / GIGA:.3f} GB", "below 4 GB", used < 4e9))
    return {"results": rows, "facts": facts}


def jaccard(ceiling: dict[str, float]) -> Part:
    """Jaccard graph of Market's and MSMT17's training sets."""
    return {"results": [entry("jaccard_graph", shape, ceiling) for shape in ("market train", "msmt17 train")]}


def real(ceiling: dict[str, float]) -> Part:
    """Scores of real features, and the dense float64 reference beside them."""
    folder = Path(os.environ.get("REIDFAST_DATA", "."))
    file = folder / "features" / "osnet_x0_25_msmt17__market751_holdout.npz"
    if not file.exists():
        print(f"real: left out, no {file}; set REIDFAST_DATA")
        return {}
    with np.load(file, allow_pickle=False) as held:
        names = ("query", "gallery", "query_pid", "gallery_pid", "query_cam", "gallery_cam")
        q, g, *labels = (held[name] for name in names)
    q, g = (x.astype(np.float32) / np.linalg.norm(x.astype(np.float32), axis=1, keepdims=True) for x in (q, g))
    facts = [fact("real features (960 + 3321, OSNet): mAP without re-ranking", f"{rank(q, g, *labels).mean_ap:.6f}")]
    for variant in ("zhong", "torchreid"):
        exact = dense_rerank(q.astype(np.float64), g.astype(np.float64), 20, 6, 0.3, VARIANTS[variant])
        gap = float(np.abs(rerank(q, g, variant=variant).dense() - exact).max())
        ap = rank_reranked(q, g, *labels, variant=variant).mean_ap, rank_distances(exact, *labels).mean_ap
        facts += [
            fact(f"real features: mAP re-ranked ({variant}), ours and dense float64 reference",
                 f"{ap[0]:.7f} and {ap[1]:.7f}", "within 1e-6", abs(ap[0] - ap[1]) <= 1e-6),
            fact(f"real features: largest difference from the dense float64 reference ({variant})", f"{gap:.1e}",
                 "at most 1e-5", gap <= 1e-5),
        ]  # fmt: skip
    return {"facts": facts}


def seconds(step: Callable[[], Any]) -> float:
    """Median of three, of one where that takes long."""
    times = []
    while not times or (len(times) < 3 and sum(times) < 20):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def sizes(ceiling: dict[str, float]) -> Part:
    """Time and peak memory of rank and search at D = 512, 1000 queries; of re-ranking; from shards on disk."""
    queries, dim = 1000, 512
    rows = []

    def add(what: str, gallery: int, time_s: float, product_s: float, memory: int | None) -> None:
        rows.append({"what": what, "gallery": gallery, "dim": dim, "queries": queries, "s": time_s,
                     "product_s": product_s, "bytes": memory})  # fmt: skip
        used = "" if memory is None else f"{memory / 1e6:8.0f} MB"
        print(f"{what:<16} {gallery:>9} rows {time_s:>8.2f} s, product {product_s:>8.2f} s {used}", flush=True)

    for gallery in (10_000, 100_000, 1_000_000):
        x, ids, cameras = neighbours.people(queries + gallery, dim)
        q, g = x[:queries], x[queries:]
        labels = ids[:queries], ids[queries:], cameras[:queries], cameras[queries:]
        out = torch.zeros(queries, 10_000)

        def product(q: torch.Tensor = q, g: torch.Tensor = g, out: torch.Tensor = out) -> None:
            for begin in range(0, len(g), 10_000):
                torch.mm(q, g[begin : begin + 10_000].T, out=out)

        product()
        bare = seconds(product)
        setup = features(queries, gallery, dim)
        add("rank", gallery, seconds(lambda: rank(q, g, *labels)), bare,  # noqa: B023
            peak_memory(setup, "rank(q, g, *labels)"))  # fmt: skip
        add("search k=10", gallery, seconds(lambda: search(q, g, 10)), bare,  # noqa: B023
            peak_memory(setup, "search(q, g, 10)"))  # fmt: skip
        if gallery == 1_000_000:
            with tempfile.TemporaryDirectory() as folder:
                files = [str(Path(folder) / f"{i}.npy") for i in range(4)]
                for i, file in enumerate(files):
                    np.save(file, g[i * 250_000 : (i + 1) * 250_000].numpy())
                add("rank, 4 shards", gallery, seconds(lambda: rank(q, files, *labels)), bare, None)  # noqa: B023
    for gallery in (10_000, 30_000, 100_000):
        x, ids, cameras = neighbours.people(queries + gallery, dim)
        q, g = x[:queries], x[queries:]
        labels = ids[:queries], ids[queries:], cameras[:queries], cameras[queries:]
        bare = seconds(neighbours.half_product(x))
        ours = seconds(lambda: rank_reranked(q, g, *labels))  # noqa: B023
        add("rank_reranked", gallery, ours, bare,
            peak_memory(features(queries, gallery, dim), "rank_reranked(q, g, *labels)"))  # fmt: skip
    return {"scale": rows}


PARTS: dict[str, Callable[[dict[str, float]], Part]] = {
    "market": market, "msmt17": msmt17, "jaccard": jaccard, "real": real, "size": sizes,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reranking", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, help="JSON file to write, part by part")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    environment, ceiling = timing.environment(), timing.ceilings()
    print(json.dumps(environment | ceiling))
    parts = json.loads(args.out.read_text())["parts"] if args.out and args.out.exists() else {}
    for name in args.parts or list(PARTS):
        found = PARTS[name](ceiling)
        if not found:
            continue
        parts[name] = {"environment": environment, **found}
        if args.out:
            report = {
                "environment": environment,
                "ceilings": ceiling,
                "parts": {n: parts[n] for n in PARTS if n in parts},
            }
            partial = args.out.with_suffix(".partial")
            partial.write_text(json.dumps(report, indent=1) + "\n")
            partial.replace(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
