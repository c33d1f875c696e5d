// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Where a sample of an affine patch falls on the map. Rounds step by step as torch's affine_grid and grid_sample do, so
// that a position which is an integer there is the same integer here, and the floor convention picks the same cells.
// docs/ops/sample_patches.md derives it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "csrc/common/macros.h"

namespace reidfast {

// a * b, rounded before anything is added to it (never contracted to a fused multiply-add).
template <typename A>
REID_HD A mul_rounded(A a, A b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<A, double>)
    return __dmul_rn(a, b);
  else
    return __fmul_rn(a, b);
#elif defined(__x86_64__) && defined(__GNUC__)
  A product = a * b;
  asm("" : "+x"(product));
  return product;
#else
  volatile A product = a * b;
  return product;
#endif
}

// Normalised coordinate of output cell i of n: the ends (align_corners) or the outer edges of the end cells at -1, 1.
template <typename A>
REID_HD A base_coordinate(int64_t i, int64_t n, bool align_corners) {
  using std::fma;
  if (n <= 1) return A(0);
  const A step = A(2) / A(n - 1);
  const A u = i < n / 2 ? fma(step, A(i), A(-1)) : fma(-step, A(n - 1 - i), A(1));
  return align_corners ? u : mul_rounded(u, A(n - 1)) / A(n);
}

// d position / d normalised coordinate on an axis of `size` cells.
template <typename A>
REID_HD A position_scale(int64_t size, bool align_corners) {
  return A(align_corners ? size - 1 : size) / A(2);
}

// Position, in cells, of the sample with base coordinates (u, v); row = (a, b, t) of theta.
template <typename A>
REID_HD A source_position(const A* row, A u, A v, int64_t size, bool align_corners) {
  using std::fma;
  const A x = mul_rounded(u, row[0]) + mul_rounded(v, row[1]) + row[2];
  const A scale = position_scale<A>(size, align_corners);
  return align_corners ? mul_rounded(x + A(1), scale) : fma(x + A(1), scale, A(-0.5));
}

// The two cells around a position on one axis, and how far past the lower one it lies. Cells outside the map count as
// zeros. A position that is not finite has no cells and passes on NaN as its fraction.
template <typename A>
struct Neighbours {
  int64_t low;
  A fraction;
  bool low_inside, high_inside;
};

template <typename A>
REID_HD Neighbours<A> neighbours(A position, int64_t size) {
  using std::fabs;
  using std::floor;
  if (position >= A(-1) && position < A(size)) {
    const A below = floor(position);
    const int64_t low = static_cast<int64_t>(below);
    return {low, position - below, low >= 0, low + 1 < size};
  }
  const bool finite = fabs(position) <= std::numeric_limits<A>::max();
  return {0, finite ? A(0) : std::numeric_limits<A>::quiet_NaN(), false, false};
}

// One sample: the four cells (-1 where outside), their weights, and the fractions that the gradient needs.
template <typename A>
struct PatchSample {
  int32_t cell[4];  // north-west, north-east, south-west, south-east
  A weight[4];
  A fx, fy;
};

template <typename A>
REID_HD PatchSample<A> patch_sample(const A* theta, A u, A v, int64_t height, int64_t width, bool align_corners) {
  const Neighbours<A> x = neighbours(source_position(theta, u, v, width, align_corners), width);
  const Neighbours<A> y = neighbours(source_position(theta + 3, u, v, height, align_corners), height);
  const int32_t nw = static_cast<int32_t>(y.low * width + x.low), w = static_cast<int32_t>(width);
  const A gx = A(1) - x.fraction, gy = A(1) - y.fraction;
  return {{y.low_inside && x.low_inside ? nw : -1, y.low_inside && x.high_inside ? nw + 1 : -1,
           y.high_inside && x.low_inside ? nw + w : -1, y.high_inside && x.high_inside ? nw + w + 1 : -1},
          {gy * gx, gy * x.fraction, y.fraction * gx, y.fraction * x.fraction},
          x.fraction,
          y.fraction};
}

}  // namespace reidfast
