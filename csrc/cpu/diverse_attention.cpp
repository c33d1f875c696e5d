// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/diverse_attention.h"

#include <algorithm>
#include <limits>

#include "csrc/cpu/tile.h"

namespace reidfast::cpu::REID_ISA {
namespace {

// Rows are padded to whole vectors with zeros.
template <typename A>
REID_HD A dot_rows(const A* x, const A* y, int64_t padded) {
  using V = at::vec::Vectorized<A>;
  V sum(0);
  for (int64_t l = 0; l < padded; l += V::size()) sum = at::vec::fmadd(V::loadu(x + l), V::loadu(y + l), sum);
  return sum_lanes(sum);
}

template <typename A>
REID_HD void square_roots(const A* x, int64_t n, A* out) {
  using V = at::vec::Vectorized<A>;
  for (int64_t l = 0; l < n; l += V::size()) V::loadu(x + l).sqrt().store(out + l);
}

template <typename T, typename A>
REID_HD void softmax_row(const T* logits, int64_t cells, int64_t padded, A* out) {
  using V = AccVec<T>;
  for (int64_t l = 0; l < cells; ++l) out[l] = static_cast<A>(logits[l]);
  std::fill(out + cells, out + padded, -std::numeric_limits<A>::infinity());
  V high = V::loadu(out);
  for (int64_t l = V::size(); l < padded; l += V::size()) high = at::vec::maximum(high, V::loadu(out + l));
  __at_align__ A lane[V::size()];
  high.store(lane);
  A top = lane[0];
  for (int64_t j = 1; j < V::size(); ++j) top = lane[j] > top || lane[j] != lane[j] ? lane[j] : top;
  V sum(0);
  for (int64_t l = 0; l < padded; l += V::size()) {
    const V e = (V::loadu(out + l) - V(top)).exp();
    e.store(out + l);
    sum = sum + e;
  }
  const A total = sum_lanes(sum);
  for (int64_t l = 0; l < cells; ++l) out[l] /= total;
  std::fill(out + cells, out + padded, A(0));
}

}  // namespace

template <typename T, typename A>
void diverse_attention_softmax(const T* logits, int64_t maps, int64_t cells, int64_t padded_cells, int64_t begin,
                               int64_t end, A* weights, T* attention, A* overlap, A* scratch) {
  for (int64_t b = begin; b < end; ++b) {
    A* w = weights + b * maps * padded_cells;
    for (int64_t k = 0; k < maps && cells > 0; ++k) {
      softmax_row(logits + (b * maps + k) * cells, cells, padded_cells, w + k * padded_cells);
      if (!attention) continue;
      for (int64_t l = 0; l < cells; ++l)
        attention[(b * maps + k) * cells + l] = static_cast<T>(w[k * padded_cells + l]);
    }
    if (!overlap) continue;
    square_roots(w, maps * padded_cells, scratch);
    A sum = 0;
    for (int64_t i = 0; i < maps; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        const A g = dot_rows(scratch + i * padded_cells, scratch + j * padded_cells, padded_cells);
        sum += g * g;
      }
    }
    overlap[b] = 2 * sum;
  }
}

template <typename T, typename A>
void diverse_attention_logits(const A* weights, const A* grad_weights, int64_t parts, const T* grad_attention,
                              const A* grad_overlap, int64_t maps, int64_t cells, int64_t padded_cells, int64_t begin,
                              int64_t end, T* grad_logits, A* scratch) {
  using V = AccVec<T>;
  const int64_t n = maps * padded_cells;
  A *root = scratch, *mixed = root + n, *grad = mixed + n, *gram = grad + n;
  for (int64_t b = begin; b < end; ++b) {
    const A* w = weights + b * n;
    std::fill(grad, grad + n, A(0));
    for (int64_t part = 0; grad_weights && part < parts; ++part)
      for (int64_t l = 0; l < n; l += V::size())
        (V::loadu(grad + l) + V::loadu(grad_weights + (b * parts + part) * n + l)).store(grad + l);
    if (grad_attention)
      for (int64_t k = 0; k < maps; ++k)
        for (int64_t l = 0; l < cells; ++l)
          grad[k * padded_cells + l] += static_cast<A>(grad_attention[(b * maps + k) * cells + l]);
    if (grad_overlap) {
      square_roots(w, n, root);
      for (int64_t i = 0; i < maps; ++i)
        for (int64_t j = 0; j <= i; ++j)
          gram[i * maps + j] = gram[j * maps + i] =
              i == j ? A(0) : dot_rows(root + i * padded_cells, root + j * padded_cells, padded_cells);
    }
    for (int64_t k = 0; k < maps; ++k) {
      const A *wk = w + k * padded_cells, *rk = root + k * padded_cells;
      A *gk = grad + k * padded_cells, *hk = mixed + k * padded_cells;
      const A mean = dot_rows(wk, gk, padded_cells);
      A mean_mixed = 0;
      const A factor = grad_overlap ? 2 * grad_overlap[b] : A(0);
      if (grad_overlap) {  // row k of (G - I) R, times R
        for (int64_t l = 0; l < padded_cells; l += V::size()) {
          V h(0);
          for (int64_t j = 0; j < maps; ++j)
            h = at::vec::fmadd(V(gram[k * maps + j]), V::loadu(root + j * padded_cells + l), h);
          (h * V::loadu(rk + l)).store(hk + l);
        }
        V sum(0);
        for (int64_t l = 0; l < padded_cells; l += V::size()) sum = sum + V::loadu(hk + l);
        mean_mixed = sum_lanes(sum);
      }
      T* out = grad_logits + (b * maps + k) * cells;
      for (int64_t l = 0; l < padded_cells; l += V::size()) {
        const V a = V::loadu(wk + l);
        V d = a * (V::loadu(gk + l) - V(mean));
        if (grad_overlap) d = at::vec::fmadd(V(factor), V::loadu(hk + l) - a * V(mean_mixed), d);
        if (l < cells) store_some(out + l, d, cells - l);
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void diverse_attention_softmax<T, acc_t<T>>(const T*, int64_t, int64_t, int64_t, int64_t, int64_t,       \
                                                       acc_t<T>*, T*, acc_t<T>*, acc_t<T>*);                        \
  template void diverse_attention_logits<T, acc_t<T>>(const acc_t<T>*, const acc_t<T>*, int64_t, const T*,          \
                                                      const acc_t<T>*, int64_t, int64_t, int64_t, int64_t, int64_t, \
                                                      T*, acc_t<T>*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
