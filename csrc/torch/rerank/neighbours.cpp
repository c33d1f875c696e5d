// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Nearest-neighbour lists of all items, from features or from distances, and ties resolved in double.
#include <cmath>
#include <utility>
#include <vector>

#include "csrc/cpu/rerank.h"
#include "csrc/torch/evaluation/distance_tile.h"
#include "csrc/torch/rerank/arguments.h"

namespace reidfast {
namespace {

// Items a side of a block of the symmetric product, in square tiles of kTileColumns, so that the library packs little
// beside what it multiplies; a block holds many of them, so that threads seldom wait for each other.
constexpr int64_t kBlockItems = 2048;

// Nearest-neighbour lists of n items, in the making.
struct Lists {
  Tensor ids, distances, bound, largest;
  cpu::NeighbourLists view;

  Lists(int64_t n, int64_t k, bool self_first) {
    ids = full({n, k}, cpu::NeighbourLists::kNone, cpu_options(kInt));
    distances = full({n, k}, INFINITY, cpu_options(kFloat));
    bound = full({n}, INFINITY, cpu_options(kFloat));
    largest = zeros({n}, cpu_options(kFloat));
    view = {distances.mutable_data_ptr<float>(), ids.mutable_data_ptr<int32_t>(), bound.mutable_data_ptr<float>(),
            largest.mutable_data_ptr<float>(), k};
    if (!self_first) return;
    for (int64_t i = 0; i < n; ++i) {
      view.id[i * k] = cpu::NeighbourLists::kSelf;
      view.distance[i * k] = 0.0f;
      view.bound[i] = view.distance[i * k + k - 1];
    }
  }

  void offer_rows(const cpu::DistanceBlock& block) {
    parallel_for(0, block.rows, grain(block.columns * sizeof(float)),
                 [&](int64_t begin, int64_t end) { REID_CPU_CALL(rerank_offer_rows, block, view, begin, end); });
  }
  void offer_columns(const cpu::DistanceBlock& block) {
    parallel_for(0, block.columns, grain(block.rows * sizeof(float)),
                 [&](int64_t begin, int64_t end) { REID_CPU_CALL(rerank_offer_columns, block, view, begin, end); });
  }

