// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// How a .cu file starts its kernels. Written through these macros, the same file is compiled by nvcc for a GPU and,
// with REID_CUDA_EMU, by a C++ compiler for the tests (tests/csrc/cuda_emu.h runs every CUDA thread as a fiber).
//
//   REID_LAUNCH((my_kernel<float, 256>), dim3(blocks), dim3(256), shared_bytes, stream, x, y, n);
//   REID_DYNAMIC_SHARED(float, tile);            // inside a kernel: float* tile, 16-byte aligned, shared_bytes long
//   REID_CUDA_CHECK(cudaMemsetAsync(...));       // throws std::runtime_error with the file, the line and CUDA's words
//
// A template kernel stands in parentheses. A grid with a zero in it launches nothing.
#pragma once

#include "csrc/cuda/types.h"

#if defined(REID_CUDA_EMU)

#include "tests/csrc/cuda_emu.h"

#define REID_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::reid_emu::launch(#kernel, grid, block, shared_bytes, stream, [=] { kernel(__VA_ARGS__); })
#define REID_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::reid_emu::dynamic_shared())
#define REID_CUDA_CHECK(call) static_cast<void>(call)

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace reidfast::cuda {

inline void check(cudaError_t error, const char* file, int line) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                           ") at " + file + ":" + std::to_string(line));
}

inline bool is_empty(dim3 grid) { return grid.x == 0 || grid.y == 0 || grid.z == 0; }

// A block gets more than 48 KB of shared memory only after its kernel has been allowed to.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* file, int line) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)),
          file, line);
}

}  // namespace reidfast::cuda

#define REID_CUDA_CHECK(call) ::reidfast::cuda::check(call, __FILE__, __LINE__)
#define REID_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)             \
  do {                                                                          \
    if (!::reidfast::cuda::is_empty(grid)) {                                    \
      ::reidfast::cuda::allow_shared(kernel, shared_bytes, __FILE__, __LINE__); \
      kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);               \
      REID_CUDA_CHECK(cudaGetLastError());                                      \
    }                                                                           \
  } while (false)
// One symbol for all kernels of a file: extern shared arrays of different types may not share a name.
#define REID_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char reid_dynamic_[]; \
  T* name = reinterpret_cast<T*>(reid_dynamic_)

#endif
