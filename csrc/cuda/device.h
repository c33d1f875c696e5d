// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What kernels share: the accumulation type, wide loads, and reductions in a fixed order (deterministic, no atomics).
#pragma once

#include <type_traits>

#include "csrc/common/macros.h"
#include "csrc/cuda/launch.h"

namespace reidfast::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// To nearest even.
template <typename T>
__device__ __forceinline__ T narrow(acc_t<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

// n elements that are read or written as one access; n * sizeof(T) is 1, 2, 4, 8 or 16, and the address a multiple of
// it.
template <typename T, int n>
struct alignas(n * sizeof(T)) Pack {
  T data[n];
};

// Elements in 16 bytes.
template <typename T>
constexpr int kPack = 16 / sizeof(T);

// x[0..n) widened, read as one access; is_aligned tells the launcher whether that is allowed.
template <typename T, int n>
__device__ __forceinline__ void load(const T* x, acc_t<T> (&out)[n]) {
  const Pack<T, n> pack = *reinterpret_cast<const Pack<T, n>*>(x);
#pragma unroll
  for (int j = 0; j < n; ++j) out[j] = widen(pack.data[j]);
}

template <typename T, int n>
__device__ __forceinline__ void store(T* x, const acc_t<T> (&in)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int j = 0; j < n; ++j) pack.data[j] = narrow<T>(in[j]);
  *reinterpret_cast<Pack<T, n>*>(x) = pack;
}

// Whether rows of `stride` elements from x on can be read in packs of n.
template <typename T>
bool is_aligned(const T* x, int64_t stride, int n) {
  return reinterpret_cast<uintptr_t>(x) % (n * sizeof(T)) == 0 && stride % n == 0;
}

template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(kAllLanes, x, m);
  return x;
}

// The sum over a warp of integers, in every lane: one instruction from compute capability 8.0 on.
__device__ __forceinline__ int warp_count(int x) {
#if defined(REID_CUDA_EMU) || __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAllLanes, x);
#else
  return warp_sum(x);
#endif
}

template <typename A>
__device__ __forceinline__ A warp_max(A x) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) x = max(x, __shfl_xor_sync(kAllLanes, x, m));
  return x;
}

// Sum over a one-dimensional block of whole warps, for every thread; `scratch` is shared, one element per warp.
template <typename A>
__device__ __forceinline__ A block_sum(A x, A* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) x += scratch[w];
  __syncthreads();
  return x;
}

template <typename A>
__device__ __forceinline__ A block_max(A x, A* scratch) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) x = max(x, scratch[w]);
  __syncthreads();
  return x;
}

REID_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace reidfast::cuda
