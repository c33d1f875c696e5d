// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Forward: one block per set, slice of D and part of the set; its threads own kVec adjacent values each and walk the
// frames, so x is read once, in whole 16-byte accesses. Backward: one warp per few frames, which reads x and grad and
// writes grad_x in one go. No atomics: every sum is taken in one fixed order.
#include <algorithm>
#include <cmath>

#include "csrc/cuda/device.h"
#include "csrc/cuda/set_pool.h"

namespace reidfast::cuda {
namespace {

constexpr int kThreads = 128;      // of a block, at most
constexpr int kFramesPerWarp = 4;  // backward
constexpr int64_t kFramesPerSplit = 64;
constexpr int64_t kBlocksWanted = 4 * 132;

struct Range {
  int64_t begin, end;
};

// Offsets are not checked on the device (that would need a synchronisation); whatever they hold, no frame outside [0,
// T) is touched.
__device__ __forceinline__ Range frames_of(const SetRanges& sets, int64_t s, int64_t num_frames) {
  const int64_t begin = max(int64_t(0), min(sets.begin(s), num_frames));
  return {begin, max(begin, min(sets.end(s), num_frames))};
}

// What turns a score of one set into its weight.
template <typename A>
struct Normalizer {
  A highest, inv_sum;
  SetPoolWeighting weighting;
  __device__ __forceinline__ A weight(A score) const {
    if (weighting == SetPoolWeighting::kLinear) return score * inv_sum;
    return exp(set_pool_logit(score, weighting) - highest) * inv_sum;
  }
};

// sum_of, max_of: reductions over the `stride` threads that share the set, this one being number `rank`.
template <typename A, typename Sum, typename Max>
__device__ __forceinline__ Normalizer<A> normalizer(const A* scores, Range range, SetPoolWeighting weighting, int rank,
                                                    int stride, Sum sum_of, Max max_of) {
  A highest = -INFINITY, sum = 0;
  if (weighting == SetPoolWeighting::kLinear) {
    for (int64_t t = range.begin + rank; t < range.end; t += stride) sum += scores[t];
    sum = sum_of(sum);
    return {A(0), sum == A(0) ? A(0) : A(1) / sum, weighting};
  }
  for (int64_t t = range.begin + rank; t < range.end; t += stride)
    highest = max(highest, set_pool_logit(scores[t], weighting));
  highest = max_of(highest);
  for (int64_t t = range.begin + rank; t < range.end; t += stride)
    sum += exp(set_pool_logit(scores[t], weighting) - highest);
  return {highest, A(1) / sum_of(sum), weighting};
}

template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    set_pool_fwd_kernel(SetFrames<T> x, const acc_t<T>* __restrict__ scores, SetPoolWeighting weighting,
                        int64_t num_frames, acc_t<T>* __restrict__ partial, T* __restrict__ out) {
  using A = acc_t<T>;
  __shared__ A scratch[kThreads / 32];
  __shared__ A weights[kThreads];
  const int64_t s = blockIdx.x, d = (blockIdx.y * int64_t(blockDim.x) + threadIdx.x) * kVec;
  const int threads = blockDim.x, rank = threadIdx.x;
  const Range set = frames_of(x.sets, s, num_frames);
  const auto norm = normalizer(
      scores, set, weighting, rank, threads, [&](A v) { return block_sum(v, scratch); },
      [&](A v) { return block_max(v, scratch); });

  const int64_t count = set.end - set.begin;
  const int64_t first = set.begin + count * blockIdx.z / gridDim.z,
                last = set.begin + count * (blockIdx.z + 1) / gridDim.z;
  A sum[kVec] = {};
  for (int64_t base = first; base < last; base += threads) {
    __syncthreads();
    if (base + rank < last) weights[rank] = norm.weight(scores[base + rank]);
    __syncthreads();
    const int n = d < x.dim ? static_cast<int>(min(last - base, int64_t(threads))) : 0;
    const T* row = x.at(s, base) + d;
#pragma unroll 4
    for (int i = 0; i < n; ++i, row += x.frame_stride) {
      A value[kVec];
      load<T, kVec>(row, value);
#pragma unroll
      for (int j = 0; j < kVec; ++j) sum[j] += weights[i] * value[j];
    }
  }
  if (d >= x.dim) return;
  if (partial) {
    A* slot = partial + (blockIdx.z * int64_t(gridDim.x) + s) * x.dim + d;
#pragma unroll
    for (int j = 0; j < kVec; ++j) slot[j] = sum[j];
  } else {
    store<T, kVec>(out + s * x.dim + d, sum);
  }
}

// partial [splits, n] -> out [n]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    set_pool_merge_kernel(const acc_t<T>* __restrict__ partial, int splits, int64_t n, T* __restrict__ out) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= n) return;
  acc_t<T> sum = 0;
  for (int z = 0; z < splits; ++z) sum += partial[z * n + i];
  out[i] = narrow<T>(sum);
}

// scores [T] -> weights [T], one warp per set
template <typename A>
__global__ void __launch_bounds__(kThreads)
    set_pool_weights_kernel(const A* __restrict__ scores, SetRanges sets, SetPoolWeighting weighting, int64_t num_sets,
                            int64_t num_frames, A* __restrict__ weights) {
  const int64_t s = blockIdx.x * int64_t(blockDim.x / 32) + threadIdx.x / 32;
  if (s >= num_sets) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const Range set = frames_of(sets, s, num_frames);
  const auto norm =
      normalizer(scores, set, weighting, lane, 32, [](A v) { return warp_sum(v); }, [](A v) { return warp_max(v); });
  for (int64_t t = set.begin + lane; t < set.end; t += 32) weights[t] = norm.weight(scores[t]);
}

// The set of frame t: the last one that begins at or before it (an empty set begins where the next one does).
__device__ __forceinline__ int64_t set_of(const SetRanges& sets, int64_t t, int64_t num_sets) {
  if (!sets.offsets) return t / sets.frames;
  int64_t low = 0, high = num_sets;
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sets.offsets[middle] <= t)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// grad_x = weight * grad and dots = <x, grad>, either may be null
template <typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    set_pool_bwd_frames_kernel(SetFrames<T> x, const acc_t<T>* __restrict__ weights, const T* __restrict__ grad,
                               int64_t num_sets, int64_t num_frames, T* __restrict__ grad_x,
                               acc_t<T>* __restrict__ dots) {
  using A = acc_t<T>;
  const int lane = threadIdx.x % 32;
  const int64_t first = (blockIdx.x * int64_t(blockDim.x / 32) + threadIdx.x / 32) * kFramesPerWarp;
  if (first >= num_frames) return;  // whole warps
  const int64_t last = min(first + kFramesPerWarp, num_frames);
  int64_t s = set_of(x.sets, first, num_sets);
  for (int64_t t = first; t < last; ++t) {
    while (s + 1 < num_sets && x.sets.end(s) <= t) ++s;
    const T *row = x.at(s, t), *g = grad + s * x.dim;
    const A weight = weights[t];
    A dot = 0;
#pragma unroll 4
    for (int64_t d = lane * kVec; d < x.dim; d += 32 * kVec) {
      A upstream[kVec];
      load<T, kVec>(g + d, upstream);
      if (dots) {
        A value[kVec];
        load<T, kVec>(row + d, value);
#pragma unroll
        for (int j = 0; j < kVec; ++j) dot += value[j] * upstream[j];
      }
      if (grad_x) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) upstream[j] *= weight;
        store<T, kVec>(grad_x + t * x.dim + d, upstream);
      }
    }
    if (!dots) continue;
    dot = warp_sum(dot);
    if (lane == 0) dots[t] = dot;
  }
}

