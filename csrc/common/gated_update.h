// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The gate z = sigmoid(a), its complement without cancellation, and the gradient of a. V is a scalar or a vector of
// lanes.
#pragma once

#include <cstdint>

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

// state, x [B, rows, cols] with gates from an outer product, down [B, rows] x along [B, cols]: NCHW has rows = C (down
// = channel, along = spatial), channels_last has rows = H*W (down = spatial, along = channel).
struct GateShape {
  int64_t batch, rows, cols, chunk;  // chunk: rows that one task of the backward pass takes
  REID_HD int64_t chunks() const { return (rows + chunk - 1) / chunk; }
};

}  // namespace reidfast
