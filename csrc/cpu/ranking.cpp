// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/ranking.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>
#include <cmath>
#include <type_traits>

#include "csrc/cpu/vec.h"

namespace reidfast::cpu::REID_ISA {

namespace {

template <typename T>
using count_t = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // as wide as T: one vector compare, one add

// Above this many thresholds a binary search per element is cheaper than a compare per threshold.
constexpr int64_t kSearchAbove = 96;

template <typename T>
count_t<T> count_equal(const T* d, int64_t n, T t) {
  count_t<T> sum = 0;
  for (int64_t j = 0; j < n; ++j) sum += d[j] == t;
  return sum;
}

#if defined(CPU_CAPABILITY_AVX512)
#define REID_INLINE __attribute__((always_inline))

// Compilers turn the loop below into a compare, a select and an add; here the add is masked by the compare.
void compare_four(const float* d, int64_t n, const float* t, int32_t* below, int32_t* up_to) {
  const __m512i minus_one = _mm512_set1_epi32(-1);
  const __m512 t0 = _mm512_set1_ps(t[0]), t1 = _mm512_set1_ps(t[1]), t2 = _mm512_set1_ps(t[2]),
               t3 = _mm512_set1_ps(t[3]);
  __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  const auto add = [&](__m512 v) REID_INLINE {
    a0 = _mm512_mask_sub_epi32(a0, _mm512_cmp_ps_mask(v, t0, _CMP_LT_OQ), a0, minus_one);
    a1 = _mm512_mask_sub_epi32(a1, _mm512_cmp_ps_mask(v, t1, _CMP_LT_OQ), a1, minus_one);
    a2 = _mm512_mask_sub_epi32(a2, _mm512_cmp_ps_mask(v, t2, _CMP_LT_OQ), a2, minus_one);
    a3 = _mm512_mask_sub_epi32(a3, _mm512_cmp_ps_mask(v, t3, _CMP_LT_OQ), a3, minus_one);
    b0 = _mm512_mask_sub_epi32(b0, _mm512_cmp_ps_mask(v, t0, _CMP_LE_OQ), b0, minus_one);
    b1 = _mm512_mask_sub_epi32(b1, _mm512_cmp_ps_mask(v, t1, _CMP_LE_OQ), b1, minus_one);
    b2 = _mm512_mask_sub_epi32(b2, _mm512_cmp_ps_mask(v, t2, _CMP_LE_OQ), b2, minus_one);
    b3 = _mm512_mask_sub_epi32(b3, _mm512_cmp_ps_mask(v, t3, _CMP_LE_OQ), b3, minus_one);
  };
  int64_t j = 0;
  for (; j + 16 <= n; j += 16) add(_mm512_loadu_ps(d + j));
  if (j < n) add(_mm512_mask_loadu_ps(_mm512_set1_ps(NAN), static_cast<__mmask16>((1u << (n - j)) - 1), d + j));
  const __m512i a[4] = {a0, a1, a2, a3}, b[4] = {b0, b1, b2, b3};
  for (int k = 0; k < 4; ++k) {
    below[k] = _mm512_reduce_add_epi32(a[k]);
    up_to[k] = _mm512_reduce_add_epi32(b[k]);
  }
}

// Carry-save adder over bit positions: low and high bit of a + b + c.
struct Sum2 {
  __m512i low, high;
};
inline REID_INLINE Sum2 carry_save(__m512i a, __m512i b, __m512i c) {
  return {_mm512_ternarylogic_epi32(a, b, c, 0x96), _mm512_ternarylogic_epi32(a, b, c, 0xE8)};
}

// The places of columns among m <= 2^kSteps - 1 ascending thresholds: a d stands at the number of thresholds t <= d,
// found by a binary search in registers (NaN comes last). As one bit of 32 the places are counted, 16 vectors at a
// time, by carry-save adders.
template <int kSteps>
struct Places {
  static constexpr int kTable = 1 << kSteps;  // 16 or 32
  __m512 low, high, middle;                   // low[i] = t[i-1], high[i] = t[i+15]
  __m512i ones = _mm512_setzero_si512(), twos = ones, fours = ones, eights = ones, ties = ones;
  __mmask16 nan = 0;
  int32_t sixteens_of[kTable] = {};