// dots [T] -> gradient of the scores [T], one warp per set
template <typename A>
__global__ void __launch_bounds__(kThreads)
    set_pool_bwd_scores_kernel(const A* __restrict__ scores, const A* __restrict__ weights, const A* __restrict__ dots,
                               SetRanges sets, SetPoolWeighting weighting, int64_t num_sets, int64_t num_frames,
                               A* __restrict__ grad_scores) {
  const int64_t s = blockIdx.x * int64_t(blockDim.x / 32) + threadIdx.x / 32;
  if (s >= num_sets) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const Range set = frames_of(sets, s, num_frames);
  A mean = 0, sum = 0;
  for (int64_t t = set.begin + lane; t < set.end; t += 32) {
    mean += weights[t] * dots[t];
    sum += scores[t];
  }
  mean = warp_sum(mean);
  sum = warp_sum(sum);
  const A inv_sum = sum == A(0) ? A(0) : A(1) / sum;
  for (int64_t t = set.begin + lane; t < set.end; t += 32)
    grad_scores[t] = set_pool_score_factor(scores[t], weights[t], inv_sum, weighting) * (dots[t] - mean);
}

unsigned blocks_for(int64_t items, int64_t per_block) { return static_cast<unsigned>(ceil_div(items, per_block)); }

template <typename T, int kVec>
void forward(const SetFrames<T>& x, const acc_t<T>* scores, SetPoolWeighting weighting, int64_t num_sets,
             int64_t num_frames, int splits, acc_t<T>* partial, T* out, cudaStream_t stream) {
  const int64_t vectors = ceil_div(x.dim, kVec);
  const int threads = static_cast<int>(std::min<int64_t>(kThreads, ceil_div(vectors, 32) * 32));
  const dim3 grid(static_cast<unsigned>(num_sets), blocks_for(vectors, threads), splits);
  REID_LAUNCH((set_pool_fwd_kernel<T, kVec>), grid, dim3(threads), 0, stream, x, scores, weighting, num_frames, partial,
              out);
}

