// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/batch_hard.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/lanes.h"

namespace reidfast::cpu::REID_ISA {

namespace {

constexpr int64_t kChunk = 64;  // entries that one vectorised test rules out together

// Whether any of labels [n] equals `label`.
REID_HD bool any_equal(const int64_t* labels, int64_t n, int64_t label) {
  int64_t found = 0;
#pragma omp simd reduction(+ : found)
  for (int64_t j = 0; j < n; ++j) found += labels[j] == label;
  return found != 0;
}

// |product-form squared distance - directly computed one| <= factor * (||x_i||^2 + ||x_j||^2): rounding of a dot
// product of `dim` terms in any order (dim u), of the two norms and of the direct sum (by lanes, dim u / 8 each), with
// room.
template <typename A>
REID_HD A rounding_factor(int64_t dim) {
  return (A(1.5) * static_cast<A>(dim) + A(64)) * std::numeric_limits<A>::epsilon() / 2;
}

template <typename A>
REID_HD void write(HardPair<A> ap, HardPair<A> an, int64_t i, HardPairs<A> out) {
  out.d_ap[i] = ap.index < 0 ? -std::numeric_limits<A>::infinity() : std::sqrt(ap.sq);
  out.d_an[i] = an.index < 0 ? std::numeric_limits<A>::infinity() : std::sqrt(an.sq);
  out.i_ap[i] = ap.index;
  out.i_an[i] = an.index;
}

}  // namespace

template <typename A>
void batch_hard_norms(const A* x, int64_t ldx, int64_t dim, int64_t begin, int64_t end, A* sq_norms) {
  for (int64_t i = begin; i < end; ++i) sq_norms[i] = dot(x + i * ldx, x + i * ldx, dim);
}

template <typename A>
void batch_hard_rows(const A* x, int64_t ldx, int64_t dim, int64_t num_rows, const int64_t* labels, A* products,
                     const A* sq_norms, int64_t begin, int64_t end, HardPairs<A> out) {
  constexpr A inf = std::numeric_limits<A>::infinity();
  const A factor = rounding_factor<A>(dim);
  for (int64_t i = begin; i < end; ++i) {
    const A* xi = x + i * ldx;
    const int64_t label = labels[i];
    HardPair<A> ap{0, -1}, an{0, -1};
    const auto visit = [&](int64_t j) {
      if (j == i) return;
      const A sq = sq_distance(xi, x + j * ldx, dim);
      if (labels[j] == label) {
        if (harder_positive(sq, j, ap)) ap = {sq, j};
      } else {
        if (harder_negative(sq, j, an)) an = {sq, j};
      }
    };
    if (!products) {
      for (int64_t j = 0; j < num_rows; ++j) visit(j);
      write(ap, an, i, out);
      continue;
    }

    // product -> squared distance less ||x_i||^2; `slack` is what rounding may have moved it by. The distance that the
    // hardest positive surely reaches, and the one that the hardest negative surely does not exceed:
    A* row = products + (i - begin) * num_rows;
    const A own = sq_norms[i];
    A reach = -inf, limit = inf;
    for (int64_t j0 = 0; j0 < num_rows; j0 += kChunk) {
      const int64_t j1 = std::min(j0 + kChunk, num_rows);
      if (any_equal(labels + j0, j1 - j0, label)) {
        for (int64_t j = j0; j < j1; ++j) {
          const A slack = factor * (own + sq_norms[j]);
          row[j] = sq_norms[j] - 2 * row[j];
          if (labels[j] != label)
            limit = row[j] + slack < limit ? row[j] + slack : limit;
          else if (j != i)
            reach = row[j] - slack > reach ? row[j] - slack : reach;
        }
      } else {
#pragma omp simd reduction(min : limit)
        for (int64_t j = j0; j < j1; ++j) {
          row[j] = sq_norms[j] - 2 * row[j];
          const A high = row[j] + factor * (own + sq_norms[j]);
          limit = high < limit ? high : limit;
        }
      }
    }
    // What cannot be ruled out is computed directly, lowest index first; a NaN is never ruled out.
    for (int64_t j0 = 0; j0 < num_rows; j0 += kChunk) {
      const int64_t j1 = std::min(j0 + kChunk, num_rows);
      if (any_equal(labels + j0, j1 - j0, label)) {
        for (int64_t j = j0; j < j1; ++j) {
          const A slack = factor * (own + sq_norms[j]);
          if (labels[j] == label ? !(row[j] + slack < reach) : !(row[j] - slack > limit)) visit(j);
        }
      } else {
        int64_t open = 0;
#pragma omp simd reduction(+ : open)
        for (int64_t j = j0; j < j1; ++j) open += !(row[j] - factor * (own + sq_norms[j]) > limit);
        for (int64_t j = j0; open > 0 && j < j1; ++j)
          if (!(row[j] - factor * (own + sq_norms[j]) > limit)) visit(j), --open;
      }
    }
    write(ap, an, i, out);
  }
}

template <typename A>
void batch_hard_backward_rows(const A* x, int64_t ldx, int64_t dim, ChosenPairs<A> positives, ChosenPairs<A> negatives,
                              int64_t begin, int64_t end, A* grad_x) {
  using V = AccVec<A>;
  constexpr int64_t w = kLanes<A>, kBlock = 512;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t d0 = 0; d0 < dim; d0 += kBlock) {
      const int64_t n = std::min(kBlock, dim - d0);
      const A* xi = x + i * ldx + d0;
      A* out = grad_x + i * dim + d0;
      std::fill(out, out + n, A(0));
      const auto add = [&](A factor, int64_t other) {  // out += factor * (x_i - x_other)
        const A* xo = x + other * ldx + d0;
        int64_t d = 0;
        for (; d + w <= n; d += w)
          at::vec::fmadd(V(factor), V::loadu(xi + d) - V::loadu(xo + d), V::loadu(out + d)).store(out + d);
        for (; d < n; ++d) out[d] += factor * (xi[d] - xo[d]);
      };
      for (const ChosenPairs<A>* pairs : {&positives, &negatives}) {
        if (!pairs->grad) continue;
        if (pairs->index[i] >= 0) add(distance_grad_factor(pairs->grad[i], pairs->d[i]), pairs->index[i]);
        for (int64_t a = pairs->heads[i]; a >= 0; a = pairs->next[a])
          add(distance_grad_factor(pairs->grad[a], pairs->d[a]), a);
      }
    }
  }
}

#define INSTANTIATE(A)                                                                                           \
  template void batch_hard_norms<A>(const A*, int64_t, int64_t, int64_t, int64_t, A*);                           \
  template void batch_hard_rows<A>(const A*, int64_t, int64_t, int64_t, const int64_t*, A*, const A*, int64_t,   \
                                   int64_t, HardPairs<A>);                                                       \
  template void batch_hard_backward_rows<A>(const A*, int64_t, int64_t, ChosenPairs<A>, ChosenPairs<A>, int64_t, \
                                            int64_t, A*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
