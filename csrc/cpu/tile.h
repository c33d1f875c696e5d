// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Transposed tiles of a channels-first map: a few channels become the lanes of one vector, [cells][kLanes], widened to
// the accumulation type. Include only from csrc/cpu/*.cpp.
#pragma once

#include <cstring>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

// The first n (at most kLanes<T>) elements of x, zeros after them.
template <typename T>
REID_HD AccVec<T> load_some(const T* x, int64_t n) {
  if (n >= kLanes<T>) return load_acc(x);
  __at_align__ acc_t<T> wide[kLanes<T>] = {};
  for (int64_t j = 0; j < n; ++j) wide[j] = static_cast<acc_t<T>>(x[j]);
  return AccVec<T>::loadu(wide);
}

template <typename T>
REID_HD void store_some(T* x, const AccVec<T>& v, int64_t n) {
  if (n >= kLanes<T>) return store_acc(x, v);
  __at_align__ acc_t<T> wide[kLanes<T>];
  v.store(wide);
  for (int64_t j = 0; j < n; ++j) x[j] = static_cast<T>(wide[j]);
}

template <typename A>
REID_HD A sum_lanes(const at::vec::Vectorized<A>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>)
    return _mm512_reduce_add_ps(v);
  else
    return _mm512_reduce_add_pd(v);
#else
  return horizontal_sum(v);
#endif
}

// dst[j * dst_stride + i] = src[i * src_stride + j], both [lanes][lanes].
template <typename A>
REID_HD void transpose_square(const A* src, int64_t src_stride, A* dst, int64_t dst_stride) {
  constexpr int lanes = at::vec::Vectorized<A>::size();
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    at::vec::transpose_mxn<float, lanes, lanes>(src, src_stride, dst, dst_stride);
    return;
  }
#endif
  for (int i = 0; i < lanes; ++i)
    for (int j = 0; j < lanes; ++j) dst[j * dst_stride + i] = src[i * src_stride + j];
}

// channels (at most kLanes) rows of `cells` elements -> tile [cells][kLanes], zeros in the missing lanes.
template <typename T>
inline void load_tile(const T* src, int64_t channel_stride, int64_t channels, int64_t cells, acc_t<T>* tile) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t l = 0;
  if (channels == lanes) {
    for (; l + lanes <= cells; l += lanes) {
      if constexpr (std::is_same_v<T, acc_t<T>>) {
        transpose_square(src + l, channel_stride, tile + l * lanes, lanes);
      } else {
        __at_align__ acc_t<T> wide[lanes * lanes];
        for (int64_t c = 0; c < lanes; ++c) load_acc(src + c * channel_stride + l).store(wide + c * lanes);
        transpose_square(wide, lanes, tile + l * lanes, lanes);
      }
    }
  }
  for (; l < cells; ++l)
    for (int64_t c = 0; c < lanes; ++c)
      tile[l * lanes + c] = c < channels ? static_cast<acc_t<T>>(src[c * channel_stride + l]) : acc_t<T>(0);
}

// tile [cells][kLanes] -> `channels` rows of `cells` elements.
template <typename T>
inline void store_tile(const acc_t<T>* tile, int64_t channels, int64_t cells, T* dst, int64_t channel_stride) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t l = 0;
  if (channels == lanes) {
    for (; l + lanes <= cells; l += lanes) {
      if constexpr (std::is_same_v<T, acc_t<T>>) {
        transpose_square(tile + l * lanes, lanes, dst + l, channel_stride);
      } else {
        __at_align__ acc_t<T> wide[lanes * lanes];
        transpose_square(tile + l * lanes, lanes, wide, lanes);
        for (int64_t c = 0; c < lanes; ++c) store_acc(dst + c * channel_stride + l, AccVec<T>::loadu(wide + c * lanes));
      }
    }
  }
  for (; l < cells; ++l)
    for (int64_t c = 0; c < channels; ++c) dst[c * channel_stride + l] = static_cast<T>(tile[l * lanes + c]);
}

}  // namespace reidfast::cpu::REID_ISA
