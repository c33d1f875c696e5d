// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Kernels that are wrong on purpose, and a few right ones: what tests/csrc/test_cuda_emu.py checks the emulation with.
#include <cstring>
#include <exception>
#include <string>

#include "csrc/cuda/device.h"

namespace {

using reidfast::cuda::kAllLanes;

// out[i] = sum of x over the block of i, by shared memory and shuffles
__global__ void sum_kernel(const float* x, float* out) {
  REID_DYNAMIC_SHARED(float, scratch);
  const float sum = reidfast::cuda::block_sum(x[blockIdx.x * blockDim.x + threadIdx.x], scratch);
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// out[i] = x[blockDim.x - 1 - i], without the barrier that it needs
__global__ void missing_barrier_kernel(const float* x, float* out) {
  REID_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

__global__ void divergent_barrier_kernel(const float*, float* out) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void deadlock_kernel(const float*, float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else if (threadIdx.x == 33) {
    __syncwarp();
    out[0] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  } else {
    __syncwarp();
    __syncthreads();
  }
}

__global__ void lost_lane_kernel(const float* x, float* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(kAllLanes, x[threadIdx.x], 5);
}

__global__ void shared_overflow_kernel(const float* x, float* out) {
  REID_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// Warp functions against their definitions; out [threads] counts wrong answers.
__global__ void warp_kernel(const float* x, float* out) {
  const int lane = threadIdx.x % 32, first = threadIdx.x - lane;
  int wrong = 0;
  wrong += __shfl_down_sync(kAllLanes, x[threadIdx.x], 3) != x[lane + 3 < 32 ? threadIdx.x + 3 : threadIdx.x];
  wrong += __shfl_up_sync(kAllLanes, x[threadIdx.x], 3) != x[lane >= 3 ? threadIdx.x - 3 : threadIdx.x];
  wrong += __shfl_xor_sync(kAllLanes, x[threadIdx.x], 5, 8) != x[threadIdx.x ^ 5];
  wrong += __shfl_sync(kAllLanes, x[threadIdx.x], 1, 16) != x[(threadIdx.x & ~15u) + 1];
  wrong += __ballot_sync(kAllLanes, lane % 3 == 0) != 0x49249249u;
  wrong += !__any_sync(kAllLanes, lane == 7) || __all_sync(kAllLanes, lane == 7);
  wrong += __match_any_sync(kAllLanes, lane / 4) != 0xfu << (lane & ~3);
  wrong += __reduce_max_sync(kAllLanes, lane) != 31;
  if (lane < 8) wrong += __shfl_sync(0xffu, x[threadIdx.x], 2) != x[first + 2];  // part of a warp
  wrong += __syncthreads_count(threadIdx.x % 4 == 0) != int(blockDim.x) / 4;
  out[threadIdx.x] = wrong;
}

__global__ void atomics_kernel(const float*, float* out) {
  __shared__ int counter;
  __shared__ float total;
  if (threadIdx.x == 0) counter = 0, total = 0;
  __syncthreads();
  atomicAdd(&total, 0.5f);
  atomicMax(&counter, static_cast<int>(threadIdx.x));
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(out, total);
    atomicAdd(out + 1, static_cast<float>(counter));
  }
}

}  // namespace

// x, out [blocks * threads] -> the error's words in `message` [1024], empty where there was none
extern "C" __attribute__((visibility("default"))) void selftest(const char* name, const float* x, float* out,
                                                                int blocks, int threads, int shared_bytes,
                                                                char* message) {
  const auto run = [&](const char* wanted, void (*kernel)(const float*, float*)) {
    if (std::strcmp(name, wanted) == 0) REID_LAUNCH(kernel, dim3(blocks), dim3(threads), shared_bytes, nullptr, x, out);
  };
  message[0] = 0;
  try {
    run("sum", sum_kernel);
    run("missing_barrier", missing_barrier_kernel);
    run("divergent_barrier", divergent_barrier_kernel);
    run("deadlock", deadlock_kernel);
    run("lost_lane", lost_lane_kernel);
    run("shared_overflow", shared_overflow_kernel);
    run("warp", warp_kernel);
    run("atomics", atomics_kernel);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), 1023);
    message[1023] = 0;
  }
}
