# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""What the published k-reciprocal re-rankings do differently, as options with one preset per code base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["VARIANTS", "RerankVariant", "half_neighbours", "resolve_variant"]


@dataclass(frozen=True)
class RerankVariant:
    """One published form of k-reciprocal re-ranking.

    With b(i, j) the base distance, m_i = max_j b(i, j)^power and Dn(i, j) = b(i, j)^power / m_i:

        neighbours of i    the k1 + extra nearest items, i itself included
        weight of j in i   exp(-Dn(i, j)) (weight="normalised") or exp(-||x_i - x_j||^2) (weight="raw"), made to sum 1
        final distance     (1 - lambda) J + lambda Dn(q, g) (blend="normalised") or ... + lambda b(q, g) (blend="raw")

    Attributes:
        metric: Base distance: "sqeuclidean" = ||x - y||^2, or "cosine" = 1 - cos. The caller's `metric` overrides it.
        power: 1, or 2 where the code squares a distance that it was given (already squared Euclidean in torchreid).
        extra: 1 = the k1 + 1 nearest (argsort codes), 0 = k1 nearest (faiss codes).
        weight: "normalised" or "raw"; raw is softmax(-||x - y||^2), on unit features where the metric is cosine.
        blend: "normalised" or "raw": what lambda multiplies.
        half: Size of the small neighbourhoods: "numpy" = round-half-even(k1 / 2) + 1, "matlab" = round((k1 + 1) / 2).
        storage: "float32", or "float16": weights, sums of minima and Jaccard distances rounded to half after each step.
    """

    metric: Literal["sqeuclidean", "cosine"] = "sqeuclidean"
    power: Literal[1, 2] = 1
    extra: Literal[0, 1] = 1
    weight: Literal["normalised", "raw"] = "normalised"
    blend: Literal["normalised", "raw"] = "normalised"
    half: Literal["numpy", "matlab"] = "numpy"
    storage: Literal["float32", "float16"] = "float32"


VARIANTS: dict[str, RerankVariant] = {
    # Zhong et al., CVPR 2017, and the authors' python code on squared Euclidean distances.
    "zhong": RerankVariant(),
    # torchreid.utils.re_ranking, fastreid.evaluation.rerank, openunreid's re_ranking_cpu: square what they are given.
    "torchreid": RerankVariant(power=2),
    # fast-reid's evaluator: Jaccard part over k1 faiss neighbours, blended with the unnormalised test distance.
    "fastreid": RerankVariant(metric="cosine", extra=0, weight="raw", blend="raw"),
    # TransReID, CLIP-ReID, SOLIDER and the strong baseline: weights and Jaccard distances in float16.
    "transreid": RerankVariant(storage="float16"),
    # OpenUnReID, SpCL, cluster-contrast: Jaccard distances for clustering; lambda_=0 gives them alone.
    "openunreid": RerankVariant(extra=0, weight="raw", blend="raw"),
}


def resolve_variant(op: str, variant: str | RerankVariant, metric: str | None) -> RerankVariant:
    """The options of a name, with the metric that the caller asked for."""
    if isinstance(variant, str):
        if variant not in VARIANTS:
            raise ValueError(f"{op}: expected variant one of {sorted(VARIANTS)} or a RerankVariant, got {variant!r}")
        variant = VARIANTS[variant]
    elif not isinstance(variant, RerankVariant):
        raise TypeError(f"{op}: expected variant as a str or RerankVariant, got {type(variant).__name__}")
    if metric is None:
        return variant
    if metric in ("euclidean", "sqeuclidean"):  # every code base re-ranks squared Euclidean distances
        return replace(variant, metric="sqeuclidean")
    if metric == "cosine":
        return replace(variant, metric="cosine")
    raise ValueError(f"{op}: expected metric 'cosine', 'euclidean' or 'sqeuclidean', got {metric!r}")


def half_neighbours(variant: RerankVariant, k1: int) -> int:
    """How many entries of the ranked list (itself included) make the small neighbourhood of an item."""
    if variant.half == "matlab":
        return (k1 + 2) // 2  # round((k1 + 1) / 2), halves away from zero
    return round(k1 / 2) + 1
