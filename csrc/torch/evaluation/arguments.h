// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What the ops of reidfast.evaluation read alike: lists per query as CSR, features, metrics. These ops are internal
// (torch.ops.reidfast_eval): reidfast/evaluation checks what a user hands in and holds the same in plain torch.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "csrc/cpu/ranking.h"
#include "csrc/torch/evaluation/distance_tile.h"

namespace reidfast {

inline const int64_t* int64_data(const Tensor& t, const char* name) {
  REID_CHECK(t.is_cpu() && t.scalar_type() == kLong && t.is_contiguous(), "evaluation: expected ", name,
             " to be contiguous int64 on the CPU");
  return t.const_data_ptr<int64_t>();
}

// A CSR list of columns per query, ascending within a query.
struct Lists {
  const int64_t* ptr;
  const int64_t* column;

  Lists(const Tensor& ptr_tensor, const Tensor& columns, int64_t queries, const char* name)
      : ptr(int64_data(ptr_tensor, name)), column(int64_data(columns, name)) {
    REID_CHECK(ptr_tensor.numel() == queries + 1 && ptr[0] == 0 && ptr[queries] <= columns.numel(),
               "evaluation: ", name, " does not fit ", queries, " queries");
  }
  // Overwrites d [n], columns first ..., with NaN where query q lists the column.
  template <typename T>
  void leave_out(int64_t q, T* d, int64_t first, int64_t n) const {
    const int64_t* end = column + ptr[q + 1];
    for (const int64_t* c = std::lower_bound(column + ptr[q], end, first); c != end && *c < first + n; ++c)
      d[*c - first] = std::numeric_limits<T>::quiet_NaN();
  }
};

inline const bool* bool_data(const Tensor& t, int64_t n, const char* name) {
  REID_CHECK(t.is_cpu() && t.scalar_type() == kBool && t.is_contiguous() && t.numel() == n, "evaluation: expected ",
             name, " to be contiguous bool [", n, "] on the CPU");
  return t.const_data_ptr<bool>();
}

inline Metric metric_of(int64_t metric) {
  REID_CHECK(metric >= 0 && metric <= 3, "evaluation: expected a metric in 0..3, got ", metric);
  return static_cast<Metric>(metric);
}

inline void check_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows) {
  REID_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1) && query.size(1) > 0,
             "evaluation: expected query (Q, D) and gallery (G, D), got ", query.sizes(), " and ", gallery.sizes());
  if (!rows) return;
  const int64_t* r = int64_data(*rows, "rows");
  for (int64_t i = 0; i < rows->numel(); ++i)
    REID_CHECK(r[i] >= 0 && r[i] < gallery.size(0), "evaluation: gallery row ", r[i], " is out of range");
}

// The dtype of distances between two dtypes of features.
inline ScalarType distance_dtype(const Tensor& query, const Tensor& gallery) {
  return query.scalar_type() == kDouble || gallery.scalar_type() == kDouble ? kDouble : kFloat;
}

template <typename Fn>
void over_rows(int64_t rows, int64_t columns, const Fn& fn) {
  parallel_for(0, rows, grain(columns * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  });
}

}  // namespace reidfast
