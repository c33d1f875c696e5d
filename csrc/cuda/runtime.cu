// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include <array>
#include <atomic>

#include "csrc/cuda/launch.h"
#include "csrc/cuda/runtime.h"

namespace reidfast::cuda {

#if defined(REID_CUDA_EMU)
void set_device(int) {}
void check_architecture(int) {}
int64_t shared_memory_limit() { return 227 * 1024; }
#else
namespace {
__global__ void probe() {}
}  // namespace

void set_device(int device) { REID_CUDA_CHECK(cudaSetDevice(device)); }

void check_architecture(int device) {
  static std::array<std::atomic<bool>, 64> known{};
  const bool counted = device >= 0 && device < static_cast<int>(known.size());
  if (counted && known[device].load(std::memory_order_relaxed)) return;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe));
  if (error != cudaSuccess) {
    cudaGetLastError();  // clears it
    int major = 0, minor = 0;
    REID_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    REID_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    throw std::runtime_error("reidfast: this build has no code for the CUDA device " + std::to_string(device) +
                             " of compute capability " + std::to_string(major) + "." + std::to_string(minor) + " (" +
                             cudaGetErrorName(error) + ")");
  }
  if (counted) known[device].store(true, std::memory_order_relaxed);
}

int64_t shared_memory_limit() {
  int device = 0, bytes = 0;
  REID_CUDA_CHECK(cudaGetDevice(&device));
  REID_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}
#endif

}  // namespace reidfast::cuda
