// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/grad_cam.h"

#include <algorithm>

#include "csrc/cpu/lanes.h"

namespace reidfast::cpu::REID_ISA {

namespace {

// The upstream gradient where the map is above zero, 0 where relu cut it off, for cells [l0, l0 + n); a NaN passes.
template <typename T, typename A>
REID_HD void masked_grad(const T* grad, const T* out, int64_t n, A* g) {
  for (int64_t l = 0; l < n; ++l) g[l] = grad_through_relu(static_cast<A>(grad[l]), static_cast<A>(out[l]));
}

}  // namespace

template <typename T>
void grad_cam_forward(const T* features, const T* weights, CamShape shape, int64_t begin, int64_t end, T* out) {
  using A = acc_t<T>;
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / cam_cell_blocks(shape), l0 = (task - b * cam_cell_blocks(shape)) * kCamCells;
    const int64_t n = std::min(kCamCells, shape.cells - l0), c_end = shape.channels;
    const T* f = features + b * shape.channels * shape.cells;
    const T* weight = weights + b * shape.channels;
    A sum[kCamCells] = {};
    if (shape.channels_last) {
      for (int64_t l = 0; l < n; ++l) {
        const T* cell = f + (l0 + l) * c_end;
        V s0(0), s1(0);
        int64_t c = 0;
        for (; c + 2 * w <= c_end; c += 2 * w) {
          s0 = at::vec::fmadd(load_acc(cell + c), load_acc(weight + c), s0);
          s1 = at::vec::fmadd(load_acc(cell + c + w), load_acc(weight + c + w), s1);
        }
        for (; c < c_end; c += w)
          s0 = at::vec::fmadd(load_acc(cell + c, c_end - c), load_acc(weight + c, c_end - c), s0);
        sum[l] = horizontal_sum(V(s0 + s1));
      }
    } else {
      // Channels in groups, each summed on its own first: the error grows with the group and the number of groups, not
      // with C. Four channels a turn: one load and store of the sums for four of the map.
      constexpr int64_t kGroup = 64;
      const int64_t step = shape.cells;
      for (int64_t g0 = 0; g0 < c_end; g0 += kGroup) {
        const int64_t g1 = std::min(g0 + kGroup, c_end);
        A part[kCamCells] = {};
        int64_t c = g0;
        for (; c + 4 <= g1; c += 4) {
          const T* x = f + c * step + l0;
          const A w0 = weight[c], w1 = weight[c + 1], w2 = weight[c + 2], w3 = weight[c + 3];
          int64_t l = 0;
          for (; l + w <= n; l += w) {
            V s = at::vec::fmadd(load_acc(x + l), V(w0), V::loadu(part + l));
            s = at::vec::fmadd(load_acc(x + step + l), V(w1), s);
            s = at::vec::fmadd(load_acc(x + 2 * step + l), V(w2), s);
            at::vec::fmadd(load_acc(x + 3 * step + l), V(w3), s).store(part + l);
          }
          for (; l < n; ++l)
            part[l] += A(x[l]) * w0 + A(x[step + l]) * w1 + A(x[2 * step + l]) * w2 + A(x[3 * step + l]) * w3;
        }
        for (; c < g1; ++c)
          for (int64_t l = 0; l < n; ++l) part[l] += A(f[c * step + l0 + l]) * A(weight[c]);
        for (int64_t l = 0; l < n; ++l) sum[l] += part[l];
      }
    }
    T* o = out + b * shape.cells + l0;
    for (int64_t l = 0; l < n; ++l) o[l] = static_cast<T>(sum[l] <= A(0) ? A(0) : sum[l]);
  }
}

template <typename T>
void grad_cam_backward(const T* grad, const T* out, const T* features, const T* weights, CamShape shape, int64_t begin,
                       int64_t end, T* grad_features, T* grad_weights) {
  using A = acc_t<T>;
  using V = AccVec<T>;
  constexpr int64_t w = kLanes<T>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / cam_channel_blocks(shape), c0 = (task - b * cam_channel_blocks(shape)) * kCamChannels;
    const int64_t c1 = std::min(c0 + kCamChannels, shape.channels);
    const int64_t image = b * shape.channels * shape.cells;
    const T* weight = weights + b * shape.channels;
    A sum[kCamChannels] = {}, g[kCamCells];
    for (int64_t l0 = 0; l0 < shape.cells; l0 += kCamCells) {
      const int64_t n = std::min(kCamCells, shape.cells - l0);
      masked_grad(grad + b * shape.cells + l0, out + b * shape.cells + l0, n, g);
      if (shape.channels_last) {
        for (int64_t l = 0; l < n; ++l) {
          const int64_t cell = image + (l0 + l) * shape.channels;
          const V gl(g[l]);
          for (int64_t c = c0; c < c1; c += w) {
            const int64_t left = c1 - c;
            if (grad_features) store_acc(grad_features + cell + c, load_acc(weight + c, left) * gl, left);
            if (grad_weights)
              store_acc(sum + c - c0,
                        at::vec::fmadd(load_acc(features + cell + c, left), gl, load_acc(sum + c - c0, left)), left);
          }
        }
      } else {
        for (int64_t c = c0; c < c1; ++c) {
          const int64_t first = image + c * shape.cells + l0;
          const V wc(static_cast<A>(weight[c]));
          V s(0);
          for (int64_t l = 0; l < n; l += w) {
            const V gl = load_acc(g + l, n - l);
            if (grad_features) store_acc(grad_features + first + l, wc * gl, n - l);
            if (grad_weights) s = at::vec::fmadd(load_acc(features + first + l, n - l), gl, s);
          }
          sum[c - c0] += horizontal_sum(s);
        }
      }
    }
    if (grad_weights)
      for (int64_t c = c0; c < c1; ++c) grad_weights[b * shape.channels + c] = static_cast<T>(sum[c - c0]);
  }
}

#define INSTANTIATE(T)                                                                   \
  template void grad_cam_forward<T>(const T*, const T*, CamShape, int64_t, int64_t, T*); \
  template void grad_cam_backward<T>(const T*, const T*, const T*, const T*, CamShape, int64_t, int64_t, T*, T*);
REID_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
