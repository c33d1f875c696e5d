// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The gate z = sigmoid(a), its complement without cancellation, and the gradient of a. V is a scalar or a vector of
// lanes.
#pragma once

#include "csrc/common/macros.h"

namespace reidfast {

template <typename V>
REID_HD V gated_blend(const V& z, const V& not_z, const V& state, const V& x) {
  return not_z * state + z * x;
}

// d loss / d a for the output gradient g.
template <typename V>
REID_HD V gated_blend_grad(const V& z, const V& not_z, const V& state, const V& x, const V& g) {
  return z * not_z * (x - state) * g;
}

}  // namespace reidfast
