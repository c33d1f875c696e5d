// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The rank of a match is one more than the number of non-matches before it, so evaluation reads every distance once and
// sorts nothing. A block walks part of one query's row; each thread holds a few distances in registers. A warp compares
// them with the thresholds from the largest down, lane p keeping the count of threshold p, and stops at the first one
// that nothing lies below: most distances lie above every threshold and cost one comparison. Matches and junk are
// counted too and taken off again by a second, small kernel, which keeps lookups out of the walk. Only integers are
// added, so any order gives the same counts.
#include "csrc/cuda/count_below.h"
#include "csrc/cuda/device.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // distances that a thread has in flight
constexpr int kChunk = 32;     // thresholds per block: one for each lane
constexpr int64_t kColumnsPerBlock = 16 * kThreads * kPerThread;
constexpr int64_t kMaxGridY = 65535;

__device__ __forceinline__ void add(int64_t* address, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_below_kernel(const T* __restrict__ d, int64_t ld, int64_t n, int64_t first, Thresholds<acc_t<T>> thresholds,
                       int64_t* __restrict__ counts) {
  using A = acc_t<T>;
  __shared__ A threshold[kChunk];
  __shared__ int block_count[kChunk];
  const int lane = threadIdx.x % 32;
  const int64_t q = blockIdx.x, begin = thresholds.ptr[q] + blockIdx.z * int64_t(kChunk);
  const int levels = static_cast<int>(min(thresholds.ptr[q + 1] - begin, int64_t(kChunk)));
  if (levels <= 0) return;  // the whole block
  if (threadIdx.x < kChunk) {
    threshold[lane] = lane < levels ? thresholds.value[begin + lane] : A(-INFINITY);
    block_count[lane] = 0;
  }
  __syncthreads();
  const T* row = d + q * ld;
  int count = 0;  // of threshold `lane`
  for (int64_t y = blockIdx.y; y * kColumnsPerBlock < n; y += gridDim.y) {
    const int64_t stop = min((y + 1) * kColumnsPerBlock, n);
    for (int64_t base = y * kColumnsPerBlock + threadIdx.x; base - threadIdx.x < stop; base += kThreads * kPerThread) {
      A x[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t c = base + j * kThreads;
        x[j] = c < stop ? widen(row[c]) : A(NAN);  // NaN counts for nothing
      }
      for (int p = levels - 1; p >= 0; --p) {
        const A t = threshold[p];
        int below = 0, up_to = 0;
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          below += x[j] < t;
          up_to += x[j] <= t;
        }
        below = warp_count(below);
        const int all = warp_count(up_to);
        if (all == 0) break;
        count += lane == p ? below : 0;
        if (below == all) continue;
#pragma unroll 1
        for (int j = 0; j < kPerThread; ++j) {  // rare: a tie
          const int64_t c = base + j * kThreads;
          if (c >= stop || widen(row[c]) != t) continue;
          add(counts + thresholds.total + begin + p, 1);
          if (first + c < thresholds.column[begin + p]) add(counts + 2 * thresholds.total + begin + p, 1);
        }
      }
    }
  }
  if (count) atomicAdd(&block_count[lane], count);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < levels && block_count[lane]) add(counts + begin + lane, block_count[lane]);
}

// Takes off what the columns that must not count have added. One block per query, one lane per threshold.
template <typename T>
__global__ void __launch_bounds__(128)
    uncount_kernel(const T* __restrict__ d, int64_t ld, int64_t queries, int64_t n, int64_t first,
                   Thresholds<acc_t<T>> thresholds, LeftOut left_out, int64_t* __restrict__ counts) {
  using A = acc_t<T>;
  const int64_t q = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t same_begin = left_out.same_ptr[q], same_count = left_out.same_ptr[q + 1] - same_begin;
  for (int64_t p = thresholds.ptr[q] + lane; p < thresholds.ptr[q + 1]; p += 32) {
    const A t = thresholds.value[p];
    const int64_t own = thresholds.column[p];
    int64_t below = 0, equal = 0, before = 0;
    for (int64_t i = warp; i < same_count + left_out.drops; i += warps) {
      const int64_t column = i < same_count ? left_out.same[same_begin + i] : left_out.drop[i - same_count];
      if (column < first || column >= first + n) continue;
      const A x = widen(d[q * ld + column - first]);
      below += x < t;
      equal += x == t;
      before += x == t && column < own;
    }
    if (below) add(counts + p, -below);
    if (equal) add(counts + thresholds.total + p, -equal);
    if (before) add(counts + 2 * thresholds.total + p, -before);
  }
}

}  // namespace

template <typename T, typename A>
void count_below(const T* d, int64_t ld, int64_t queries, int64_t n, int64_t first, const Thresholds<A>& thresholds,
                 const LeftOut& left_out, int64_t* counts, cudaStream_t stream) {
  if (queries == 0 || n == 0 || thresholds.most == 0) return;
  const int64_t across = std::min(ceil_div(n, kColumnsPerBlock), kMaxGridY);
  const dim3 grid(static_cast<unsigned>(queries), static_cast<unsigned>(across),
                  static_cast<unsigned>(ceil_div(thresholds.most, kChunk)));
  REID_LAUNCH((count_below_kernel<T>), grid, dim3(kThreads), 0, stream, d, ld, n, first, thresholds, counts);
  REID_LAUNCH((uncount_kernel<T>), dim3(static_cast<unsigned>(queries)), dim3(128), 0, stream, d, ld, queries, n, first,
              thresholds, left_out, counts);
}

#define INSTANTIATE(T)                                                                                              \
  template void count_below<T, acc_t<T>>(const T*, int64_t, int64_t, int64_t, int64_t, const Thresholds<acc_t<T>>&, \
                                         const LeftOut&, int64_t*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
