// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/memory_update.h"

#include <torch/csrc/autograd/variable.h>

#include "csrc/torch/op.h"

#if defined(REID_WITH_CUDA)
#include "csrc/cuda/memory_update.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

void check_shapes(const Tensor& bank, const Tensor& indices, const Tensor& values) {
  const bool flat = bank.dim() == 2;
  TORCH_CHECK((flat || bank.dim() == 3) && values.dim() == bank.dim() && values.size(-1) == bank.size(-1) &&
                  (flat || values.size(0) == bank.size(0)),
              "memory_update_: expected bank (M, N, d) and values (M, B, d), or (N, d) and (B, d), got ", bank.sizes(),
              " and ", values.sizes());
  TORCH_CHECK(indices.scalar_type() == at::kLong && indices.dim() == 1 && indices.size(0) == values.size(-2),
              "memory_update_: expected indices int64 (B,) with B=", values.size(-2), ", got ", indices.scalar_type(),
              " ", indices.sizes());
  TORCH_CHECK((bank.scalar_type() == at::kDouble) == (values.scalar_type() == at::kDouble),
              "memory_update_: expected bank and values both float64 or neither, got ", bank.scalar_type(), " and ",
              values.scalar_type());
}

void memory_update_cpu(Tensor& bank, const Tensor& indices, const Tensor& values, double momentum, bool normalize) {
  check_shapes(bank, indices, values);
  const Tensor x = values.to(acc_dtype(bank.scalar_type())).contiguous(), rows = indices.contiguous();
  const int64_t* index = rows.const_data_ptr<int64_t>();
  const int64_t count = rows.size(0), num_rows = bank.size(-2), dim = bank.size(-1),
                parts = bank.dim() == 2 ? 1 : bank.size(0);
  for (int64_t b = 0; b < count; ++b)
    TORCH_CHECK_VALUE(index[b] >= -1 && index[b] < num_rows,
                      "memory_update_: expected indices from -1 to N-1=", num_rows - 1, ", got ", index[b], " at ", b);
  TORCH_CHECK(dim <= 1 || bank.stride(-1) == 1,
              "memory_update_: expected a bank whose rows are contiguous, got strides ", bank.strides());
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_update_", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    scalar_t* data = bank.mutable_data_ptr<scalar_t>();
    const int64_t part_stride = parts == 1 ? 0 : bank.stride(0), row_stride = bank.stride(-2);
    at::parallel_for(0, parts, grain(count * dim * 12), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m)
        REID_CPU_CALL(memory_update_rows, data + m * part_stride, row_stride, dim,
                      x.const_data_ptr<acc_t>() + m * count * dim, index, count, static_cast<acc_t>(momentum),
                      normalize);
    });
  });
}

#if defined(REID_WITH_CUDA)
void memory_update_cuda(Tensor& bank, const Tensor& indices, const Tensor& values, double momentum, bool normalize) {
  check_shapes(bank, indices, values);
  const CudaScope scope(bank);
  const int64_t dim = bank.size(-1), parts = bank.dim() == 2 ? 1 : bank.size(0);
  TORCH_CHECK(dim <= 1 || bank.stride(-1) == 1,
              "memory_update_: expected a bank whose rows are contiguous, got strides ", bank.strides());
  TORCH_CHECK(parts <= 65535, "memory_update_: expected at most 65535 parts, got ", parts);
  const Tensor x = values.to(acc_dtype(bank.scalar_type())).contiguous(), rows = indices.contiguous();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_update_", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    cuda::memory_update(cuda_mutable<scalar_t>(bank), parts, bank.size(-2), dim, parts == 1 ? 0 : bank.stride(0),
                        bank.stride(-2), cuda_const<acc_t>(x), cuda_const<int64_t>(rows), rows.size(0),
                        static_cast<acc_t>(momentum), normalize, scope.stream);
  });
}
#endif

// The update is no part of any graph: values are read as constants, and a bank that records cannot be written in place.
void memory_update_autograd(Tensor& bank, const Tensor& indices, const Tensor& values, double momentum,
                            bool normalize) {
  TORCH_CHECK(!(bank.requires_grad() && at::GradMode::is_enabled()),
              "memory_update_: expected a bank that does not require gradients, got one that does; call it under "
              "torch.no_grad()");
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    static const auto op = find_op<decltype(memory_update_cpu)>("reidfast::memory_update_");
    op.call(bank, indices, values, momentum, normalize);
  }
  if (!bank.is_inference()) torch::autograd::impl::bump_version(bank);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("memory_update_(Tensor(a!) bank, Tensor indices, Tensor values, float momentum, bool normalize) -> ()");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) { m.impl("memory_update_", memory_update_cpu); }
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) { m.impl("memory_update_", memory_update_cuda); }
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) { m.impl("memory_update_", memory_update_autograd); }

}  // namespace reidfast
