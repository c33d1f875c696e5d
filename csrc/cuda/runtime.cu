// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cuda/launch.h"
#include "csrc/cuda/runtime.h"

namespace reidfast::cuda {

#if defined(REID_CUDA_EMU)
void set_device(int) {}
int64_t shared_memory_limit() { return 227 * 1024; }
#else
void set_device(int device) { REID_CUDA_CHECK(cudaSetDevice(device)); }

int64_t shared_memory_limit() {
  int device = 0, bytes = 0;
  REID_CUDA_CHECK(cudaGetDevice(&device));
  REID_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}
#endif

}  // namespace reidfast::cuda
