// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What a binding needs to call a CUDA launcher. Names neither the CUDA runtime nor torch's CUDA library, so it compiles
// and links beside a CPU build of torch. Include and use it under #if defined(REID_WITH_CUDA):
//
//   Tensor op(const Tensor& x) {
//     const CudaScope scope(x);                                    // device of x, its current stream
//     Tensor out = empty_like(x);
//     REID_DISPATCH_FLOATS(x.scalar_type(), "op", [&] {
//       cuda::op(cuda_const<scalar_t>(x), x.numel(), cuda_mutable<scalar_t>(out), scope.stream);
//     });
//     return out;
//   }
#pragma once

#include "csrc/cuda/runtime.h"
#include "csrc/cuda/types.h"
#include "csrc/torch/op.h"

namespace reidfast {

template <typename T>
struct CudaType {
  using type = T;
};
template <>
struct CudaType<c10::Half> {
  using type = __half;
};
template <>
struct CudaType<c10::BFloat16> {
  using type = __nv_bfloat16;
};
// The kernels' name of a C++ type of torch.
template <typename T>
using cuda_t = typename CudaType<T>::type;

template <typename T>
const cuda_t<T>* cuda_const(const Tensor& t) {
  return t.defined() ? reinterpret_cast<const cuda_t<T>*>(t.const_data_ptr<T>()) : nullptr;
}
template <typename T>
cuda_t<T>* cuda_mutable(const Tensor& t) {
  return t.defined() ? reinterpret_cast<cuda_t<T>*>(t.mutable_data_ptr<T>()) : nullptr;
}

#if defined(REID_CUDA_EMU)
struct CudaScope {
  explicit CudaScope(const Tensor&) {}
  cudaStream_t stream = nullptr;
};
#else
// torch's current stream of a CUDA device, through whichever C function this torch has (csrc/torch/cuda.cpp).
cudaStream_t current_cuda_stream(int32_t device_index);

// Makes the tensor's device the current one for as long as it lives, and holds that device's current stream. Throws
// where this build has no code for the device.
struct CudaScope {
  explicit CudaScope(const Tensor& t)
      : guard(static_cast<torch::stable::accelerator::DeviceIndex>(t.device().index)),
        stream(current_cuda_stream(t.device().index)) {
    cuda::set_device(t.device().index);
    cuda::check_architecture(t.device().index);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};
#endif

}  // namespace reidfast
