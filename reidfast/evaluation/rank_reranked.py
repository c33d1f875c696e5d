# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""`rank` on re-ranked distances, some queries at a time."""

from __future__ import annotations

from typing import Any

import torch

from reidfast._shards import LocalShards, agreement, raise_everywhere, shards_of
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.labels import Labels, read_labels
from reidfast.evaluation._core.matrix import count_matrix
from reidfast.evaluation._core.metrics import PROTOCOLS, Counted, Ranking, score
from reidfast.evaluation._core.options import PRECISIONS, ap_rule, check_choice, check_count
from reidfast.evaluation._core.pairs import find_pairs, need_matches
from reidfast.evaluation._core.rerank_variants import RerankVariant, resolve_variant
from reidfast.evaluation._core.reranking import RerankSettings, agree_on, check_ks, check_lambda, rerank_features
from reidfast.evaluation._core.single_shot import SingleShot

_BLOCK_BYTES = 128 << 20  # final distances made at a time


def rank_reranked(
    query: Any,
    gallery: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    variant: str | RerankVariant = "zhong",
    metric: str | None = None,
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    precision: str = "float32",
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate re-ranked features: CMC, average precision and INP, without an array of all queries and gallery rows.

    Exactly ``rank_distances(rerank(query, gallery, ...).dense(), ...)``, ties included: the final distances that
    ``.dense()`` shows are made for some queries at a time, compared, and dropped.

    Args:
        query: As in `rerank`.
        gallery: As in `rerank`.
        query_pids: As in `rank`.
        gallery_pids: As in `rank`.
        query_camids: As in `rank`.
        gallery_camids: As in `rank`.
        k1: As in `rerank`.
        k2: As in `rerank`.
        lambda_: As in `rerank`; 0 compares Jaccard distances alone, with all that share nothing tied at 1.
        variant: As in `rerank`.
        metric: As in `rerank`: None is the variant's own, squared Euclidean for all but "fastreid".
        protocol: As in `rank`.
        average_precision: As in `rank`.
        max_rank: As in `rank`.
        precision: "float32" only.
        validate: Look for NaN and inf in CUDA features beforehand.
        group: As in `rerank`; the counting is shared out over queries.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError, TypeError: as `rank` and `rerank`.
        NotImplementedError: precision other than float32.

    Notes:
        Memory beside the features: that of `rerank`, and 128 MB of final distances at a time.
    """
    op = "rank_reranked"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        rule = ap_rule(op, protocol, average_precision)
        check_choice(op, "precision", precision, PRECISIONS)
        max_rank = check_count(op, "max_rank", max_rank)
        if precision != "float32":
            raise NotImplementedError(f"{op}: precision {precision!r} is not served; use precision='float32'")
        lambda_ = check_lambda(op, lambda_)
        options = resolve_variant(op, variant, metric)
        k1, k2 = check_ks(op, k1, k2)
        features = FeaturePair.read(op, query, gallery, shards)
        labels = read_labels(
            op, features.query.n, features.gallery.n, query_pids, gallery_pids, query_camids, gallery_camids
        )
        if validate:
            features.query.validate(op)
            features.gallery.validate(op)
        features.agree_on(facts)
        labels.agree_on(facts)
        facts.add(protocol=protocol, average_precision=rule, max_rank=max_rank)
        agree_on(facts, options, k1, k2, lambda_=lambda_, backend=plan.serving(features.device.type))
    camids = None if labels.gallery_camids is None else shards.concatenate(labels.gallery_camids)
    labels = Labels(labels.query_pids, shards.concatenate(labels.gallery_pids), labels.query_camids, camids)
    with raise_everywhere(shards):
        backends = plan.choose(op, features.device)
        need_matches(op, labels, find_pairs(labels, backends.host), LocalShards())
        x, y = features.query.matrix(), features.gallery.matrix().to(features.device)
    y = shards.concatenate(y)
    settings = RerankSettings.of(options, k1, k2, len(x) + len(y))
    reranked = rerank_features(op, shards, backends, x, y, settings, lambda_, query)
    # Every process counts in whole rows of final distances, for its share of the queries.
    solo, single_shot = LocalShards(), PROTOCOLS[protocol].single_shot
    none = torch.empty(0, dtype=torch.int64)
    parts = [Counted(none, torch.empty(0), none, none, none)]
    curves = torch.zeros(len(x) if single_shot else 0, max_rank, dtype=torch.float64)
    step = max(128, _BLOCK_BYTES // (4 * max(1, len(y))) // 128 * 128)
    with raise_everywhere(shards):
        for begin in range(shards.index * step, len(x), shards.count * step):
            end = min(len(x), begin + step)
            d, own = reranked.dense_rows(begin, end), labels.of_queries(begin, end)
            pairs = find_pairs(own, backends.host)
            thresholds, counts = count_matrix(op, d, own, pairs, solo, backends)
            parts.append(Counted(thresholds.query + begin, thresholds.distance, *counts))
            if single_shot:
                curves[begin:end] = SingleShot(own, pairs, thresholds, solo, backends, max_rank).of_matrix(d)
    fields = [shards.concatenate(torch.cat(field)) for field in zip(*parts, strict=True)]
    order = fields[0].argsort(stable=True)  # a query is counted by one process, in one run
    counted = Counted(*(field[order] for field in fields))
    return score(len(x), counted, rule, max_rank, shards.add(curves) if single_shot else None)
