// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Pairs (query, gallery row) of one identity: which of them count, in ascending order of their distances.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "csrc/torch/op.h"

namespace reidfast {

// Sorts a query's pairs by (value, position), equal values as they stand: small lists by insertion.
template <typename T>
void sort_matches(T* value, int64_t* position, int64_t m) {
  if (m <= 64) {
    for (int64_t i = 1; i < m; ++i) {
      const T v = value[i];
      const int64_t p = position[i];
      int64_t j = i;
      for (; j > 0 && v < value[j - 1]; --j) value[j] = value[j - 1], position[j] = position[j - 1];
      value[j] = v, position[j] = p;
    }
    return;
  }
  std::vector<std::pair<T, int64_t>> pool(m);
  for (int64_t i = 0; i < m; ++i) pool[i] = {value[i], position[i]};
  std::stable_sort(pool.begin(), pool.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (int64_t i = 0; i < m; ++i) value[i] = pool[i].first, position[i] = pool[i].second;
}

// Offsets of the valid pairs of every query.
inline Tensor valid_offsets(const int64_t* pair_ptr, const bool* valid, int64_t queries) {
  Tensor out = empty({queries + 1}, cpu_options(kLong));
  int64_t* ptr = out.mutable_data_ptr<int64_t>();
  ptr[0] = 0;
  for (int64_t q = 0; q < queries; ++q) {
    int64_t n = 0;
    for (int64_t p = pair_ptr[q]; p < pair_ptr[q + 1]; ++p) n += valid[p];
    ptr[q + 1] = ptr[q] + n;
  }
  return out;
}

}  // namespace reidfast
