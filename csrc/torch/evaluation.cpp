// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The CPU side of reidfast.evaluation: ranks by counting, top-k, histograms, from features or from a distance matrix.
// These ops are internal: reidfast/evaluation/_engine.py states their contract, checks what a user hands in and holds
// the same in plain torch. Per-query lists come as CSR: `ptr` [Q+1] into flat arrays.
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "csrc/cpu/ranking.h"
#include "csrc/torch/distance_tile.h"

namespace reidfast {
namespace {

constexpr int64_t kMatrixColumns = 4096;  // of a row of a distance matrix, copied to the first-level cache at a time

const int64_t* int64_data(const Tensor& t, const char* name) {
  TORCH_CHECK(t.is_cpu() && t.scalar_type() == at::kLong && t.is_contiguous(), "evaluation: expected ", name,
              " to be contiguous int64 on the CPU");
  return t.const_data_ptr<int64_t>();
}

// A CSR list of columns per query, ascending within a query.
struct Lists {
  const int64_t* ptr;
  const int64_t* column;

  Lists(const Tensor& ptr_tensor, const Tensor& columns, int64_t queries, const char* name)
      : ptr(int64_data(ptr_tensor, name)), column(int64_data(columns, name)) {
    TORCH_CHECK(ptr_tensor.numel() == queries + 1 && ptr[0] == 0 && ptr[queries] <= columns.numel(),
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
    TORCH_CHECK(ptr_tensor.numel() == queries + 1 && ptr[0] == 0 && ptr[queries] == n && columns.numel() == n &&
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

Metric metric_of(int64_t metric) {
  TORCH_CHECK(metric >= 0 && metric <= 3, "evaluation: expected a metric in 0..3, got ", metric);
  return static_cast<Metric>(metric);
}

void check_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows) {
  TORCH_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1) && query.size(1) > 0,
              "evaluation: expected query (Q, D) and gallery (G, D), got ", query.sizes(), " and ", gallery.sizes());
  if (!rows) return;
  const int64_t* r = int64_data(*rows, "rows");
  for (int64_t i = 0; i < rows->numel(); ++i)
    TORCH_CHECK(r[i] >= 0 && r[i] < gallery.size(0), "evaluation: gallery row ", r[i], " is out of range");
}

// The dtype of distances between two dtypes of features.
at::ScalarType distance_dtype(const Tensor& query, const Tensor& gallery) {
  return query.scalar_type() == at::kDouble || gallery.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

template <typename Fn>
void over_rows(int64_t rows, int64_t columns, const Fn& fn) {
  at::parallel_for(0, rows, grain(columns * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  });
}

// Distances of the pairs (query, gallery) that share an identity. Queries come in blocks of neighbours: block b holds
// order [block_ptr[b], block_ptr[b+1]), meets the gallery rows columns [column_ptr[b], column_ptr[b+1]), and the pairs
// of its i-th query are slots [pair_ptr[i], pair_ptr[i+1]) into those. Returns ([pairs], status).
std::tuple<Tensor, Tensor> pair_distances(const Tensor& query, const Tensor& gallery, int64_t metric_id,
                                          const Tensor& order, const Tensor& block_ptr, const Tensor& column_ptr,
                                          const Tensor& columns, const Tensor& pair_ptr, const Tensor& slots) {
  check_features(query, gallery, columns);
  const Metric metric = metric_of(metric_id);
  const int64_t blocks = block_ptr.numel() - 1;
  const int64_t *queries = int64_data(order, "order"), *bp = int64_data(block_ptr, "block_ptr"),
                *cp = int64_data(column_ptr, "column_ptr"), *col = int64_data(columns, "columns"),
                *pp = int64_data(pair_ptr, "pair_ptr"), *slot = int64_data(slots, "slots");
  TORCH_CHECK(blocks >= 0 && column_ptr.numel() == blocks + 1 && pair_ptr.numel() == order.numel() + 1 &&
                  bp[blocks] == order.numel() && cp[blocks] == columns.numel() && pp[order.numel()] == slots.numel(),
              "evaluation: blocks of pairs do not fit");
  Tensor out = at::empty({slots.numel()}, query.options().dtype(distance_dtype(query, gallery)));
  std::vector<BadInput> stops(std::max<int64_t>(blocks, 1));
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "pair_distances", [&] {
    scalar_t* d = out.mutable_data_ptr<scalar_t>();
    const int64_t width = tile_columns<scalar_t>();
    for_each_task(blocks, [&](int64_t b) {
      const int64_t n = cp[b + 1] - cp[b];
      if (n == 0 || pp[bp[b + 1]] == pp[bp[b]]) return;
      const Rows rows_q(query, queries + bp[b], bp[b + 1] - bp[b]), rows_g(gallery, col + cp[b], n);
      // Tiles as high as those of the counting pass: the height depends on the number of all queries.
      const int64_t height = tile_rows_for(query.size(0));
      Panel<scalar_t> panel_q(round_up(rows_q.n, height), height, query.size(1));
      if ((stops[b].bad = panel_q.pack(rows_q, 0, rows_q.n, metric))) return;
      Panel<scalar_t> panel_g(width, width, query.size(1));
      Tensor buffer = at::empty({panel_q.tiles() * height, width}, out.options());
      scalar_t* tile = buffer.mutable_data_ptr<scalar_t>();
      for (int64_t g0 = 0; g0 < n; g0 += width) {
        stops[b].side = 1;
        if ((stops[b].bad = panel_g.pack(rows_g, g0, std::min(width, n - g0), metric))) return;
        stops[b].side = 0;
        for (int64_t t = 0; t < panel_q.tiles(); ++t)
          distance_tile(panel_q, t, panel_g, 0, metric, tile + t * height * width, width);
        for (int64_t i = bp[b]; i < bp[b + 1]; ++i)
          for (int64_t p = pp[i]; p < pp[i + 1]; ++p)
            if (slot[p] >= g0 && slot[p] < g0 + width) d[p] = tile[(i - bp[b]) * width + slot[p] - g0];
      }
    });
  });
  for (const BadInput& stop : stops)
    if (stop) return {out, stop.tensor()};
  return {out, BadInput().tensor()};
}

// Adds to counts [3, n] (below, equal, before; see csrc/cpu/ranking.h) what the gallery rows `rows` of this chunk hold;
// the first of them is column `first`.
Tensor count_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                      int64_t first, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                      const Tensor& same_ptr, const Tensor& same, int64_t block_queries, int64_t block_gallery,
                      const Tensor& counts) {
  check_features(query, gallery, rows);
  const Lists skip(same_ptr, same, query.size(0), "same");
  BadInput stop;
  AT_DISPATCH_FLOATING_TYPES(distance_dtype(query, gallery), "count_features", [&] {
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
  TORCH_CHECK(distances.dim() == 2, "evaluation: expected distances (Q, G), got ", distances.sizes());
  const Lists skip(same_ptr, same, distances.size(0), "same");
  int64_t bad = -1;
  AT_DISPATCH_FLOATING_TYPES(acc_dtype(distances.scalar_type()), "count_distances", [&] {
    const Thresholds<scalar_t> thresholds(ptr, values, columns, counts, distances.size(0));
    bad = over_matrix<scalar_t>(distances, skip, drop, [&](int64_t q, const scalar_t* d, int64_t n, int64_t first) {
      thresholds.count(q, d, n, first);
    });
  });
  return bad;
}

// Sorts pairs begin ... begin + m by (value, position): small lists by insertion.
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
Tensor valid_offsets(const int64_t* pair_ptr, const bool* valid, int64_t queries) {
  Tensor out = at::empty({queries + 1}, at::kLong);
  int64_t* ptr = out.mutable_data_ptr<int64_t>();
  ptr[0] = 0;
  for (int64_t q = 0; q < queries; ++q) {
    int64_t n = 0;
    for (int64_t p = pair_ptr[q]; p < pair_ptr[q + 1]; ++p) n += valid[p];
    ptr[q + 1] = ptr[q] + n;
  }
  return out;
}

const bool* bool_data(const Tensor& t, int64_t n, const char* name) {
  TORCH_CHECK(t.is_cpu() && t.scalar_type() == at::kBool && t.is_contiguous() && t.numel() == n,
              "evaluation: expected ", name, " to be contiguous bool [", n, "] on the CPU");
  return t.const_data_ptr<bool>();
}

// The valid pairs of every query in ascending order of their values [pairs], equal ones by position: (ptr [Q+1],
// order).
std::tuple<Tensor, Tensor> sort_pairs(const Tensor& pair_ptr, const Tensor& valid, const Tensor& values) {
  const int64_t queries = pair_ptr.numel() - 1;
  const int64_t* pairs = int64_data(pair_ptr, "pair_ptr");
  TORCH_CHECK(queries >= 0 && pairs[0] == 0 && pairs[queries] == values.numel() && values.is_contiguous(),
              "evaluation: pairs do not fit ", queries, " queries");
  const bool* counts = bool_data(valid, values.numel(), "valid");
  const Tensor ptr = valid_offsets(pairs, counts, queries);
  const int64_t* begin = ptr.const_data_ptr<int64_t>();
  Tensor order = at::empty({begin[queries]}, at::kLong);
  int64_t* position = order.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "sort_pairs", [&] {
    const scalar_t* x = values.const_data_ptr<scalar_t>();
    at::parallel_for(0, queries, 512, [&](int64_t first, int64_t last) {
      std::vector<scalar_t> own;
      for (int64_t q = first; q < last; ++q) {
        own.clear();
        for (int64_t p = pairs[q]; p < pairs[q + 1]; ++p)
          if (counts[p]) position[begin[q] + own.size()] = p, own.push_back(x[p]);
        sort_matches(own.data(), position + begin[q], own.size());
      }
    });
  });
  return {ptr, order};
}

// Evaluation of a matrix [Q, G] by one process, row by row: takes the distances of the pairs, sorts the valid ones and
// counts what lies before each. pair_ptr [Q+1], rows [pairs] ascending per query, valid [pairs]; `drop` lists columns
// that count for nobody. -> ptr [Q+1], order and values of the valid pairs (as sort_pairs), counts [3, valid] (below,
// equal, before), and the first row with NaN or -1.
std::tuple<Tensor, Tensor, Tensor, Tensor, int64_t> rank_matrix(const Tensor& distances, const Tensor& pair_ptr,
                                                                const Tensor& rows, const Tensor& valid,
                                                                const Tensor& drop) {
  TORCH_CHECK(distances.dim() == 2, "evaluation: expected distances (Q, G), got ", distances.sizes());
  const int64_t queries = distances.size(0), gallery = distances.size(1);
  const Lists skip(pair_ptr, rows, queries, "rows");
  TORCH_CHECK(skip.ptr[queries] == rows.numel(), "evaluation: rows do not fit ", queries, " queries");
  const bool* counts_here = bool_data(valid, rows.numel(), "valid");
  const int64_t *dropped = int64_data(drop, "drop"), *dropped_end = dropped + drop.numel();
  for (int64_t i = 0; i < rows.numel(); ++i)
    TORCH_CHECK(skip.column[i] >= 0 && skip.column[i] < gallery, "evaluation: row ", skip.column[i], " out of range");
  for (const int64_t* c = dropped; c != dropped_end; ++c)
    TORCH_CHECK(*c >= 0 && *c < gallery, "evaluation: row ", *c, " out of range");
  const Tensor ptr = valid_offsets(skip.ptr, counts_here, queries);
  const int64_t total = ptr.const_data_ptr<int64_t>()[queries];
  const at::ScalarType dtype = acc_dtype(distances.scalar_type());
  Tensor order = at::empty({total}, at::kLong), column = at::empty({total}, at::kLong),
         values = at::empty({total}, dtype), counts = at::zeros({3, total}, at::kLong);
  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  AT_DISPATCH_FLOATING_TYPES(dtype, "rank_matrix", [&] {
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

// Positions 0 .. n-1 in ascending order of ids, equal ones as they stand; and where each id begins.
struct ById {
  std::vector<int64_t> order, sorted, start;  // start: of ids low .. low + start.size() - 2, where those are dense
  int64_t low = 0;

  explicit ById(const int64_t* id, int64_t n) : order(n) {
    if (n == 0) return;
    const auto [least, most] = std::minmax_element(id, id + n);
    low = *least;
    // As unsigned: the range of int64 does not fit int64.
    const uint64_t range = static_cast<uint64_t>(*most) - static_cast<uint64_t>(low);
    if (range < static_cast<uint64_t>(4 * n + 65536)) {
      start.assign(range + 2, 0);
      for (int64_t i = 0; i < n; ++i) ++start[id[i] - low + 1];
      for (size_t k = 1; k < start.size(); ++k) start[k] += start[k - 1];
      std::vector<int64_t> next(start.begin(), start.end() - 1);
      for (int64_t i = 0; i < n; ++i) order[next[id[i] - low]++] = i;
      return;
    }
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return id[a] < id[b]; });
    sorted.resize(n);
    for (int64_t i = 0; i < n; ++i) sorted[i] = id[order[i]];
  }
  // [first, last) of `wanted` in order.
  std::pair<int64_t, int64_t> range_of(int64_t wanted) const {
    if (!start.empty()) {
      const uint64_t k = static_cast<uint64_t>(wanted) - static_cast<uint64_t>(low);
      if (wanted < low || k + 1 >= start.size()) return {0, 0};
      return {start[k], start[k + 1]};
    }
    const auto range = std::equal_range(sorted.begin(), sorted.end(), wanted);
    return {range.first - sorted.begin(), range.second - sorted.begin()};
  }
};

// Pairs (query, gallery column) of one identity, valid where the cameras differ: see reidfast/evaluation/_pairs.py,
// which does the same in numpy. -> ptr [Q+1], column, valid, query [pairs]; columns by identity; start, size [Q]
// therein.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> find_pairs(
    const Tensor& query_ids, const Tensor& gallery_ids, const std::optional<Tensor>& query_cameras,
    const std::optional<Tensor>& gallery_cameras) {
  const int64_t queries = query_ids.numel(), n = gallery_ids.numel();
  const int64_t *wanted = int64_data(query_ids, "query_ids"), *id = int64_data(gallery_ids, "gallery_ids");
  TORCH_CHECK(query_cameras.has_value() == gallery_cameras.has_value(), "evaluation: expected both cameras or neither");
  const int64_t *seen_by = nullptr, *camera = nullptr;
  if (query_cameras) {
    seen_by = int64_data(*query_cameras, "query_cameras"), camera = int64_data(*gallery_cameras, "gallery_cameras");
    TORCH_CHECK(query_cameras->numel() == queries && gallery_cameras->numel() == n, "evaluation: cameras do not fit");
  }
  const ById by_id(id, n);
  Tensor ptr = at::empty({queries + 1}, at::kLong), start = at::empty({queries}, at::kLong),
         size = at::empty({queries}, at::kLong), order = at::empty({n}, at::kLong);
  std::copy(by_id.order.begin(), by_id.order.end(), order.mutable_data_ptr<int64_t>());
  int64_t *p = ptr.mutable_data_ptr<int64_t>(), *s = start.mutable_data_ptr<int64_t>(),
          *c = size.mutable_data_ptr<int64_t>();
  p[0] = 0;
  for (int64_t q = 0; q < queries; ++q) {
    const auto [first, last] = by_id.range_of(wanted[q]);
    s[q] = first, c[q] = last - first, p[q + 1] = p[q] + c[q];
  }
  Tensor column = at::empty({p[queries]}, at::kLong), query = at::empty({p[queries]}, at::kLong),
         valid = at::empty({p[queries]}, at::kBool);
  int64_t *column_of = column.mutable_data_ptr<int64_t>(), *query_of = query.mutable_data_ptr<int64_t>();
  bool* counts = valid.mutable_data_ptr<bool>();
  at::parallel_for(0, queries, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q)
      for (int64_t i = 0; i < c[q]; ++i) {
        const int64_t at = by_id.order[s[q] + i];
        column_of[p[q] + i] = at;
        query_of[p[q] + i] = q;
        counts[p[q] + i] = camera == nullptr || camera[at] != seen_by[q];
      }
  });
  return {ptr, column, valid, query, order, start, size};
}

// Merges the gallery chunk into the k nearest so far: values, columns [Q, k], filled [Q] of them in use, in no order
// until sort_nearest. Later chunks hold higher columns, so that an equal distance never displaces an earlier one.
Tensor nearest_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                        int64_t first, const Tensor& exclude_ptr, const Tensor& exclude, int64_t block_queries,
                        int64_t block_gallery, const Tensor& values, const Tensor& columns, const Tensor& filled) {
  check_features(query, gallery, rows);
  const Lists skip(exclude_ptr, exclude, query.size(0), "exclude");
  const int64_t k = values.size(1);
  TORCH_CHECK(values.dim() == 2 && values.size(0) == query.size(0) && values.is_contiguous() &&
                  columns.is_contiguous() && columns.sizes() == values.sizes() && filled.numel() == query.size(0) &&
                  k > 0 && values.scalar_type() == distance_dtype(query, gallery),
              "evaluation: expected values and columns (Q, k), got ", values.sizes(), " and ", columns.sizes());
  int64_t* used = filled.mutable_data_ptr<int64_t>();
  BadInput stop;
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "nearest_features", [&] {
    scalar_t* best = values.mutable_data_ptr<scalar_t>();
    int64_t* best_column = columns.mutable_data_ptr<int64_t>();
    using Entry = std::pair<scalar_t, int64_t>;
    stop = for_each_block<scalar_t>(
        Rows(query), Rows(gallery, rows), metric_of(metric), {block_queries, block_gallery},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          at::parallel_for(0, nq, grain(ng * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
            const std::unique_ptr<scalar_t[]> found_value(new scalar_t[ng]);
            const std::unique_ptr<int64_t[]> found_column(new int64_t[ng]);
            std::vector<Entry> pool;
            for (int64_t r = begin; r < end; ++r) {
              const int64_t q = q0 + r;
              scalar_t* v = best + q * k;
              int64_t* c = best_column + q * k;
              skip.leave_out(q, block + r * ld, first + g0, ng);
              // A full list is kept with its worst entry in front.
              const scalar_t bound = used[q] == k ? v[0] : std::numeric_limits<scalar_t>::infinity();
              int64_t found = 0;
              REID_CPU_CALL(select_below, block + r * ld, ng, first + g0, bound, found_value.get(), found_column.get(),
                            &found);
              if (found == 0) continue;
              pool.clear();
              for (int64_t i = 0; i < used[q]; ++i) pool.emplace_back(v[i], c[i]);
              for (int64_t i = 0; i < found; ++i) pool.emplace_back(found_value[i], found_column[i]);
              const int64_t keep = std::min<int64_t>(k, pool.size());
              if (keep < static_cast<int64_t>(pool.size()))
                std::nth_element(pool.begin(), pool.begin() + keep - 1, pool.end());
              if (keep == k) {
                if (static_cast<int64_t>(pool.size()) == k)
                  std::iter_swap(pool.begin(), std::max_element(pool.begin(), pool.end()));
                else
                  std::swap(pool[0], pool[keep - 1]);
              }
              for (int64_t i = 0; i < keep; ++i) v[i] = pool[i].first, c[i] = pool[i].second;
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
  TORCH_CHECK(values.is_contiguous() && columns.is_contiguous() && columns.sizes() == values.sizes() &&
                  filled.numel() == queries,
              "evaluation: expected values and columns (Q, k)");
  AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "sort_nearest", [&] {
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

// Adds to histogram [prefixes, 2^bits] the distances to non-matches whose order-preserving integer begins with one of
// `prefixes` (each prefix_bits long).
Tensor histogram_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                          int64_t first, const Tensor& same_ptr, const Tensor& same, int64_t prefix_bits,
                          const Tensor& prefixes, int64_t bits, const Tensor& histogram) {
  check_features(query, gallery, rows);
  const Lists skip(same_ptr, same, query.size(0), "same");
  const int64_t* prefix = int64_data(prefixes, "prefixes");
  const int64_t n_prefix = prefixes.numel(), bins = int64_t{1} << bits;
  TORCH_CHECK(bits > 0 && bits <= 20 && histogram.is_contiguous() && histogram.scalar_type() == at::kLong &&
                  histogram.numel() == n_prefix * bins,
              "evaluation: expected histogram (", n_prefix, ", ", bins, "), got ", histogram.sizes());
  int64_t* out = histogram.mutable_data_ptr<int64_t>();
  BadInput stop;
  AT_DISPATCH_FLOATING_TYPES(distance_dtype(query, gallery), "histogram_features", [&] {
    const int64_t threads = at::get_num_threads();
    std::vector<std::vector<int64_t>> partial(threads);
    stop = for_each_block<scalar_t>(
        Rows(query), Rows(gallery, rows), metric_of(metric), {},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          at::parallel_for(0, nq, grain(ng * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
            std::vector<int64_t>& mine = partial[at::get_thread_num()];
            mine.resize(n_prefix * bins);
            for (int64_t r = begin; r < end; ++r) {
              skip.leave_out(q0 + r, block + r * ld, first + g0, ng);
              for (int64_t i = 0; i < n_prefix; ++i)
                REID_CPU_CALL(histogram_row, block + r * ld, ng, static_cast<int>(prefix_bits),
                              static_cast<uint64_t>(prefix[i]), static_cast<int>(bits), mine.data() + i * bins);
            }
          });
        });
    for (const auto& mine : partial)
      for (size_t i = 0; i < mine.size(); ++i) out[i] += mine[i];
  });
  return stop.tensor();
}

// Distances [Q, G'] of a few queries, for what needs whole rows.
std::tuple<Tensor, Tensor> dense_distances(const Tensor& query, const Tensor& gallery,
                                           const std::optional<Tensor>& rows, int64_t metric) {
  check_features(query, gallery, rows);
  const Rows gallery_rows(gallery, rows);
  Tensor out = at::empty({query.size(0), gallery_rows.n}, query.options().dtype(distance_dtype(query, gallery)));
  BadInput stop;
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "dense_distances", [&] {
    scalar_t* d = out.mutable_data_ptr<scalar_t>();
    stop = for_each_block<scalar_t>(
        Rows(query), gallery_rows, metric_of(metric), {},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          over_rows(nq, ng, [&](int64_t r) { std::copy_n(block + r * ld, ng, d + (q0 + r) * gallery_rows.n + g0); });
        });
  });
  return {out, stop.tensor()};
}

// Expected single-gallery-shot curve of every query, averaged over its thresholds: [Q, max_rank]. identity [G] int32 in
// [0, sizes.numel()) or -1 = leave out; `own` [Q] the query's identity there or -1; sizes must count what is not left
// out.
Tensor single_shot(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                   const Tensor& identity, const Tensor& sizes, const Tensor& own, int64_t max_rank) {
  const int64_t queries = distances.size(0), gallery = distances.size(1), identities = sizes.numel();
  TORCH_CHECK(distances.dim() == 2 && distances.is_contiguous() && identity.numel() == gallery &&
                  own.numel() == queries && ptr.numel() == queries + 1 && max_rank > 0 &&
                  values.scalar_type() == distances.scalar_type() && values.numel() == columns.numel(),
              "evaluation: single_shot got arguments that do not fit");
  for (const Tensor* t : {&identity, &sizes, &own})
    TORCH_CHECK(t->scalar_type() == at::kInt && t->is_contiguous(), "evaluation: expected int32 identities");
  const int64_t *p = int64_data(ptr, "ptr"), *column = int64_data(columns, "columns");
  const int32_t *ident = identity.const_data_ptr<int32_t>(), *size = sizes.const_data_ptr<int32_t>(),
                *mine = own.const_data_ptr<int32_t>();
  TORCH_CHECK(p[queries] == values.numel(), "evaluation: thresholds do not fit");
  for (int64_t j = 0; j < gallery; ++j) TORCH_CHECK(ident[j] < identities, "evaluation: identity out of range");
  Tensor out = at::zeros({queries, max_rank}, at::kDouble);
  double* chance = out.mutable_data_ptr<double>();
  AT_DISPATCH_FLOATING_TYPES(distances.scalar_type(), "single_shot", [&] {
    const scalar_t *d = distances.const_data_ptr<scalar_t>(), *t = values.const_data_ptr<scalar_t>();
    at::parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> closer(identities);
      std::vector<double> pmf(max_rank);
      for (int64_t q = begin; q < end; ++q) {
        for (int64_t k = p[q]; k < p[q + 1]; ++k) {
          REID_CPU_CALL(single_shot_closer, d + q * gallery, gallery, ident, static_cast<int32_t>(identities), t[k],
                        column[k], mine[q], closer.data());
          REID_CPU_CALL(single_shot_chance, closer.data(), size, static_cast<int32_t>(identities), max_rank, pmf.data(),
                        chance + q * max_rank);
        }
        const double n = static_cast<double>(p[q + 1] - p[q]);
        for (int64_t r = 0; r < max_rank && n > 0; ++r) chance[q * max_rank + r] /= n;
      }
    });
  });
  return out;
}

// The first half of single_shot where this process holds some of the gallery alone: closer [matches, identities].
Tensor single_shot_closer(const Tensor& distances, const Tensor& ptr, const Tensor& values, const Tensor& columns,
                          const Tensor& identity, int64_t identities, const Tensor& own) {
  const int64_t queries = distances.size(0), gallery = distances.size(1);
  TORCH_CHECK(distances.dim() == 2 && distances.is_contiguous() && identity.numel() == gallery &&
                  own.numel() == queries && ptr.numel() == queries + 1 && identities >= 0 &&
                  values.scalar_type() == distances.scalar_type() && values.numel() == columns.numel(),
              "evaluation: single_shot got arguments that do not fit");
  for (const Tensor* t : {&identity, &own})
    TORCH_CHECK(t->scalar_type() == at::kInt && t->is_contiguous(), "evaluation: expected int32 identities");
  const int64_t *p = int64_data(ptr, "ptr"), *column = int64_data(columns, "columns");
  const int32_t *ident = identity.const_data_ptr<int32_t>(), *mine = own.const_data_ptr<int32_t>();
  TORCH_CHECK(p[queries] == values.numel(), "evaluation: thresholds do not fit");
  for (int64_t j = 0; j < gallery; ++j) TORCH_CHECK(ident[j] < identities, "evaluation: identity out of range");
  Tensor out = at::empty({values.numel(), identities}, at::kInt);
  int32_t* closer = out.mutable_data_ptr<int32_t>();
  AT_DISPATCH_FLOATING_TYPES(distances.scalar_type(), "single_shot", [&] {
    const scalar_t *d = distances.const_data_ptr<scalar_t>(), *t = values.const_data_ptr<scalar_t>();
    at::parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q)
        for (int64_t k = p[q]; k < p[q + 1]; ++k)
          REID_CPU_CALL(single_shot_closer, d + q * gallery, gallery, ident, static_cast<int32_t>(identities), t[k],
                        column[k], mine[q], closer + k * identities);
    });
  });
  return out;
}

