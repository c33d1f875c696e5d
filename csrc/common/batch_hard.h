// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Which of two pairs is the harder one. A total order, so that partial results merge to the same pair in any order: NaN
// is the hardest of all (an error must not hide), then the distance, then the lower index; index -1 stands for "none
// yet" and loses.
#pragma once

#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

template <typename A>
struct HardPair {
  A sq;           // squared distance
  int64_t index;  // -1: none
};

template <typename A>
REID_HD bool harder_positive(A sq, int64_t index, const HardPair<A>& best) {
  if (index < 0 || best.index < 0) return index >= 0;
  const bool nan = sq != sq, best_nan = best.sq != best.sq;
  if (nan != best_nan) return nan;
  return sq > best.sq || ((nan || sq == best.sq) && index < best.index);
}

template <typename A>
REID_HD bool harder_negative(A sq, int64_t index, const HardPair<A>& best) {
  if (index < 0 || best.index < 0) return index >= 0;
  const bool nan = sq != sq, best_nan = best.sq != best.sq;
  if (nan != best_nan) return nan;
  return sq < best.sq || ((nan || sq == best.sq) && index < best.index);
}

// d loss / d x_i = factor * (x_i - x_j), for a distance d = ||x_i - x_j|| with upstream gradient g; finite (zero) at
// distance zero.
template <typename A>
REID_HD A distance_grad_factor(A g, A d) {
  return d == A(0) ? A(0) : g / d;
}

}  // namespace reidfast
