# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""Every op once, small, forward and backward: what compute-sanitizer looks at. ``python tests/gpu/small_cases.py``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ops")]

import torch  # noqa: E402
from cases import CASES, Case, forward_backward  # noqa: E402

from reidfast.evaluation import jaccard_graph, rank, rank_distances, rerank, search  # noqa: E402


def evaluation(device: str) -> None:
    """Every kernel of evaluation and re-ranking."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(190, 70, generator=generator).to(device)
    ids, cameras = torch.arange(190) % 23, torch.arange(190) % 5
    labels = (ids[:60], ids[60:], cameras[:60], cameras[60:])
    for precision in ("float32", "tf32x3", "certified", "bf16") if device == "cuda" else ("float32",):
        rank(x[:60], x[60:], *labels, precision=precision)
        print(f"ran: rank in {precision}", flush=True)
    rank_distances(torch.cdist(x[:60], x[60:]), *labels)
    search(x[:60], x[60:], 9)
    for variant in ("zhong", "fastreid"):
        rerank(x[:60], x[60:], k1=9, k2=3, variant=variant).dense()
    jaccard_graph(x, k1=9, k2=3)
    print("ran: the rest of evaluation", flush=True)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, make in CASES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for sizes in ("even", "odd"):
                results = forward_backward(*make(Case(dtype, device, sizes)))
                assert results, name
        print(f"ran: {name}", flush=True)
    evaluation(device)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CASES)} ops ran on {device}")


if __name__ == "__main__":
    main()
