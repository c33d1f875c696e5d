// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: a block takes a tile of anchors and every splits-th tile of columns; distances are sums of squared
// differences from tiles in shared memory, each thread keeps the hardest pairs of its two anchors in registers, and a
// second kernel merges the parts. The order of pairs is total, so any merge gives the same pair. Backward: a block per
// row and slice of D finds the anchors that chose the row by looking at all of them, in order. No atomics, no B x B.
#include <algorithm>
#include <cmath>

#include "csrc/cuda/batch_hard.h"
#include "csrc/cuda/device.h"

namespace reidfast::cuda {
namespace {

constexpr int64_t kBlocksWanted = 2 * 132;
constexpr int64_t kSmallBatch = 512;  // smaller tiles, more blocks
constexpr int kDepth = 32;            // of a tile of x in shared memory
constexpr int kThreads = 128;         // backward, and merge

int tile_of(int64_t rows) { return rows <= kSmallBatch ? 16 : 32; }

template <typename A, bool positive>
__device__ __forceinline__ void take(HardPair<A>& best, A sq, int64_t index) {
  if (positive ? harder_positive(sq, index, best) : harder_negative(sq, index, best)) best = {sq, index};
}

// Tile of kTile anchors x kTile columns by (kTile / 2)^2 threads, two by two each.
template <typename T, int kTile>
__global__ void __launch_bounds__(kTile* kTile / 4, 2)
    batch_hard_fwd_kernel(const T* __restrict__ x, int64_t ldx, int64_t rows, int64_t dim,
                          const int64_t* __restrict__ labels, acc_t<T>* __restrict__ partial_sq,
                          int64_t* __restrict__ partial_index) {
  using A = acc_t<T>;
  constexpr int kSide = kTile / 2, kBlock = kSide * kSide;
  __shared__ A tile_a[kTile][kDepth + 1], tile_b[kTile][kDepth + 1];
  const int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  const int64_t i0 = blockIdx.x * int64_t(kTile);
  HardPair<A> ap[2] = {{0, -1}, {0, -1}}, an[2] = {{0, -1}, {0, -1}};
  for (int64_t j0 = blockIdx.y * int64_t(kTile); j0 < rows; j0 += gridDim.y * int64_t(kTile)) {
    A total[2][2] = {};
    for (int64_t d0 = 0; d0 < dim; d0 += kDepth) {
      __syncthreads();
      for (int e = threadIdx.x; e < kTile * kDepth; e += kBlock) {
        const int row = e / kDepth, d = e % kDepth;
        const bool inside = d0 + d < dim;
        tile_a[row][d] = inside && i0 + row < rows ? widen(x[(i0 + row) * ldx + d0 + d]) : A(0);
        tile_b[row][d] = inside && j0 + row < rows ? widen(x[(j0 + row) * ldx + d0 + d]) : A(0);
      }
      __syncthreads();
      A sq[2][2] = {};  // of this depth alone: the rounding error grows with it and with their number, not with D
#pragma unroll 4
      for (int d = 0; d < kDepth; ++d) {
        const A a[2] = {tile_a[ty][d], tile_a[ty + kSide][d]}, b[2] = {tile_b[tx][d], tile_b[tx + kSide][d]};
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
          for (int q = 0; q < 2; ++q) sq[p][q] += (a[p] - b[q]) * (a[p] - b[q]);
      }
#pragma unroll
      for (int p = 0; p < 2; ++p)
#pragma unroll
        for (int q = 0; q < 2; ++q) total[p][q] += sq[p][q];
    }
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const int64_t i = i0 + ty + p * kSide, j = j0 + tx + q * kSide;
        if (i >= rows || j >= rows || i == j) continue;
        if (labels[i] == labels[j])
          take<A, true>(ap[p], total[p][q], j);
        else
          take<A, false>(an[p], total[p][q], j);
      }
  }
  // the kSide threads of a row are adjacent lanes
#pragma unroll
  for (int p = 0; p < 2; ++p) {
#pragma unroll
    for (int m = kSide / 2; m > 0; m /= 2) {
      const A sq_p = __shfl_xor_sync(kAllLanes, ap[p].sq, m), sq_n = __shfl_xor_sync(kAllLanes, an[p].sq, m);
      const int64_t j_p = __shfl_xor_sync(kAllLanes, ap[p].index, m), j_n = __shfl_xor_sync(kAllLanes, an[p].index, m);
      take<A, true>(ap[p], sq_p, j_p);
      take<A, false>(an[p], sq_n, j_n);
    }
    const int64_t i = i0 + ty + p * kSide;
    if (tx != 0 || i >= rows) continue;
    const int64_t slot = blockIdx.y * 2 * rows + i;
    partial_sq[slot] = ap[p].sq;
    partial_index[slot] = ap[p].index;
    partial_sq[slot + rows] = an[p].sq;
    partial_index[slot + rows] = an[p].index;
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    batch_hard_merge_kernel(const A* __restrict__ partial_sq, const int64_t* __restrict__ partial_index, int splits,
                            int64_t rows, A* __restrict__ d_ap, A* __restrict__ d_an, int64_t* __restrict__ i_ap,
                            int64_t* __restrict__ i_an) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (i >= rows) return;
  HardPair<A> ap{0, -1}, an{0, -1};
  for (int s = 0; s < splits; ++s) {
    const int64_t slot = s * 2 * rows + i;
    take<A, true>(ap, partial_sq[slot], partial_index[slot]);
    take<A, false>(an, partial_sq[slot + rows], partial_index[slot + rows]);
  }
  d_ap[i] = ap.index < 0 ? A(-INFINITY) : std::sqrt(ap.sq);
  d_an[i] = an.index < 0 ? A(INFINITY) : std::sqrt(an.sq);
  i_ap[i] = ap.index;
  i_an[i] = an.index;
}

constexpr int kPerThread = 4;  // values of D, kThreads apart

template <typename T>
__global__ void __launch_bounds__(kThreads)
    batch_hard_bwd_kernel(const T* __restrict__ x, int64_t ldx, int64_t rows, int64_t dim,
                          const acc_t<T>* __restrict__ grad_ap, const acc_t<T>* __restrict__ grad_an,
                          const acc_t<T>* __restrict__ d_ap, const acc_t<T>* __restrict__ d_an,
                          const int64_t* __restrict__ i_ap, const int64_t* __restrict__ i_an, T* __restrict__ grad_x) {
  using A = acc_t<T>;
  __shared__ unsigned chosen[2][kThreads / 32];
  const int64_t row = blockIdx.x, d0 = blockIdx.y * int64_t(kThreads * kPerThread) + threadIdx.x;
  A own[kPerThread], sum[kPerThread] = {};
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t d = d0 + k * kThreads;
    own[k] = d < dim ? widen(x[row * ldx + d]) : A(0);
  }
  const auto add = [&](A g, A distance, int64_t other) {
    const A factor = distance_grad_factor(g, distance);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const int64_t d = d0 + k * kThreads;
      if (d < dim) sum[k] += factor * (own[k] - widen(x[other * ldx + d]));
    }
  };
  if (grad_ap && i_ap[row] >= 0) add(grad_ap[row], d_ap[row], i_ap[row]);
  if (grad_an && i_an[row] >= 0) add(grad_an[row], d_an[row], i_an[row]);
  for (int64_t a0 = 0; a0 < rows; a0 += kThreads) {
    const int64_t a = a0 + threadIdx.x;
    const unsigned as_positive = __ballot_sync(kAllLanes, grad_ap && a < rows && i_ap[a] == row);
    const unsigned as_negative = __ballot_sync(kAllLanes, grad_an && a < rows && i_an[a] == row);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      chosen[0][threadIdx.x / 32] = as_positive;
      chosen[1][threadIdx.x / 32] = as_negative;
    }
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w) {
      for (unsigned left = chosen[0][w] | chosen[1][w]; left; left &= left - 1) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        const int64_t anchor = a0 + w * 32 + bit;
        if (chosen[0][w] >> bit & 1) add(grad_ap[anchor], d_ap[anchor], anchor);
        if (chosen[1][w] >> bit & 1) add(grad_an[anchor], d_an[anchor], anchor);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int64_t d = d0 + k * kThreads;
    if (d < dim) grad_x[row * dim + d] = narrow<T>(sum[k]);
  }
}

