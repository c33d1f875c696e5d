// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/sample_patches.h"

#include <algorithm>

#include "csrc/cpu/tile.h"

namespace reidfast::cpu::REID_ISA {
namespace {

// Rows of `channels` adjacent values, one per cell. Cell -1, outside the map, reads from and adds to a row of zeros.
template <typename T>
struct Rows {
  T *data, *outside;
  int64_t stride;
  T* at(int64_t cell) const { return cell < 0 ? outside : data + cell * stride; }
};

// out row p = sum of weight x cell over the four cells of sample p.
template <typename T, typename A>
REID_HD void sample_rows(const Rows<const T>& cells, const PatchSample<A>* samples, int64_t count, int64_t channels,
                         T* out, int64_t out_stride) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  for (int64_t p = 0; p < count; ++p) {
    const PatchSample<A>& s = samples[p];
    const T *c0 = cells.at(s.cell[0]), *c1 = cells.at(s.cell[1]), *c2 = cells.at(s.cell[2]), *c3 = cells.at(s.cell[3]);
    const V w0(s.weight[0]), w1(s.weight[1]), w2(s.weight[2]), w3(s.weight[3]);
    for (int64_t c = 0; c < channels; c += w) {
      const int64_t n = channels - c;
      V sum = load_some(c0 + c, n) * w0;
      sum = at::vec::fmadd(load_some(c1 + c, n), w1, sum);
      sum = at::vec::fmadd(load_some(c2 + c, n), w2, sum);
      sum = at::vec::fmadd(load_some(c3 + c, n), w3, sum);
      store_some(out + p * out_stride + c, sum, n);
    }
  }
}

// Adds weight x gradient to the four cells of every sample, and to theta[6] the gradient of the patch's own transform
// in units of the positions.
template <bool kMap, bool kTheta, typename T, typename A>
REID_HD void scatter_rows(const Rows<const T>& cells, const PatchSample<A>* samples, const A* base_x, const A* base_y,
                          int64_t height, int64_t width, int64_t channels, const T* grad, int64_t grad_stride,
                          const Rows<A>& grad_cells, double* theta) {
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  V xu(0), xv(0), x1(0), yu(0), yv(0), y1(0);
  for (int64_t i = 0; i < height; ++i) {
    V row_x(0), row_y(0);
    for (int64_t j = 0; j < width; ++j) {
      const int64_t p = i * width + j;
      const PatchSample<A>& s = samples[p];
      const V u(base_x[j]), fx(s.fx), fy(s.fy), ex(A(1) - s.fx), ey(A(1) - s.fy);
      for (int64_t c = 0; c < channels; c += w) {
        const int64_t n = channels - c;
        const V g = load_some(grad + p * grad_stride + c, n);
        if constexpr (kMap) {
          for (int k = 0; k < 4; ++k) {
            A* d = grad_cells.at(s.cell[k]) + c;
            at::vec::fmadd(V(s.weight[k]), g, V::loadu(d)).store(d);
          }
        }
        if constexpr (kTheta) {
          const V nw = load_some(cells.at(s.cell[0]) + c, n), ne = load_some(cells.at(s.cell[1]) + c, n),
                  sw = load_some(cells.at(s.cell[2]) + c, n), se = load_some(cells.at(s.cell[3]) + c, n);
          const V gx = g * at::vec::fmadd(se - sw, fy, (ne - nw) * ey);
          const V gy = g * at::vec::fmadd(se - ne, fx, (sw - nw) * ex);
          xu = at::vec::fmadd(u, gx, xu), row_x = row_x + gx;
          yu = at::vec::fmadd(u, gy, yu), row_y = row_y + gy;
        }
      }
    }
    if constexpr (kTheta) {
      const V v(base_y[i]);
      xv = at::vec::fmadd(v, row_x, xv), x1 = x1 + row_x;
      yv = at::vec::fmadd(v, row_y, yv), y1 = y1 + row_y;
    }
  }
  if constexpr (kTheta) {
    const V sums[6] = {xu, xv, x1, yu, yv, y1};
    for (int k = 0; k < 6; ++k) theta[k] += sum_lanes(sums[k]);
  }
}

template <typename T, typename A, typename... Args>
inline void scatter(bool map, double* theta, const Rows<const T>& cells, Args... args) {
  if (map && theta)
    scatter_rows<true, true, T, A>(cells, args..., theta);
  else if (map)
    scatter_rows<true, false, T, A>(cells, args..., theta);
  else if (theta)
    scatter_rows<false, true, T, A>(cells, args..., theta);
}

}  // namespace

template <typename A>
void sample_patches_table(const A* theta, const PatchGrid& grid, int64_t begin, int64_t end, PatchSample<A>* samples) {
  for (int64_t p = begin; p < end; ++p) {
    PatchSample<A>* s = samples + p * grid.samples();
    for (int64_t i = 0; i < grid.height; ++i) {
      const A v = base_coordinate<A>(i, grid.height, grid.align_corners);
      for (int64_t j = 0; j < grid.width; ++j)
        *s++ = patch_sample(theta + p * 6, base_coordinate<A>(j, grid.width, grid.align_corners), v, grid.map_height,
                            grid.map_width, grid.align_corners);
    }
  }
}

