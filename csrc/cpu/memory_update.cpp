// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/memory_update.h"

#include <cmath>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

template <typename T, typename A>
void memory_update_rows(T* bank, int64_t stride, int64_t dim, const A* values, const int64_t* indices, int64_t count,
                        A momentum, bool normalize) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  const A fresh = A(1) - momentum;
  const V keep(momentum), take(fresh);
  for (int64_t b = 0; b < count; ++b) {
    if (indices[b] < 0) continue;
    T* row = bank + indices[b] * stride;
    const A* value = values + b * dim;
    const auto blend = [&](int64_t d) { return at::vec::fmadd(keep, load_acc(row + d), take * V::loadu(value + d)); };
    const auto blend_one = [&](int64_t d) { return momentum * static_cast<A>(row[d]) + fresh * value[d]; };
    A norm = 1;
    if (normalize) {  // of the blend itself, not of its rounding to a half type
      V squares(0);
      A rest = 0;
      int64_t d = 0;
      for (; d + w <= dim; d += w) {
        const V v = blend(d);
        squares = at::vec::fmadd(v, v, squares);
      }
      for (; d < dim; ++d) rest += blend_one(d) * blend_one(d);
      norm = std::sqrt(rest + horizontal_sum(squares));
      if (norm == A(0)) norm = 1;
    }
    int64_t d = 0;
    for (; d + w <= dim; d += w) store_acc(row + d, V(blend(d) / V(norm)));
    for (; d < dim; ++d) row[d] = static_cast<T>(blend_one(d) / norm);
  }
}

#define INSTANTIATE(T)                                                                                          \
  template void memory_update_rows<T, acc_t<T>>(T*, int64_t, int64_t, const acc_t<T>*, const int64_t*, int64_t, \
                                                acc_t<T>, bool);
REID_FOR_EACH_FLOAT(INSTANTIATE)

}  // namespace reidfast::cpu::REID_ISA
