// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Weighted sums of a map's cells, M per map: what pool_patches and diverse_attention share. Weights are
// [B, M, padded_cells] in the accumulation type, zeros past the cells.
#pragma once

#include <cstdint>

#include "csrc/cpu/feature_map.h"
#include "csrc/cpu/isa.h"

REID_CPU_DECLARE(
    // out [B, M, C] = sum over cells of weight x map; items [begin, end) of B x blocks.per_map
    template <typename T, typename A>
    void weighted_map_fwd(const FeatureMap<const T>& map, const A* weights, int64_t num_weights, int64_t padded_cells,
                          ChannelBlocks blocks, int64_t begin, int64_t end, T* out);

    // grad [B, M, C] -> grad_map = sum over M of weight x grad (its data may be null), and per item
    // grad_weights [items, M, padded_cells] = sum over the item's channels of grad x map (may be null).
    // scratch: M x (padded_cells + blocks.size) values.
    template <typename T, typename A>
    void weighted_map_bwd(const FeatureMap<const T>& map, const A* weights, const T* grad, int64_t num_weights,
                          int64_t padded_cells, ChannelBlocks blocks, int64_t begin, int64_t end,
                          const FeatureMap<T>& grad_map, A* grad_weights, A* scratch);)
