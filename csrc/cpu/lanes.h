// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Helpers that kernels of small elementwise ops share: partial vectors, activations, squared distances.
#pragma once

#include <cstring>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

// The first n of kLanes<T> elements; the other lanes are zero.
template <typename T>
REID_HD AccVec<T> load_acc(const T* x, int64_t n) {
  if (n >= kLanes<T>) return load_acc(x);
  T part[kLanes<T>] = {};
  std::memcpy(static_cast<void*>(part), x, n * sizeof(T));
  return load_acc(part);
}

template <typename T>
REID_HD void store_acc(T* x, const AccVec<T>& v, int64_t n) {
  if (n >= kLanes<T>) return store_acc(x, v);
  T part[kLanes<T>];
  store_acc(part, v);
  std::memcpy(static_cast<void*>(x), part, n * sizeof(T));
}

// sigmoid(a) and 1 - sigmoid(a), both without overflow or cancellation.
template <typename V>
REID_HD void sigmoid_pair(const V& a, V& z, V& not_z) {
  const V e = a.abs().neg().exp(), high = V(1) / (V(1) + e), low = e * high;
  const V positive = a >= V(0);
  z = V::blendv(low, high, positive);
  not_z = V::blendv(high, low, positive);
}

// ||x - y||^2 over n elements, by differences: exact for near duplicates, the same for (x, y) and (y, x).
template <typename A>
REID_HD A sq_distance(const A* x, const A* y, int64_t n) {
  using V = AccVec<A>;
  constexpr int64_t w = kLanes<A>;
  V s0(0), s1(0), s2(0), s3(0);
  int64_t d = 0;
  for (; d + 4 * w <= n; d += 4 * w) {
    const V a = V::loadu(x + d) - V::loadu(y + d), b = V::loadu(x + d + w) - V::loadu(y + d + w);
    const V c = V::loadu(x + d + 2 * w) - V::loadu(y + d + 2 * w),
            e = V::loadu(x + d + 3 * w) - V::loadu(y + d + 3 * w);
    s0 = at::vec::fmadd(a, a, s0);
    s1 = at::vec::fmadd(b, b, s1);
    s2 = at::vec::fmadd(c, c, s2);
    s3 = at::vec::fmadd(e, e, s3);
  }
  for (; d < n; d += w) {
    const int64_t left = n - d;
    const V a = load_acc(x + d, left) - load_acc(y + d, left);
    s0 = at::vec::fmadd(a, a, s0);
  }
  return horizontal_sum(V((s0 + s1) + (s2 + s3)));
}

}  // namespace reidfast::cpu::REID_ISA
