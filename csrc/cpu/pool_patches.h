// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/common/patches.h"
#include "csrc/cpu/isa.h"

namespace reidfast::cpu {

// The grid of samples of every patch, and the map it samples.
struct PatchGrid {
  int64_t map_height, map_width, height, width;
  bool align_corners;
  int64_t cells() const { return map_height * map_width; }
  int64_t samples() const { return height * width; }
};

}  // namespace reidfast::cpu

REID_CPU_DECLARE(
    // theta [P, 2, 3] -> weights [P, padded_cells]: the mean of a patch is weights x map; patches [begin, end).
    // scratch: map height + map width values.
    template <typename A> void pool_patches_weights(const A* theta, const PatchGrid& grid, int64_t padded_cells,
                                                    int64_t begin, int64_t end, A* weights, A* scratch);

    // grad_weights [B, parts, M, padded_cells], to be summed over parts -> grad_theta [B, M, 2, 3]; patches
    // [begin, end) of B x M. scratch: cells + 4 (map height + map width) values.
    template <typename A> void pool_patches_theta(const A* theta, const PatchGrid& grid, const A* grad_weights,
                                                  int64_t parts, int64_t num_patches, int64_t padded_cells,
                                                  int64_t begin, int64_t end, A* grad_theta, double* scratch);)
