// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What holds for the whole CUDA library.
#if defined(REID_WITH_CUDA) && !defined(REID_CUDA_EMU)
#include "csrc/torch/cuda.h"

#include <dlfcn.h>

namespace reidfast {
namespace {

// torch 2.13 and later give a stream's handle from libtorch_cpu; before, a function of libtorch_cuda does. Neither name
// may be linked to: the one is missing in older torches, the other beside a CPU build.
struct StreamFunctions {
  using NativeHandle = AOTITorchError (*)(StreamHandle, void**);
  using CudaStream = AOTITorchError (*)(int32_t, void**);
  NativeHandle native_handle = nullptr;
  CudaStream cuda_stream = nullptr;

  StreamFunctions() {
    if (void* torch_cpu = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD))
      native_handle = reinterpret_cast<NativeHandle>(dlsym(torch_cpu, "torch_stream_native_handle"));
    if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD))
      cuda_stream = reinterpret_cast<CudaStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }
};

std::string cuda_architectures() { return REID_CUDA_ARCHITECTURES; }

}  // namespace

cudaStream_t current_cuda_stream(int32_t device_index) {
  static const StreamFunctions functions;
  void* native = nullptr;
  if (functions.cuda_stream) {
    REID_TORCH(functions.cuda_stream(device_index, &native));
    return static_cast<cudaStream_t>(native);
  }
  REID_CHECK(functions.native_handle, "reidfast: this torch has no function for its current CUDA stream");
  StreamHandle stream = nullptr;
  REID_TORCH(aoti_torch_get_current_stream(device_index, &stream));
  const AOTITorchError error = functions.native_handle(stream, &native);
  aoti_torch_delete_stream(stream);
  REID_CHECK(error == AOTI_TORCH_SUCCESS, "reidfast: torch gave no handle of its current CUDA stream");
  return static_cast<cudaStream_t>(native);
}

STABLE_TORCH_LIBRARY_FRAGMENT(reidfast_runtime, m) { m.def("cuda_architectures() -> str"); }
STABLE_TORCH_LIBRARY_IMPL(reidfast_runtime, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
}

}  // namespace reidfast
#endif
