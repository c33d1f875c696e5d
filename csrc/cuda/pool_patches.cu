// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Weights are gathered, not scattered: a thread owns a cell and takes from every sample what falls on it. The product
// and its backward read the map once; the backward pass gives both gradients from that reading. No atomics.
#include <limits>

#include "csrc/common/patches.h"
#include "csrc/cuda/device.h"
#include "csrc/cuda/pool_patches.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaps = 8;  // patches that share one reading of the map

// One block per patch and kThreads cells.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    pool_patches_weights_kernel(const A* __restrict__ theta, Grid grid, int64_t cells, A* __restrict__ weights) {
  __shared__ int x0[kThreads], y0[kThreads];
  __shared__ A fx[kThreads], fy[kThreads];
  const int64_t blocks = ceil_div(cells, kThreads), patch = blockIdx.x / blocks;
  const int64_t cell = blockIdx.x % blocks * kThreads + threadIdx.x;
  const int cx = static_cast<int>(cell % grid.map_width), cy = static_cast<int>(cell / grid.map_width);
  const A* t = theta + patch * 6;
  const int64_t samples = grid.height * grid.width;
  A sum = 0;
  bool finite = true;
  for (int64_t base = 0; base < samples; base += kThreads) {
    __syncthreads();
    const int64_t p = base + threadIdx.x;
    if (p < samples) {
      const A u = base_coordinate<A>(p % grid.width, grid.width, grid.align_corners);
      const A v = base_coordinate<A>(p / grid.width, grid.height, grid.align_corners);
      const auto x = neighbours(source_position(t, u, v, grid.map_width, grid.align_corners), grid.map_width);
      const auto y = neighbours(source_position(t + 3, u, v, grid.map_height, grid.align_corners), grid.map_height);
      const bool inside = (x.low_inside || x.high_inside) && (y.low_inside || y.high_inside);
      x0[threadIdx.x] = inside ? static_cast<int>(x.low) : -2;
      y0[threadIdx.x] = inside ? static_cast<int>(y.low) : -2;
      fx[threadIdx.x] = x.fraction;
      fy[threadIdx.x] = y.fraction;
    }
    __syncthreads();
    const int count = static_cast<int>(min(int64_t(kThreads), samples - base));
    for (int i = 0; i < count; ++i) {
      finite = finite && fx[i] == fx[i] && fy[i] == fy[i];
      const int dx = cx - x0[i], dy = cy - y0[i];
      if (x0[i] > -2 && dx >= 0 && dx <= 1 && dy >= 0 && dy <= 1)
        sum += (dx ? fx[i] : A(1) - fx[i]) * (dy ? fy[i] : A(1) - fy[i]);
    }
  }
  if (cell >= cells) return;
  sum /= A(samples);
  weights[patch * cells + cell] = finite || cell > 0 ? sum : std::numeric_limits<A>::quiet_NaN();
}

// Channels first: a warp per channel, lanes along cells. Channels last: a lane per channel.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_patches_fwd_kernel(Maps<const T> map, const acc_t<T>* __restrict__ weights, int64_t num_patches,
                            T* __restrict__ out) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t per_block = map.channels_last ? kThreads : kWarps, blocks = ceil_div(map.channels, per_block);
  const int64_t b = blockIdx.x / blocks;
  const int64_t c = blockIdx.x % blocks * per_block + (map.channels_last ? threadIdx.x : warp);
  if (c >= map.channels) return;  // whole warps where they add across lanes
  const T* x = map.data + b * map.batch_stride + c * map.channel_stride;
  const int64_t from = map.channels_last ? 0 : lane, step = map.channels_last ? 1 : 32;
  for (int64_t m0 = 0; m0 < num_patches; m0 += kMaps) {
    const A* w = weights + (b * num_patches + m0) * map.cells;
    const int maps = static_cast<int>(min(int64_t(kMaps), num_patches - m0));
    A sum[kMaps] = {};
    for (int64_t l = from; l < map.cells; l += step) {
      const A f = widen(x[l * map.cell_stride]);
#pragma unroll
      for (int m = 0; m < kMaps; ++m)
        if (m < maps) sum[m] += w[m * map.cells + l] * f;
    }
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
      if (m >= maps) break;
      if (!map.channels_last) sum[m] = warp_sum(sum[m]);
      if (map.channels_last || lane == 0) out[(b * num_patches + m0 + m) * map.channels + c] = narrow<T>(sum[m]);
    }
  }
}

