// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: a block takes some channels of one patch; neighbouring threads take neighbouring samples (channels first) or
// channels (channels last), so writes are whole lines and the map is read through the cache. Gradient of the map: a
// warp's lanes own one channel each and a column of sums in shared memory, so that nothing needs atomics and every sum
// has one order; a block's warps take different patches and their sums are added at the end. Gradient of theta: as
// forward, six sums per block, added in order by a second kernel.
#include <algorithm>

#include "csrc/common/patches.h"
#include "csrc/cuda/device.h"
#include "csrc/cuda/runtime.h"
#include "csrc/cuda/sample_patches.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLanes = 32;
constexpr int64_t kSharedBytes = 200 * 1024;  // at most; less where the device has less

template <typename A>
__device__ __forceinline__ PatchSample<A> sample_at(const A* theta, const Grid& grid, int64_t p, A* u, A* v) {
  *u = base_coordinate<A>(p % grid.width, grid.width, grid.align_corners);
  *v = base_coordinate<A>(p / grid.width, grid.height, grid.align_corners);
  return patch_sample(theta, *u, *v, grid.map_height, grid.map_width, grid.align_corners);
}

template <typename T>
__device__ __forceinline__ acc_t<T> cell_value(const T* x, int32_t cell, int64_t stride) {
  return cell < 0 ? acc_t<T>(0) : widen(x[cell * stride]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_patches_fwd_kernel(Maps<const T> map, const acc_t<T>* __restrict__ theta, Grid grid, int64_t num_patches,
                              Maps<T> out) {
  using A = acc_t<T>;
  const int64_t blocks = ceil_div(map.channels, kSampleChannels);
  const int64_t patch = blockIdx.x / blocks, first = blockIdx.x % blocks * kSampleChannels;
  const int64_t last = min(first + kSampleChannels, map.channels);
  const T* x = map.data + patch / num_patches * map.batch_stride;
  T* y = out.data + patch * out.batch_stride;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t begin = map.channels_last ? warp : threadIdx.x, step = map.channels_last ? kWarps : kThreads;
  const int64_t from = first + (map.channels_last ? lane : 0), stride = map.channels_last ? kLanes : 1;
  for (int64_t p = begin; p < out.cells; p += step) {
    A u, v;
    const PatchSample<A> s = sample_at(theta + patch * 6, grid, p, &u, &v);
    for (int64_t c = from; c < last; c += stride) {
      const T* row = x + c * map.channel_stride;
      A sum = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) sum += s.weight[k] * cell_value(row, s.cell[k], map.cell_stride);
      y[c * out.channel_stride + p * out.cell_stride] = narrow<T>(sum);
    }
  }
}

// Six sums per block of channels: partial [B * M, blocks, 6], in units of positions.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_patches_bwd_theta_kernel(Maps<const T> map, const acc_t<T>* __restrict__ theta, Grid grid,
                                    int64_t num_patches, Maps<const T> grad, acc_t<T>* __restrict__ partial) {
  using A = acc_t<T>;
  __shared__ A scratch[kWarps];
  const int64_t blocks = ceil_div(map.channels, kSampleChannels);
  const int64_t patch = blockIdx.x / blocks, first = blockIdx.x % blocks * kSampleChannels;
  const int64_t last = min(first + kSampleChannels, map.channels);
  const T* x = map.data + patch / num_patches * map.batch_stride;
  const T* g = grad.data + patch * grad.batch_stride;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t begin = map.channels_last ? warp : threadIdx.x, step = map.channels_last ? kWarps : kThreads;
  const int64_t from = first + (map.channels_last ? lane : 0), stride = map.channels_last ? kLanes : 1;
  A sums[6] = {};
  for (int64_t p = begin; p < grad.cells; p += step) {
    A u, v, gx = 0, gy = 0;
    const PatchSample<A> s = sample_at(theta + patch * 6, grid, p, &u, &v);
    for (int64_t c = from; c < last; c += stride) {
      const T* row = x + c * map.channel_stride;
      A f[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) f[k] = cell_value(row, s.cell[k], map.cell_stride);
      const A up = widen(g[c * grad.channel_stride + p * grad.cell_stride]);
      gx += up * ((f[1] - f[0]) * (A(1) - s.fy) + (f[3] - f[2]) * s.fy);
      gy += up * ((f[2] - f[0]) * (A(1) - s.fx) + (f[3] - f[1]) * s.fx);
    }
    sums[0] += gx * u, sums[1] += gx * v, sums[2] += gx;
    sums[3] += gy * u, sums[4] += gy * v, sums[5] += gy;
  }
#pragma unroll
  for (int k = 0; k < 6; ++k) {
    const A sum = block_sum(sums[k], scratch);
    if (threadIdx.x == 0) partial[blockIdx.x * int64_t(6) + k] = sum;
  }
}

