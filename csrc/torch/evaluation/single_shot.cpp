// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The expected curve when one gallery image of each identity is drawn, in two halves: several processes add up the
// counts of the first before the second.
#include "csrc/cpu/ranking.h"
#include "csrc/torch/evaluation/inputs.h"

namespace reidfast {
namespace {

// Images of every identity that this part of the gallery holds before each match: closer [matches, identities]. The
// matches of query q are [ptr[q], ptr[q+1]) of values and columns. identity [G] int32 in [0, identities) or -1 = leave
// out; `own` [Q] the query's identity there or -1.
Tensor single_shot_closer(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                          const Tensor& identity, int64_t identities, const Tensor& own) {
  check_matrix(distances);
  const int64_t queries = distances.size(0), gallery = distances.size(1), matches = values.numel();
  REID_CHECK(distances.is_contiguous() && identity.numel() == gallery && own.numel() == queries &&
                 ptr.numel() == queries + 1 && identities >= 0 && values.is_cpu() && values.is_contiguous() &&
                 values.scalar_type() == distances.scalar_type() && matches == columns.numel(),
             "evaluation: single_shot got arguments that do not fit");
  const int64_t *p = int64_data(ptr, "ptr"), *column = int64_data(columns, "columns");
  const int32_t *ident = int32_data(identity, "identity"), *query_identity = int32_data(own, "own");
  REID_CHECK(p[0] == 0 && p[queries] == matches, "evaluation: thresholds do not fit");
  for (int64_t j = 0; j < gallery; ++j) REID_CHECK(ident[j] < identities, "evaluation: identity out of range");
  const Tensor out = empty({matches, identities}, cpu_options(kInt));
  int32_t* closer = out.mutable_data_ptr<int32_t>();
  const int64_t matches_per_query = matches / std::max<int64_t>(1, queries) + 1;
  REID_DISPATCH_WIDE(distances.scalar_type(), "single_shot", [&] {
    const scalar_t *d = distances.const_data_ptr<scalar_t>(), *t = values.const_data_ptr<scalar_t>();
    over_spans(queries, span_rows(gallery * matches_per_query), [&](int64_t first, int64_t last) {
      parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q)
          for (int64_t k = p[q]; k < p[q + 1]; ++k)
            REID_CPU_CALL(single_shot_closer, d + q * gallery, gallery, ident, static_cast<int32_t>(identities), t[k],
                          column[k], query_identity[q], closer + k * identities);
      });
    });
  });
  return out;
}

// Curves [Q, max_rank] of every query, averaged over its matches, from the counts of all processes. sizes [identities]
// int32: images of each identity that are not left out.
Tensor single_shot_chance(const Tensor& closer, const Tensor& ptr, const Tensor& sizes, int64_t max_rank) {
  const int64_t queries = ptr.numel() - 1, identities = sizes.numel();
  const int64_t* p = int64_data(ptr, "ptr");
  const int32_t *count = int32_data(closer, "closer"), *size = int32_data(sizes, "sizes");
  REID_CHECK(queries >= 0 && closer.dim() == 2 && p[0] == 0 && closer.size(0) == p[queries] &&
                 closer.size(1) == identities && max_rank > 0,
             "evaluation: single_shot got arguments that do not fit");
  const Tensor out = zeros({queries, max_rank}, cpu_options(kDouble));
  double* chance = out.mutable_data_ptr<double>();
  const int64_t matches_per_query = p[queries] / std::max<int64_t>(1, queries) + 1;
  over_spans(queries, span_rows(identities * max_rank * matches_per_query), [&](int64_t first, int64_t last) {
    parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> pmf(max_rank);
      for (int64_t q = begin; q < end; ++q) {
        for (int64_t k = p[q]; k < p[q + 1]; ++k)
          REID_CPU_CALL(single_shot_chance, count + k * identities, size, static_cast<int32_t>(identities), max_rank,
                        pmf.data(), chance + q * max_rank);
        const double n = static_cast<double>(p[q + 1] - p[q]);
        for (int64_t r = 0; r < max_rank && n > 0; ++r) chance[q * max_rank + r] /= n;
      }
    });
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
