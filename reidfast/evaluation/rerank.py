# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""k-reciprocal re-ranking in memory linear in the number of items."""

from __future__ import annotations

from typing import Any

from reidfast._shards import agreement, raise_everywhere, shards_of
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.rerank_variants import RerankVariant, resolve_variant
from reidfast.evaluation._core.reranking import (
    Reranked,
    RerankSettings,
    agree_on,
    check_ks,
    check_lambda,
    rerank_features,
)

__all__ = ["Reranked", "rerank"]


def rerank(
    query: Any,
    gallery: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
    metric: str | None = None,
    group: Any = None,
) -> Reranked:
    """k-reciprocal re-ranking of features, without a matrix of all pairs.

    With D(i, j) = b(i, j)^power over all Q + G items, Dn(i, j) = D(i, j) / max_l D(i, l) and N(i, k) the k nearest:

        R(i, k)  = { j in N(i, k) : i in N(j, k) },  k = k1 + extra
        R*(i)    = R(i, k) joined with every H(j) = R(j, half), j in R(i, k), of which |H(j) & R(i, k)| > 2/3 |H(j)|
        V(i, j)  = exp(-Dn(i, j)) for j in R*(i), else 0, rows divided by their sum
        V'(i)    = mean of V over the k2 nearest of i
        J(i, j)  = 1 - m / (2 - m),  m = sum_l min(V'(i, l), V'(j, l))
        final    = (1 - lambda_) J + lambda_ Dn

    Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    `RerankVariant` says by formula where the published codes differ; ``docs/reranking.md`` compares them.

    Args:
        query: Features (Q, D), torch, numpy or cupy, float16 to float64 (computed in float32), files or shards.
        gallery: Features (G, D).
        k1: Neighbours considered.
        k2: Neighbours averaged in the local query expansion; 1 turns it off.
        lambda_: Weight of the original distance.
        variant: "zhong", "torchreid", "fastreid", "transreid", "openunreid" or a `RerankVariant`.
        metric: "sqeuclidean" (also "euclidean"; every code re-ranks squared distances) or "cosine"; None = the
            variant's own: cosine for "fastreid", else squared Euclidean.
        group: torch.distributed process group over which the gallery is sharded, as in `rank`. Every gallery row is
            compared with every other, so the features travel to all processes; the product is shared out.

    Returns:
        Reranked: the sparse parts, and ``.dense()``.

    Raises:
        ValueError: shapes that do not fit, an empty gallery, a row that is not finite, k1 or k2 below 1, lambda_
            outside [0, 1], unknown variant or metric.
        TypeError: features that are not floating point.

    Notes:
        An item is its own nearest neighbour; other ties go to the lowest item, queries before gallery. Neighbours whose
        order float32 cannot tell are compared in float64, so that rounding does not decide who is a neighbour. Lists
        shorter than k1 (few items) are used as they are. The result does not depend on the number of threads.
        Cost: half of the symmetric product (Q+G)^2 D, then O((Q+G) k1^2). Memory beside the features and the result:
        12 bytes x (Q + G) x k1, the sparse rows, 48 MB of tiles at D = 2048, and base distances (Q, G) where they take
        no more than 256 MB (the first ``.dense()`` writes over them); larger ones are made again for final distances.

    Example:
        >>> import torch
        >>> x = torch.eye(4).repeat(3, 1)
        >>> rerank(x[:4], x[4:], k1=2, k2=1).dense().argmin(1).tolist()
        [0, 1, 2, 3]
    """
    op = "rerank"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        lambda_ = check_lambda(op, lambda_)
        options = resolve_variant(op, variant, metric)
        k1, k2 = check_ks(op, k1, k2)
        features = FeaturePair.read(op, query, gallery, shards)
        features.agree_on(facts)
        agree_on(facts, options, k1, k2, lambda_=lambda_, backend=plan.serving(features.device.type))
    with raise_everywhere(shards):
        backends = plan.choose(op, features.device)
        x, y = features.query.matrix(), features.gallery.matrix().to(features.device)
    y = shards.concatenate(y)
    settings = RerankSettings.of(options, k1, k2, len(x) + len(y))
    return rerank_features(op, shards, backends, x, y, settings, lambda_, query)
