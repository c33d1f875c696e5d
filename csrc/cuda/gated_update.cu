// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: one thread per few adjacent elements. Backward: one block per chunk of rows; a warp walks its rows once per
// tile of columns, finishes the sums along the rows and leaves the sums down the columns per chunk, which a second
// kernel adds up in order. No atomics.
#include "csrc/common/sigmoid.h"
#include "csrc/cuda/device.h"
#include "csrc/cuda/gated_update.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCols = 2;  // columns of a lane in the backward pass
constexpr int kTile = 32 * kCols;
constexpr int kMaxChunk = 128;

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    gated_update_fwd_kernel(const T* __restrict__ down, const T* __restrict__ along, const T* __restrict__ state,
                            const T* __restrict__ x, GateShape shape, int64_t vectors, T* __restrict__ out) {
  using A = acc_t<T>;
  const int64_t v = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (v >= vectors) return;
  const int64_t per_row = shape.cols / kVec, row = v / per_row, col = (v - row * per_row) * kVec;
  A other[kVec], s[kVec], in[kVec], blend[kVec];
  load<T, kVec>(along + row / shape.rows * shape.cols + col, other);
  load<T, kVec>(state + v * kVec, s);
  load<T, kVec>(x + v * kVec, in);
  const A factor = widen(down[row]);
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    A z, not_z;
    sigmoid_and_complement(factor * other[j], z, not_z);
    blend[j] = gated_blend(z, not_z, s[j], in[j]);
  }
  store<T, kVec>(out + v * kVec, blend);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    gated_update_bwd_kernel(const T* __restrict__ grad, const T* __restrict__ down, const T* __restrict__ along,
                            const T* __restrict__ state, const T* __restrict__ x, GateShape shape,
                            acc_t<T>* __restrict__ partial, T* __restrict__ grad_state, T* __restrict__ grad_x,
                            T* __restrict__ grad_down) {
  using A = acc_t<T>;
  __shared__ A row_sums[kMaxChunk];
  __shared__ A col_sums[kWarps][kTile];
  const int64_t task = blockIdx.x, b = task / shape.chunks(), r0 = (task - b * shape.chunks()) * shape.chunk;
  const int count = static_cast<int>(min(shape.chunk, shape.rows - r0));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < count; i += kThreads) row_sums[i] = 0;
  __syncthreads();
  for (int64_t c0 = 0; c0 < shape.cols; c0 += kTile) {
    A other[kCols], share[kCols] = {};
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const int64_t col = c0 + lane + 32 * j;
      other[j] = col < shape.cols ? widen(along[b * shape.cols + col]) : A(0);
    }
    for (int i = warp; i < count; i += kWarps) {
      const int64_t row = b * shape.rows + r0 + i;
      const A factor = widen(down[row]);
      A sum = 0;
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const int64_t col = c0 + lane + 32 * j, at = row * shape.cols + col;
        if (col >= shape.cols) continue;
        const A g = widen(grad[at]);
        A z, not_z;
        sigmoid_and_complement(factor * other[j], z, not_z);
        const A d = gated_blend_grad(z, not_z, widen(state[at]), widen(x[at]), g);
        grad_state[at] = narrow<T>(not_z * g);
        grad_x[at] = narrow<T>(z * g);
        sum += d * other[j];
        share[j] += d * factor;
      }
      sum = warp_sum(sum);
      if (lane == 0) row_sums[i] += sum;  // the row's only warp
    }
#pragma unroll
    for (int j = 0; j < kCols; ++j) col_sums[warp][lane + 32 * j] = share[j];
    __syncthreads();
    if (threadIdx.x < kTile && c0 + threadIdx.x < shape.cols) {
      A sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += col_sums[w][threadIdx.x];
      partial[task * shape.cols + c0 + threadIdx.x] = sum;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < count; i += kThreads) grad_down[b * shape.rows + r0 + i] = narrow<T>(row_sums[i]);
}

// partial [B, chunks, cols] -> grad_along [B, cols]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gated_update_merge_kernel(const acc_t<T>* __restrict__ partial, GateShape shape, T* __restrict__ grad_along) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= shape.batch * shape.cols) return;
  const int64_t b = i / shape.cols, col = i - b * shape.cols, chunks = shape.chunks();
  acc_t<T> sum = 0;
  for (int64_t k = 0; k < chunks; ++k) sum += partial[(b * chunks + k) * shape.cols + col];
  grad_along[i] = narrow<T>(sum);
}

template <typename T, int kVec>
void forward(const T* down, const T* along, const T* state, const T* x, GateShape shape, T* out, cudaStream_t stream) {
  const int64_t vectors = shape.batch * shape.rows * shape.cols / kVec;
  REID_LAUNCH((gated_update_fwd_kernel<T, kVec>), dim3(static_cast<unsigned>(ceil_div(vectors, kThreads))),
              dim3(kThreads), 0, stream, down, along, state, x, shape, vectors, out);
}

}  // namespace

template <typename T>
void gated_update(const T* down, const T* along, const T* state, const T* x, GateShape shape, T* out,
                  cudaStream_t stream) {
  constexpr int kVec = kPack<T>;
  const auto fits = [&](const T* p) { return is_aligned(p, shape.cols, kVec); };
  if (fits(along) && fits(state) && fits(x) && fits(out))
    forward<T, kVec>(down, along, state, x, shape, out, stream);
  else
    forward<T, 1>(down, along, state, x, shape, out, stream);
}

template <typename T, typename A>
void gated_update_backward(const T* grad, const T* down, const T* along, const T* state, const T* x, GateShape shape,
                           A* partial, T* grad_state, T* grad_x, T* grad_down, T* grad_along, cudaStream_t stream) {
  REID_LAUNCH((gated_update_bwd_kernel<T>), dim3(static_cast<unsigned>(shape.batch * shape.chunks())), dim3(kThreads),
              0, stream, grad, down, along, state, x, shape, partial, grad_state, grad_x, grad_down);
  REID_LAUNCH((gated_update_merge_kernel<T>), dim3(static_cast<unsigned>(ceil_div(shape.batch * shape.cols, kThreads))),
              dim3(kThreads), 0, stream, partial, shape, grad_along);
}

#define INSTANTIATE(T)                                                                                          \
  template void gated_update<T>(const T*, const T*, const T*, const T*, GateShape, T*, cudaStream_t);           \
  template void gated_update_backward<T, acc_t<T>>(const T*, const T*, const T*, const T*, const T*, GateShape, \
                                                   acc_t<T>*, T*, T*, T*, T*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
