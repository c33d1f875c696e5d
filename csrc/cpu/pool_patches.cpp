// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/pool_patches.h"

#include <algorithm>
#include <cmath>

#include "csrc/cpu/tile.h"

namespace reidfast::cpu::REID_ISA {
namespace {

// Whether the patch is an upright box: rows and columns are then sampled independently.
template <typename A>
bool upright(const A* theta) {
  return theta[1] == A(0) && theta[3] == A(0) && std::isfinite(theta[0]) && std::isfinite(theta[2]) &&
         std::isfinite(theta[4]) && std::isfinite(theta[5]);
}

// weight [size] += the interpolation weights of all n samples of one axis; false where a position overflows.
template <typename A>
bool axis_weights(A scale, A shift, int64_t n, int64_t size, bool align_corners, A* weight) {
  const A row[3] = {scale, A(0), shift};
  for (int64_t i = 0; i < n; ++i) {
    const A u = base_coordinate<A>(i, n, align_corners);
    const auto at = neighbours(source_position(row, u, A(0), size, align_corners), size);
    if (at.fraction != at.fraction) return false;
    if (at.low_inside) weight[at.low] += A(1) - at.fraction;
    if (at.high_inside) weight[at.low + 1] += at.fraction;
  }
  return true;
}

// The same summed in double, and summed times the sample's base coordinate.
template <typename A>
bool axis_moments(A scale, A shift, int64_t n, int64_t size, bool align_corners, double* sum, double* moment) {
  const A row[3] = {scale, A(0), shift};
  for (int64_t i = 0; i < n; ++i) {
    const A u = base_coordinate<A>(i, n, align_corners);
    const auto at = neighbours(source_position(row, u, A(0), size, align_corners), size);
    if (at.fraction != at.fraction) return false;
    const double f = at.fraction;
    if (at.low_inside) sum[at.low] += 1 - f, moment[at.low] += (1 - f) * u;
    if (at.high_inside) sum[at.low + 1] += f, moment[at.low + 1] += f * u;
  }
  return true;
}

// Sums over the samples of one axis of the local difference of `profile`, plain and times the base coordinate, and of
// the difference of `other`.
template <typename A>
void axis_differences(A scale, A shift, int64_t n, int64_t size, bool align_corners, const double* profile,
                      const double* other, double* with_coordinate, double* of_other, double* plain) {
  const A row[3] = {scale, A(0), shift};
  double a = 0, o = 0, p = 0;
  for (int64_t i = 0; i < n; ++i) {
    const A u = base_coordinate<A>(i, n, align_corners);
    const auto at = neighbours(source_position(row, u, A(0), size, align_corners), size);
    const double d = (at.high_inside ? profile[at.low + 1] : 0) - (at.low_inside ? profile[at.low] : 0);
    a += d * u;
    p += d;
    o += (at.high_inside ? other[at.low + 1] : 0) - (at.low_inside ? other[at.low] : 0);
  }
  *with_coordinate = a, *of_other = o, *plain = p;
}

template <typename A>
bool theta_upright(const A* theta, const PatchGrid& grid, const double* dw, double* scratch, double* out) {
  const int64_t H = grid.map_height, W = grid.map_width;
  double *x0 = scratch, *x1 = x0 + W, *y0 = x1 + W, *y1 = y0 + H, *p0 = y1 + H, *p1 = p0 + W, *r0 = p1 + W,
         *r1 = r0 + H;
  std::fill(scratch, scratch + 4 * (H + W), 0.0);
  if (!axis_moments(theta[0], theta[2], grid.width, W, grid.align_corners, x0, x1) ||
      !axis_moments(theta[4], theta[5], grid.height, H, grid.align_corners, y0, y1))
    return false;
  for (int64_t y = 0; y < H; ++y) {
    for (int64_t x = 0; x < W; ++x) {
      const double d = dw[y * W + x];
      p0[x] += y0[y] * d, p1[x] += y1[y] * d;
      r0[y] += x0[x] * d, r1[y] += x1[x] * d;
    }
  }
  axis_differences(theta[0], theta[2], grid.width, W, grid.align_corners, p0, p1, out, out + 1, out + 2);
  axis_differences(theta[4], theta[5], grid.height, H, grid.align_corners, r0, r1, out + 4, out + 3, out + 5);
  return true;
}

template <typename A>
void theta_general(const A* theta, const PatchGrid& grid, const double* dw, double* out) {
  std::fill(out, out + 6, 0.0);
  for (int64_t i = 0; i < grid.height; ++i) {
    const A v = base_coordinate<A>(i, grid.height, grid.align_corners);
    for (int64_t j = 0; j < grid.width; ++j) {
      const A u = base_coordinate<A>(j, grid.width, grid.align_corners);
      const auto s = patch_sample(theta, u, v, grid.map_height, grid.map_width, grid.align_corners);
      double d[4];
      for (int k = 0; k < 4; ++k) d[k] = s.cell[k] >= 0 ? dw[s.cell[k]] : 0.0;
      const double fx = s.fx, fy = s.fy;
      const double gx = (d[1] - d[0]) * (1 - fy) + (d[3] - d[2]) * fy;
      const double gy = (d[2] - d[0]) * (1 - fx) + (d[3] - d[1]) * fx;
      out[0] += gx * u, out[1] += gx * v, out[2] += gx;
      out[3] += gy * u, out[4] += gy * v, out[5] += gy;
    }
  }
}

}  // namespace

template <typename A>
void pool_patches_weights(const A* theta, const PatchGrid& grid, int64_t padded_cells, int64_t begin, int64_t end,
                          A* weights, A* scratch) {
  const int64_t H = grid.map_height, W = grid.map_width;
  const A mean = A(1) / A(grid.samples());
  for (int64_t p = begin; p < end; ++p) {
    const A* t = theta + p * 6;
    A* w = weights + p * padded_cells;
    if (upright(t)) {
      A *wx = scratch, *wy = scratch + W;
      std::fill(scratch, scratch + H + W, A(0));
      if (axis_weights(t[0], t[2], grid.width, W, grid.align_corners, wx) &&
          axis_weights(t[4], t[5], grid.height, H, grid.align_corners, wy)) {
        for (int64_t y = 0; y < H; ++y)
          for (int64_t x = 0; x < W; ++x) w[y * W + x] = wy[y] * wx[x] * mean;
        std::fill(w + H * W, w + padded_cells, A(0));
        continue;
      }
    }
    std::fill(w, w + padded_cells, A(0));
    bool finite = true;
    for (int64_t i = 0; i < grid.height; ++i) {
      const A v = base_coordinate<A>(i, grid.height, grid.align_corners);
      for (int64_t j = 0; j < grid.width; ++j) {
        const A u = base_coordinate<A>(j, grid.width, grid.align_corners);
        const auto s = patch_sample(t, u, v, H, W, grid.align_corners);
        for (int k = 0; k < 4; ++k)
          if (s.cell[k] >= 0) w[s.cell[k]] += s.weight[k];
        finite = finite && s.fx == s.fx && s.fy == s.fy;
      }
    }
    for (int64_t l = 0; l < H * W; ++l) w[l] *= mean;
    if (!finite) w[0] = std::numeric_limits<A>::quiet_NaN();
  }
}

template <typename A>
void pool_patches_theta(const A* theta, const PatchGrid& grid, const A* grad_weights, int64_t parts,
                        int64_t num_patches, int64_t padded_cells, int64_t begin, int64_t end, A* grad_theta,
                        double* scratch) {
  const int64_t cells = grid.cells();
  const double sx = position_scale<A>(grid.map_width, grid.align_corners) / static_cast<double>(grid.samples());
  const double sy = position_scale<A>(grid.map_height, grid.align_corners) / static_cast<double>(grid.samples());
  for (int64_t p = begin; p < end; ++p) {
    const int64_t b = p / num_patches, m = p % num_patches;
    std::fill(scratch, scratch + cells, 0.0);
    for (int64_t part = 0; part < parts; ++part) {
      const A* dw = grad_weights + ((b * parts + part) * num_patches + m) * padded_cells;
      for (int64_t l = 0; l < cells; ++l) scratch[l] += dw[l];
    }
    const A* t = theta + p * 6;
    double out[6];
    if (!upright(t) || !theta_upright(t, grid, scratch, scratch + cells, out)) theta_general(t, grid, scratch, out);
    for (int k = 0; k < 6; ++k) grad_theta[p * 6 + k] = static_cast<A>(out[k] * (k < 3 ? sx : sy));
  }
}

#define INSTANTIATE(A)                                                                                          \
  template void pool_patches_weights<A>(const A*, const PatchGrid&, int64_t, int64_t, int64_t, A*, A*);         \
  template void pool_patches_theta<A>(const A*, const PatchGrid&, const A*, int64_t, int64_t, int64_t, int64_t, \
                                      int64_t, A*, double*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
