// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/macros.h"

namespace reidfast {

// features [B, C, L]: NCHW (channel stride L, cells adjacent) or channels_last (cell stride C, channels adjacent).
struct CamShape {
  int64_t channels, cells;
  bool channels_last;
};

// The upstream gradient where relu let the map through; a NaN passes, as in torch.
template <typename A>
REID_HD A grad_through_relu(A grad, A out) {
  return out <= A(0) ? A(0) : grad;
}

}  // namespace reidfast
