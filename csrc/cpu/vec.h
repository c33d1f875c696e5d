// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Vector loads and stores that accumulate wide: float for float, Half and BFloat16; double for double. Built on
// at::vec, the one torch header that a kernel may see. Include only from csrc/cpu/*.cpp: the vector types differ
// between instruction sets.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

#include "csrc/common/macros.h"

namespace reidfast::cpu::REID_ISA {

template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
using AccVec = at::vec::Vectorized<acc_t<T>>;

template <typename T>
constexpr int64_t kLanes = AccVec<T>::size();

// kLanes<T> elements from x, widened.
template <typename T>
REID_HD AccVec<T> load_acc(const T* x) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return AccVec<T>::loadu(x);
  } else {
    __at_align__ acc_t<T> wide[kLanes<T>];
#if defined(CPU_CAPABILITY_AVX512)
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    if constexpr (std::is_same_v<T, c10::Half>) return _mm512_cvtph_ps(raw);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#elif defined(CPU_CAPABILITY_AVX2)
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    if constexpr (std::is_same_v<T, c10::Half>) return _mm256_cvtph_ps(raw);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#endif
    for (int64_t j = 0; j < kLanes<T>; ++j) wide[j] = static_cast<acc_t<T>>(x[j]);
    return AccVec<T>::loadu(wide);
  }
}

// kLanes<T> elements to x, rounded to nearest even.
template <typename T>
REID_HD void store_acc(T* x, const AccVec<T>& v) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    v.store(x);
  } else {
    __at_align__ acc_t<T> wide[kLanes<T>];
    v.store(wide);
    for (int64_t j = 0; j < kLanes<T>; ++j) x[j] = static_cast<T>(wide[j]);
  }
}

// Sum over lanes by halving: one fixed order for every instruction set of the same width.
template <typename A>
REID_HD A horizontal_sum(const at::vec::Vectorized<A>& v) {
  constexpr int64_t n = at::vec::Vectorized<A>::size();
  __at_align__ A lane[n];
  v.store(lane);
  for (int64_t half = n / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) lane[j] += lane[j + half];
  return lane[0];
}

// <x, y> over n elements, y in the accumulation type; four independent chains.
template <typename T>
REID_HD acc_t<T> dot(const T* x, const acc_t<T>* y, int64_t n) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  V s0(0), s1(0), s2(0), s3(0);
  int64_t d = 0;
  for (; d + 4 * w <= n; d += 4 * w) {
    s0 = at::vec::fmadd(load_acc(x + d), V::loadu(y + d), s0);
    s1 = at::vec::fmadd(load_acc(x + d + w), V::loadu(y + d + w), s1);
    s2 = at::vec::fmadd(load_acc(x + d + 2 * w), V::loadu(y + d + 2 * w), s2);
    s3 = at::vec::fmadd(load_acc(x + d + 3 * w), V::loadu(y + d + 3 * w), s3);
  }
  for (; d + w <= n; d += w) s0 = at::vec::fmadd(load_acc(x + d), V::loadu(y + d), s0);
  acc_t<T> sum = horizontal_sum(V((s0 + s1) + (s2 + s3)));
  for (; d < n; ++d) sum += static_cast<acc_t<T>>(x[d]) * y[d];
  return sum;
}

}  // namespace reidfast::cpu::REID_ISA

// Explicit instantiations for every dtype: `#define INSTANTIATE(T) template void f<T>(...);` then
// REID_FOR_EACH_FLOAT(INSTANTIATE).
#define REID_FOR_EACH_FLOAT(macro) macro(float) macro(double) macro(c10::Half) macro(c10::BFloat16)
