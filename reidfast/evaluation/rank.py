# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""CMC, mean average precision and mean INP by counting: nothing is sorted, no Q x G array is made."""

from __future__ import annotations

from typing import Any

from reidfast._shards import agreement, raise_everywhere, shards_of
from reidfast.evaluation._core import plan
from reidfast.evaluation._core.features import FeaturePair
from reidfast.evaluation._core.labels import read_labels
from reidfast.evaluation._core.metrics import PROTOCOLS, Counted, Ranking, score
from reidfast.evaluation._core.options import PRECISIONS, ap_rule, check_choice, check_count
from reidfast.evaluation._core.pairs import find_pairs, need_matches
from reidfast.evaluation._core.single_shot import SingleShot
from reidfast.evaluation._core.thresholds import Thresholds


def rank(
    query: Any,
    gallery: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    metric: str = "cosine",
    protocol: str = "market1501",
    average_precision: str | None = None,
    max_rank: int = 50,
    precision: str = "float32",
    validate: bool = False,
    group: Any = None,
) -> Ranking:
    """Evaluate features: CMC, average precision and INP of every query, without a Q x G array and without sorting.

        rank of the k-th true match = k + number of valid non-matches before it

    Non-matches are counted in tiles of distances as torch's BLAS makes them. Definitions: docs/evaluation.md.

    Args:
        query: Features (Q, D): torch tensor, numpy or cupy array, numpy.memmap, path of a .npy or .safetensors file, or
            a list of those (shards along Q). float16, bfloat16, float32 or float64.
        gallery: Features (G, D), likewise; on the query's device, or in files.
        query_pids: Identity of each query (Q,), integers; -1 is an error.
        gallery_pids: Identity of each gallery row (G,), integers. -1 is junk and counts for nobody; 0 is an identity
            like any other (Market-1501's distractors simply match no query).
        query_camids: Camera of each query (Q,). With both camera arrays, gallery rows of the query's own identity and
            camera are left out; with neither that rule is off.
        gallery_camids: Camera of each gallery row (G,).
        metric: "cosine" 1 - q.g/(|q||g|), a zero vector has distance 1; "euclidean" |q - g|; "sqeuclidean" |q - g|^2;
            "dot" -q.g.
        protocol: "market1501" (also Duke, MSMT17, CUHK03-NP); "cuhk03": CMC when one gallery image per identity is
            drawn at random, in expectation; "mars": the official rule, gallery with the query tracklets in it,
            trapezoidal AP; "mars_torchreid": gallery without them, AP by steps.
        average_precision: "step", "trapezoid" or "sklearn" (docs/evaluation.md); None takes the protocol's own.
        max_rank: Length of the CMC curve.
        precision: "float32"; on GPUs also "tf32x3" (float32 operands as two TensorFloat-32 halves each), "bf16"
            (features rounded to bfloat16 first), and "certified": a TensorFloat-32 pass with an error bound, after
            which the float32 routine decides the pairs that are too close to call, so that the ranks are those of
            "float32".
        validate: Look for NaN and inf in CUDA features beforehand, which synchronises. On the CPU that is always looked
            for.
        group: torch.distributed process group over which the gallery is sharded: every process passes the same queries
            and options and its own shard of the gallery, and gets the whole result, bit for bit that of one process
            that holds the shards in the order of their processes.

    Returns:
        Ranking, numpy on the host.

    Raises:
        ValueError: shapes do not fit, a feature is NaN or inf, no query has a match, or the processes of ``group`` do
            not agree.
        TypeError: features are not floating point, or labels not integer.
        NotImplementedError: ``precision`` is not served on this device, for float64, or with protocol "cuhk03".

    Notes:
        Ties: by gallery index; ``bounds`` says how much that can matter.
        Float32 distances (float64 where either side is). Half types are widened, never accumulated in.
        Memory beside the features: O(Q P) for P matches a query, and tiles of some 60 MB at D = 2048.
        Deterministic; the same bits for every number of threads and every split of the gallery.

    Example:
        >>> import numpy as np
        >>> features = np.eye(3, dtype=np.float32)
        >>> rank(features, features[[0, 2, 1]], [1, 2, 3], [1, 3, 2]).mean_ap
        1.0
    """
    op = "rank"
    shards = shards_of(op, group)
    with agreement(op, shards) as facts:
        rule = ap_rule(op, protocol, average_precision)
        check_choice(op, "precision", precision, PRECISIONS)
        max_rank = check_count(op, "max_rank", max_rank)
        features = FeaturePair.read(op, query, gallery, shards, metric)
        labels = read_labels(
            op, features.query.n, features.gallery.n, query_pids, gallery_pids, query_camids, gallery_camids
        )
        if validate:
            features.query.validate(op)
            features.gallery.validate(op)
        features.agree_on(facts)
        labels.agree_on(facts)
        facts.add(
            protocol=protocol,
            average_precision=rule,
            max_rank=max_rank,
            precision=precision,
            backend=plan.serving(features.device.type),
        )
    features.settle_dtype(shards)
    with raise_everywhere(shards):
        backends = plan.choose(op, features.device, wide=features.wide, precision=precision)
        if precision != "float32" and PROTOCOLS[protocol].single_shot:
            raise NotImplementedError(
                f"{op}: protocol {protocol!r} needs whole rows of distances, which precision {precision!r} does not "
                "make; use precision='float32'"
            )
        pairs = find_pairs(labels, backends.host)
    need_matches(op, labels, pairs, shards)
    with raise_everywhere(shards):
        distances = backends.features.pair_distances(features, pairs, labels.query_pids)
    thresholds = Thresholds.sort(pairs, distances, shards, backends.host)
    with raise_everywhere(shards):
        counts = backends.features.count(features, pairs, labels, thresholds)
    counted = Counted(thresholds.query, thresholds.distance, *shards.add(counts))
    curves = None
    if PROTOCOLS[protocol].single_shot:
        curves = SingleShot(labels, pairs, thresholds, shards, backends, max_rank).of_features(features)
    ranking = score(features.query.n, counted, rule, max_rank, curves)
    if precision != "certified":
        return ranking
    ambiguous, candidates = shards.sum(backends.features.ambiguous, backends.features.candidates)
    return ranking._replace(ambiguous=ambiguous / max(1, candidates))