  std::tuple<Tensor, Tensor, Tensor> finish() {
    const int64_t n = ids.size(0), k = view.k;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t a = 0; a < k; ++a) {
        int32_t& id = view.id[i * k + a];
        if (id == cpu::NeighbourLists::kSelf) id = static_cast<int32_t>(i);
        if (id == cpu::NeighbourLists::kNone) id = -1;
      }
    return {ids, distances, largest};
  }
};

// Whether a product in the square tiles used here has the bits of one in the tiles of for_each_block, for features of
// this length. Asked by an example.
bool square_tiles_agree(int64_t dim) {
  bool alike = true;
  for_each_task(1, [&](int64_t) {
    const int64_t width = tile_columns<float>();
    for (const int64_t k : {std::min(dim, kChunk), dim % kChunk}) {
      if (k == 0) continue;
      const Tensor a = empty({kTileColumns, k}, cpu_options(kFloat));
      const Tensor b = empty({std::max(kTileColumns, width), k}, cpu_options(kFloat));
      float *x = a.mutable_data_ptr<float>(), *y = b.mutable_data_ptr<float>();
      for (int64_t i = 0; i < a.numel(); ++i) x[i] = static_cast<float>(std::sin(0.7 * static_cast<double>(i) + 1.0));
      for (int64_t i = 0; i < b.numel(); ++i) y[i] = static_cast<float>(std::sin(1.3 * static_cast<double>(i) + 2.0));
      const Tensor square = empty({kTileColumns, kTileColumns}, cpu_options(kFloat));
      const Tensor flat = empty({kTileRows, width}, cpu_options(kFloat));
      product_into(square, a, b.narrow(0, 0, kTileColumns), /*accumulate=*/false);
      product_into(flat, a.narrow(0, 0, kTileRows), b.narrow(0, 0, width), /*accumulate=*/false);
      const float *s = square.const_data_ptr<float>(), *f = flat.const_data_ptr<float>();
      for (int64_t r = 0; r < kTileRows; ++r)
        for (int64_t c = 0; c < std::min(width, kTileColumns); ++c)
          alike = alike && s[r * kTileColumns + c] == f[r * width + c];
    }
  });
  return alike;
}

// Base distances between queries and gallery of so few bytes are kept from the first product; others are made again
// where final distances are asked for.
constexpr int64_t kKeptFrom = 4 << 20, kKeptBytes = 256 << 20;

// Blocks of rows part, part + parts, ... alone: the lists of all parts together hold the nearest.
// -> ids [n, k] int32 (-1 = none), D [n, k], max D [n], base distances [Q, G] or empty, where it stopped (BadInput)
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rerank_neighbours(const Tensor& query, const Tensor& gallery,
                                                                     int64_t k, const Text& metric_name, bool square,
                                                                     int64_t part, int64_t parts) {
  REID_CHECK_VALUE(parts >= 1 && part >= 0 && part < parts, "rerank: expected 0 <= part < parts, got ", part, " and ",
                   parts);
  check_features(query, gallery);
  const Metric metric = parse_metric(metric_name);
  const int64_t n = query.size(0) + gallery.size(0), dim = query.size(1);
  REID_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(n, 1), "rerank: expected 1 <= k <= N=", n, ", got ", k);
  Lists lists(n, k, /*self_first=*/true);
  const int64_t pair_bytes = 4 * query.size(0) * gallery.size(0);
  const bool keep = parts == 1 && query.size(0) > 32 && pair_bytes >= kKeptFrom && pair_bytes <= kKeptBytes &&
                    square_tiles_agree(dim);
  Tensor kept =
      keep ? empty_output({query.size(0), gallery.size(0)}, cpu_options(kFloat)) : empty({0, 0}, cpu_options(kFloat));
  BadInput stop;
  if (n > 0) {
    const Rows sides[2] = {Rows(query), Rows(gallery)};
    const int64_t side = std::min(round_up(n, kTileColumns), kBlockItems);
    Panel<float> row_panel(side, kTileColumns, dim), column_panel(side, kTileColumns, dim);
    const Tensor buffer = empty({side * side}, cpu_options(kFloat));
    float* d = buffer.mutable_data_ptr<float>();
    const int64_t queries = query.size(0);
    const auto pack = [&](Panel<float>& panel, int64_t first, int64_t count) {  // items, of either side or of both
      for (const int64_t which : {0, 1}) {
        const int64_t begin = which ? std::max(first - queries, int64_t{0}) : first;
        const int64_t end = which ? first + count - queries : std::min(first + count, queries);
        if (begin >= end) continue;
        stop.bad = panel.pack(sides[which], begin, end - begin, metric, which ? begin + queries - first : 0);
        stop.side = which;
        if (stop) return false;
      }
      return true;
    };
    std::vector<std::pair<int64_t, int64_t>> tiles;  // of a block: none below the diagonal
    int64_t number = 0;
    for (int64_t i = 0; i < n && !stop; i += side) {
      const int64_t rows = std::min(side, n - i);
      if (number++ % parts != part) continue;
      if (!pack(row_panel, i, rows)) break;
      for (int64_t j = i; j < n; j += side) {
        const int64_t columns = std::min(side, n - j);
        check_interrupt();
        if (!pack(column_panel, j, columns)) break;
        tiles.clear();
        for (int64_t t = 0; t < row_panel.tiles(); ++t)
          for (int64_t u = i == j ? t : 0; u < column_panel.tiles(); ++u) tiles.emplace_back(t, u);
        for_each_task(static_cast<int64_t>(tiles.size()), [&](int64_t task) {
          const auto [t, u] = tiles[task];
          float* tile = d + t * kTileColumns * side + u * kTileColumns;
          distance_tile(row_panel, t, column_panel, u, metric, tile, side);
          if (metric == Metric::kCosine)
            for (int64_t r = 0; r < kTileColumns; ++r) REID_CPU_CALL(rerank_clamp, tile + r * side, kTileColumns);
        });
        const int64_t g0 = std::max(queries - j, int64_t{0});  // the first gallery column of the block
        if (keep && g0 < columns)
          parallel_for(0, std::clamp(queries - i, int64_t{0}, rows), grain(columns * sizeof(float)),
                       [&](int64_t begin, int64_t end) {
                         float* out = kept.mutable_data_ptr<float>() + j + g0 - queries;
                         for (int64_t r = begin; r < end; ++r)
                           std::copy_n(d + r * side + g0, columns - g0, out + (i + r) * gallery.size(0));
                       });
        const cpu::DistanceBlock block{d, side, rows, columns, i, j, square, i == j};
        lists.offer_rows(block);
        lists.offer_columns(block);
      }
    }
  }
  return std::tuple_cat(lists.finish(), std::make_tuple(kept, stop.tensor()));
}