  Places(const float* t, int64_t m) {
    alignas(64) float table[32];
    table[0] = NAN;
    for (int64_t k = 0; k < 31; ++k) table[k + 1] = k < m ? t[k] : INFINITY;
    low = _mm512_load_ps(table), high = _mm512_load_ps(table + 16), middle = _mm512_set1_ps(table[kTable / 2]);
  }
  REID_INLINE __m512 look_up(__m512i at) const {
    if constexpr (kSteps == 4)
      return _mm512_permutexvar_ps(at, low);
    else
      return _mm512_permutex2var_ps(low, at, high);
  }
  REID_INLINE __m512i place(__m512 v, __mmask16 inside) {
    const __m512i half = _mm512_set1_epi32(kTable / 2);
    __m512i at = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(v, middle, _CMP_NLT_UQ), half);
    const auto step = [&](int width) REID_INLINE {
      const __m512i probe = _mm512_or_si512(at, _mm512_set1_epi32(width));
      at = _mm512_mask_mov_epi32(at, _mm512_cmp_ps_mask(v, look_up(probe), _CMP_NLT_UQ), probe);
    };
    if constexpr (kSteps == 5) step(8);
    step(4), step(2), step(1);
    const __mmask16 equal = _mm512_mask_cmp_ps_mask(inside, v, look_up(at), _CMP_EQ_OQ);
    ties = _mm512_mask_sub_epi32(ties, equal, ties, _mm512_set1_epi32(-1));
    return _mm512_maskz_sllv_epi32(inside, _mm512_set1_epi32(1), at);
  }
  // Two vectors at x, `left` columns of which exist.
  template <bool kWhole>
  REID_INLINE __m512i pair(const float* x, int64_t left) {
    const auto mask = [](int64_t n) { return n >= 16 ? 0xFFFF : n > 0 ? (1u << n) - 1 : 0; };
    const __mmask16 in0 = kWhole ? 0xFFFF : mask(left), in1 = kWhole ? 0xFFFF : mask(left - 16);
    const __m512 v0 = kWhole ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(in0, x);
    const __m512 v1 = kWhole ? _mm512_loadu_ps(x + 16) : _mm512_maskz_loadu_ps(in1, x + 16);
    nan |= _mm512_cmp_ps_mask(v0, v1, _CMP_UNORD_Q);
    const Sum2 s = carry_save(ones, place(v0, in0), place(v1, in1));
    ones = s.low;
    return s.high;
  }
  template <bool kWhole>
  REID_INLINE void add(const float* x, int64_t left) {
    const auto four = [&](int64_t i) REID_INLINE {
      const __m512i a = pair<kWhole>(x + i, left - i), b = pair<kWhole>(x + i + 32, left - i - 32);
      const Sum2 s = carry_save(twos, a, b);
      twos = s.low;
      return s.high;
    };
    const auto eight = [&](int64_t i) REID_INLINE {
      const __m512i a = four(i), b = four(i + 64);
      const Sum2 s = carry_save(fours, a, b);
      fours = s.low;
      return s.high;
    };
    const __m512i a = eight(0), b = eight(128);
    const Sum2 s = carry_save(eights, a, b);
    eights = s.low;
    for (int k = 0; k < kTable - 1; ++k)
      sixteens_of[k] += std::popcount(static_cast<uint32_t>(_mm512_test_epi32_mask(s.high, _mm512_set1_epi32(1 << k))));
  }
  void run(const float* d, int64_t n) {
    int64_t j = 0;
    for (; j + 256 <= n; j += 256) add<true>(d + j, 256);
    if (j < n) add<false>(d + j, n - j);
  }
  // below[k] = number of d < t[k]
  void finish(int64_t m, int32_t* below) const {
    int32_t sum = 0;
    for (int64_t k = 0; k < m; ++k) {
      const auto count = [&](__m512i bits) {
        return std::popcount(static_cast<uint32_t>(_mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << k))));
      };
      sum += 16 * sixteens_of[k] + 8 * count(eights) + 4 * count(fours) + 2 * count(twos) + count(ones);
      below[k] = sum;
    }
  }
};

// below[k] = number of d < t[k], and of all d that equal some threshold; m <= 31. Infinite d may count as equal to one
// that is not there.
void count_places(const float* d, int64_t n, const float* t, int64_t m, int32_t* below, int64_t* ties, bool* nan) {
  const auto with = [&](auto places) {
    places.run(d, n);
    places.finish(m, below);
    *ties = _mm512_reduce_add_epi32(places.ties);
    *nan = places.nan != 0;
  };
  if (m <= 15)
    with(Places<4>(t, m));
  else
    with(Places<5>(t, m));
}
#endif

// below and up_to (d <= t) for four thresholds at a time, so that a loaded vector meets eight compares; m a multiple of
// four.
template <typename T>
void compare_counts(const T* d, int64_t n, const T* t, int64_t m, count_t<T>* below, count_t<T>* up_to) {
  using C = count_t<T>;
  for (int64_t k = 0; k < m; k += 4) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, float>) {
      compare_four(d, n, t + k, below + k, up_to + k);
      continue;
    }
