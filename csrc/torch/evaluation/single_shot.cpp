// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The single-gallery-shot curve in closed form: counts per identity, then the chance of each rank.
#include "csrc/torch/evaluation/arguments.h"

namespace reidfast {
namespace {

// The first half of single_shot where this process holds some of the gallery alone: closer [matches, identities].
Tensor single_shot_closer(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                          const Tensor& identity, int64_t identities, const Tensor& own) {
  const int64_t queries = distances.size(0), gallery = distances.size(1);
  REID_CHECK(distances.dim() == 2 && distances.is_contiguous() && identity.numel() == gallery &&
                 own.numel() == queries && ptr.numel() == queries + 1 && identities >= 0 &&
                 values.scalar_type() == distances.scalar_type() && values.numel() == columns.numel(),
             "evaluation: single_shot got arguments that do not fit");
  for (const Tensor* t : {&identity, &own})
    REID_CHECK(t->scalar_type() == kInt && t->is_contiguous(), "evaluation: expected int32 identities");
  const int64_t *p = int64_data(ptr, "ptr"), *column = int64_data(columns, "columns");
  const int32_t *ident = identity.const_data_ptr<int32_t>(), *mine = own.const_data_ptr<int32_t>();
  REID_CHECK(p[queries] == values.numel(), "evaluation: thresholds do not fit");
  for (int64_t j = 0; j < gallery; ++j) REID_CHECK(ident[j] < identities, "evaluation: identity out of range");
  Tensor out = empty({values.numel(), identities}, cpu_options(kInt));
  int32_t* closer = out.mutable_data_ptr<int32_t>();
  REID_DISPATCH_WIDE(distances.scalar_type(), "single_shot", [&] {
    const scalar_t *d = distances.const_data_ptr<scalar_t>(), *t = values.const_data_ptr<scalar_t>();
    parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q)
        for (int64_t k = p[q]; k < p[q + 1]; ++k)
          REID_CPU_CALL(single_shot_closer, d + q * gallery, gallery, ident, static_cast<int32_t>(identities), t[k],
                        column[k], mine[q], closer + k * identities);
    });
  });
  return out;
}

// The second half: curves [Q, max_rank] from the counts of all processes.
Tensor single_shot_chance(const Tensor& closer, const Tensor& ptr, const Tensor& sizes, int64_t max_rank) {
  const int64_t queries = ptr.numel() - 1, identities = sizes.numel();
  const int64_t* p = int64_data(ptr, "ptr");
  REID_CHECK(queries >= 0 && closer.dim() == 2 && closer.size(0) == p[queries] && closer.size(1) == identities &&
                 max_rank > 0 && closer.scalar_type() == kInt && closer.is_contiguous() &&
                 sizes.scalar_type() == kInt && sizes.is_contiguous(),
             "evaluation: single_shot got arguments that do not fit");
  Tensor out = zeros({queries, max_rank}, cpu_options(kDouble));
  double* chance = out.mutable_data_ptr<double>();
  const int32_t *count = closer.const_data_ptr<int32_t>(), *size = sizes.const_data_ptr<int32_t>();
  parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> pmf(max_rank);
    for (int64_t q = begin; q < end; ++q) {
      for (int64_t k = p[q]; k < p[q + 1]; ++k)
        REID_CPU_CALL(single_shot_chance, count + k * identities, size, static_cast<int32_t>(identities), max_rank,
                      pmf.data(), chance + q * max_rank);
      const double n = static_cast<double>(p[q + 1] - p[q]);
      for (int64_t r = 0; r < max_rank && n > 0; ++r) chance[q * max_rank + r] /= n;
    }
  });
  return out;
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "single_shot_closer(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor identity, int "
      "identities, Tensor own) -> Tensor");
  m.def("single_shot_chance(Tensor closer, Tensor ptr, Tensor sizes, int max_rank) -> Tensor");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("single_shot_closer", TORCH_BOX(&single_shot_closer));
  m.impl("single_shot_chance", TORCH_BOX(&single_shot_chance));
}

}  // namespace reidfast