// The first `keep` entries of lists [n, k] after entries that rounding may have put in the wrong order (neighbours in
// the list closer to each other than kRounding allows) are sorted by their distance in double, then by id.
std::tuple<Tensor, Tensor> rerank_settle(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                         const Tensor& distances, int64_t keep, const Text& metric_name, bool square) {
  constexpr double kRounding = 8.0 / (1 << 24);
  check_features(query, gallery);
  const bool cosine = parse_metric(metric_name) == Metric::kCosine;
  const int64_t n = ids.size(0), k = ids.size(1), dim = query.size(1), queries = query.size(0);
  check_lists(ids, distances);
  REID_CHECK(n == queries + gallery.size(0), "rerank: expected lists of ", queries + gallery.size(0), " items, got ",
             n);
  REID_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  const int32_t* id = ids.const_data_ptr<int32_t>();
  const float* d = distances.const_data_ptr<float>();
  for (int64_t e = 0; e < n * k; ++e) REID_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  const float *q = query.const_data_ptr<float>(), *g = gallery.const_data_ptr<float>();
  const auto item = [&](int64_t i) { return i < queries ? q + i * dim : g + (i - queries) * dim; };
  std::vector<double> norm(n);  // squared
  parallel_for(0, n, grain(dim * sizeof(float)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) REID_CPU_CALL(row_square_sum, item(i), 1, dim, &norm[i]);
  });
  Tensor out_ids = empty({n, keep}, cpu_options(kInt)), out_distances = empty({n, keep}, cpu_options(kFloat));
  int32_t* new_id = out_ids.mutable_data_ptr<int32_t>();
  float* new_d = out_distances.mutable_data_ptr<float>();
  parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<double, int32_t>> run;
    std::vector<std::pair<float, int32_t>> row(k);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t a = 0; a < k; ++a) row[a] = {d[i * k + a], id[i * k + a]};
      const auto base = [&](int64_t a) {
        return square ? std::sqrt(static_cast<double>(row[a].first)) : static_cast<double>(row[a].first);
      };
      for (int64_t a = 0; a < k;) {
        int64_t b = a + 1;
        if (row[a].second >= 0 && row[a].second != i) {
          for (; b < k && row[b].second >= 0; ++b) {
            const double scale = cosine ? 2.0 : norm[i] + std::max(norm[row[b - 1].second], norm[row[b].second]);
            if (!(base(b) - base(b - 1) <= kRounding * scale)) break;
          }
          if (b - a > 1 && a < keep) {
            run.clear();
            for (int64_t c = a; c < b; ++c) {
              const int32_t j = row[c].second;
              double exact = 0.0;
              REID_CPU_CALL(rerank_pair, item(i), item(j), dim, /*product=*/cosine, &exact);
              if (cosine) {
                const double norms = norm[i] * norm[j];
                exact = norms > 0.0 ? std::max(0.0, 1.0 - exact / std::sqrt(norms)) : 1.0;
              }
              run.emplace_back(exact, j);
            }
            std::sort(run.begin(), run.end());
            for (int64_t c = a; c < b; ++c) {
              const float value = static_cast<float>(run[c - a].first);
              row[c] = {square ? value * value : value, run[c - a].second};
            }
          }
        }
        a = b;
      }
      for (int64_t a = 0; a < keep; ++a) new_d[i * keep + a] = row[a].first, new_id[i * keep + a] = row[a].second;
    }
  });
  return {out_ids, out_distances};
}

// The same from distances: lists of column i of [[q_q, q_g], [q_g^T, g_g]], ties by index, no place kept for i itself.
std::tuple<Tensor, Tensor, Tensor> rerank_neighbours_from_distances(const Tensor& q_g, const Tensor& q_q,
                                                                    const Tensor& g_g, int64_t k, bool square) {
  check_blocks(q_g, q_q, g_g);
  const int64_t q = q_g.size(0), g = q_g.size(1);
  REID_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(q + g, 1), "rerank: expected 1 <= k <= N=", q + g, ", got ", k);
  Lists lists(q + g, k, /*self_first=*/false);
  lists.offer_columns({q_q.const_data_ptr<float>(), q, q, q, 0, 0, square, false});
  lists.offer_rows({q_g.const_data_ptr<float>(), g, q, g, 0, q, square, false});
  lists.offer_columns({q_g.const_data_ptr<float>(), g, q, g, 0, q, square, false});
  lists.offer_columns({g_g.const_data_ptr<float>(), g, g, g, q, q, square, false});
  return lists.finish();
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "rerank_neighbours(Tensor query, Tensor gallery, int k, str metric, bool square, int part, int parts) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "rerank_neighbours_from_distances(Tensor q_g, Tensor q_q, Tensor g_g, int k, bool square) -> (Tensor, Tensor, "
      "Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("rerank_neighbours", TORCH_BOX(&rerank_neighbours));
  m.impl("rerank_settle", TORCH_BOX(&rerank_settle));
  m.impl("rerank_neighbours_from_distances", TORCH_BOX(&rerank_neighbours_from_distances));
}

}  // namespace reidfast
