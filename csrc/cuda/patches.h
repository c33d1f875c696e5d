// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What sample_patches and pool_patches hand to their kernels.
#pragma once

#include <cstdint>

#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// A batch of maps [B, C, L]: channels first (cells adjacent) or channels last (channels adjacent).
template <typename T>
struct Maps {
  T* data;
  int64_t batch_stride, channel_stride, cell_stride;
  int64_t channels, cells;
  bool channels_last;
};

struct Grid {
  int64_t map_height, map_width, height, width;
  bool align_corners;
};

}  // namespace reidfast::cuda
