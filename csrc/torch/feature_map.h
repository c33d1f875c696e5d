// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Feature maps [B, C, H, W] or [B, C, L] on their way to the kernels: which memory layout, and weighted sums of cells.
#pragma once

#include "csrc/cpu/weighted_map.h"
#include "csrc/torch/op.h"

namespace reidfast {

// Channels last: every cell's channels adjacent and cells in order, and not also contiguous. The fakes in Python ask
// the same question.
inline bool is_channels_last(const Tensor& x) {
  if (x.is_contiguous() || x.numel() == 0) return false;
  int64_t expected = x.size(1);
  if (x.size(1) != 1 && x.stride(1) != 1) return false;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return x.size(0) == 1 || x.stride(0) == expected;
}

// Maps in a layout that the kernels walk: channels last as they are, channels first with whole planes as they are,
// anything else copied.
inline Tensor walkable(const Tensor& x) {
  if (is_channels_last(x)) return x;
  int64_t expected = 1;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) != 1 && x.stride(d) != expected) return x.contiguous();
    expected *= x.size(d);
  }
  return x;
}

// A fresh tensor [B, C, ...] in the layout asked for; no format tag, so that it serves any number of dimensions.
inline Tensor empty_map(IntList sizes, bool channels_last, const Options& options) {
  if (!channels_last) return empty_output(sizes, options);
  Shape stored = sizes.vec();  // channels moved to the end
  stored.erase(stored.begin() + 1);
  stored.push_back(sizes[1]);
  return empty_output(stored, options).movedim(-1, 1);
}

template <typename T>
cpu::FeatureMap<T> feature_map(const Tensor& x, bool channels_last) {
  const int64_t cells = x.sizes().slice(2).product();
  T* data;
  if constexpr (std::is_const_v<T>)
    data = x.const_data_ptr<std::remove_const_t<T>>();
  else
    data = x.mutable_data_ptr<T>();
  if (channels_last) return {data, cells * x.size(1), 1, x.size(1), x.size(1), cells, true};
  return {data, x.stride(0), x.size(1) == 1 ? cells : x.stride(1), 1, x.size(1), cells, false};
}

// Blocks of channels: at least `least` channels each, some 64 items over the batch.
inline cpu::ChannelBlocks channel_blocks(int64_t batch, int64_t channels, int64_t least) {
  const int64_t wanted = std::max<int64_t>(1, 64 / std::max<int64_t>(1, batch));
  const int64_t size = std::max(least, (channels / wanted + 15) / 16 * 16);
  return {size, std::max<int64_t>(1, (channels + size - 1) / size)};
}

inline int64_t padded(int64_t cells) { return (cells + 15) / 16 * 16; }

// out [B, M, C] = sum over cells of weights [B, M, padded(cells)] x map.
template <typename T, typename A>
void weighted_map_forward(const Tensor& x, const A* weights, int64_t maps, T* out) {
  const bool last = is_channels_last(x);
  const auto map = feature_map<const T>(x, last);
  const auto blocks = channel_blocks(x.size(0), map.channels, 64);
  parallel_for(0, x.size(0) * blocks.per_map, grain(blocks.size * map.cells * sizeof(T)),
               [&](int64_t begin, int64_t end) {
                 REID_CPU_CALL(weighted_map_fwd<T>, map, weights, maps, padded(map.cells), blocks, begin, end, out);
               });
}

// Gradients of the same: grad_map (may be undefined) and, per block of channels, that of the weights (may be null).
template <typename T, typename A>
void weighted_map_backward(const Tensor& x, const A* weights, const T* grad, int64_t maps, const Tensor& grad_x,
                           const cpu::ChannelBlocks& blocks, A* grad_weights) {
  const bool last = is_channels_last(x);
  const auto map = feature_map<const T>(x, last);
  const auto grad_map = grad_x.defined() ? feature_map<T>(grad_x, last) : cpu::FeatureMap<T>{};
  const int64_t width = padded(map.cells);
  parallel_for(0, x.size(0) * blocks.per_map, grain(blocks.size * map.cells * sizeof(T)),
               [&](int64_t begin, int64_t end) {
                 const auto scratch = std::make_unique_for_overwrite<A[]>(maps * blocks.size);
                 REID_CPU_CALL(weighted_map_bwd<T>, map, weights, grad, maps, width, blocks, begin, end, grad_map,
                               grad_weights, scratch.get());
               });
}

}  // namespace reidfast