#endif
    const T t0 = t[k], t1 = t[k + 1], t2 = t[k + 2], t3 = t[k + 3];
    C a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    for (int64_t j = 0; j < n; ++j) {
      const T v = d[j];
      a0 += v < t0;
      a1 += v < t1;
      a2 += v < t2;
      a3 += v < t3;
      b0 += v <= t0;
      b1 += v <= t1;
      b2 += v <= t2;
      b3 += v <= t3;
    }
    below[k] = a0, below[k + 1] = a1, below[k + 2] = a2, below[k + 3] = a3;
    up_to[k] = b0, up_to[k + 1] = b1, up_to[k + 2] = b2, up_to[k + 3] = b3;
  }
}

// First k with t[k] >= v (strict: > v) among m ascending thresholds.
template <bool kStrict, typename T>
int64_t bound(const T* t, int64_t m, T v) {
  int64_t low = 0;
  while (m > 0) {
    const int64_t half = m / 2;
    const bool right = kStrict ? t[low + half] <= v : t[low + half] < v;
    low = right ? low + half + 1 : low;
    m = right ? m - half - 1 : half;
  }
  return low;
}

}  // namespace

template <typename S, typename T>
void load_row(const S* x, int64_t step, int64_t n, T* y, bool* has_nan) {
  int32_t bad = 0;
  if (step == 1)
    for (int64_t j = 0; j < n; ++j) {
      const T v = static_cast<T>(static_cast<acc_t<S>>(x[j]));
      bad |= !(v == v);
      y[j] = v;
    }
  else
    for (int64_t j = 0; j < n; ++j) {
      const T v = static_cast<T>(static_cast<acc_t<S>>(x[j * step]));
      bad |= !(v == v);
      y[j] = v;
    }
  *has_nan |= bad != 0;
}

template <typename T>
void count_row(const T* d, int64_t n, int64_t first_column, const T* thresholds, const int64_t* column, int64_t m,
               int64_t* below, int64_t* equal, int64_t* before) {
  constexpr int64_t kGroup = 64;
  const auto ties = [&](int64_t k) {
    const int64_t upto = column[k] - first_column;
    return upto <= 0 ? 0 : static_cast<int64_t>(count_equal(d, upto < n ? upto : n, thresholds[k]));
  };
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    int32_t places[31];
    int64_t tied = 1;
    bool nan = false;
    if (m <= 31) count_places(d, n, thresholds, m, places, &tied, &nan);
    if (tied == 0) {
      for (int64_t k = 0; k < m; ++k) below[k] += places[k];
      return;
    }
  }
#endif
  if (m <= kSearchAbove) {
    for (int64_t k0 = 0; k0 < m; k0 += kGroup) {
      const int64_t group = m - k0 < kGroup ? m - k0 : kGroup;
      count_t<T> a[kGroup], b[kGroup];
      T t[kGroup];
      int64_t padded = 0;
      for (; padded < group; ++padded) t[padded] = thresholds[k0 + padded];
      for (; padded % 4 != 0; ++padded) t[padded] = t[group - 1];
      compare_counts(d, n, t, padded, a, b);
      for (int64_t k = 0; k < group; ++k) {
        below[k0 + k] += a[k];
        if (b[k] != a[k]) {
          equal[k0 + k] += b[k] - a[k];
          before[k0 + k] += ties(k0 + k);
        }
      }
    }
    return;
  }
  // A column with d in [t[k-1], t[k]) is below every threshold from k on: add 1 where that begins, sum up at the end.
  // One pass leaves the steps in `below`; the caller's earlier sums are restored by differencing first.
  for (int64_t k = m - 1; k > 0; --k) below[k] -= below[k - 1];
  const T last = thresholds[m - 1];
  for (int64_t j = 0; j < n; ++j) {
    if (!(d[j] <= last)) continue;
    const int64_t low = bound<false>(thresholds, m, d[j]);
    int64_t high = low;
    for (; high < m && thresholds[high] == d[j]; ++high) {
      ++equal[high];
      before[high] += j + first_column < column[high];
    }
    if (high < m) ++below[high];
  }
  for (int64_t k = 1; k < m; ++k) below[k] += below[k - 1];
}

