// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Weights of quality-weighted set pooling, and what the gradient of a score is multiplied by. docs/ops/set_pool.md
// derives them.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

enum class SetPoolWeighting : int { kLinear = 0, kSigmoid = 1, kSoftmax = 2 };

// How T frames are divided into S sets: ragged by `offsets` [S+1], or (offsets null) `frames` per set.
struct SetRanges {
  const int64_t* offsets;
  int64_t frames;
  REID_HD int64_t begin(int64_t s) const { return offsets ? offsets[s] : s * frames; }
  REID_HD int64_t end(int64_t s) const { return offsets ? offsets[s + 1] : (s + 1) * frames; }
};

// Frame t of set s starts at data + s * set_stride + (t - first frame of s, or t itself where ragged) * frame_stride;
// its D values are adjacent.
template <typename T>
struct SetFrames {
  const T* data;
  int64_t set_stride, frame_stride, dim;
  SetRanges sets;
  REID_HD const T* at(int64_t s, int64_t t) const {
    return data + s * set_stride + (sets.offsets ? t : t - s * sets.frames) * frame_stride;
  }
};

// log(sigmoid(z)), without overflow and without losing the tail.
template <typename A>
REID_HD A log_sigmoid(A z) {
  using std::exp;
  using std::fabs;
  using std::log1p;
  return (z < A(0) ? z : A(0)) - log1p(exp(-fabs(z)));
}

// sigmoid(-z) = 1 - sigmoid(z), without cancellation.
template <typename A>
REID_HD A sigmoid_neg(A z) {
  using std::exp;
  const A e = exp(z < A(0) ? z : -z);
  return (z < A(0) ? A(1) : e) / (A(1) + e);
}

// The logit whose softmax is the weight (sigmoid and softmax weightings).
template <typename A>
REID_HD A set_pool_logit(A score, SetPoolWeighting weighting) {
  return weighting == SetPoolWeighting::kSigmoid ? log_sigmoid(score) : score;
}

// d loss / d score_i = factor * (<x_i, g> - sum_j w_j <x_j, g>); inv_sum = 1 / sum of scores (linear), weight w_i
// otherwise.
template <typename A>
REID_HD A set_pool_score_factor(A score, A weight, A inv_sum, SetPoolWeighting weighting) {
  if (weighting == SetPoolWeighting::kLinear) return inv_sum;
  return weighting == SetPoolWeighting::kSigmoid ? weight * sigmoid_neg(score) : weight;
}

}  // namespace reidfast
