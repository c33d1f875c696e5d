// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The scalar mathematics of matching against a memory bank. docs/ops/memory_loss.md derives it.
#pragma once

#include <cmath>
#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

// logit = product * x.w + offset(|x|^2) + offset(|w|^2), and d logit / dx = slope * (w - x) (Euclidean) or slope * w
// (dot).
template <typename A>
struct MemoryMetric {
  bool dot;
  A scale;
  REID_HD A slope() const { return dot ? scale : A(2) * scale; }
  REID_HD A offset(A squared_norm) const { return dot ? A(0) : -scale * squared_norm; }
};

// Best first: higher logit, then lower row.
template <typename A>
struct MemoryCandidate {
  A logit;
  int64_t row;
  REID_HD bool better(const MemoryCandidate& other) const {
    return logit > other.logit || (logit == other.logit && row < other.row);
  }
};

// log(1 + e^d): the loss, where d = lse(rest) - lse(best).
template <typename A>
REID_HD A softplus(A d) {
  using std::exp;
  using std::log1p;
  return d > A(0) ? d + log1p(exp(-d)) : log1p(exp(d));
}

// The share of the probability mass that lies outside the best rows.
template <typename A>
REID_HD A sigmoid(A d) {
  using std::exp;
  return A(1) / (A(1) + exp(-d));
}

}  // namespace reidfast
