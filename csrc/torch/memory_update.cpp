// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/memory_update.h"

#include <functional>

#include "csrc/torch/op.h"

#if defined(REID_WITH_CUDA)
#include "csrc/cuda/memory_update.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

// Whether two rows of the bank share memory. Strides are never negative.
bool rows_overlap(int64_t parts, int64_t part_stride, int64_t rows, int64_t row_stride, int64_t dim) {
  if (dim == 0 || rows == 0) return false;
  if (rows > 1 && row_stride < dim) return true;
  if (part_stride >= (rows - 1) * row_stride + dim) return false;
  for (int64_t part = 1; part < parts; ++part) {  // a row against its two neighbours in another part
    const int64_t start = part * part_stride, below = rows > 1 ? std::min(start / row_stride, rows - 1) : 0;
    if (start - below * row_stride < dim) return true;
    if (below + 1 < rows && (below + 1) * row_stride - start < dim) return true;
  }
  return false;
}

// One call in one shape: bank [M, N, d], values [M, B, d].
struct UpdateArgs {
  int64_t parts, rows, dim, count, part_stride, row_stride;
  Tensor indices, values;  // contiguous, values in the accumulation dtype, neither in the bank's memory

  UpdateArgs(const Tensor& bank, const Tensor& indices_in, const Tensor& values_in, double momentum) {
    const bool flat = bank.dim() == 2;
    REID_CHECK((flat || bank.dim() == 3) && values_in.dim() == bank.dim() && values_in.size(-1) == bank.size(-1) &&
                   (flat || values_in.size(0) == bank.size(0)),
               "memory_update_: expected bank (M, N, d) and values (M, B, d), or (N, d) and (B, d), got ", bank.sizes(),
               " and ", values_in.sizes());
    REID_CHECK(indices_in.scalar_type() == kLong && indices_in.dim() == 1 && indices_in.size(0) == values_in.size(-2),
               "memory_update_: expected indices int64 (B,) with B=", values_in.size(-2), ", got ",
               indices_in.scalar_type(), " ", indices_in.sizes());
    const ScalarType dtype = bank.scalar_type(), values_dtype = values_in.scalar_type();
    REID_CHECK(is_float(dtype) && is_float(values_dtype),
               "memory_update_: expected bank and values of dtype float32, float64, float16 or bfloat16, got ", dtype,
               " and ", values_dtype);
    REID_CHECK((dtype == kDouble) == (values_dtype == kDouble),
               "memory_update_: expected bank and values both float64 or neither, got ", dtype, " and ", values_dtype);
    check_device("memory_update_", "values", values_in, "bank", bank);
    check_device("memory_update_", "indices", indices_in, "bank", bank);
    REID_CHECK_VALUE(momentum >= 0 && momentum <= 1,
                     "memory_update_: expected momentum, the weight of the old value, from 0 to 1, got ", momentum);
    parts = flat ? 1 : bank.size(0), rows = bank.size(-2), dim = bank.size(-1), count = indices_in.size(0);
    part_stride = parts == 1 ? 0 : bank.stride(0), row_stride = bank.stride(-2);
    REID_CHECK(dim <= 1 || bank.stride(-1) == 1,
               "memory_update_: expected a bank whose rows are contiguous, got strides ", bank.strides());
    REID_CHECK_VALUE(!rows_overlap(parts, part_stride, rows, row_stride, dim),
                     "memory_update_: expected a bank whose rows do not share memory, got shape ", bank.sizes(),
                     " and strides ", bank.strides());
    const int64_t bank_bytes =
        parts == 0 || rows == 0 || dim == 0
            ? 0
            : ((parts - 1) * part_stride + (rows - 1) * row_stride + dim) * static_cast<int64_t>(bank.element_size());
    indices = outside(bank, bank_bytes, indices_in.contiguous());
    values = outside(bank, bank_bytes, values_in.to(acc_dtype(dtype)).contiguous());
  }

 private:
  // x, or a copy where it reaches into the bank: it is read while the bank is written.
  static Tensor outside(const Tensor& bank, int64_t bank_bytes, const Tensor& x) {
    const auto *start = static_cast<const char*>(x.const_data_ptr()),
               *bank_start = static_cast<const char*>(bank.const_data_ptr());
    const std::less<const char*> before;
    const int64_t bytes = x.numel() * static_cast<int64_t>(x.element_size());
    if (!before(start, bank_start + bank_bytes) || !before(bank_start, start + bytes)) return x;
    return torch::stable::clone(x);
  }
};

#if defined(REID_WITH_CUDA)

void memory_update(const Tensor& bank, const Tensor& indices, const Tensor& values, double momentum, bool normalize) {
  const CudaScope scope(bank);
  const UpdateArgs args(bank, indices, values, momentum);
  REID_CHECK(args.parts <= 65535, "memory_update_: expected at most 65535 parts, got ", args.parts);
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_update_", [&] {
    using acc = acc_t<scalar_t>;
    cuda::memory_update(cuda_mutable<scalar_t>(bank), args.parts, args.rows, args.dim, args.part_stride,
                        args.row_stride, cuda_const<acc>(args.values), cuda_const<int64_t>(args.indices), args.count,
                        static_cast<acc>(momentum), normalize, scope.stream);
  });
}

#else

void memory_update(const Tensor& bank, const Tensor& indices, const Tensor& values, double momentum, bool normalize) {
  const UpdateArgs args(bank, indices, values, momentum);
  const int64_t* index = args.indices.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < args.count; ++b)
    REID_CHECK_VALUE(index[b] >= -1 && index[b] < args.rows,
                     "memory_update_: expected indices from -1 to N-1=", args.rows - 1, ", got ", index[b], " at ", b);
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_update_", [&] {
    using acc = acc_t<scalar_t>;
    scalar_t* data = bank.mutable_data_ptr<scalar_t>();
    const acc* fresh = args.values.const_data_ptr<acc>();
    parallel_for(0, args.parts, grain(args.count * args.dim * 12), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        REID_CPU_CALL(memory_update_rows, data + part * args.part_stride, args.row_stride, args.dim,
                      fresh + part * args.count * args.dim, index, args.count, static_cast<acc>(momentum), normalize);
    });
  });
}

#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("memory_update_(Tensor(a!) bank, Tensor indices, Tensor values, float momentum, bool normalize) -> ()");
}
REID_KERNELS(reidfast, m) { m.impl("memory_update_", TORCH_BOX(&memory_update)); }

}  // namespace reidfast
