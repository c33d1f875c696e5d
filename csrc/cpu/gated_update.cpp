// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/gated_update.h"

#include <algorithm>

#include "csrc/cpu/lanes.h"

namespace reidfast::cpu::REID_ISA {

template <typename T>
void gated_update_forward(const T* down, const T* along, const T* state, const T* x, GateShape shape, int64_t begin,
                          int64_t end, T* out) {
  using V = AccVec<T>;
  for (int64_t r = begin; r < end; ++r) {
    const V factor(static_cast<acc_t<T>>(down[r]));
    const T* a = along + (r / shape.rows) * shape.cols;
    const int64_t first = r * shape.cols;
    for (int64_t k = 0; k < shape.cols; k += kLanes<T>) {
      const int64_t n = shape.cols - k;
      V z, not_z;
      sigmoid_pair<V>(factor * load_acc(a + k, n), z, not_z);
      store_acc(out + first + k, gated_blend(z, not_z, load_acc(state + first + k, n), load_acc(x + first + k, n)), n);
    }
  }
}

template <typename T, typename A>
void gated_update_backward(const T* grad, const T* down, const T* along, const T* state, const T* x, GateShape shape,
                           int64_t begin, int64_t end, T* grad_state, T* grad_x, T* grad_down, A* partial) {
  using V = AccVec<T>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / shape.chunks(), r0 = (task - b * shape.chunks()) * shape.chunk;
    const int64_t r1 = std::min(r0 + shape.chunk, shape.rows);
    const T* a = along + b * shape.cols;
    A* share = partial + task * shape.cols;
    std::fill(share, share + shape.cols, A(0));
    for (int64_t r = b * shape.rows + r0; r < b * shape.rows + r1; ++r) {
      const V factor(static_cast<A>(down[r]));
      V sum(0);
      const int64_t first = r * shape.cols;
      for (int64_t k = 0; k < shape.cols; k += kLanes<T>) {
        const int64_t n = shape.cols - k;
        const V other = load_acc(a + k, n), g = load_acc(grad + first + k, n);
        V z, not_z;
        sigmoid_pair<V>(factor * other, z, not_z);
        const V d = gated_blend_grad(z, not_z, load_acc(state + first + k, n), load_acc(x + first + k, n), g);
        store_acc(grad_state + first + k, not_z * g, n);
        store_acc(grad_x + first + k, z * g, n);
        sum = sum + d * other;
        store_acc(share + k, load_acc(share + k, n) + d * factor, n);
      }
      grad_down[r] = static_cast<T>(horizontal_sum(sum));
    }
  }
}

#define INSTANTIATE(T)                                                                                            \
  template void gated_update_forward<T>(const T*, const T*, const T*, const T*, GateShape, int64_t, int64_t, T*); \
  template void gated_update_backward<T, acc_t<T>>(const T*, const T*, const T*, const T*, const T*, GateShape,   \
                                                   int64_t, int64_t, T*, T*, T*, acc_t<T>*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