// partial [B * M, blocks, 6] -> grad_theta [B * M, 6]
template <typename A>
__global__ void __launch_bounds__(kThreads)
    sample_patches_merge_kernel(const A* __restrict__ partial, Grid grid, int64_t blocks, int64_t n,
                                A* __restrict__ grad_theta) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= n) return;
  A sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[(i / 6 * blocks + block) * 6 + i % 6];
  grad_theta[i] = sum * position_scale<A>(i % 6 < 3 ? grid.map_width : grid.map_height, grid.align_corners);
}

// A block takes 32 channels of one map; `tile` [warps][cells][32] in shared memory, or `sums` [B, C, cells] where that
// does not fit (one warp then).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sample_patches_bwd_map_kernel(Maps<const T> grad, const acc_t<T>* __restrict__ theta, Grid grid,
                                  int64_t num_patches, Maps<T> grad_map, acc_t<T>* __restrict__ sums) {
  using A = acc_t<T>;
  REID_DYNAMIC_SHARED(A, shared);
  const int warps = blockDim.x / kLanes, lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t blocks = ceil_div(grad_map.channels, kLanes), cells = grad_map.cells;
  const int64_t b = blockIdx.x / blocks, first = blockIdx.x % blocks * kLanes, c = first + lane;
  const int64_t channels = min(int64_t(kLanes), grad_map.channels - first);
  A* stage = shared + warp * kLanes * (kLanes + 1);  // [32 samples][33]
  A* tiles = shared + warps * kLanes * (kLanes + 1);
  A* column = sums ? sums + (b * grad_map.channels + c) * cells : tiles + warp * cells * kLanes + lane;
  const int64_t stride = sums ? 1 : kLanes;
  if (!sums) {
    for (int64_t l = 0; l < cells; ++l) column[l * kLanes] = A(0);
  }
  for (int64_t m = warp; m < num_patches; m += warps) {
    const int64_t patch = b * num_patches + m;
    const T* g = grad.data + patch * grad.batch_stride;
    for (int64_t base = 0; base < grad.cells; base += kLanes) {
      const int count = static_cast<int>(min(int64_t(kLanes), grad.cells - base));
      if (!grad.channels_last) {
        __syncwarp();
        for (int j = 0; j < channels; ++j)
          if (lane < count) stage[lane * (kLanes + 1) + j] = widen(g[(first + j) * grad.channel_stride + base + lane]);
        __syncwarp();
      }
      for (int i = 0; i < count; ++i) {
        A u, v;
        const PatchSample<A> s = sample_at(theta + patch * 6, grid, base + i, &u, &v);
        if (lane >= channels) continue;
        const A up = grad.channels_last ? widen(g[(base + i) * grad.cell_stride + c]) : stage[i * (kLanes + 1) + lane];
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (s.cell[k] >= 0) column[s.cell[k] * stride] += s.weight[k] * up;
      }
    }
  }
  __syncthreads();
  T* out = grad_map.data + b * grad_map.batch_stride;
  for (int64_t i = threadIdx.x; i < cells * kLanes; i += blockDim.x) {
    const int64_t j = grad_map.channels_last ? i % kLanes : i / cells,
                  l = grad_map.channels_last ? i / kLanes : i % cells;
    if (j >= channels) continue;
    A sum = 0;
    if (sums) {
      sum = sums[(b * grad_map.channels + first + j) * cells + l];
    } else {
      for (int w = 0; w < warps; ++w) sum += tiles[(w * cells + l) * kLanes + j];
    }
    out[(first + j) * grad_map.channel_stride + l * grad_map.cell_stride] = narrow<T>(sum);
  }
}

