// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Sparse rows (CSR) whose length shows only as they are made, on the CPU.
#pragma once

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/cpu/rerank.h"
#include "csrc/torch/op.h"

namespace reidfast {

struct Csr {
  Tensor indptr, columns, values;
  cpu::SparseRows view() const {
    return {indptr.const_data_ptr<int64_t>(), columns.const_data_ptr<int32_t>(), values.const_data_ptr<float>()};
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

  Tensor take(int64_t n) {
    if (!data_) return empty({0}, cpu_options(dtype_of<T>()));
    T* data = std::exchange(data_, nullptr);
    if (void* less = std::realloc(data, std::max<int64_t>(n, 1) * sizeof(T))) data = static_cast<T*>(less);
    const int64_t step = 1;
    return Tensor(torch::stable::from_blob(data, {&n, 1}, {&step, 1}, {torch::headeronly::DeviceType::CPU},
                                           dtype_of<T>(), [](void* memory) { std::free(memory); }));
  }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

constexpr int64_t kRowBytes = int64_t(8) << 20;  // of rows that wait for being packed

// n sparse rows of at most `most` entries each. A task makes a `state()` of its own for its rows; row(i, state,
// columns, values) writes row i and returns its length. Some rows at a time, as long as they may be, then packed behind
// those before.
template <typename State, typename Row>
Csr make_rows(int64_t n, int64_t most, const State& state, const Row& row) {
  const int64_t piece = std::clamp<int64_t>(kRowBytes / (8 * std::max<int64_t>(1, most)), 32, 1024);
  const auto piece_columns = std::make_unique_for_overwrite<int32_t[]>(std::min(piece, n) * most);
  const auto piece_values = std::make_unique_for_overwrite<float[]>(std::min(piece, n) * most);
  Csr out;
  out.indptr = zeros({n + 1}, cpu_options(kLong));
  int64_t* ends = out.indptr.mutable_data_ptr<int64_t>();
  Growing<int32_t> all_columns;
  Growing<float> all_values;
  for (int64_t r0 = 0; r0 < n; r0 += piece) {
    check_interrupt();
    const int64_t r1 = std::min(n, r0 + piece);
    parallel_for(r0, r1, 16, [&](int64_t begin, int64_t end) {
      auto scratch = state();
      for (int64_t i = begin; i < end; ++i)
        ends[i + 1] = row(i, scratch, &piece_columns[(i - r0) * most], &piece_values[(i - r0) * most]);
    });
    for (int64_t i = r0; i < r1; ++i) ends[i + 1] += ends[i];
    // what is expected of all rows, so that it rarely has to grow
    const int64_t expected = static_cast<int64_t>(1.1 * static_cast<double>(ends[r1]) / r1 * n);
    int32_t* columns = all_columns.grow(ends[r1], expected);
    float* values = all_values.grow(ends[r1], expected);
    parallel_for(r0, r1, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(&piece_columns[(i - r0) * most], ends[i + 1] - ends[i], columns + ends[i]);
        std::copy_n(&piece_values[(i - r0) * most], ends[i + 1] - ends[i], values + ends[i]);
      }
    });
  }
  out.columns = all_columns.take(ends[n]), out.values = all_values.take(ends[n]);
  return out;
}

// A dense row of sums and a set of bits, zero, as the kernels want and leave them.
struct Scratch {
  std::vector<float> sum;
  std::vector<uint64_t> bits;
  explicit Scratch(int64_t n) : sum(n), bits(n / 64 + 1) {}
};

inline void check_rows(const Tensor& indptr, const Tensor& columns, const Tensor& values, int64_t width) {
  REID_CHECK(indptr.scalar_type() == kLong && columns.scalar_type() == kInt && values.scalar_type() == kFloat &&
                 indptr.is_contiguous() && columns.is_contiguous() && values.is_contiguous() && indptr.numel() >= 1,
             "rerank: expected sparse rows of int64, int32 and float32");
  const int64_t* p = indptr.const_data_ptr<int64_t>();
  const int64_t n = indptr.numel() - 1, entries = columns.numel();
  REID_CHECK_VALUE(p[0] == 0 && p[n] == entries && values.numel() == entries, "rerank: broken sparse rows");
  for (int64_t i = 0; i < n; ++i) REID_CHECK_VALUE(p[i] <= p[i + 1], "rerank: broken sparse rows");
  const int32_t* c = columns.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < entries; ++e) REID_CHECK_VALUE(c[e] >= 0 && c[e] < width, "rerank: column out of range");
}

}  // namespace reidfast