template <typename T, int kVec>
void backward_frames(const SetFrames<T>& x, const acc_t<T>* weights, const T* grad, int64_t num_sets,
                     int64_t num_frames, T* grad_x, acc_t<T>* dots, cudaStream_t stream) {
  const dim3 grid(blocks_for(num_frames, kThreads / 32 * kFramesPerWarp));
  REID_LAUNCH((set_pool_bwd_frames_kernel<T, kVec>), grid, dim3(kThreads), 0, stream, x, weights, grad, num_sets,
              num_frames, grad_x, dots);
}

}  // namespace

int set_pool_splits(int64_t num_sets, int64_t num_frames, int64_t dim) {
  const int64_t blocks = num_sets * ceil_div(dim, 512);
  if (blocks == 0 || blocks >= kBlocksWanted) return 1;
  const int64_t frames = num_frames / std::max<int64_t>(1, num_sets);
  return static_cast<int>(std::clamp<int64_t>(frames / kFramesPerSplit, 1, ceil_div(kBlocksWanted, blocks)));
}

template <typename T, typename A>
void set_pool(const SetFrames<T>& x, const A* scores, SetPoolWeighting weighting, int64_t num_sets, int64_t num_frames,
              int splits, A* partial, T* out, cudaStream_t stream) {
  if (num_sets == 0 || x.dim == 0) return;
  if (splits == 1) partial = nullptr;
  const bool wide =
      is_aligned(x.data, x.frame_stride, kPack<T>) && is_aligned(out, x.dim, kPack<T>) && x.set_stride % kPack<T> == 0;
  if (wide)
    forward<T, kPack<T>>(x, scores, weighting, num_sets, num_frames, splits, partial, out, stream);
  else
    forward<T, 1>(x, scores, weighting, num_sets, num_frames, splits, partial, out, stream);
  if (splits == 1) return;
  const int64_t n = num_sets * x.dim;
  REID_LAUNCH((set_pool_merge_kernel<T>), dim3(blocks_for(n, kThreads)), dim3(kThreads), 0, stream, partial, splits, n,
              out);
}

template <typename T, typename A>
void set_pool_backward(const SetFrames<T>& x, const A* scores, SetPoolWeighting weighting, int64_t num_sets,
                       int64_t num_frames, const T* grad, A* weights, A* dots, T* grad_x, A* grad_scores,
                       cudaStream_t stream) {
  const dim3 per_set(blocks_for(num_sets, kThreads / 32));
  REID_LAUNCH((set_pool_weights_kernel<A>), per_set, dim3(kThreads), 0, stream, scores, x.sets, weighting, num_sets,
              num_frames, weights);
  const bool wide = is_aligned(x.data, x.frame_stride, kPack<T>) && is_aligned(grad, x.dim, kPack<T>) &&
                    is_aligned(grad_x, x.dim, kPack<T>) && x.set_stride % kPack<T> == 0;
  if (wide)
    backward_frames<T, kPack<T>>(x, weights, grad, num_sets, num_frames, grad_x, dots, stream);
  else
    backward_frames<T, 1>(x, weights, grad, num_sets, num_frames, grad_x, dots, stream);
  if (grad_scores)
    REID_LAUNCH((set_pool_bwd_scores_kernel<A>), per_set, dim3(kThreads), 0, stream, scores, weights, dots, x.sets,
                weighting, num_sets, num_frames, grad_scores);
}

#define INSTANTIATE(T)                                                                                               \
  template void set_pool<T, acc_t<T>>(const SetFrames<T>&, const acc_t<T>*, SetPoolWeighting, int64_t, int64_t, int, \
                                      acc_t<T>*, T*, cudaStream_t);                                                  \
  template void set_pool_backward<T, acc_t<T>>(const SetFrames<T>&, const acc_t<T>*, SetPoolWeighting, int64_t,      \
                                               int64_t, const T*, acc_t<T>*, acc_t<T>*, T*, acc_t<T>*, cudaStream_t);
REID_CUDA_FOR_EACH_FLOAT(INSTANTIATE)
#undef INSTANTIATE

}  // namespace reidfast::cuda
