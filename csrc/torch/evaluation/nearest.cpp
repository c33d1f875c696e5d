// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The k nearest gallery rows of every query, a chunk of the gallery at a time.
#include <memory>

#include "csrc/cpu/ranking.h"
#include "csrc/torch/evaluation/inputs.h"

namespace reidfast {
namespace {

void check_lists(const Tensor& values, const Tensor& columns, const Tensor& filled) {
  REID_CHECK(values.is_cpu() && values.is_contiguous() && values.dim() == 2 && columns.sizes() == values.sizes() &&
                 filled.numel() == values.size(0),
             "evaluation: expected values and columns (Q, k), got ", values.sizes(), " and ", columns.sizes());
}

// Merges the gallery chunk into the k nearest so far: values, columns [Q, k], filled [Q] of them in use, in no order
// until sort_nearest. Later chunks hold higher columns, so that an equal distance never displaces an earlier one.
Tensor nearest_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                        int64_t first, const Tensor& exclude_ptr, const Tensor& exclude, int64_t block_queries,
                        int64_t block_gallery, const Tensor& values, const Tensor& columns, const Tensor& filled) {
  check_features(query, gallery, rows);
  const Exclusions exclusions(exclude_ptr, exclude, query.size(0), "exclude");
  check_lists(values, columns, filled);
  const int64_t k = values.size(1);
  REID_CHECK(values.size(0) == query.size(0) && k > 0 && values.scalar_type() == distance_dtype(query, gallery),
             "evaluation: expected values and columns (Q, k), got ", values.sizes(), " and ", columns.sizes());
  int64_t *best_column = int64_output(columns, "columns"), *used = int64_output(filled, "filled");
  BadInput stop;
  REID_DISPATCH_WIDE(values.scalar_type(), "nearest_features", [&] {
    scalar_t* best = values.mutable_data_ptr<scalar_t>();
    using Entry = std::pair<scalar_t, int64_t>;
    stop = for_each_block<scalar_t>(Rows(query), Rows(gallery, rows), metric_of(metric), {block_queries, block_gallery},
                                    [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
                                      parallel_for(0, nq, grain(ng * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
                                        const std::unique_ptr<scalar_t[]> closer_value(new scalar_t[ng]);
                                        const std::unique_ptr<int64_t[]> closer_column(new int64_t[ng]);
                                        std::vector<Entry> pool;
                                        for (int64_t r = begin; r < end; ++r) {
                                          const int64_t q = q0 + r;
                                          scalar_t* v = best + q * k;
                                          int64_t* c = best_column + q * k;
                                          exclusions.leave_out(q, block + r * ld, first + g0, ng);
                                          // A full list is kept with its worst entry in front.
                                          const scalar_t bound =
                                              used[q] == k ? v[0] : std::numeric_limits<scalar_t>::infinity();
                                          int64_t closer = 0;
                                          REID_CPU_CALL(select_below, block + r * ld, ng, first + g0, bound,
                                                        closer_value.get(), closer_column.get(), &closer);
                                          if (closer == 0) continue;
                                          pool.clear();
                                          for (int64_t i = 0; i < used[q]; ++i) pool.emplace_back(v[i], c[i]);
                                          for (int64_t i = 0; i < closer; ++i)
                                            pool.emplace_back(closer_value[i], closer_column[i]);
                                          const int64_t keep = std::min<int64_t>(k, pool.size());
                                          if (keep < static_cast<int64_t>(pool.size()))
                                            std::nth_element(pool.begin(), pool.begin() + keep - 1, pool.end());
                                          if (keep == k) {
                                            if (static_cast<int64_t>(pool.size()) == k)
                                              std::iter_swap(pool.begin(), std::max_element(pool.begin(), pool.end()));
                                            else
                                              std::swap(pool[0], pool[keep - 1]);
                                          }
                                          for (int64_t i = 0; i < keep; ++i)
                                            v[i] = pool[i].first, c[i] = pool[i].second;
                                          used[q] = keep;
                                        }
                                      });
                                    });
  });
  return stop.tensor();
}

// Sorts each list by (distance, column) and fills the rest with (inf, -1).
void sort_nearest(const Tensor& values, const Tensor& columns, const Tensor& filled) {
  check_lists(values, columns, filled);
  const int64_t queries = values.size(0), k = values.size(1);
  const int64_t* used = int64_data(filled, "filled");
  int64_t* best_column = int64_output(columns, "columns");
  REID_DISPATCH_WIDE(values.scalar_type(), "sort_nearest", [&] {
    scalar_t* best = values.mutable_data_ptr<scalar_t>();
    over_spans(queries, span_rows(k * 16), [&](int64_t begin, int64_t end) {
      over_rows(begin, end, k * 16, [&](int64_t q) {
        std::vector<std::pair<scalar_t, int64_t>> pool;
        for (int64_t i = 0; i < used[q]; ++i) pool.emplace_back(best[q * k + i], best_column[q * k + i]);
        std::sort(pool.begin(), pool.end());
        for (int64_t i = 0; i < k; ++i) {
          best[q * k + i] = i < used[q] ? pool[i].first : std::numeric_limits<scalar_t>::infinity();
          best_column[q * k + i] = i < used[q] ? pool[i].second : -1;
        }
      });
    });
  });
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "nearest_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor exclude_ptr, Tensor "
      "exclude, int block_queries, int block_gallery, Tensor(a!) values, Tensor(b!) columns, Tensor(c!) filled) -> "
      "Tensor");
  m.def("sort_nearest(Tensor(a!) values, Tensor(b!) columns, Tensor filled) -> ()");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("nearest_features", TORCH_BOX(&nearest_features));
  m.impl("sort_nearest", TORCH_BOX(&sort_nearest));
}

}  // namespace reidfast
