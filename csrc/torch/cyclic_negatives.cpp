// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/cyclic_negatives.h"

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/cyclic_negatives.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

void check_inputs(const Tensor& anchors, const Tensor& centres, const Tensor& own, int64_t r, int64_t candidates) {
  check_device("cyclic_negatives", "centres", centres, "anchors", anchors);
  check_device("cyclic_negatives", "own", own, "anchors", anchors);
  REID_CHECK(is_float(anchors.scalar_type()) && anchors.dim() == 2 && centres.dim() == 2 &&
                 anchors.size(1) == centres.size(1) && anchors.scalar_type() == centres.scalar_type(),
             "cyclic_negatives: expected anchors (A, D) and centres (B, D) of one dtype, got ", anchors.sizes(),
             " and ", centres.sizes());
  REID_CHECK(own.dim() == 1 && own.size(0) == anchors.size(0) && own.scalar_type() == kLong,
             "cyclic_negatives: expected int64 own (A,) with A=", anchors.size(0), ", got ", own.scalar_type(), " ",
             own.sizes());
  REID_CHECK(r >= 1 && candidates >= 1, "cyclic_negatives: expected r >= 1 and candidates >= 1, got ", r, " and ",
             candidates);
}

#if !defined(REID_WITH_CUDA)
Tensor wide_rows(const Tensor& x) {
  const Tensor wide = x.to(acc_dtype(x.scalar_type()));
  return wide.size(1) <= 1 || wide.stride(1) == 1 ? wide : wide.contiguous();
}

Tensor cyclic_negatives(const Tensor& anchors, const Tensor& centres, const Tensor& own, int64_t r,
                        int64_t candidates) {
  check_inputs(anchors, centres, own, r, candidates);
  const int64_t num_anchors = anchors.size(0), num_centres = centres.size(0), dim = anchors.size(1);
  const Tensor ids = own.contiguous();
  const int64_t* u = ids.const_data_ptr<int64_t>();
  for (int64_t a = 0; a < num_anchors; ++a)
    REID_CHECK_VALUE(u[a] >= 0 && u[a] < num_centres, "cyclic_negatives: expected own in [0, B) with B=", num_centres,
                     ", got ", u[a], " for anchor ", a);
  const Tensor out = full({num_anchors}, -1, ids.options());
  const int64_t count = std::min(candidates, num_centres - 1);
  if (num_anchors == 0 || count < 1 || r >= num_centres) return out;  // all but own are fewer than r: none is accepted
  const Tensor f = wide_rows(anchors), c = wide_rows(centres);
  const Tensor chosen = empty({num_anchors, count}, ids.options());
  const Tensor accepted = empty({num_anchors, count}, ids.options().dtype(kBool));
  int64_t* negatives = out.mutable_data_ptr<int64_t>();
  REID_DISPATCH_WIDE(f.scalar_type(), "cyclic_negatives", [&] {
    const int64_t rows = std::max<int64_t>(1, grain(num_centres * dim, 32 * 1024));
    parallel_for(0, num_anchors, rows, [&](int64_t begin, int64_t end) {
      const Tensor row = empty({num_centres}, f.options());
      REID_CPU_CALL(cyclic_candidates<scalar_t>, f.const_data_ptr<scalar_t>(), f.stride(0),
                    c.const_data_ptr<scalar_t>(), c.stride(0), dim, num_centres, u, count, begin, end,
                    row.mutable_data_ptr<scalar_t>(), chosen.mutable_data_ptr<int64_t>());
    });
    parallel_for(0, num_centres, rows, [&](int64_t begin, int64_t end) {
      const Tensor row = empty({num_centres}, f.options());
      REID_CPU_CALL(cyclic_accept<scalar_t>, c.const_data_ptr<scalar_t>(), c.stride(0), dim, num_centres, u,
                    chosen.const_data_ptr<int64_t>(), num_anchors, count, r, begin, end,
                    row.mutable_data_ptr<scalar_t>(), accepted.mutable_data_ptr<bool>());
    });
  });
  const int64_t* candidate = chosen.const_data_ptr<int64_t>();
  const bool* yes = accepted.const_data_ptr<bool>();
  for (int64_t a = 0; a < num_anchors; ++a)
    for (int64_t k = 0; k < count && negatives[a] < 0; ++k)
      if (yes[a * count + k]) negatives[a] = candidate[a * count + k];
  return out;
}

#else
Tensor cyclic_negatives(const Tensor& anchors, const Tensor& centres, const Tensor& own, int64_t r,
                        int64_t candidates) {
  check_inputs(anchors, centres, own, r, candidates);
  const CudaScope scope(anchors);
  const auto rows_of = [](const Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous(); };
  const Tensor f = rows_of(anchors), c = rows_of(centres), ids = own.contiguous();
  const int64_t num_anchors = f.size(0), num_centres = c.size(0);
  const Tensor out = empty({num_anchors}, ids.options());
  const Tensor rows =
      empty({cuda::cyclic_negatives_blocks(num_anchors), num_centres}, f.options().dtype(acc_dtype(f.scalar_type())));
  REID_DISPATCH_FLOATS(f.scalar_type(), "cyclic_negatives", [&] {
    using acc = acc_t<scalar_t>;
    cuda::cyclic_negatives(cuda_const<scalar_t>(f), f.stride(0), cuda_const<scalar_t>(c), c.stride(0), f.size(1),
                           num_anchors, num_centres, cuda_const<int64_t>(ids), r, candidates, cuda_mutable<acc>(rows),
                           cuda_mutable<int64_t>(out), scope.stream);
  });
  return out;
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("cyclic_negatives(Tensor anchors, Tensor centres, Tensor own, int r, int candidates) -> Tensor");
}
REID_KERNELS(reidfast, m) { m.impl("cyclic_negatives", TORCH_BOX(&cyclic_negatives)); }

}  // namespace reidfast
