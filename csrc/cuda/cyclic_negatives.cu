// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// One launch. A block takes an anchor: its warps compute the distances to all centres once, then the block examines
// candidate after candidate, nearest first, and stops at the first that is accepted. A candidate's ranking is counted,
// never sorted or stored.
#include <algorithm>

#include "csrc/cuda/cyclic_negatives.h"
#include "csrc/cuda/device.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kBlocks = 8 * 132;

// By one warp, for all its lanes: ||x - y||^2 by differences.
template <typename T>
__device__ __forceinline__ acc_t<T> warp_sq_distance(const T* __restrict__ x, const T* __restrict__ y, int64_t dim) {
  acc_t<T> sum = 0;
#pragma unroll 4
  for (int64_t d = threadIdx.x % 32; d < dim; d += 32) {
    const acc_t<T> difference = widen(x[d]) - widen(y[d]);
    sum += difference * difference;
  }
  return nan_to_inf(warp_sum(sum));
}

template <typename A>
struct Place {  // in a ranking; index -1: nowhere
  A sq;
  int64_t index;
};

template <typename A>
__device__ __forceinline__ Place<A> nearer_of(Place<A> a, Place<A> b) {
  if (a.index < 0) return b;
  return b.index < 0 || nearer(a.sq, a.index, b.sq, b.index) ? a : b;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    cyclic_negatives_kernel(const T* __restrict__ anchors, int64_t lda, const T* __restrict__ centres, int64_t ldc,
                            int64_t dim, int64_t num_anchors, int64_t num_centres, const int64_t* __restrict__ own,
                            int64_t r, int64_t candidates, acc_t<T>* __restrict__ rows,
                            int64_t* __restrict__ negatives) {
  using A = acc_t<T>;
  __shared__ Place<A> nearest[kWarps];
  __shared__ int64_t counts[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  A* row = rows + blockIdx.x * num_centres;
  for (int64_t a = blockIdx.x; a < num_anchors; a += gridDim.x) {
    const int64_t u = own[a];
    int64_t chosen = -1;
    if (u >= 0 && u < num_centres && r < num_centres) {  // never more than B - 1 stand before a centre
      for (int64_t v = warp; v < num_centres; v += kWarps) {
        const A sq = warp_sq_distance(anchors + a * lda, centres + v * ldc, dim);
        if (lane == 0) row[v] = sq;
      }
      __syncthreads();
      Place<A> last{A(-1), -1};  // before every candidate
      for (int64_t k = 0; k < min(candidates, num_centres - 1); ++k) {
        // the next candidate: the nearest behind the last one
        Place<A> best{A(0), -1};
        for (int64_t v = threadIdx.x; v < num_centres; v += kThreads)
          if (v != u && nearer(last.sq, last.index, row[v], v)) best = nearer_of(best, Place<A>{row[v], v});
#pragma unroll
        for (int m = 16; m > 0; m /= 2)
          best = nearer_of(best,
                           Place<A>{__shfl_xor_sync(kAllLanes, best.sq, m), __shfl_xor_sync(kAllLanes, best.index, m)});
        if (lane == 0) nearest[warp] = best;
        __syncthreads();
        best = nearest[0];
        for (int w = 1; w < kWarps; ++w) best = nearer_of(best, nearest[w]);
        last = best;
        // how many centres stand before the anchor's own in the candidate's ranking, the candidate itself first
        const T* candidate = centres + best.index * ldc;
        const A to_own = warp_sq_distance(candidate, centres + u * ldc, dim);
        int64_t before = 0;
        for (int64_t w = warp; w < num_centres; w += kWarps)
          before += w == best.index || nearer(warp_sq_distance(candidate, centres + w * ldc, dim), w, to_own, u);
        if (lane == 0) counts[warp] = before;
        __syncthreads();
        before = 0;
        for (int w = 0; w < kWarps; ++w) before += counts[w];
        __syncthreads();
        if (before >= r) {  // the same in every thread
          chosen = best.index;
          break;
        }
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) negatives[a] = chosen;
  }
}

}  // namespace

int64_t cyclic_negatives_blocks(int64_t num_anchors) { return std::min(num_anchors, kBlocks); }

template <typename T, typename A>
void cyclic_negatives(const T* anchors, int64_t lda, const T* centres, int64_t ldc, int64_t dim, int64_t num_anchors,
                      int64_t num_centres, const int64_t* own, int64_t r, int64_t candidates, A* rows,
                      int64_t* negatives, cudaStream_t stream) {
  REID_LAUNCH((cyclic_negatives_kernel<T>), dim3(static_cast<unsigned>(cyclic_negatives_blocks(num_anchors))),
              dim3(kThreads), 0, stream, anchors, lda, centres, ldc, dim, num_anchors, num_centres, own, r, candidates,
              rows, negatives);
}

#define INSTANTIATE(T)                                                                                         \
  template void cyclic_negatives<T, acc_t<T>>(const T*, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, \
                                              const int64_t*, int64_t, int64_t, acc_t<T>*, int64_t*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
