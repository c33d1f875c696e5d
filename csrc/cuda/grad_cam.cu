// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// NCHW forward: a block of 32 cells by 32 groups of channels, so that each warp reads adjacent cells; the groups meet
// in shared memory. channels_last forward: a warp per cell. Backward: a warp per channel (NCHW) or a thread per channel
// (channels_last), the only writer of its sum. No atomics, every sum in one fixed order.
#include "csrc/cuda/device.h"
#include "csrc/cuda/grad_cam.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroups = 32;

template <typename T>
__global__ void __launch_bounds__(32 * kGroups)
    grad_cam_fwd_kernel(const T* __restrict__ features, const T* __restrict__ weights, CamShape shape,
                        T* __restrict__ out) {
  using A = acc_t<T>;
  __shared__ A sums[kGroups][32 + 1];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int64_t tiles = (shape.cells + 31) / 32, b = blockIdx.x / tiles, l0 = (blockIdx.x - b * tiles) * 32;
  const int64_t l = l0 + lane;
  A sum = 0;
  if (l < shape.cells) {
    const T* x = features + (b * shape.channels + group) * shape.cells + l;
    const T* w = weights + b * shape.channels;
#pragma unroll 8
    for (int64_t c = group; c < shape.channels; c += kGroups, x += kGroups * shape.cells)
      sum += widen(w[c]) * widen(*x);
  }
  sums[group][lane] = sum;
  __syncthreads();
  // Warp g takes cell g: its lanes hold the groups.
  const A total = warp_sum(sums[lane][group]);
  if (lane == 0 && l0 + group < shape.cells)
    out[b * shape.cells + l0 + group] = narrow<T>(total <= A(0) ? A(0) : total);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    grad_cam_fwd_last_kernel(const T* __restrict__ features, const T* __restrict__ weights, int64_t num_cells,
                             CamShape shape, T* __restrict__ out) {
  using A = acc_t<T>;
  const int64_t cell = blockIdx.x * int64_t(kThreads / 32) + threadIdx.x / 32;
  if (cell >= num_cells) return;  // whole warps
  const T *x = features + cell * shape.channels, *w = weights + cell / shape.cells * shape.channels;
  A sum = 0;
#pragma unroll 8
  for (int64_t c = threadIdx.x % 32; c < shape.channels; c += 32) sum += widen(w[c]) * widen(x[c]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) out[cell] = narrow<T>(sum <= A(0) ? A(0) : sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    grad_cam_bwd_kernel(const T* __restrict__ grad, const T* __restrict__ out, const T* __restrict__ features,
                        const T* __restrict__ weights, int64_t rows, CamShape shape, T* __restrict__ grad_features,
                        T* __restrict__ grad_weights) {
  using A = acc_t<T>;
  const int64_t row = blockIdx.x * int64_t(kThreads / 32) + threadIdx.x / 32;  // (b, c)
  if (row >= rows) return;                                                     // whole warps
  const int64_t first = row / shape.channels * shape.cells;
  const A weight = widen(weights[row]);
  A sum = 0;
#pragma unroll 4
  for (int64_t l = threadIdx.x % 32; l < shape.cells; l += 32) {
    const A g = grad_through_relu(widen(grad[first + l]), widen(out[first + l]));
    if (grad_features) grad_features[row * shape.cells + l] = narrow<T>(weight * g);
    if (grad_weights) sum += widen(features[row * shape.cells + l]) * g;
  }
  if (!grad_weights) return;
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) grad_weights[row] = narrow<T>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    grad_cam_bwd_last_kernel(const T* __restrict__ grad, const T* __restrict__ out, const T* __restrict__ features,
                             const T* __restrict__ weights, int64_t rows, CamShape shape, T* __restrict__ grad_features,
                             T* __restrict__ grad_weights) {
  using A = acc_t<T>;
  constexpr int64_t kGroup = 32;
  const int64_t row = blockIdx.x * int64_t(kThreads) + threadIdx.x;  // (b, c)
  if (row >= rows) return;
  const int64_t b = row / shape.channels, first = b * shape.cells;
  const int64_t column = first * shape.channels + row - b * shape.channels;
  const A weight = widen(weights[row]);
  A sum = 0;
  for (int64_t l0 = 0; l0 < shape.cells; l0 += kGroup) {
    A part = 0;
#pragma unroll 4
    for (int64_t l = l0; l < min(l0 + kGroup, shape.cells); ++l) {
      const A g = grad_through_relu(widen(grad[first + l]), widen(out[first + l]));
      const int64_t at = column + l * shape.channels;
      if (grad_features) grad_features[at] = narrow<T>(weight * g);
      if (grad_weights) part += widen(features[at]) * g;
    }
    sum += part;
  }
  if (grad_weights) grad_weights[row] = narrow<T>(sum);
}

dim3 blocks_for(int64_t items, int64_t per_block) { return dim3(static_cast<unsigned>(ceil_div(items, per_block))); }

}  // namespace

template <typename T>
void grad_cam(const T* features, const T* weights, int64_t batch, CamShape shape, T* out, cudaStream_t stream) {
  if (shape.channels_last)
    REID_LAUNCH((grad_cam_fwd_last_kernel<T>), blocks_for(batch * shape.cells, kThreads / 32), dim3(kThreads), 0,
                stream, features, weights, batch * shape.cells, shape, out);
  else
    REID_LAUNCH((grad_cam_fwd_kernel<T>), blocks_for(batch * ceil_div(shape.cells, 32), 1), dim3(32 * kGroups), 0,
                stream, features, weights, shape, out);
}

template <typename T>
void grad_cam_backward(const T* grad, const T* out, const T* features, const T* weights, int64_t batch, CamShape shape,
                       T* grad_features, T* grad_weights, cudaStream_t stream) {
  const int64_t rows = batch * shape.channels;
  if (shape.channels_last)
    REID_LAUNCH((grad_cam_bwd_last_kernel<T>), blocks_for(rows, kThreads), dim3(kThreads), 0, stream, grad, out,
                features, weights, rows, shape, grad_features, grad_weights);
  else
    REID_LAUNCH((grad_cam_bwd_kernel<T>), blocks_for(rows, kThreads / 32), dim3(kThreads), 0, stream, grad, out,
                features, weights, rows, shape, grad_features, grad_weights);
}

#define INSTANTIATE(T)                                                                \
  template void grad_cam<T>(const T*, const T*, int64_t, CamShape, T*, cudaStream_t); \
  template void grad_cam_backward<T>(const T*, const T*, const T*, const T*, int64_t, CamShape, T*, T*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
