// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Ranks by counting on the CPU, from features or from a distance matrix. On the GPU: count_below.cpp.
#include "csrc/cpu/ranking.h"
#include "csrc/torch/evaluation/inputs.h"
#include "csrc/torch/evaluation/pairs.h"

namespace reidfast {
namespace {

constexpr int64_t kMatrixColumns = 4096;  // of a row of a distance matrix, copied to the first-level cache at a time

// Thresholds of every query, ascending, with what is counted for them.
template <typename T>
struct Thresholds {
  const int64_t* ptr;
  const T* value;
  const int64_t* column;
  int64_t *below, *equal, *before;

  Thresholds(const Tensor& ptr_tensor, const Tensor& values, const Tensor& columns, const Tensor& counts,
             int64_t queries)
      : ptr(int64_data(ptr_tensor, "ptr")),
        value(values.const_data_ptr<T>()),
        column(int64_data(columns, "columns")),
        below(int64_output(counts, "counts")) {
    const int64_t n = values.numel();
    REID_CHECK(ptr_tensor.numel() == queries + 1 && ptr[0] == 0 && ptr[queries] == n && columns.numel() == n &&
                   values.is_cpu() && values.scalar_type() == dtype_of<T>() && values.is_contiguous() &&
                   counts.numel() == 3 * n,
               "evaluation: thresholds do not fit ", queries, " queries");
    equal = below + n;
    before = equal + n;
  }
  void count(int64_t q, const T* d, int64_t n, int64_t first) const {
    const int64_t k = ptr[q], m = ptr[q + 1] - k;
    if (m == 0) return;
    REID_CPU_CALL(count_row, d, n, first, value + k, column + k, m, below + k, equal + k, before + k);
  }
};

// Adds to counts [3, n] (below, equal, before; see csrc/cpu/ranking.h) what the gallery rows `rows` of this chunk hold;
// the first of them is column `first`.
Tensor count_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                      int64_t first, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                      const Tensor& same_ptr, const Tensor& same, int64_t block_queries, int64_t block_gallery,
                      const Tensor& counts) {
  check_features(query, gallery, rows);
  const Exclusions exclusions(same_ptr, same, query.size(0), "same");
  BadInput stop;
  REID_DISPATCH_WIDE(distance_dtype(query, gallery), "count_features", [&] {
    const Thresholds<scalar_t> thresholds(ptr, values, columns, counts, query.size(0));
    stop = for_each_block<scalar_t>(Rows(query), Rows(gallery, rows), metric_of(metric), {block_queries, block_gallery},
                                    [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
                                      over_rows(0, nq, ng, [&](int64_t r) {
                                        exclusions.leave_out(q0 + r, block + r * ld, first + g0, ng);
                                        thresholds.count(q0 + r, block + r * ld, ng, first + g0);
                                      });
                                    });
  });
  return stop.tensor();
}

// The lowest of the rows added, from any thread.
class LowestRow {
 public:
  void add(int64_t row) {
    int64_t seen = row_.load();
    while (row < seen && !row_.compare_exchange_weak(seen, row)) {
    }
  }
  int64_t or_minus_one() const { return row_.load() == kNone ? -1 : row_.load(); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

// Rows of a matrix [Q, G] of any float dtype and strides, read in pieces that fit the first-level cache, with NaN for
// what must not count.
template <typename T>
class MatrixRows {
 public:
  MatrixRows(const Tensor& distances, const Exclusions& exclusions, const Tensor& drop)
      : queries(distances.size(0)),
        gallery(distances.size(1)),
        dropped(int64_data(drop, "drop")),
        dropped_end(dropped + drop.numel()),
        exclusions_(exclusions) {
    for (const int64_t* c = dropped; c != dropped_end; ++c)
      REID_CHECK(*c >= 0 && *c < gallery, "evaluation: row ", *c, " out of range");
  }
  // Calls fn(piece, n, first) along row q, which begins at `row`. Returns whether it holds NaN.
  template <typename S, typename Fn>
  bool walk(int64_t q, const S* row, int64_t step, const Fn& fn) const {
    alignas(64) T piece[kMatrixColumns];
    bool has_nan = false;
    for (int64_t g0 = 0; g0 < gallery; g0 += kMatrixColumns) {
      const int64_t n = std::min(kMatrixColumns, gallery - g0);
      REID_CPU_CALL(load_row, row + g0 * step, step, n, piece, &has_nan);
      exclusions_.leave_out(q, piece, g0, n);
      for (const int64_t* c = std::lower_bound(dropped, dropped_end, g0); c != dropped_end && *c < g0 + n; ++c)
        piece[*c - g0] = std::numeric_limits<T>::quiet_NaN();
      fn(piece, n, g0);
    }
    return has_nan;
  }

  const int64_t queries, gallery;
  const int64_t* const dropped;
  const int64_t* const dropped_end;

 private:
  const Exclusions& exclusions_;
};

// The same as count_features from a matrix of distances [Q, G]; `drop` lists columns that count for nobody. Returns the
// first row with NaN, or -1.
int64_t count_distances(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                        const Tensor& same_ptr, const Tensor& same, const Tensor& drop, const Tensor& counts) {
  check_matrix(distances);
  const Exclusions exclusions(same_ptr, same, distances.size(0), "same");
  LowestRow bad;
  REID_DISPATCH_WIDE(acc_dtype(distances.scalar_type()), "count_distances", [&] {
    using T = scalar_t;
    const MatrixRows<T> matrix(distances, exclusions, drop);
    const Thresholds<T> thresholds(ptr, values, columns, counts, matrix.queries);
    REID_DISPATCH_FLOATS(distances.scalar_type(), "count_distances", [&] {
      const scalar_t* x = distances.const_data_ptr<scalar_t>();
      const int64_t row_step = distances.stride(0), step = distances.stride(1);
      over_spans(matrix.queries, span_rows(matrix.gallery), [&](int64_t begin, int64_t end) {
        over_rows(begin, end, matrix.gallery, [&](int64_t q) {
          const auto count = [&](const T* d, int64_t n, int64_t first) { thresholds.count(q, d, n, first); };
          if (matrix.walk(q, x + q * row_step, step, count)) bad.add(q);
        });
      });
    });
  });
  return bad.or_minus_one();
}

// Evaluation of a matrix [Q, G] by one process, row by row: takes the distances of the pairs, sorts the valid ones and
// counts what lies before each. pair_ptr [Q+1], rows [pairs] ascending per query, valid [pairs]; `drop` lists columns
// that count for nobody. -> ptr [Q+1], order and values of the valid pairs (as sort_pairs), counts [3, valid] (below,
// equal, before), and the first row with NaN or -1.
std::tuple<Tensor, Tensor, Tensor, Tensor, int64_t> rank_matrix(const Tensor& distances, const Tensor& pair_ptr,
                                                                const Tensor& rows, const Tensor& valid,
                                                                const Tensor& drop) {
  check_matrix(distances);
  const int64_t queries = distances.size(0), gallery = distances.size(1), pairs = rows.numel();
  const Exclusions exclusions(pair_ptr, rows, queries, "rows");
  REID_CHECK(exclusions.ptr[queries] == pairs, "evaluation: rows do not fit ", queries, " queries");
  const bool* is_valid = bool_data(valid, pairs, "valid");
  for (int64_t i = 0; i < pairs; ++i)
    REID_CHECK(exclusions.column[i] >= 0 && exclusions.column[i] < gallery, "evaluation: row ", exclusions.column[i],
               " out of range");
  const Tensor ptr = valid_offsets(exclusions.ptr, is_valid, queries);
  const int64_t total = ptr.const_data_ptr<int64_t>()[queries];
  const ScalarType dtype = acc_dtype(distances.scalar_type());
  const Options int64 = cpu_options(kLong);
  const Tensor order = empty({total}, int64), column = empty({total}, int64),
               values = empty({total}, cpu_options(dtype)), counts = zeros({3, total}, int64);
  LowestRow bad;
  REID_DISPATCH_WIDE(dtype, "rank_matrix", [&] {
    using T = scalar_t;
    const MatrixRows<T> matrix(distances, exclusions, drop);
    const Thresholds<T> thresholds(ptr, values, column, counts, queries);
    T* value = values.mutable_data_ptr<T>();
    int64_t *position = order.mutable_data_ptr<int64_t>(), *match_column = column.mutable_data_ptr<int64_t>();
    const int64_t drops = matrix.dropped_end - matrix.dropped;
    REID_DISPATCH_FLOATS(distances.scalar_type(), "rank_matrix", [&] {
      const scalar_t* x = distances.const_data_ptr<scalar_t>();
      const int64_t row_step = distances.stride(0), step = distances.stride(1);
      const auto rank_row = [&](int64_t q) {
        const scalar_t* row = x + q * row_step;
        const int64_t k = thresholds.ptr[q], m = thresholds.ptr[q + 1] - k;
        bool has_nan = false, done = false;
        for (int64_t p = exclusions.ptr[q], i = k; p < exclusions.ptr[q + 1]; ++p) {
          if (!is_valid[p]) continue;
          value[i] = static_cast<T>(row[exclusions.column[p] * step]);
          has_nan |= value[i] != value[i];
          position[i++] = p;
        }
        if (!has_nan) {
          sort_matches(value + k, position + k, m);
          if (std::is_same_v<scalar_t, float> && std::is_same_v<T, float> && step == 1) {
            const int64_t* const lists[] = {exclusions.column + exclusions.ptr[q], matrix.dropped};
            const int64_t sizes[] = {exclusions.ptr[q + 1] - exclusions.ptr[q], drops};
            REID_CPU_CALL(count_whole_row, reinterpret_cast<const float*>(row), gallery,
                          reinterpret_cast<const float*>(value + k), m, lists, sizes, 2, thresholds.below + k, &has_nan,
                          &done);
          }
        }
        if (!done && !has_nan) {
          for (int64_t i = k; i < k + m; ++i) match_column[i] = exclusions.column[position[i]];
          has_nan = matrix.walk(q, row, step,
                                [&](const T* d, int64_t n, int64_t first) { thresholds.count(q, d, n, first); });
        }
        if (has_nan) bad.add(q);
      };
      over_spans(queries, span_rows(gallery),
                 [&](int64_t begin, int64_t end) { over_rows(begin, end, gallery, rank_row); });
    });
  });
  return {ptr, order, values, counts, bad.or_minus_one()};
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "count_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor ptr, Tensor values, "
      "Tensor columns, Tensor same_ptr, Tensor same, int block_queries, int block_gallery, Tensor(a!) counts) -> "
      "Tensor");
  m.def(
      "count_distances(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor same_ptr, Tensor same, "
      "Tensor drop, Tensor(a!) counts) -> int");
  m.def(
      "rank_matrix(Tensor distances, Tensor pair_ptr, Tensor rows, Tensor valid, Tensor drop) -> (Tensor, Tensor, "
      "Tensor, Tensor, int)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("count_features", TORCH_BOX(&count_features));
  m.impl("count_distances", TORCH_BOX(&count_distances));
  m.impl("rank_matrix", TORCH_BOX(&rank_matrix));
}

}  // namespace reidfast