template <typename T, typename A>
void sample_patches_fwd(const FeatureMap<const T>& map, const PatchSample<A>* samples, int64_t num_patches,
                        ChannelBlocks blocks, int64_t begin, int64_t end, const FeatureMap<T>& out, A* scratch) {
  constexpr int64_t w = kLanes<T>;
  const int64_t count = out.cells;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks.per_map, first = item % blocks.per_map * blocks.size;
    const int64_t last = std::min(first + blocks.size, map.channels);
    const PatchSample<A>* s = samples + b * num_patches * count;
    if (map.channels_last) {
      std::fill(scratch, scratch + blocks.size, A(0));  // all-zero bits in every dtype
      const Rows<const T> cells{map.at(b, first), reinterpret_cast<const T*>(scratch), map.cell_stride};
      for (int64_t m = 0; m < num_patches; ++m)
        sample_rows<T, A>(cells, s + m * count, count, last - first, out.at(b * num_patches + m, first),
                          out.cell_stride);
      continue;
    }
    A *tile = scratch + w, *patch = tile + map.cells * w;
    std::fill(scratch, tile, A(0));
    const Rows<const A> cells{tile, scratch, w};
    for (int64_t c = first; c < last; c += w) {
      const int64_t lanes = std::min(w, last - c);
      load_tile(map.at(b, c), map.channel_stride, lanes, map.cells, tile);
      for (int64_t m = 0; m < num_patches; ++m) {
        sample_rows<A, A>(cells, s + m * count, count, w, patch, w);
        store_tile(patch, lanes, count, out.at(b * num_patches + m, c), out.channel_stride);
      }
    }
  }
}

template <typename T, typename A>
void sample_patches_bwd(const FeatureMap<const T>& map, const PatchSample<A>* samples, const A* base_x, const A* base_y,
                        int64_t height, int64_t width, int64_t num_patches, ChannelBlocks blocks, int64_t begin,
                        int64_t end, const FeatureMap<const T>& grad, const FeatureMap<T>& grad_map, double* grad_theta,
                        A* scratch) {
  constexpr int64_t w = kLanes<T>;
  const int64_t count = height * width;
  const bool wants_map = grad_map.data != nullptr;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks.per_map, first = item % blocks.per_map * blocks.size;
    const int64_t last = std::min(first + blocks.size, map.channels);
    const PatchSample<A>* s = samples + b * num_patches * count;
    double* theta = grad_theta ? grad_theta + item * num_patches * 6 : nullptr;
    if (theta) std::fill(theta, theta + num_patches * 6, 0.0);
    if (map.channels_last) {
      const int64_t stride = (blocks.size + w - 1) / w * w;
      A *zeros = scratch, *rest = zeros + stride, *sums = rest + stride;
      std::fill(zeros, wants_map ? sums + map.cells * stride : rest, A(0));
      const Rows<const T> cells{map.at(b, first), reinterpret_cast<const T*>(zeros), map.cell_stride};
      for (int64_t m = 0; m < num_patches; ++m)
        scatter<T, A>(wants_map, theta ? theta + m * 6 : nullptr, cells, s + m * count, base_x, base_y, height, width,
                      last - first, grad.at(b * num_patches + m, first), grad.cell_stride, Rows<A>{sums, rest, stride});
      if (wants_map)
        for (int64_t l = 0; l < map.cells; ++l)
          for (int64_t c = first; c < last; c += w)
            store_some(grad_map.at(b, c) + l * grad_map.cell_stride, AccVec<T>::loadu(sums + l * stride + c - first),
                       last - c);
      continue;
    }
    A *tile = scratch + w, *rest = tile + map.cells * w, *sums = rest + w, *patch = sums + map.cells * w;
    std::fill(scratch, tile, A(0));
    const Rows<const A> cells{tile, scratch, w};
    for (int64_t c = first; c < last; c += w) {
      const int64_t lanes = std::min(w, last - c);
      if (theta) load_tile(map.at(b, c), map.channel_stride, lanes, map.cells, tile);
      std::fill(rest, wants_map ? patch : sums, A(0));
      for (int64_t m = 0; m < num_patches; ++m) {
        load_tile(grad.at(b * num_patches + m, c), grad.channel_stride, lanes, count, patch);
        scatter<A, A>(wants_map, theta ? theta + m * 6 : nullptr, cells, s + m * count, base_x, base_y, height, width,
                      w, static_cast<const A*>(patch), w, Rows<A>{sums, rest, w});
      }
      if (wants_map) store_tile(sums, lanes, map.cells, grad_map.at(b, c), grad_map.channel_stride);
    }
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void sample_patches_fwd<T, acc_t<T>>(const FeatureMap<const T>&, const PatchSample<acc_t<T>>*, int64_t,  \
                                                ChannelBlocks, int64_t, int64_t, const FeatureMap<T>&, acc_t<T>*);  \
  template void sample_patches_bwd<T, acc_t<T>>(                                                                    \
      const FeatureMap<const T>&, const PatchSample<acc_t<T>>*, const acc_t<T>*, const acc_t<T>*, int64_t, int64_t, \
      int64_t, ChannelBlocks, int64_t, int64_t, const FeatureMap<const T>&, const FeatureMap<T>&, double*, acc_t<T>*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE
template void sample_patches_table<float>(const float*, const PatchGrid&, int64_t, int64_t, PatchSample<float>*);
template void sample_patches_table<double>(const double*, const PatchGrid&, int64_t, int64_t, PatchSample<double>*);

}  // namespace reidfast::cpu::REID_ISA
