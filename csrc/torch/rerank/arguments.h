// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What the steps of re-ranking read alike. Items are queries 0 .. Q-1 followed by gallery Q .. Q+G-1.
#pragma once

#include <algorithm>
#include <limits>

#include "csrc/common/metric.h"
#include "csrc/common/rerank.h"
#include "csrc/torch/op.h"

namespace reidfast {

inline Metric parse_metric(std::string_view name) {
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
}

inline void check_blocks(const Tensor& q_g, const Tensor& q_q, const Tensor& g_g) {
  REID_CHECK(q_g.dim() == 2 && q_q.dim() == 2 && g_g.dim() == 2 && q_q.size(0) == q_g.size(0) &&
                 q_q.size(1) == q_g.size(0) && g_g.size(0) == q_g.size(1) && g_g.size(1) == q_g.size(1),
             "rerank: expected distances (Q, G), (Q, Q) and (G, G), got ", q_g.sizes(), ", ", q_q.sizes(), " and ",
             g_g.sizes());
  for (const Tensor* t : {&q_g, &q_q, &g_g})
    REID_CHECK(t->scalar_type() == kFloat && t->is_contiguous(), "rerank: expected contiguous float32 distances");
}

// Options from the arguments of an op. raw_scale: what a base distance is multiplied with where the weights use it.
inline RerankOptions rerank_options(int64_t k, int64_t k1, int64_t k1_half, int64_t k2, Metric metric, bool square,
                                    bool raw_weights, bool store_half) {
  RerankOptions options;
  options.near = std::min(k1, k), options.half = std::min(k1_half, k), options.expand = k2;
  options.square = square, options.raw_weights = raw_weights, options.store_half = store_half;
  options.raw_scale = metric == Metric::kCosine ? 2.0f : 1.0f;
  return options;
}

// The lists that rerank_neighbours made.
inline void check_lists(const Tensor& ids, const Tensor& distances) {
  REID_CHECK(ids.dim() == 2 && ids.scalar_type() == kInt && distances.scalar_type() == kFloat && ids.is_contiguous() &&
                 distances.is_contiguous() && distances.sizes() == ids.sizes() && distances.device() == ids.device(),
             "rerank: expected the results of rerank_neighbours");
}

// Fills what `pairs` (of the CPU's or of CUDA's kernels) is computed from: distances, where given, else features.
template <typename Pairs>
void fill_pairs(Pairs& pairs, int64_t items, const std::optional<Tensor>& query, const std::optional<Tensor>& gallery,
                const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q, const std::optional<Tensor>& g_g) {
  if (q_g) {
    REID_CHECK(q_q && g_g, "rerank: expected all three blocks of distances");
    check_blocks(*q_g, *q_q, *g_g);
    pairs.q_g = q_g->const_data_ptr<float>(), pairs.q_q = q_q->const_data_ptr<float>();
    pairs.g_g = g_g->const_data_ptr<float>();
    pairs.queries = q_g->size(0), pairs.galleries = q_g->size(1);
  } else {
    REID_CHECK(query && gallery, "rerank: expected features or distances");
    check_features(*query, *gallery);
    pairs.query = query->const_data_ptr<float>(), pairs.gallery = gallery->const_data_ptr<float>();
    pairs.queries = query->size(0), pairs.galleries = gallery->size(0), pairs.dim = query->size(1);
  }
  REID_CHECK(pairs.queries + pairs.galleries == items, "rerank: expected lists of ", pairs.queries + pairs.galleries,
             " items, got ", items);
}

}  // namespace reidfast
