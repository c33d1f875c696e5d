// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Ranks by counting on the GPU: what reidfast.evaluation calls per tile of distances. On the CPU: rank_counts.cpp.
#include "csrc/torch/op.h"

#if defined(REID_WITH_CUDA)
#include "csrc/cuda/count_below.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "count_below(Tensor d, int first, Tensor ptr, Tensor values, Tensor columns, int most, Tensor same_ptr, Tensor "
      "same, Tensor drop, Tensor(a!) counts) -> ()");
}

#if defined(REID_WITH_CUDA)
namespace {

const int64_t* int64_on(const Tensor& t, const Tensor& d, const char* name) {
  REID_CHECK(t.scalar_type() == kLong && t.is_contiguous() && t.device() == d.device(),
             "evaluation: expected contiguous int64 ", name, " on ", d.device(), ", got ", t.scalar_type(), " on ",
             t.device());
  return t.const_data_ptr<int64_t>();
}

void count_below(const Tensor& d, int64_t first, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                 int64_t most, const Tensor& same_ptr, const Tensor& same, const Tensor& drop, const Tensor& counts) {
  REID_CHECK(is_float(d.scalar_type()) && d.dim() == 2 && (d.size(1) <= 1 || d.stride(1) == 1),
             "evaluation: expected rows of distances, got ", d.scalar_type(), " ", d.sizes());
  const int64_t queries = d.size(0), total = values.numel();
  REID_CHECK(ptr.numel() == queries + 1 && same_ptr.numel() == queries + 1 && columns.numel() == total &&
                 counts.numel() == 3 * total && values.is_contiguous() && values.device() == d.device() &&
                 values.scalar_type() == acc_dtype(d.scalar_type()),
             "evaluation: thresholds do not fit ", queries, " queries");
  const CudaScope scope(d);
  int64_on(counts, d, "counts");
  const cuda::LeftOut left_out{int64_on(same_ptr, d, "same_ptr"), int64_on(same, d, "same"), int64_on(drop, d, "drop"),
                               drop.numel()};
  REID_DISPATCH_FLOATS(d.scalar_type(), "count_below", [&] {
    using value_t = acc_t<scalar_t>;
    const cuda::Thresholds<value_t> thresholds{int64_on(ptr, d, "ptr"), cuda_const<value_t>(values),
                                               int64_on(columns, d, "columns"), total, most};
    cuda::count_below(cuda_const<scalar_t>(d), d.stride(0), queries, d.size(1), first, thresholds, left_out,
                      counts.mutable_data_ptr<int64_t>(), scope.stream);
  });
}

}  // namespace

REID_KERNELS(reidfast_eval, m) { m.impl("count_below", TORCH_BOX(&count_below)); }
#endif

}  // namespace reidfast