void count_whole_row(const float* d, int64_t n, const float* thresholds, int64_t m, const int64_t* const* skip,
                     const int64_t* skipped, int lists, int64_t* below, bool* has_nan, bool* done) {
  *done = false;
#if defined(CPU_CAPABILITY_AVX512)
  if (m > 31 || n > INT32_MAX) return;
  int32_t places[31], skipped_at[32] = {};
  int64_t tied = 0, tied_skipped = 0;
  count_places(d, n, thresholds, m, places, &tied, has_nan);
  if (*has_nan) return;
  for (int list = 0; list < lists; ++list)
    for (int64_t i = 0; i < skipped[list]; ++i) {
      const float v = d[skip[list][i]];
      const int64_t at = bound<true>(thresholds, m, v);
      ++skipped_at[at];
      tied_skipped += at > 0 && thresholds[at - 1] == v;
    }
  if (tied != tied_skipped) return;  // a column that counts is tied with a match
  int32_t sum = 0;
  for (int64_t k = 0; k < m; ++k) {
    sum += skipped_at[k];
    below[k] += places[k] - sum;
  }
  *done = true;
#endif
}

template <typename T>
void select_below(const T* d, int64_t n, int64_t first_column, T bound, T* values, int64_t* columns, int64_t* found) {
  constexpr int64_t kStep = 64;
  int64_t count = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kStep) {
    const int64_t step = n - j0 < kStep ? n - j0 : kStep;
    count_t<T> any = 0;
    for (int64_t j = 0; j < step; ++j) any += d[j0 + j] < bound;
    if (any == 0) continue;
    for (int64_t j = j0; j < j0 + step; ++j) {
      if (d[j] < bound) {
        values[count] = d[j];
        columns[count] = first_column + j;
        ++count;
      }
    }
  }
  *found = count;
}

template <typename T>
void histogram_row(const T* d, int64_t n, int prefix_bits, uint64_t prefix, int bits, int64_t* histogram) {
  using U = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  constexpr int kWidth = 8 * sizeof(T);
  const int shift = kWidth - prefix_bits - bits;
  const U mask = (U(1) << bits) - 1;
  for (int64_t j = 0; j < n; ++j) {
    const T v = d[j] + T(0);  // -0 becomes +0: equal distances, equal keys
    if (!(v == v)) continue;
    U key = std::bit_cast<U>(v);
    key = key >> (kWidth - 1) ? ~key : key | (U(1) << (kWidth - 1));
    if (prefix_bits != 0 && key >> (kWidth - prefix_bits) != prefix) continue;
    ++histogram[(key >> shift) & mask];
  }
}

template <typename T>
void single_shot_closer(const T* d, int64_t n, const int32_t* identity, int32_t identities, T t, int64_t column,
                        int32_t own, int32_t* closer) {
  for (int32_t i = 0; i < identities; ++i) closer[i] = 0;
  for (int64_t j = 0; j < n; ++j) {
    if (identity[j] < 0 || identity[j] == own) continue;
    closer[identity[j]] += d[j] < t || (d[j] == t && j < column);
  }
}

void single_shot_chance(const int32_t* closer, const int32_t* size, int32_t identities, int64_t max_rank, double* pmf,
                        double* chance) {
  // pmf[r] = P(exactly r identities show a closer image), for r < max_rank: a Poisson-binomial, one identity at a time.
  pmf[0] = 1.0;
  for (int64_t r = 1; r < max_rank; ++r) pmf[r] = 0.0;
  int64_t top = 0;  // pmf is zero above
  for (int32_t i = 0; i < identities; ++i) {
    if (closer[i] == 0) continue;
    const double p = static_cast<double>(closer[i]) / size[i],
                 rest = static_cast<double>(size[i] - closer[i]) / size[i];
    top = top + 1 < max_rank ? top + 1 : max_rank - 1;
    for (int64_t r = top; r > 0; --r) pmf[r] = pmf[r] * rest + pmf[r - 1] * p;
    pmf[0] *= rest;
  }
  double sum = 0.0;
  for (int64_t r = 0; r < max_rank; ++r) chance[r] += sum += pmf[r];
}

#define INSTANTIATE(S)                                                         \
  template void load_row<S, float>(const S*, int64_t, int64_t, float*, bool*); \
  template void load_row<S, double>(const S*, int64_t, int64_t, double*, bool*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE
#define INSTANTIATE(T)                                                                                          \
  template void count_row<T>(const T*, int64_t, int64_t, const T*, const int64_t*, int64_t, int64_t*, int64_t*, \
                             int64_t*);                                                                         \
  template void select_below<T>(const T*, int64_t, int64_t, T, T*, int64_t*, int64_t*);                         \
  template void histogram_row<T>(const T*, int64_t, int, uint64_t, int, int64_t*);                              \
  template void single_shot_closer<T>(const T*, int64_t, const int32_t*, int32_t, T, int64_t, int32_t, int32_t*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