template <typename A>
int64_t shared_bytes(int64_t cells, int warps, bool tiles) {
  return warps * kLanes * ((kLanes + 1) + (tiles ? cells : 0)) * static_cast<int64_t>(sizeof(A));
}

}  // namespace

template <typename A>
bool sample_patches_fits(int64_t cells) {
  return shared_bytes<A>(cells, 1, true) <= std::min(kSharedBytes, shared_memory_limit());
}

template <typename T, typename A>
void sample_patches(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch, int64_t num_patches,
                    const Maps<T>& out, cudaStream_t stream) {
  const int64_t blocks = batch * num_patches * ceil_div(map.channels, kSampleChannels);
  REID_LAUNCH((sample_patches_fwd_kernel<T>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, map,
              theta, grid, num_patches, out);
}

template <typename T, typename A>
void sample_patches_backward(const Maps<const T>& map, const A* theta, const Grid& grid, int64_t batch,
                             int64_t num_patches, const Maps<const T>& grad, const Maps<T>& grad_map, A* sums,
                             A* partial, A* grad_theta, cudaStream_t stream) {
  if (grad_theta) {
    const int64_t blocks = ceil_div(map.channels, kSampleChannels), n = batch * num_patches * 6;
    REID_LAUNCH((sample_patches_bwd_theta_kernel<T>), dim3(static_cast<unsigned>(batch * num_patches * blocks)),
                dim3(kThreads), 0, stream, map, theta, grid, num_patches, grad, partial);
    REID_LAUNCH((sample_patches_merge_kernel<A>), dim3(static_cast<unsigned>(ceil_div(n, kThreads))), dim3(kThreads), 0,
                stream, partial, grid, blocks, n, grad_theta);
  }
  if (grad_map.data) {
    int warps = sums ? 1 : static_cast<int>(std::min<int64_t>(4, std::max<int64_t>(1, num_patches)));
    const int64_t room = std::min(kSharedBytes, shared_memory_limit());
    while (warps > 1 && shared_bytes<A>(grad_map.cells, warps, true) > room) --warps;
    const int64_t blocks = batch * ceil_div(grad_map.channels, kLanes);
    REID_LAUNCH((sample_patches_bwd_map_kernel<T>), dim3(static_cast<unsigned>(blocks)), dim3(warps * kLanes),
                static_cast<size_t>(shared_bytes<A>(grad_map.cells, warps, !sums)), stream, grad, theta, grid,
                num_patches, grad_map, sums);
  }
}

#define INSTANTIATE(T)                                                                                            \
  template void sample_patches<T, acc_t<T>>(const Maps<const T>&, const acc_t<T>*, const Grid&, int64_t, int64_t, \
                                            const Maps<T>&, cudaStream_t);                                        \
  template void sample_patches_backward<T, acc_t<T>>(const Maps<const T>&, const acc_t<T>*, const Grid&, int64_t, \
                                                     int64_t, const Maps<const T>&, const Maps<T>&, acc_t<T>*,    \
                                                     acc_t<T>*, acc_t<T>*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE
template bool sample_patches_fits<float>(int64_t);
template bool sample_patches_fits<double>(int64_t);

}  // namespace reidfast::cuda
