// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/set_pool.h"

#include <algorithm>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

template <typename A>
void set_pool_weights(const A* scores, SetRanges sets, SetPoolWeighting weighting, int64_t begin, int64_t end,
                      A* weights) {
  for (int64_t s = begin; s < end; ++s) {
    const int64_t first = sets.begin(s), last = sets.end(s);
    A sum = 0;
    if (weighting == SetPoolWeighting::kLinear) {
      for (int64_t t = first; t < last; ++t) sum += scores[t];
      const A inv = sum == A(0) ? A(0) : A(1) / sum;
      for (int64_t t = first; t < last; ++t) weights[t] = scores[t] * inv;
      continue;
    }
    A best = -INFINITY;
    for (int64_t t = first; t < last; ++t) {
      weights[t] = set_pool_logit(scores[t], weighting);
      best = weights[t] > best || weights[t] != weights[t] ? weights[t] : best;  // a NaN stays
    }
    for (int64_t t = first; t < last; ++t) sum += weights[t] = std::exp(weights[t] - best);
    for (int64_t t = first; t < last; ++t) weights[t] /= sum;
  }
}

template <typename T, typename A>
void set_pool_sum(const SetFrames<T>& x, const A* weights, int64_t begin, int64_t end, T* out) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>, kBlock = 1024;  // the block's sums stay in L1 while frames stream by
  A sum[kBlock];
  for (int64_t s = begin; s < end; ++s) {
    const int64_t first = x.sets.begin(s), last = x.sets.end(s);
    for (int64_t d0 = 0; d0 < x.dim; d0 += kBlock) {
      const int64_t n = std::min(kBlock, x.dim - d0);
      std::fill(sum, sum + n, A(0));
      int64_t t = first;
      for (; t + 4 <= last; t += 4) {  // four frames a turn: one load and store of the sums for four of x
        const T *x0 = x.at(s, t) + d0, *x1 = x.at(s, t + 1) + d0, *x2 = x.at(s, t + 2) + d0, *x3 = x.at(s, t + 3) + d0;
        const A w0 = weights[t], w1 = weights[t + 1], w2 = weights[t + 2], w3 = weights[t + 3];
        int64_t d = 0;
        for (; d + w <= n; d += w) {
          V acc = at::vec::fmadd(load_acc(x0 + d), V(w0), V::loadu(sum + d));
          acc = at::vec::fmadd(load_acc(x1 + d), V(w1), acc);
          acc = at::vec::fmadd(load_acc(x2 + d), V(w2), acc);
          at::vec::fmadd(load_acc(x3 + d), V(w3), acc).store(sum + d);
        }
        for (; d < n; ++d) sum[d] = A(x3[d]) * w3 + (A(x2[d]) * w2 + (A(x1[d]) * w1 + (A(x0[d]) * w0 + sum[d])));
      }
      for (; t < last; ++t) {
        const T* x0 = x.at(s, t) + d0;
        const A w0 = weights[t];
        int64_t d = 0;
        for (; d + w <= n; d += w) at::vec::fmadd(load_acc(x0 + d), V(w0), V::loadu(sum + d)).store(sum + d);
        for (; d < n; ++d) sum[d] += A(x0[d]) * w0;
      }
      T* o = out + s * x.dim + d0;
      int64_t d = 0;
      for (; d + w <= n; d += w) store_acc(o + d, V::loadu(sum + d));
      for (; d < n; ++d) o[d] = static_cast<T>(sum[d]);
    }
  }
}

template <typename T, typename A>
void set_pool_backward_frames(const SetFrames<T>& x, const A* weights, const T* grad, int64_t num_sets, int64_t begin,
                              int64_t end, T* grad_x, A* dots) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  // The set of the first frame: the last one that begins at or before it (empty sets share their begin with the next).
  int64_t s = 0;
  for (int64_t high = num_sets; s + 1 < high;) {
    const int64_t middle = s + (high - s) / 2;
    if (x.sets.begin(middle) <= begin)
      s = middle;
    else
      high = middle;
  }
  for (int64_t t = begin; t < end; ++t) {
    while (x.sets.end(s) <= t) ++s;
    const T *row = x.at(s, t), *g = grad + s * x.dim;
    T* out = grad_x ? grad_x + t * x.dim : nullptr;
    const A weight = weights[t];
    V sum0(0), sum1(0);
    A tail = 0;
    int64_t d = 0;
    for (; d + 2 * w <= x.dim; d += 2 * w) {
      const V g0 = load_acc(g + d), g1 = load_acc(g + d + w);
      if (out) store_acc(out + d, g0 * V(weight)), store_acc(out + d + w, g1 * V(weight));
      if (dots)
        sum0 = at::vec::fmadd(load_acc(row + d), g0, sum0), sum1 = at::vec::fmadd(load_acc(row + d + w), g1, sum1);
    }
    for (; d < x.dim; ++d) {
      if (out) out[d] = static_cast<T>(A(g[d]) * weight);
      if (dots) tail += A(row[d]) * A(g[d]);
    }
    if (dots) dots[t] = horizontal_sum(V(sum0 + sum1)) + tail;
  }
}

template <typename A>
void set_pool_backward_scores(const A* scores, const A* weights, const A* dots, SetRanges sets,
                              SetPoolWeighting weighting, int64_t begin, int64_t end, A* grad_scores) {
  for (int64_t s = begin; s < end; ++s) {
    const int64_t first = sets.begin(s), last = sets.end(s);
    A mean = 0, sum = 0;
    for (int64_t t = first; t < last; ++t) mean += weights[t] * dots[t], sum += scores[t];
    const A inv = sum == A(0) ? A(0) : A(1) / sum;
    for (int64_t t = first; t < last; ++t)
      grad_scores[t] = set_pool_score_factor(scores[t], weights[t], inv, weighting) * (dots[t] - mean);
  }
}

#define INSTANTIATE(T)                                                                                         \
  template void set_pool_sum<T, acc_t<T>>(const SetFrames<T>&, const acc_t<T>*, int64_t, int64_t, T*);         \
  template void set_pool_backward_frames<T, acc_t<T>>(const SetFrames<T>&, const acc_t<T>*, const T*, int64_t, \
                                                      int64_t, int64_t, T*, acc_t<T>*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE
#define INSTANTIATE(A)                                                                                          \
  template void set_pool_weights<A>(const A*, SetRanges, SetPoolWeighting, int64_t, int64_t, A*);               \
  template void set_pool_backward_scores<A>(const A*, const A*, const A*, SetRanges, SetPoolWeighting, int64_t, \
                                            int64_t, A*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
