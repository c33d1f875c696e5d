// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Orders of PAUL's cyclic ranking: by (distance, index), a NaN distance counting as infinity.
#pragma once

#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

template <typename A>
REID_HD A nan_to_inf(A sq) {
  return sq == sq ? sq : A(__builtin_huge_val());
}

// (sq_a, a) < (sq_b, b); neither distance is NaN.
template <typename A>
REID_HD bool nearer(A sq_a, int64_t a, A sq_b, int64_t b) {
  return sq_a < sq_b || (sq_a == sq_b && a < b);
}

}  // namespace reidfast