template <typename T, int kTile>
void forward(const T* x, int64_t ldx, int64_t rows, int64_t dim, const int64_t* labels, int splits,
             acc_t<T>* partial_sq, int64_t* partial_index, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(rows, kTile)), splits);
  REID_LAUNCH((batch_hard_fwd_kernel<T, kTile>), grid, dim3(kTile * kTile / 4), 0, stream, x, ldx, rows, dim, labels,
              partial_sq, partial_index);
}

}  // namespace

int batch_hard_splits(int64_t rows) {
  const int64_t tiles = ceil_div(rows, tile_of(rows));
  return static_cast<int>(std::clamp<int64_t>(ceil_div(kBlocksWanted, std::max<int64_t>(1, tiles)), 1, tiles));
}

template <typename T, typename A>
void batch_hard(const T* x, int64_t ldx, int64_t rows, int64_t dim, const int64_t* labels, int splits, A* partial_sq,
                int64_t* partial_index, A* d_ap, A* d_an, int64_t* i_ap, int64_t* i_an, cudaStream_t stream) {
  if (rows == 0) return;
  if (tile_of(rows) == 16)
    forward<T, 16>(x, ldx, rows, dim, labels, splits, partial_sq, partial_index, stream);
  else
    forward<T, 32>(x, ldx, rows, dim, labels, splits, partial_sq, partial_index, stream);
  REID_LAUNCH((batch_hard_merge_kernel<A>), dim3(static_cast<unsigned>(ceil_div(rows, kThreads))), dim3(kThreads), 0,
              stream, partial_sq, partial_index, splits, rows, d_ap, d_an, i_ap, i_an);
}

template <typename T, typename A>
void batch_hard_backward(const T* x, int64_t ldx, int64_t rows, int64_t dim, const A* grad_ap, const A* grad_an,
                         const A* d_ap, const A* d_an, const int64_t* i_ap, const int64_t* i_an, T* grad_x,
                         cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div(dim, kThreads * kPerThread)));
  REID_LAUNCH((batch_hard_bwd_kernel<T>), grid, dim3(kThreads), 0, stream, x, ldx, rows, dim, grad_ap, grad_an, d_ap,
              d_an, i_ap, i_an, grad_x);
}

#define INSTANTIATE(T)                                                                                                 \
  template void batch_hard<T, acc_t<T>>(const T*, int64_t, int64_t, int64_t, const int64_t*, int, acc_t<T>*, int64_t*, \
                                        acc_t<T>*, acc_t<T>*, int64_t*, int64_t*, cudaStream_t);                       \
  template void batch_hard_backward<T, acc_t<T>>(const T*, int64_t, int64_t, int64_t, const acc_t<T>*,                 \
                                                 const acc_t<T>*, const acc_t<T>*, const acc_t<T>*, const int64_t*,    \
                                                 const int64_t*, T*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
