// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What a binding needs to call a CUDA launcher. Names neither the CUDA runtime nor torch's CUDA library, so it compiles
// and links beside a CPU build of torch. Include and use it under #if defined(REID_WITH_CUDA):
//
//   Tensor op_cuda(const Tensor& x) {
//     const CudaScope scope(x);                                    // device of x, its current stream
//     Tensor out = at::empty_like(x);
//     REID_DISPATCH_FLOATS(x.scalar_type(), "op", [&] {
//       cuda::op(cuda_const<scalar_t>(x), x.numel(), cuda_mutable<scalar_t>(out), scope.stream);
//     });
//     return out;
//   }
#pragma once

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "csrc/cuda/runtime.h"
#include "csrc/cuda/types.h"
#include "csrc/torch/op.h"

namespace reidfast {

template <typename T>
struct CudaType {
  using type = T;
};
template <>
struct CudaType<at::Half> {
  using type = __half;
};
template <>
struct CudaType<at::BFloat16> {
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

// Makes the tensor's device the current one for as long as it lives, and holds that device's current stream.
struct CudaScope {
  explicit CudaScope(const Tensor& t)
#if defined(REID_CUDA_EMU)
  {
  }
  cudaStream_t stream = nullptr;
#else
      : guard(t.device()), stream(current_stream(t.device())) {
    cuda::set_device(t.device().index());
  }

  c10::DeviceGuard guard;
  cudaStream_t stream;

 private:
  static cudaStream_t current_stream(c10::Device device) {
    const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    return static_cast<cudaStream_t>(stream.native_handle());
  }
#endif
};

}  // namespace reidfast
