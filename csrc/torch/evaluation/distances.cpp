// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Distances themselves: of the pairs that share an identity, and of whole rows.
#include "csrc/torch/evaluation/inputs.h"

namespace reidfast {
namespace {

// Distances of the pairs (query, gallery) that share an identity. Queries come in blocks of neighbours: block b holds
// order [block_ptr[b], block_ptr[b+1]), meets the gallery rows columns [column_ptr[b], column_ptr[b+1]), and the pairs
// of its i-th query are slots [pair_ptr[i], pair_ptr[i+1]) into those. Returns ([pairs], status).
std::tuple<Tensor, Tensor> pair_distances(const Tensor& query, const Tensor& gallery, int64_t metric_id,
                                          const Tensor& order, const Tensor& block_ptr, const Tensor& column_ptr,
                                          const Tensor& columns, const Tensor& pair_ptr, const Tensor& slots) {
  check_features(query, gallery, columns);
  const Metric metric = metric_of(metric_id);
  const int64_t blocks = block_ptr.numel() - 1, ordered = order.numel(), all_queries = query.size(0),
                dim = query.size(1);
  const int64_t *queries = int64_data(order, "order"), *bp = int64_data(block_ptr, "block_ptr"),
                *cp = int64_data(column_ptr, "column_ptr"), *col = int64_data(columns, "columns"),
                *pp = int64_data(pair_ptr, "pair_ptr"), *slot = int64_data(slots, "slots");
  REID_CHECK(blocks >= 0 && column_ptr.numel() == blocks + 1 && pair_ptr.numel() == ordered + 1 &&
                 bp[blocks] == ordered && cp[blocks] == columns.numel() && pp[ordered] == slots.numel(),
             "evaluation: blocks of pairs do not fit");
  for (int64_t i = 0; i < ordered; ++i)
    REID_CHECK(queries[i] >= 0 && queries[i] < all_queries, "evaluation: query row ", queries[i], " is out of range");
  const Tensor out = empty({slots.numel()}, query.options().dtype(distance_dtype(query, gallery)));
  std::vector<BadInput> stops(std::max<int64_t>(blocks, 1));
  REID_DISPATCH_WIDE(out.scalar_type(), "pair_distances", [&] {
    scalar_t* d = out.mutable_data_ptr<scalar_t>();
    const int64_t width = tile_columns<scalar_t>();
    // Tiles as high as those of the counting pass: the height depends on the number of all queries.
    const int64_t height = tile_rows_for(all_queries);
    const auto block_distances = [&](int64_t b) {
      const int64_t n = cp[b + 1] - cp[b];
      if (n == 0 || pp[bp[b + 1]] == pp[bp[b]]) return;
      const Rows rows_q(query, queries + bp[b], bp[b + 1] - bp[b]), rows_g(gallery, col + cp[b], n);
      Panel<scalar_t> panel_q(round_up(rows_q.n, height), height, dim);
      if ((stops[b].bad = panel_q.pack(rows_q, 0, rows_q.n, metric))) return;
      Panel<scalar_t> panel_g(width, width, dim);
      const Tensor buffer = empty({panel_q.tiles() * height, width}, cpu_options(dtype_of<scalar_t>()));
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
    };
    over_spans(blocks, 32 * num_threads(), [&](int64_t first, int64_t last) {
      for_each_task(last - first, [&](int64_t i) { block_distances(first + i); });
    });
  });
  for (const BadInput& stop : stops)
    if (stop) return {out, stop.tensor()};
  return {out, BadInput().tensor()};
}

// Distances [Q, G'] of a few queries, for what needs whole rows.
std::tuple<Tensor, Tensor> dense_distances(const Tensor& query, const Tensor& gallery,
                                           const std::optional<Tensor>& rows, int64_t metric) {
  check_features(query, gallery, rows);
  const Rows gallery_rows(gallery, rows);
  const Tensor out = empty({query.size(0), gallery_rows.n}, query.options().dtype(distance_dtype(query, gallery)));
  BadInput stop;
  REID_DISPATCH_WIDE(out.scalar_type(), "dense_distances", [&] {
    scalar_t* d = out.mutable_data_ptr<scalar_t>();
    stop = for_each_block<scalar_t>(
        Rows(query), gallery_rows, metric_of(metric), {},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          over_rows(0, nq, ng, [&](int64_t r) { std::copy_n(block + r * ld, ng, d + (q0 + r) * gallery_rows.n + g0); });
        });
  });
  return {out, stop.tensor()};
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "pair_distances(Tensor query, Tensor gallery, int metric, Tensor order, Tensor block_ptr, Tensor column_ptr, "
      "Tensor columns, Tensor pair_ptr, Tensor slots) -> (Tensor, Tensor)");
  m.def("dense_distances(Tensor query, Tensor gallery, Tensor? rows, int metric) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("pair_distances", TORCH_BOX(&pair_distances));
  m.impl("dense_distances", TORCH_BOX(&dense_distances));
}

}  // namespace reidfast
