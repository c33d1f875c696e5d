// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking (Zhong et al., CVPR 2017): the formulas, and the options that its published codes differ in
// (reidfast/evaluation/_core/rerank_variants.py).
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

struct RerankOptions {
  int64_t k1 = 0;            // entries of the ranked list that make a neighbourhood, the item itself among them
  int64_t k1_half = 0;       // entries that make a small neighbourhood
  int64_t k2 = 1;            // lists averaged in the local query expansion; 1 = none
  bool square = false;       // distances are squared before anything else
  bool raw_weights = false;  // exp(-raw_scale * b) instead of exp(-Dn)
  float raw_scale = 1.0f;    // 2 where b = 1 - cos: ||x - y||^2 of unit vectors
  bool store_half = false;   // weights and Jaccard distances rounded to half precision step by step
};

// Sparse rows: columns and values [indptr[i], indptr[i+1]), columns ascending.
struct RerankRows {
  const int64_t* indptr;
  const int32_t* column;
  const float* value;
};

// Distances of single pairs b(i, j), i's view of j: from features [queries, dim] and [galleries, dim], or from the
// blocks q_g [Q, G], q_q [Q, Q], g_g [G, G] (column i of the whole).
struct RerankPairs {
  bool from_blocks;
  const float *query, *gallery;
  const double* inverse_norm;  // [n] for the cosine, else null
  int64_t dim;
  const float *q_g, *q_q, *g_g;
  int64_t queries, galleries;
};

// Features of item i.
REID_HD const float* rerank_item(const RerankPairs& p, int64_t i) {
  return i < p.queries ? p.query + i * p.dim : p.gallery + (i - p.queries) * p.dim;
}

// b(i, j) from the blocks: column i of [[qq, qg], [qg^T, gg]].
REID_HD float rerank_block_distance(const RerankPairs& p, int64_t i, int64_t j) {
  const int64_t q = p.queries;
  if (i < q) return j < q ? p.q_q[j * q + i] : p.q_g[i * p.galleries + (j - q)];
  return j < q ? p.q_g[j * p.galleries + (i - q)] : p.g_g[(j - q) * p.galleries + (i - q)];
}

// Base distances of float32 may be in the wrong order where they differ by no more than this times their scale: 2 for
// the cosine, |x|^2 + |y|^2 for squared Euclidean distances.
constexpr double kRerankRounding = 8.0 / (1 << 24);

// b -> D, the distance that is normalised.
REID_HD float rerank_power(float base, bool square) { return square ? base * base : base; }

// D / max D; 0 where every distance of the row is 0.
REID_HD float rerank_scaled(float powered, float largest) { return largest > 0.0f ? powered / largest : 0.0f; }

// 2/3 rule: are more than two thirds of a small neighbourhood shared?
REID_HD bool rerank_joins(int64_t shared, int64_t size) { return 3 * shared > 2 * size; }

// Jaccard distance of items that share weight m of their 1 each; rounding may leave it below 0. half(x) rounds to half
// precision.
template <typename Half>
REID_HD float rerank_jaccard_distance(float m, bool store_half, const Half& half) {
  return store_half ? half(1.0f - half(m / half(2.0f - m))) : 1.0f - m / (2.0f - m);
}

}  // namespace reidfast
