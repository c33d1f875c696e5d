// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include "csrc/cuda/types.h"

namespace reidfast::cuda {

// Ascending thresholds of each query, as CSR: those of query q are [ptr[q], ptr[q+1]), each with the column it came
// from. All arrays are on the device; `most` is the largest number of thresholds of a query.
template <typename A>
struct Thresholds {
  const int64_t* ptr;
  const A* value;
  const int64_t* column;
  int64_t total, most;
};

// Columns that must not count: `same` [same_ptr[q], same_ptr[q+1]) for query q, `drop` for all. None stands twice.
struct LeftOut {
  const int64_t* same_ptr;
  const int64_t* same;
  const int64_t* drop;
  int64_t drops;
};

// Adds to counts [3, total], for every threshold t of every query: columns with d < t, with d == t, and with d == t at
// a column below t's own. d [queries, n] with row stride ld holds columns first .. first + n; NaN counts for nothing.
template <typename T, typename A>
void count_below(const T* d, int64_t ld, int64_t queries, int64_t n, int64_t first, const Thresholds<A>& thresholds,
                 const LeftOut& left_out, int64_t* counts, cudaStream_t stream);

}  // namespace reidfast::cuda
