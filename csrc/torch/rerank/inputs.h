// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What the steps of re-ranking are given, checked, on the CPU and on CUDA alike.
#pragma once

#include <algorithm>
#include <limits>

#include "csrc/common/metric.h"
#include "csrc/common/rerank.h"
#include "csrc/torch/op.h"

namespace reidfast {

inline Metric rerank_metric(std::string_view name) {
  REID_CHECK_VALUE(name == "cosine" || name == "sqeuclidean",
                   "rerank: expected metric 'cosine' or 'sqeuclidean', got '", name, "'");
  return name == "cosine" ? Metric::kCosine : Metric::kSquaredEuclidean;
}

inline void check_features(const Tensor& query, const Tensor& gallery) {
  REID_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1),
             "rerank: expected query (Q, D) and gallery (G, D), got ", query.sizes(), " and ", gallery.sizes());
  REID_CHECK(query.scalar_type() == kFloat && gallery.scalar_type() == kFloat && query.is_contiguous() &&
                 gallery.is_contiguous(),
             "rerank: expected contiguous float32 features");
  REID_CHECK(query.size(0) + gallery.size(0) < std::numeric_limits<int32_t>::max(), "rerank: too many items");
  check_device("rerank", "gallery", gallery, "query", query);
}

inline void check_blocks(const Tensor& q_g, const Tensor& q_q, const Tensor& g_g) {
  REID_CHECK(q_g.dim() == 2 && q_q.dim() == 2 && g_g.dim() == 2 && q_q.size(0) == q_g.size(0) &&
                 q_q.size(1) == q_g.size(0) && g_g.size(0) == q_g.size(1) && g_g.size(1) == q_g.size(1),
             "rerank: expected distances (Q, G), (Q, Q) and (G, G), got ", q_g.sizes(), ", ", q_q.sizes(), " and ",
             g_g.sizes());
  for (const Tensor* t : {&q_g, &q_q, &g_g})
    REID_CHECK(t->scalar_type() == kFloat && t->is_contiguous(), "rerank: expected contiguous float32 distances");
  REID_CHECK(q_g.size(0) + q_g.size(1) < std::numeric_limits<int32_t>::max(), "rerank: too many items");
  check_device("rerank", "q_q", q_q, "q_g", q_g);
  check_device("rerank", "g_g", g_g, "q_g", q_g);
}

// Lists of the nearest neighbours of n items.
inline void check_lists(const Tensor& ids, const Tensor& distances, int64_t n) {
  REID_CHECK(ids.dim() == 2 && ids.size(0) == n && ids.scalar_type() == kInt && ids.is_contiguous() &&
                 distances.scalar_type() == kFloat && distances.is_contiguous() && distances.sizes() == ids.sizes(),
             "rerank: expected the results of rerank_neighbours, for ", n, " items");
  check_device("rerank", "distances", distances, "ids", ids);
}

inline RerankPairs pairs_of_features(const Tensor& query, const Tensor& gallery) {
  check_features(query, gallery);
  RerankPairs pairs{};
  pairs.query = query.const_data_ptr<float>(), pairs.gallery = gallery.const_data_ptr<float>();
  pairs.queries = query.size(0), pairs.galleries = gallery.size(0), pairs.dim = query.size(1);
  return pairs;
}

inline RerankPairs pairs_of_blocks(const Tensor& q_g, const Tensor& q_q, const Tensor& g_g) {
  check_blocks(q_g, q_q, g_g);
  RerankPairs pairs{};
  pairs.from_blocks = true;
  pairs.q_g = q_g.const_data_ptr<float>(), pairs.q_q = q_q.const_data_ptr<float>();
  pairs.g_g = g_g.const_data_ptr<float>();
  pairs.queries = q_g.size(0), pairs.galleries = q_g.size(1);
  return pairs;
}

// What the neighbourhoods and their weights are made of: lists [n, k], pairs from either features or distances.
struct WeightArgs {
  int64_t n, k;
  RerankOptions options;
  RerankPairs pairs;
  bool needs_norms;  // pairs.inverse_norm is to be set

  WeightArgs(const Tensor& ids, const Tensor& distances, const Tensor& largest, const std::optional<Tensor>& query,
             const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q,
             const std::optional<Tensor>& g_g, std::string_view metric_name, int64_t k1, int64_t k1_half, int64_t k2,
             bool square, bool raw_weights, bool store_half) {
    const Metric metric = rerank_metric(metric_name);
    const bool blocks = q_g && q_q && g_g;
    REID_CHECK(blocks || (query && gallery), "rerank: expected features or distances");
    pairs = blocks ? pairs_of_blocks(*q_g, *q_q, *g_g) : pairs_of_features(*query, *gallery);
    needs_norms = !blocks && metric == Metric::kCosine;
    n = pairs.queries + pairs.galleries;
    check_lists(ids, distances, n);
    REID_CHECK(largest.numel() == n && largest.scalar_type() == kFloat && largest.is_contiguous(),
               "rerank: expected the largest distances of ", n, " items, float32");
    check_device("rerank", "largest", largest, "ids", ids);
    check_device("rerank", blocks ? "q_g" : "query", blocks ? *q_g : *query, "ids", ids);
    REID_CHECK_VALUE(k1 >= 0 && k1_half >= 0 && k2 >= 1, "rerank: expected k1 and k1_half from 0 and k2 from 1, got ",
                     k1, ", ", k1_half, " and ", k2);
    k = ids.size(1);
    options.k1 = std::min(k1, k), options.k1_half = std::min(k1_half, k), options.k2 = k2;
    options.square = square, options.raw_weights = raw_weights, options.store_half = store_half;
    options.raw_scale = metric == Metric::kCosine ? 2.0f : 1.0f;
  }
};

}  // namespace reidfast
