// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Pairs of a query and a gallery row of one identity: which they are, their distances, their order.
#include <numeric>

#include "csrc/torch/evaluation/pairs.h"

namespace reidfast {
namespace {

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
  REID_CHECK(query_cameras.has_value() == gallery_cameras.has_value(), "evaluation: expected both cameras or neither");
  const int64_t *seen_by = nullptr, *camera = nullptr;
  if (query_cameras) {
    seen_by = int64_data(*query_cameras, "query_cameras"), camera = int64_data(*gallery_cameras, "gallery_cameras");
    REID_CHECK(query_cameras->numel() == queries && gallery_cameras->numel() == n, "evaluation: cameras do not fit");
  }
  const ById by_id(id, n);
  Tensor ptr = empty({queries + 1}, cpu_options(kLong)), start = empty({queries}, cpu_options(kLong)),
         size = empty({queries}, cpu_options(kLong)), order = empty({n}, cpu_options(kLong));
  std::copy(by_id.order.begin(), by_id.order.end(), order.mutable_data_ptr<int64_t>());
  int64_t *p = ptr.mutable_data_ptr<int64_t>(), *s = start.mutable_data_ptr<int64_t>(),
          *c = size.mutable_data_ptr<int64_t>();
  p[0] = 0;
  for (int64_t q = 0; q < queries; ++q) {
    const auto [first, last] = by_id.range_of(wanted[q]);
    s[q] = first, c[q] = last - first, p[q + 1] = p[q] + c[q];
  }
  Tensor column = empty({p[queries]}, cpu_options(kLong)), query = empty({p[queries]}, cpu_options(kLong)),
         valid = empty({p[queries]}, cpu_options(kBool));
  int64_t *column_of = column.mutable_data_ptr<int64_t>(), *query_of = query.mutable_data_ptr<int64_t>();
  bool* counts = valid.mutable_data_ptr<bool>();
  parallel_for(0, queries, 1024, [&](int64_t begin, int64_t end) {
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
  REID_CHECK(blocks >= 0 && column_ptr.numel() == blocks + 1 && pair_ptr.numel() == order.numel() + 1 &&
                 bp[blocks] == order.numel() && cp[blocks] == columns.numel() && pp[order.numel()] == slots.numel(),
             "evaluation: blocks of pairs do not fit");
  Tensor out = empty({slots.numel()}, query.options().dtype(distance_dtype(query, gallery)));
  std::vector<BadInput> stops(std::max<int64_t>(blocks, 1));
  REID_DISPATCH_WIDE(out.scalar_type(), "pair_distances", [&] {
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
      Tensor buffer = empty({panel_q.tiles() * height, width}, out.options());
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

// The valid pairs of every query in ascending order of their values [pairs], equal ones by position: (ptr [Q+1],
// order).
std::tuple<Tensor, Tensor> sort_pairs(const Tensor& pair_ptr, const Tensor& valid, const Tensor& values) {
  const int64_t queries = pair_ptr.numel() - 1;
  const int64_t* pairs = int64_data(pair_ptr, "pair_ptr");
  REID_CHECK(queries >= 0 && pairs[0] == 0 && pairs[queries] == values.numel() && values.is_contiguous(),
             "evaluation: pairs do not fit ", queries, " queries");
  const bool* counts = bool_data(valid, values.numel(), "valid");
  const Tensor ptr = valid_offsets(pairs, counts, queries);
  const int64_t* begin = ptr.const_data_ptr<int64_t>();
  Tensor order = empty({begin[queries]}, cpu_options(kLong));
  int64_t* position = order.mutable_data_ptr<int64_t>();
  REID_DISPATCH_WIDE(values.scalar_type(), "sort_pairs", [&] {
    const scalar_t* x = values.const_data_ptr<scalar_t>();
    parallel_for(0, queries, 512, [&](int64_t first, int64_t last) {
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

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "find_pairs(Tensor query_ids, Tensor gallery_ids, Tensor? query_cameras, Tensor? gallery_cameras) -> "
      "(Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pair_distances(Tensor query, Tensor gallery, int metric, Tensor order, Tensor block_ptr, Tensor "
      "column_ptr, Tensor columns, Tensor pair_ptr, Tensor slots) -> (Tensor, Tensor)");
  m.def("sort_pairs(Tensor pair_ptr, Tensor valid, Tensor values) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("find_pairs", TORCH_BOX(&find_pairs));
  m.impl("pair_distances", TORCH_BOX(&pair_distances));
  m.impl("sort_pairs", TORCH_BOX(&sort_pairs));
}

}  // namespace reidfast