// The second half: curves [Q, max_rank] from the counts of all processes.
Tensor single_shot_chance(const Tensor& closer, const Tensor& ptr, const Tensor& sizes, int64_t max_rank) {
  const int64_t queries = ptr.numel() - 1, identities = sizes.numel();
  const int64_t* p = int64_data(ptr, "ptr");
  TORCH_CHECK(queries >= 0 && closer.dim() == 2 && closer.size(0) == p[queries] && closer.size(1) == identities &&
                  max_rank > 0 && closer.scalar_type() == at::kInt && closer.is_contiguous() &&
                  sizes.scalar_type() == at::kInt && sizes.is_contiguous(),
              "evaluation: single_shot got arguments that do not fit");
  Tensor out = at::zeros({queries, max_rank}, at::kDouble);
  double* chance = out.mutable_data_ptr<double>();
  const int32_t *count = closer.const_data_ptr<int32_t>(), *size = sizes.const_data_ptr<int32_t>();
  at::parallel_for(0, queries, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> pmf(max_rank);
    for (int64_t q = begin; q < end; ++q) {
      for (int64_t k = p[q]; k < p[q + 1]; ++k)
        REID_CPU_CALL(single_shot_chance, count + k * identities, size, static_cast<int32_t>(identities), max_rank,
                      pmf.data(), chance + q * max_rank);
      const double n = static_cast<double>(p[q + 1] - p[q]);
      for (int64_t r = 0; r < max_rank && n > 0; ++r) chance[q * max_rank + r] /= n;
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def(
      "eval_pair_distances(Tensor query, Tensor gallery, int metric, Tensor order, Tensor block_ptr, Tensor "
      "column_ptr, Tensor columns, Tensor pair_ptr, Tensor slots) -> (Tensor, Tensor)");
  m.def(
      "eval_count_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor ptr, Tensor "
      "values, Tensor columns, Tensor same_ptr, Tensor same, int block_queries, int block_gallery, Tensor(a!) counts) "
      "-> Tensor");
  m.def(
      "eval_count_distances(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor same_ptr, Tensor same, "
      "Tensor drop, Tensor(a!) counts) -> int");
  m.def(
      "eval_find_pairs(Tensor query_ids, Tensor gallery_ids, Tensor? query_cameras, Tensor? gallery_cameras) -> "
      "(Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("eval_sort_pairs(Tensor pair_ptr, Tensor valid, Tensor values) -> (Tensor, Tensor)");
  m.def(
      "eval_rank_matrix(Tensor distances, Tensor pair_ptr, Tensor rows, Tensor valid, Tensor drop) -> "
      "(Tensor, Tensor, Tensor, Tensor, int)");
  m.def(
      "eval_nearest_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor exclude_ptr, "
      "Tensor exclude, int block_queries, int block_gallery, Tensor(a!) values, Tensor(b!) columns, Tensor(c!) filled) "
      "-> Tensor");
  m.def("eval_sort_nearest(Tensor(a!) values, Tensor(b!) columns, Tensor filled) -> ()");
  m.def(
      "eval_histogram_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor same_ptr, "
      "Tensor same, int prefix_bits, Tensor prefixes, int bits, Tensor(a!) histogram) -> Tensor");
  m.def("eval_dense_distances(Tensor query, Tensor gallery, Tensor? rows, int metric) -> (Tensor, Tensor)");
  m.def(
      "eval_single_shot(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor identity, Tensor sizes, "
      "Tensor own, int max_rank) -> Tensor");
  m.def(
      "eval_single_shot_closer(Tensor distances, Tensor ptr, Tensor values, Tensor columns, Tensor identity, int "
      "identities, Tensor own) -> Tensor");
  m.def("eval_single_shot_chance(Tensor closer, Tensor ptr, Tensor sizes, int max_rank) -> Tensor");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("eval_pair_distances", pair_distances);
  m.impl("eval_count_features", count_features);
  m.impl("eval_count_distances", count_distances);
  m.impl("eval_find_pairs", find_pairs);
  m.impl("eval_sort_pairs", sort_pairs);
  m.impl("eval_rank_matrix", rank_matrix);
  m.impl("eval_nearest_features", nearest_features);
  m.impl("eval_sort_nearest", sort_nearest);
  m.impl("eval_histogram_features", histogram_features);
  m.impl("eval_dense_distances", dense_distances);
  m.impl("eval_single_shot", single_shot);
  m.impl("eval_single_shot_closer", single_shot_closer);
  m.impl("eval_single_shot_chance", single_shot_chance);
}

}  // namespace reidfast
