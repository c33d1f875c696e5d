// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// A batch of feature maps as the kernels see it, in either memory layout.
#pragma once

#include <cstdint>

namespace reidfast::cpu {

// [B, C, L]. Channels first: the L cells of a channel are adjacent. Channels last: the C channels of a cell are.
template <typename T>
struct FeatureMap {
  T* data;
  int64_t batch_stride, channel_stride, cell_stride;
  int64_t channels, cells;
  bool channels_last;
  T* at(int64_t b, int64_t c) const { return data + b * batch_stride + c * channel_stride; }
};

// Channels are divided into blocks by shape alone; an item of work is one block of one map.
struct ChannelBlocks {
  int64_t size, per_map;
};

}  // namespace reidfast::cpu