// A block takes kPoolChannels channels of one map. Channels first: a thread per cell walks the channels. Channels last:
// a warp per cell, lanes along channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_patches_bwd_kernel(Maps<const T> map, const acc_t<T>* __restrict__ weights, int64_t num_patches,
                            const T* __restrict__ grad, Maps<T> grad_map, acc_t<T>* __restrict__ grad_weights) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t blocks = ceil_div(map.channels, kPoolChannels), b = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kPoolChannels, last = min(first + kPoolChannels, map.channels);
  const T* x = map.data + b * map.batch_stride;
  T* dx = grad_map.data ? grad_map.data + b * grad_map.batch_stride : nullptr;
  const A* w = weights + b * num_patches * map.cells;
  const T* g = grad + b * num_patches * map.channels;
  const int64_t from = first + (map.channels_last ? lane : 0), step = map.channels_last ? 32 : 1;
  const int64_t begin = map.channels_last ? warp : threadIdx.x, stride = map.channels_last ? kWarps : kThreads;
  for (int64_t l = begin; l < map.cells; l += stride) {
    for (int64_t m0 = 0; m0 < num_patches; m0 += kMaps) {
      const int maps = static_cast<int>(min(int64_t(kMaps), num_patches - m0));
      A sum[kMaps] = {}, weight[kMaps];
#pragma unroll
      for (int m = 0; m < kMaps; ++m) weight[m] = m < maps ? w[(m0 + m) * map.cells + l] : A(0);
      for (int64_t c = from; c < last; c += step) {
        const A f = grad_weights ? widen(x[c * map.channel_stride + l * map.cell_stride]) : A(0);
        A d = 0;
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
          if (m >= maps) break;
          const A up = widen(g[(m0 + m) * map.channels + c]);
          sum[m] += up * f;
          d += up * weight[m];
        }
        if (dx && m0 == 0) {
#pragma unroll 1  // rare (more than kMaps patches): unrolled, its addresses cost the registers of the common case
          for (int64_t m = kMaps; m < num_patches; ++m) d += widen(g[m * map.channels + c]) * w[m * map.cells + l];
          dx[c * grad_map.channel_stride + l * grad_map.cell_stride] = narrow<T>(d);
        }
      }
      if (!grad_weights) break;
#pragma unroll
      for (int m = 0; m < kMaps; ++m) {
        if (m >= maps) break;
        if (map.channels_last) sum[m] = warp_sum(sum[m]);
        if (!map.channels_last || lane == 0)
          grad_weights[(int64_t(blockIdx.x) * num_patches + m0 + m) * map.cells + l] = sum[m];
      }
    }
  }
}

// One block per patch: sums the parts of its grad_weights [B, blocks, M, cells] into the first, then takes local
// differences at every sample.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    pool_patches_bwd_theta_kernel(const A* __restrict__ theta, Grid grid, int64_t num_patches, int64_t blocks,
                                  int64_t cells, A* grad_weights, A* __restrict__ grad_theta) {
  __shared__ A scratch[kWarps];
  const int64_t patch = blockIdx.x, b = patch / num_patches, m = patch % num_patches;
  A* dw = grad_weights + (b * blocks * num_patches + m) * cells;
  for (int64_t l = threadIdx.x; l < cells; l += kThreads) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += dw[block * num_patches * cells + l];
    dw[l] = static_cast<A>(sum);
  }
  __syncthreads();
  const int64_t samples = grid.height * grid.width;
  A sums[6] = {};
  for (int64_t p = threadIdx.x; p < samples; p += kThreads) {
    const A u = base_coordinate<A>(p % grid.width, grid.width, grid.align_corners);
    const A v = base_coordinate<A>(p / grid.width, grid.height, grid.align_corners);
    const auto s = patch_sample(theta + patch * 6, u, v, grid.map_height, grid.map_width, grid.align_corners);
    A d[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) d[k] = s.cell[k] < 0 ? A(0) : dw[s.cell[k]];
    const A gx = (d[1] - d[0]) * (A(1) - s.fy) + (d[3] - d[2]) * s.fy;
    const A gy = (d[2] - d[0]) * (A(1) - s.fx) + (d[3] - d[1]) * s.fx;
    sums[0] += gx * u, sums[1] += gx * v, sums[2] += gx;
    sums[3] += gy * u, sums[4] += gy * v, sums[5] += gy;
  }
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    const A sum = block_sum(sums[k], scratch);
    const A scale = position_scale<A>(k < 3 ? grid.map_width : grid.map_height, grid.align_corners);
    if (threadIdx.x == 0) grad_theta[patch * 6 + k] = sum * scale / A(samples);
  }
}

template <typename A>
void make_weights(const A* theta, const Grid& grid, int64_t patches, A* weights, cudaStream_t stream) {
  const int64_t cells = grid.map_height * grid.map_width, blocks = patches * ceil_div(cells, kThreads);
  REID_LAUNCH((pool_patches_weights_kernel<A>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, theta,
              grid, cells, weights);
}

}  // namespace

template <typename T, typename A>
void pool_patches(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch, int64_t num_patches,
                  A* weights, T* out, cudaStream_t stream) {
  make_weights(theta, grid, batch * num_patches, weights, stream);
  const int64_t blocks = batch * ceil_div(map.channels, map.channels_last ? kThreads : kWarps);
  REID_LAUNCH((pool_patches_fwd_kernel<T>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, map,
              weights, num_patches, out);
}

template <typename T, typename A>
void pool_patches_backward(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch,
                           int64_t num_patches, const T* grad, const Maps<T>& grad_map, A* weights, A* grad_weights,
                           A* grad_theta, cudaStream_t stream) {
  make_weights(theta, grid, batch * num_patches, weights, stream);
  const int64_t blocks = ceil_div(map.channels, kPoolChannels);
  REID_LAUNCH((pool_patches_bwd_kernel<T>), dim3(static_cast<unsigned>(batch * blocks)), dim3(kThreads), 0, stream, map,
              weights, num_patches, grad, grad_map, grad_weights);
  if (grad_theta)
    REID_LAUNCH((pool_patches_bwd_theta_kernel<A>), dim3(static_cast<unsigned>(batch * num_patches)), dim3(kThreads), 0,
                stream, theta, grid, num_patches, blocks, map.cells, grad_weights, grad_theta);
}

#define INSTANTIATE(T)                                                                                                 \
  template void pool_patches<T, acc_t<T>>(const Maps<const T>&, const acc_t<T>*, const Grid&, int64_t, int64_t,        \
                                          acc_t<T>*, T*, cudaStream_t);                                                \
  template void pool_patches_backward<T, acc_t<T>>(const Maps<const T>&, const acc_t<T>*, const Grid&, int64_t,        \
                                                   int64_t, const T*, const Maps<T>&, acc_t<T>*, acc_t<T>*, acc_t<T>*, \
                                                   cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
