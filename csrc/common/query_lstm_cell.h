// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// One step of the convolutional LSTM after its activations, forward and backward. V is a scalar or a vector of lanes.
#pragma once

#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

template <typename V>
struct LstmGates {
  V i, f, g, o;  // after sigmoid, sigmoid, tanh, sigmoid (forward); gradients before the activation (backward)
};

template <typename V>
REID_HD V lstm_cell_state(const LstmGates<V>& a, const V& c) {
  return a.f * c + a.i * a.g;
}

// Gradients of the four pre-activations; grad_c receives the gradient of the previous cell state. `tanh_c` is tanh of
// the new one.
template <typename V>
REID_HD LstmGates<V> lstm_cell_backward(const LstmGates<V>& a, const V& c, const V& tanh_c, const V& grad_h,
                                        const V& grad_c_new, V& grad_c) {
  const V one(1);
  const V through = grad_c_new + grad_h * a.o * (one - tanh_c * tanh_c);
  grad_c = through * a.f;
  return {through * a.g * a.i * (one - a.i), through * c * a.f * (one - a.f), through * a.i * (one - a.g * a.g),
          grad_h * tanh_c * a.o * (one - a.o)};
}

// gates [rows, 4, run], query [query_rows, 4, run], c [rows, run]: NCHW has rows = B and run = Dh*H*W, channels_last
// has rows = B*H*W and run = Dh. Row o of the gates meets row o % query_rows of the query.
struct CellShape {
  int64_t rows, query_rows, run;
};

}  // namespace reidfast
