// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <cstdint>

#include "csrc/cpu/feature_map.h"
#include "csrc/cpu/pool_patches.h"

REID_CPU_DECLARE(
    // theta [P, 2, 3] -> samples [P, h * w]; patches [begin, end)
    template <typename A> void sample_patches_table(const A* theta, const PatchGrid& grid, int64_t begin, int64_t end,
                                                    PatchSample<A>* samples);

    // samples [B, M, h * w] -> out, a map of h * w cells per patch: patch m of image b at out.at(b * M + m, 0); items
    // [begin, end) of B x blocks.per_map. scratch: sample_patches_scratch values.
    template <typename T, typename A>
    void sample_patches_fwd(const FeatureMap<const T>& map, const PatchSample<A>* samples, int64_t num_patches,
                            ChannelBlocks blocks, int64_t begin, int64_t end, const FeatureMap<T>& out, A* scratch);

    // grad as out above -> grad_map (its data may be null) and partial sums of the gradient of theta,
    // [items, M, 2, 3] in double (may be null). base_x [w] and base_y [h] are the base coordinates.
    template <typename T, typename A>
    void sample_patches_bwd(const FeatureMap<const T>& map, const PatchSample<A>* samples, const A* base_x,
                            const A* base_y, int64_t height, int64_t width, int64_t num_patches, ChannelBlocks blocks,
                            int64_t begin, int64_t end, const FeatureMap<const T>& grad, const FeatureMap<T>& grad_map,
                            double* grad_theta, A* scratch);)

namespace reidfast::cpu {

// Values of scratch that one call of either kernel needs: channels last, gradient rows of a whole block of channels
// (a multiple of 16); channels first, two tiles of the map and one of a patch, 16 channels at a time.
inline int64_t sample_patches_scratch(int64_t cells, int64_t samples, const ChannelBlocks& blocks, bool channels_last) {
  return channels_last ? (cells + 2) * blocks.size : (2 * (cells + 1) + samples) * 16;
}

}  // namespace reidfast::cpu
