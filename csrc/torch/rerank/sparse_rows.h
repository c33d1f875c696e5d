// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Sparse rows as tensors, and how the CPU makes them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "csrc/common/rerank.h"
#include "csrc/torch/op.h"
#include "csrc/torch/rerank/pace.h"

namespace reidfast {

// indptr [n + 1] int64, columns int32, values float32.
struct SparseRows {
  Tensor indptr, columns, values;

  RerankRows view() const {
    return {indptr.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(), values.const_data_ptr<float>()};
  }
  int64_t rows() const { return indptr.numel() - 1; }
  std::tuple<Tensor, Tensor, Tensor> tensors() const { return {indptr, columns, values}; }

  void check_tensors() const {
    REID_CHECK(indptr.scalar_type() == kLong && columns.scalar_type() == kInt && values.scalar_type() == kFloat &&
                   indptr.is_contiguous() && columns.is_contiguous() && values.is_contiguous() && indptr.numel() >= 1 &&
                   values.numel() == columns.numel(),
               "rerank: expected sparse rows of int64, int32 and float32");
    check_device("rerank", "columns", columns, "indptr", indptr);
    check_device("rerank", "values", values, "indptr", indptr);
  }

  // Also of what the tensors hold, which must be on the CPU.
  void check(int64_t width) const {
    check_tensors();
    const RerankRows r = view();
    const int64_t n = rows(), entries = columns.numel();
    REID_CHECK_VALUE(r.indptr[0] == 0 && r.indptr[n] == entries, "rerank: broken sparse rows");
    for (int64_t i = 0; i < n; ++i) REID_CHECK_VALUE(r.indptr[i] <= r.indptr[i + 1], "rerank: broken sparse rows");
    for (int64_t e = 0; e < entries; ++e)
      REID_CHECK_VALUE(r.column[e] >= 0 && r.column[e] < width, "rerank: column out of range");
  }
};

// Memory for entries whose number shows only as they come. realloc moves large blocks by their pages.
template <typename T>
class Growing {
 public:
  Growing() = default;
  Growing(const Growing&) = delete;
  Growing& operator=(const Growing&) = delete;
  ~Growing() { std::free(data_); }

  T* grow(int64_t needed, int64_t expected) {
    if (needed > capacity_ || !data_) {
      const int64_t wanted = std::max<int64_t>({needed, expected, 1});
      void* data = std::realloc(data_, wanted * sizeof(T));
      REID_CHECK(data, "rerank: no memory for ", wanted, " entries of the graph");
      data_ = static_cast<T*>(data), capacity_ = wanted;
      advise_huge_pages(data_, wanted * sizeof(T));
    }
    return data_;
  }

  // The first n entries as a tensor that owns them.
  Tensor take(int64_t n) {
    if (!data_) return empty({0}, cpu_options(dtype_of<T>()));
    T* data = std::exchange(data_, nullptr);
    if (void* less = std::realloc(data, std::max<int64_t>(n, 1) * sizeof(T))) data = static_cast<T*>(less);
    const int64_t stride = 1;
    return torch::stable::from_blob(data, {&n, 1}, {&stride, 1},
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype_of<T>(),
                                    [](void* memory) { std::free(memory); });
  }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

constexpr int64_t kBatchBytes = int64_t(8) << 20;  // of rows that wait for being packed

// n sparse rows of at most `most` entries each. A task makes a `state()` of its own for its rows; row(i, state,
// columns, values) writes row i and returns its length. A batch of rows at a time, as long as they may be, then packed
// behind those before.
template <typename State, typename Row>
SparseRows make_rows(int64_t n, int64_t most, const State& state, const Row& row) {
  constexpr int64_t kGrain = 16;
  const int64_t batch = std::clamp<int64_t>(kBatchBytes / (8 * std::max<int64_t>(1, most)), 32, 1024);
  const auto batch_columns = std::make_unique_for_overwrite<int32_t[]>(std::min(batch, n) * most);
  const auto batch_values = std::make_unique_for_overwrite<float[]>(std::min(batch, n) * most);
  SparseRows out;
  out.indptr = zeros({n + 1}, cpu_options(kLong));
  int64_t* ends = out.indptr.mutable_data_ptr<int64_t>();
  Growing<int32_t> all_columns;
  Growing<float> all_values;
  Pace(kGrain * num_threads(), batch).run(0, n, [&](int64_t r0, int64_t r1) {
    parallel_for(r0, r1, kGrain, [&](int64_t begin, int64_t end) {
      auto task_state = state();
      for (int64_t i = begin; i < end; ++i)
        ends[i + 1] = row(i, task_state, &batch_columns[(i - r0) * most], &batch_values[(i - r0) * most]);
    });
    for (int64_t i = r0; i < r1; ++i) ends[i + 1] += ends[i];
    // what is expected of all rows, so that it rarely has to grow
    const int64_t expected = static_cast<int64_t>(1.1 * static_cast<double>(ends[r1]) / r1 * n);
    int32_t* columns = all_columns.grow(ends[r1], expected);
    float* values = all_values.grow(ends[r1], expected);
    parallel_for(r0, r1, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(&batch_columns[(i - r0) * most], ends[i + 1] - ends[i], columns + ends[i]);
        std::copy_n(&batch_values[(i - r0) * most], ends[i + 1] - ends[i], values + ends[i]);
      }
    });
  });
  out.columns = all_columns.take(ends[n]), out.values = all_values.take(ends[n]);
  return out;
}

}  // namespace reidfast
