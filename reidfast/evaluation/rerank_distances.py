# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""k-reciprocal re-ranking of base distances that are there already."""

from __future__ import annotations

from typing import Any

from reidfast.evaluation._core.features import read_features
from reidfast.evaluation._core.plan import Plan, host_backend
from reidfast.evaluation._core.rerank_variants import RerankVariant, resolve_variant
from reidfast.evaluation._core.reranking import Reranked, RerankSettings, check_ks, check_lambda, jaccard_arrays


def rerank_distances(
    q_g: Any,
    q_q: Any,
    g_g: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
) -> Reranked:
    """k-reciprocal re-ranking of base distances that are already there: (Q, G), (Q, Q) and (G, G).

    The matrices are read once and never copied (float32, contiguous) or concatenated. Item i is described by column i
    of [[q_q, q_g], [q_g^T, g_g]], as in the published codes; all ties go to the lowest item, itself included. For
    "zhong" the distances are squared Euclidean ones. See `rerank`.
    """
    op = "rerank_distances"
    lambda_ = check_lambda(op, lambda_)
    options = resolve_variant(op, variant, None)
    k1, k2 = check_ks(op, k1, k2)
    qg, qq, gg = (read_features(op, n, x).matrix().cpu() for n, x in (("q_g", q_g), ("q_q", q_q), ("g_g", g_g)))
    if qq.shape != (len(qg), len(qg)) or gg.shape != (qg.shape[1], qg.shape[1]):
        raise ValueError(
            f"{op}: expected q_q (Q, Q) and g_g (G, G) to match q_g {tuple(qg.shape)}, "
            f"got {tuple(qq.shape)} and {tuple(gg.shape)}"
        )
    host = host_backend(op)
    n, settings = len(qg), RerankSettings.of(options, k1, k2, len(qg) + len(gg))
    lists = host.neighbours_from_distances(qg, qq, gg, settings.list_size, settings.square)
    weights = host.encode(lists, None, (qg, qq, gg), settings.set_options)
    backends = Plan(host, host)
    jaccard = jaccard_arrays(backends, weights, n, n, settings)
    largest = lists.largest[:n].numpy().copy()
    return Reranked(*jaccard, largest, lambda_, options, backends, qg[:, :0], gg[:, :0], q_g, qg)
