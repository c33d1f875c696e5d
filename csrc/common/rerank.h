// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking (Zhong et al., CVPR 2017): the formulas, and the options that its published codes differ in
// (reidfast/evaluation/_rerank_variants.py).
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

struct RerankOptions {
  int64_t near = 0;          // entries of the ranked list that make a neighbourhood, itself included
  int64_t half = 0;          // entries that make a small neighbourhood
  int64_t expand = 1;        // k2: lists averaged in the local query expansion; 1 = none
  bool square = false;       // distances are squared before anything else
  bool raw_weights = false;  // exp(-raw_scale * b) instead of exp(-Dn)
  float raw_scale = 1.0f;    // 2 where b = 1 - cos: ||x - y||^2 of unit vectors
  bool store_half = false;   // weights and Jaccard distances rounded to half precision step by step
};

// b -> D, the distance that is normalised.
REID_HD float rerank_power(float base, bool square) { return square ? base * base : base; }

// D / max D; 0 where every distance of the row is 0.
REID_HD float rerank_scaled(float powered, float largest) { return largest > 0.0f ? powered / largest : 0.0f; }

// 2/3 rule: are more than two thirds of a small neighbourhood shared?
REID_HD bool rerank_joins(int64_t shared, int64_t size) { return 3 * shared > 2 * size; }

}  // namespace reidfast
