// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The k nearest gallery rows of every query, and whole rows of distances.
#include <memory>

#include "csrc/torch/evaluation/arguments.h"

namespace reidfast {
namespace {

// Merges the gallery chunk into the k nearest so far: values, columns [Q, k], filled [Q] of them in use, in no order
// until sort_nearest. Later chunks hold higher columns, so that an equal distance never displaces an earlier one.
Tensor nearest_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                        int64_t first, const Tensor& exclude_ptr, const Tensor& exclude, int64_t block_queries,
                        int64_t block_gallery, const Tensor& values, const Tensor& columns, const Tensor& filled) {
  check_features(query, gallery, rows);
  const Lists skip(exclude_ptr, exclude, query.size(0), "exclude");
  const int64_t k = values.size(1);
  REID_CHECK(values.dim() == 2 && values.size(0) == query.size(0) && values.is_contiguous() &&
                 columns.is_contiguous() && columns.sizes() == values.sizes() && filled.numel() == query.size(0) &&
                 k > 0 && values.scalar_type() == distance_dtype(query, gallery),
             "evaluation: expected values and columns (Q, k), got ", values.sizes(), " and ", columns.sizes());
  int64_t* used = filled.mutable_data_ptr<int64_t>();
  BadInput stop;
  REID_DISPATCH_WIDE(values.scalar_type(), "nearest_features", [&] {
    scalar_t* best = values.mutable_data_ptr<scalar_t>();
    int64_t* best_column = columns.mutable_data_ptr<int64_t>();
    using Entry = std::pair<scalar_t, int64_t>;
    stop = for_each_block<scalar_t>(Rows(query), Rows(gallery, rows), metric_of(metric), {block_queries, block_gallery},
                                    [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
                                      parallel_for(0, nq, grain(ng * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
                                        const std::unique_ptr<scalar_t[]> found_value(new scalar_t[ng]);
                                        const std::unique_ptr<int64_t[]> found_column(new int64_t[ng]);
                                        std::vector<Entry> pool;
                                        for (int64_t r = begin; r < end; ++r) {
                                          const int64_t q = q0 + r;
                                          scalar_t* v = best + q * k;
                                          int64_t* c = best_column + q * k;
                                          skip.leave_out(q, block + r * ld, first + g0, ng);
                                          // A full list is kept with its worst entry in front.
                                          const scalar_t bound =
                                              used[q] == k ? v[0] : std::numeric_limits<scalar_t>::infinity();
                                          int64_t found = 0;
                                          REID_CPU_CALL(select_below, block + r * ld, ng, first + g0, bound,
                                                        found_value.get(), found_column.get(), &found);
                                          if (found == 0) continue;
                                          pool.clear();
                                          for (int64_t i = 0; i < used[q]; ++i) pool.emplace_back(v[i], c[i]);
                                          for (int64_t i = 0; i < found; ++i)
                                            pool.emplace_back(found_value[i], found_column[i]);
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
  const int64_t queries = values.size(0), k = values.size(1);
  const int64_t* used = int64_data(filled, "filled");
  REID_CHECK(values.is_contiguous() && columns.is_contiguous() && columns.sizes() == values.sizes() &&
                 filled.numel() == queries,
             "evaluation: expected values and columns (Q, k)");
  REID_DISPATCH_WIDE(values.scalar_type(), "sort_nearest", [&] {
    scalar_t* best = values.mutable_data_ptr<scalar_t>();
    int64_t* best_column = columns.mutable_data_ptr<int64_t>();
    over_rows(queries, k * 16, [&](int64_t q) {
      std::vector<std::pair<scalar_t, int64_t>> pool;
      for (int64_t i = 0; i < used[q]; ++i) pool.emplace_back(best[q * k + i], best_column[q * k + i]);
      std::sort(pool.begin(), pool.end());
      for (int64_t i = 0; i < k; ++i) {
        best[q * k + i] = i < used[q] ? pool[i].first : std::numeric_limits<scalar_t>::infinity();
        best_column[q * k + i] = i < used[q] ? pool[i].second : -1;
      }
    });
  });
}

// Distances [Q, G'] of a few queries, for what needs whole rows.
std::tuple<Tensor, Tensor> dense_distances(const Tensor& query, const Tensor& gallery,
                                           const std::optional<Tensor>& rows, int64_t metric) {
  check_features(query, gallery, rows);
  const Rows gallery_rows(gallery, rows);
  Tensor out = empty({query.size(0), gallery_rows.n}, query.options().dtype(distance_dtype(query, gallery)));
  BadInput stop;
  REID_DISPATCH_WIDE(out.scalar_type(), "dense_distances", [&] {
    scalar_t* d = out.mutable_data_ptr<scalar_t>();
    stop = for_each_block<scalar_t>(
        Rows(query), gallery_rows, metric_of(metric), {},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          over_rows(nq, ng, [&](int64_t r) { std::copy_n(block + r * ld, ng, d + (q0 + r) * gallery_rows.n + g0); });
        });
  });
  return {out, stop.tensor()};
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "nearest_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor exclude_ptr, "
      "Tensor exclude, int block_queries, int block_gallery, Tensor(a!) values, Tensor(b!) columns, Tensor(c!) filled) "
      "-> Tensor");
  m.def("sort_nearest(Tensor(a!) values, Tensor(b!) columns, Tensor filled) -> ()");
  m.def("dense_distances(Tensor query, Tensor gallery, Tensor? rows, int metric) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("nearest_features", TORCH_BOX(&nearest_features));
  m.impl("sort_nearest", TORCH_BOX(&sort_nearest));
  m.impl("dense_distances", TORCH_BOX(&dense_distances));
}

}  // namespace reidfast
