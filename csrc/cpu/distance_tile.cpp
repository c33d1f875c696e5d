// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/distance_tile.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

template <typename S>
void row_square_sum(const S* x, int64_t step, int64_t dim, double* sum) {
  constexpr int64_t kChains = 16;  // a fixed number, so that the order of summation is one for every instruction set
  double chain[kChains] = {};
  int64_t d = 0;
  if (step == 1) {
    for (; d + kChains <= dim; d += kChains)
      for (int64_t c = 0; c < kChains; ++c) {
        const double v = static_cast<double>(static_cast<acc_t<S>>(x[d + c]));
        chain[c] = std::fma(v, v, chain[c]);
      }
  } else {
    for (; d + kChains <= dim; d += kChains)
      for (int64_t c = 0; c < kChains; ++c) {
        const double v = static_cast<double>(static_cast<acc_t<S>>(x[(d + c) * step]));
        chain[c] = std::fma(v, v, chain[c]);
      }
  }
  for (int64_t c = 0; d < dim; ++d, ++c) {
    const double v = static_cast<double>(static_cast<acc_t<S>>(x[d * step]));
    chain[c] = std::fma(v, v, chain[c]);
  }
  for (int64_t half = kChains / 2; half > 0; half /= 2)
    for (int64_t c = 0; c < half; ++c) chain[c] += chain[c + half];
  *sum = chain[0];
}

template <typename S>
void row_is_finite(const S* x, int64_t step, int64_t dim, bool* finite) {
  *finite = true;
  for (int64_t d = 0; d < dim; ++d)
    if (!std::isfinite(static_cast<acc_t<S>>(x[d * step]))) *finite = false;
}

template <typename S, typename T>
void pack_row(const S* x, int64_t step, int64_t dim, double scale, T* y) {
  if (scale == 1.0) {
    if (step == 1)
      for (int64_t d = 0; d < dim; ++d) y[d] = static_cast<T>(static_cast<acc_t<S>>(x[d]));
    else
      for (int64_t d = 0; d < dim; ++d) y[d] = static_cast<T>(static_cast<acc_t<S>>(x[d * step]));
    return;
  }
  if (step == 1)
    for (int64_t d = 0; d < dim; ++d) y[d] = static_cast<T>(static_cast<double>(static_cast<acc_t<S>>(x[d])) * scale);
  else
    for (int64_t d = 0; d < dim; ++d)
      y[d] = static_cast<T>(static_cast<double>(static_cast<acc_t<S>>(x[d * step])) * scale);
}

template <typename T>
void products_to_distances(const T* product, int64_t n, Metric metric, double query_sq, const double* gallery_sq,
                           T* d) {
  const T q = static_cast<T>(query_sq);
  switch (metric) {  // ivdep: where the two are one, element by element still
    case Metric::kCosine:
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) d[j] = T(1) - product[j];
      break;
    case Metric::kDot:
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) d[j] = -product[j];
      break;
    case Metric::kSquaredEuclidean:
    case Metric::kEuclidean:
      // Doubling is exact, so a fused multiply-add and two roundings agree.
#pragma GCC ivdep
      for (int64_t j = 0; j < n; ++j) {
        const T sq = (q + static_cast<T>(gallery_sq[j])) - T(2) * product[j];
        d[j] = sq > T(0) ? sq : T(0);
      }
      if (metric == Metric::kEuclidean)
        for (int64_t j = 0; j < n; ++j) d[j] = std::sqrt(d[j]);
      break;
  }
}

#define INSTANTIATE(S)                                                          \
  template void row_square_sum<S>(const S*, int64_t, int64_t, double*);         \
  template void row_is_finite<S>(const S*, int64_t, int64_t, bool*);            \
  template void pack_row<S, float>(const S*, int64_t, int64_t, double, float*); \
  template void pack_row<S, double>(const S*, int64_t, int64_t, double, double*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE
template void products_to_distances<float>(const float*, int64_t, Metric, double, const double*, float*);
template void products_to_distances<double>(const double*, int64_t, Metric, double, const double*, double*);

}  // namespace reidfast::cpu::REID_ISA
