// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What the CPU side of reidfast.evaluation is given: ranks by counting, nearest rows, histograms, from features or from
// a matrix of distances. These ops (torch.ops.reidfast_eval.*) are internal: reidfast/evaluation states their contract,
// checks what a user hands in and holds the same in plain torch. Per-query lists come as CSR: `ptr` [Q+1] into flat
// arrays.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>

#include "csrc/torch/distance_tile.h"

namespace reidfast {

inline const int64_t* int64_data(const Tensor& t, const char* name) {
  REID_CHECK(t.is_cpu() && t.scalar_type() == kLong && t.is_contiguous(), "evaluation: expected ", name,
             " to be contiguous int64 on the CPU");
  return t.const_data_ptr<int64_t>();
}
inline int64_t* int64_output(const Tensor& t, const char* name) {
  int64_data(t, name);
  return t.mutable_data_ptr<int64_t>();
}
inline const int32_t* int32_data(const Tensor& t, const char* name) {
  REID_CHECK(t.is_cpu() && t.scalar_type() == kInt && t.is_contiguous(), "evaluation: expected ", name,
             " to be contiguous int32 on the CPU");
  return t.const_data_ptr<int32_t>();
}
inline const bool* bool_data(const Tensor& t, int64_t n, const char* name) {
  REID_CHECK(t.is_cpu() && t.scalar_type() == kBool && t.is_contiguous() && t.numel() == n, "evaluation: expected ",
             name, " to be contiguous bool [", n, "] on the CPU");
  return t.const_data_ptr<bool>();
}

// Columns per query that do not count, ascending within a query.
struct Exclusions {
  const int64_t* ptr;
  const int64_t* column;

  Exclusions(const Tensor& ptr_tensor, const Tensor& columns, int64_t queries, const char* name)
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

inline Metric metric_of(int64_t metric) {
  REID_CHECK(metric >= 0 && metric <= 3, "evaluation: expected a metric in 0..3, got ", metric);
  return static_cast<Metric>(metric);
}

inline void check_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows) {
  REID_CHECK(query.is_cpu() && gallery.is_cpu() && is_float(query.scalar_type()) && is_float(gallery.scalar_type()),
             "evaluation: expected floating-point query and gallery on the CPU, got ", query.scalar_type(), " on ",
             query.device(), " and ", gallery.scalar_type(), " on ", gallery.device());
  REID_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1) && query.size(1) > 0,
             "evaluation: expected query (Q, D) and gallery (G, D), got ", query.sizes(), " and ", gallery.sizes());
  if (!rows) return;
  const int64_t* r = int64_data(*rows, "rows");
  const int64_t n = rows->numel(), most = gallery.size(0);
  for (int64_t i = 0; i < n; ++i)
    REID_CHECK(r[i] >= 0 && r[i] < most, "evaluation: gallery row ", r[i], " is out of range");
}

inline void check_matrix(const Tensor& distances) {
  REID_CHECK(distances.is_cpu() && is_float(distances.scalar_type()) && distances.dim() == 2,
             "evaluation: expected floating-point distances (Q, G) on the CPU, got ", distances.scalar_type(), " ",
             distances.sizes(), " on ", distances.device());
}

// The dtype of distances between two dtypes of features.
inline ScalarType distance_dtype(const Tensor& query, const Tensor& gallery) {
  return query.scalar_type() == kDouble || gallery.scalar_type() == kDouble ? kDouble : kFloat;
}

// Calls fn(row) for rows [begin, end) of `columns` columns each, in parallel.
template <typename Fn>
void over_rows(int64_t begin, int64_t end, int64_t columns, const Fn& fn) {
  parallel_for(begin, end, grain(columns * 4, 256 * 1024), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) fn(r);
  });
}

// Calls fn(begin, end) for spans of at most `rows` of 0 .. n-1. A user may interrupt between two.
template <typename Fn>
void over_spans(int64_t n, int64_t rows, const Fn& fn) {
  for (int64_t begin = 0; begin < n; begin += rows) {
    check_interrupt();
    fn(begin, std::min(n, begin + rows));
  }
}

// Rows of `columns` elements whose visit takes some tenths of a second on one core.
inline int64_t span_rows(int64_t columns) {
  return std::max<int64_t>(1, (int64_t{1} << 27) / std::max<int64_t>(1, columns));
}

}  // namespace reidfast
