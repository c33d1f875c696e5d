// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Pairs (query, gallery row) of one identity: found by their labels, sorted by their distances.
#include <numeric>

#include "csrc/torch/evaluation/inputs.h"
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

// Pairs (query, gallery column) of one identity, valid where the cameras differ. -> ptr [Q+1], column, valid, query
// [pairs]; columns by identity; start, size [Q] therein.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> find_pairs(
    const Tensor& query_ids, const Tensor& gallery_ids, const std::optional<Tensor>& query_cameras,
    const std::optional<Tensor>& gallery_cameras) {
  const int64_t queries = query_ids.numel(), n = gallery_ids.numel();
  const int64_t *wanted = int64_data(query_ids, "query_ids"), *id = int64_data(gallery_ids, "gallery_ids");
  REID_CHECK(query_cameras.has_value() == gallery_cameras.has_value(), "evaluation: expected both cameras or neither");
  const int64_t *query_camera = nullptr, *gallery_camera = nullptr;
  if (query_cameras) {
    query_camera = int64_data(*query_cameras, "query_cameras");
    gallery_camera = int64_data(*gallery_cameras, "gallery_cameras");
    REID_CHECK(query_cameras->numel() == queries && gallery_cameras->numel() == n, "evaluation: cameras do not fit");
  }
  const ById by_id(id, n);
  const Options int64 = cpu_options(kLong);
  const Tensor ptr = empty({queries + 1}, int64), start = empty({queries}, int64), size = empty({queries}, int64),
               order = empty({n}, int64);
  std::copy(by_id.order.begin(), by_id.order.end(), order.mutable_data_ptr<int64_t>());
  int64_t *p = ptr.mutable_data_ptr<int64_t>(), *s = start.mutable_data_ptr<int64_t>(),
          *c = size.mutable_data_ptr<int64_t>();
  p[0] = 0;
  for (int64_t q = 0; q < queries; ++q) {
    const auto [first, last] = by_id.range_of(wanted[q]);
    s[q] = first, c[q] = last - first, p[q + 1] = p[q] + c[q];
  }
  const Tensor column = empty({p[queries]}, int64), query = empty({p[queries]}, int64),
               valid = empty({p[queries]}, cpu_options(kBool));
  int64_t *column_of = column.mutable_data_ptr<int64_t>(), *query_of = query.mutable_data_ptr<int64_t>();
  bool* is_valid = valid.mutable_data_ptr<bool>();
  parallel_for(0, queries, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q)
      for (int64_t i = 0; i < c[q]; ++i) {
        const int64_t match = by_id.order[s[q] + i];
        column_of[p[q] + i] = match;
        query_of[p[q] + i] = q;
        is_valid[p[q] + i] = gallery_camera == nullptr || gallery_camera[match] != query_camera[q];
      }
  });
  return {ptr, column, valid, query, order, start, size};
}

// The valid pairs of every query in ascending order of their values [pairs], equal ones by position: (ptr [Q+1],
// order).
std::tuple<Tensor, Tensor> sort_pairs(const Tensor& pair_ptr, const Tensor& valid, const Tensor& values) {
  const int64_t queries = pair_ptr.numel() - 1;
  const int64_t* pairs = int64_data(pair_ptr, "pair_ptr");
  REID_CHECK(
      queries >= 0 && pairs[0] == 0 && pairs[queries] == values.numel() && values.is_contiguous() && values.is_cpu(),
      "evaluation: pairs do not fit ", queries, " queries");
  const bool* is_valid = bool_data(valid, values.numel(), "valid");
  const Tensor ptr = valid_offsets(pairs, is_valid, queries);
  const int64_t* begin = ptr.const_data_ptr<int64_t>();
  const Tensor order = empty({begin[queries]}, cpu_options(kLong));
  int64_t* position = order.mutable_data_ptr<int64_t>();
  REID_DISPATCH_WIDE(values.scalar_type(), "sort_pairs", [&] {
    const scalar_t* x = values.const_data_ptr<scalar_t>();
    parallel_for(0, queries, 512, [&](int64_t first, int64_t last) {
      std::vector<scalar_t> query_values;
      for (int64_t q = first; q < last; ++q) {
        query_values.clear();
        for (int64_t p = pairs[q]; p < pairs[q + 1]; ++p)
          if (is_valid[p]) position[begin[q] + query_values.size()] = p, query_values.push_back(x[p]);
        sort_matches(query_values.data(), position + begin[q], query_values.size());
      }
    });
  });
  return {ptr, order};
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "find_pairs(Tensor query_ids, Tensor gallery_ids, Tensor? query_cameras, Tensor? gallery_cameras) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("sort_pairs(Tensor pair_ptr, Tensor valid, Tensor values) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("find_pairs", TORCH_BOX(&find_pairs));
  m.impl("sort_pairs", TORCH_BOX(&sort_pairs));
}

}  // namespace reidfast
