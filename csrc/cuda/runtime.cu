// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cuda/launch.h"
#include "csrc/cuda/runtime.h"

namespace reidfast::cuda {

#if defined(REID_CUDA_EMU)
void set_device(int) {}
#else
void set_device(int device) { REID_CUDA_CHECK(cudaSetDevice(device)); }
#endif

}  // namespace reidfast::cuda
