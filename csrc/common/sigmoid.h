// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cmath>

#include "csrc/common/macros.h"

namespace reidfast {

// z = sigmoid(a) and 1 - z of a scalar, both without overflow or cancellation (csrc/cpu/lanes.h has it for vectors).
template <typename A>
REID_HD void sigmoid_and_complement(A a, A& z, A& not_z) {
  using std::exp;
  using std::fabs;
  const A e = exp(-fabs(a)), high = A(1) / (A(1) + e), low = e * high;
  z = a >= A(0) ? high : low;
  not_z = a >= A(0) ? low : high;
}

}  // namespace reidfast
