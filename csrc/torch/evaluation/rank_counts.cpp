// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Ranks by counting: how many distances lie below, at and before each threshold.
#include <cstring>
#include <memory>

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
        below(counts.mutable_data_ptr<int64_t>()) {
    const int64_t n = values.numel();
    REID_CHECK(ptr_tensor.numel() == queries + 1 && ptr[0] == 0 && ptr[queries] == n && columns.numel() == n &&
                   values.is_contiguous() && counts.is_contiguous() && counts.numel() == 3 * n,
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
  const Lists skip(same_ptr, same, query.size(0), "same");
  BadInput stop;
  REID_DISPATCH_WIDE(distance_dtype(query, gallery), "count_features", [&] {
    const Thresholds<scalar_t> thresholds(ptr, values, columns, counts, query.size(0));
    stop = for_each_block<scalar_t>(Rows(query), Rows(gallery, rows), metric_of(metric), {block_queries, block_gallery},
                                    [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
                                      over_rows(nq, ng, [&](int64_t r) {
                                        skip.leave_out(q0 + r, block + r * ld, first + g0, ng);
                                        thresholds.count(q0 + r, block + r * ld, ng, first + g0);
                                      });
                                    });
  });
  return stop.tensor();
}

// Walks rows of a matrix of any float dtype and strides in pieces that fit the first-level cache, with what must not
// count as NaN: fn(q, piece, n, first). Returns the first row that holds NaN, or -1.
template <typename T, typename Fn>
int64_t over_matrix(const Tensor& distances, const Lists& skip, const Tensor& drop, const Fn& fn) {
  const int64_t queries = distances.size(0), gallery = distances.size(1);
  const int64_t* dropped = int64_data(drop, "drop");
  const int64_t* dropped_end = dropped + drop.numel();
  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  REID_DISPATCH_FLOATS(distances.scalar_type(), "evaluation", [&] {
    const scalar_t* x = distances.const_data_ptr<scalar_t>();
    const int64_t row_step = distances.stride(0), step = distances.stride(1);
    over_rows(queries, gallery, [&](int64_t q) {
      alignas(64) T piece[kMatrixColumns];
      bool has_nan = false;
      for (int64_t g0 = 0; g0 < gallery; g0 += kMatrixColumns) {
        const int64_t n = std::min(kMatrixColumns, gallery - g0);
        REID_CPU_CALL(load_row, x + q * row_step + g0 * step, step, n, piece, &has_nan);
        skip.leave_out(q, piece, g0, n);
        for (const int64_t* c = std::lower_bound(dropped, dropped_end, g0); c != dropped_end && *c < g0 + n; ++c)
          piece[*c - g0] = std::numeric_limits<T>::quiet_NaN();
        fn(q, piece, n, g0);
      }
      if (has_nan) {
        int64_t seen = bad.load();
        while (q < seen && !bad.compare_exchange_weak(seen, q)) {
        }
      }
    });
  });
  return bad.load() == std::numeric_limits<int64_t>::max() ? -1 : bad.load();
}

// The same from a matrix of distances [Q, G]; `drop` lists columns that count for nobody. Returns the first row with
// NaN, or -1.
int64_t count_distances(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                        const Tensor& same_ptr, const Tensor& same, const Tensor& drop, const Tensor& counts) {
  REID_CHECK(distances.dim() == 2, "evaluation: expected distances (Q, G), got ", distances.sizes());
  const Lists skip(same_ptr, same, distances.size(0), "same");
  int64_t bad = -1;
  REID_DISPATCH_WIDE(acc_dtype(distances.scalar_type()), "count_distances", [&] {
    const Thresholds<scalar_t> thresholds(ptr, values, columns, counts, distances.size(0));
    bad = over_matrix<scalar_t>(distances, skip, drop, [&](int64_t q, const scalar_t* d, int64_t n, int64_t first) {
      thresholds.count(q, d, n, first);
    });
  });
  return bad;
}

// Evaluation of a matrix [Q, G] by one process, row by row: takes the distances of the pairs, sorts the valid ones and
// counts what lies before each. pair_ptr [Q+1], rows [pairs] ascending per query, valid [pairs]; `drop` lists columns
// that count for nobody. -> ptr [Q+1], order and values of the valid pairs (as sort_pairs), counts [3, valid] (below,
// equal, before), and the first row with NaN or -1.
std::tuple<Tensor, Tensor, Tensor, Tensor, int64_t> rank_matrix(const Tensor& distances, const Tensor& pair_ptr,
                                                                const Tensor& rows, const Tensor& valid,
                                                                const Tensor& drop) {
  REID_CHECK(distances.dim() == 2, "evaluation: expected distances (Q, G), got ", distances.sizes());
  const int64_t queries = distances.size(0), gallery = distances.size(1);
  const Lists skip(pair_ptr, rows, queries, "rows");
  REID_CHECK(skip.ptr[queries] == rows.numel(), "evaluation: rows do not fit ", queries, " queries");
  const bool* counts_here = bool_data(valid, rows.numel(), "valid");
  const int64_t *dropped = int64_data(drop, "drop"), *dropped_end = dropped + drop.numel();
  for (int64_t i = 0; i < rows.numel(); ++i)
    REID_CHECK(skip.column[i] >= 0 && skip.column[i] < gallery, "evaluation: row ", skip.column[i], " out of range");
  for (const int64_t* c = dropped; c != dropped_end; ++c)
    REID_CHECK(*c >= 0 && *c < gallery, "evaluation: row ", *c, " out of range");
  const Tensor ptr = valid_offsets(skip.ptr, counts_here, queries);
  const int64_t total = ptr.const_data_ptr<int64_t>()[queries];
  const ScalarType dtype = acc_dtype(distances.scalar_type());
  Tensor order = empty({total}, cpu_options(kLong)), column = empty({total}, cpu_options(kLong)),
         values = empty({total}, cpu_options(dtype)), counts = zeros({3, total}, cpu_options(kLong));
  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  REID_DISPATCH_WIDE(dtype, "rank_matrix", [&] {
    using T = scalar_t;
    const Thresholds<T> thresholds(ptr, values, column, counts, queries);
    T* value = values.mutable_data_ptr<T>();
    int64_t *position = order.mutable_data_ptr<int64_t>(), *own_column = column.mutable_data_ptr<int64_t>();
    REID_DISPATCH_FLOATS(distances.scalar_type(), "rank_matrix", [&] {
      const scalar_t* x = distances.const_data_ptr<scalar_t>();
      const int64_t row_step = distances.stride(0), step = distances.stride(1);
      over_rows(queries, gallery, [&](int64_t q) {
        const scalar_t* row = x + q * row_step;
        const int64_t k = thresholds.ptr[q], m = thresholds.ptr[q + 1] - k;
        bool has_nan = false, done = false;
        for (int64_t p = skip.ptr[q], i = k; p < skip.ptr[q + 1]; ++p) {
          if (!counts_here[p]) continue;
          value[i] = static_cast<T>(row[skip.column[p] * step]);
          has_nan |= value[i] != value[i];
          position[i++] = p;
        }
        if (!has_nan) {
          sort_matches(value + k, position + k, m);
          if (std::is_same_v<scalar_t, float> && std::is_same_v<T, float> && step == 1) {
            const int64_t* const lists[] = {skip.column + skip.ptr[q], dropped};
            const int64_t sizes[] = {skip.ptr[q + 1] - skip.ptr[q], dropped_end - dropped};
            REID_CPU_CALL(count_whole_row, reinterpret_cast<const float*>(row), gallery,
                          reinterpret_cast<const float*>(value + k), m, lists, sizes, 2, thresholds.below + k, &has_nan,
                          &done);
          }
        }
        if (!done && !has_nan) {
          for (int64_t i = k; i < k + m; ++i) own_column[i] = skip.column[position[i]];
          alignas(64) T piece[kMatrixColumns];
          for (int64_t g0 = 0; g0 < gallery; g0 += kMatrixColumns) {
            const int64_t n = std::min(kMatrixColumns, gallery - g0);
            REID_CPU_CALL(load_row, row + g0 * step, step, n, piece, &has_nan);
            skip.leave_out(q, piece, g0, n);
            for (const int64_t* c = std::lower_bound(dropped, dropped_end, g0); c != dropped_end && *c < g0 + n; ++c)
              piece[*c - g0] = std::numeric_limits<T>::quiet_NaN();
            thresholds.count(q, piece, n, g0);
          }
        }
        if (has_nan) {
          int64_t seen = bad.load();
          while (q < seen && !bad.compare_exchange_weak(seen, q)) {
          }
        }
      });
    });
  });
  return {ptr, order, values, counts, bad.load() == std::numeric_limits<int64_t>::max() ? -1 : bad.load()};
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "count_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor ptr, Tensor "
      "values, Tensor columns, Tensor same_ptr, Tensor same, int block_queries, int block_gallery, Tensor(a!) counts) "
      "-> Tensor");
  m.def(
      "count_distances(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor same_ptr, Tensor same, "
      "Tensor drop, Tensor(a!) counts) -> int");
  m.def(
      "rank_matrix(Tensor distances, Tensor pair_ptr, Tensor rows, Tensor valid, Tensor drop) -> "
      "(Tensor, Tensor, Tensor, Tensor, int)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("count_features", TORCH_BOX(&count_features));
  m.impl("count_distances", TORCH_BOX(&count_distances));
  m.impl("rank_matrix", TORCH_BOX(&rank_matrix));
}

}  // namespace reidfast
