// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking on the CPU, first half: the nearest neighbours of every item. Items are queries 0 .. Q-1
// followed by gallery Q .. Q+G-1; nothing in re-ranking grows with the square of their number.
#include <cmath>
#include <vector>

#include "csrc/cpu/rerank.h"
#include "csrc/torch/distance_tile.h"
#include "csrc/torch/rerank/inputs.h"
#include "csrc/torch/rerank/pace.h"

namespace reidfast {
namespace {

// Items a side of a block of the symmetric product, in square tiles of kTileColumns, so that the library packs little
// beside what it multiplies; a block holds many of them, so that threads seldom wait for each other.
constexpr int64_t kBlockItems = 2048;

using Lists = std::tuple<Tensor, Tensor, Tensor>;  // ids [n, k] int32 (-1 = none), D [n, k], max D [n]

// Nearest-neighbour lists of n items, in the making.
class ListBuilder {
 public:
  ListBuilder(int64_t n, int64_t k, bool self_first) {
    ids_ = full({n, k}, cpu::NeighbourLists::kNone, cpu_options(kInt));
    distances_ = empty({n, k}, cpu_options(kFloat));
    bounds_ = empty({n}, cpu_options(kFloat));
    largest_ = zeros({n}, cpu_options(kFloat));
    view_ = {distances_.mutable_data_ptr<float>(), ids_.mutable_data_ptr<int32_t>(), bounds_.mutable_data_ptr<float>(),
             largest_.mutable_data_ptr<float>(), k};
    std::fill_n(view_.distance, n * k, INFINITY);
    std::fill_n(view_.bound, n, INFINITY);
    if (!self_first) return;
    for (int64_t i = 0; i < n; ++i) {
      view_.id[i * k] = cpu::NeighbourLists::kSelf;
      view_.distance[i * k] = 0.0f;
      view_.bound[i] = view_.distance[i * k + k - 1];
    }
  }

  void offer_rows(const cpu::DistanceBlock& block) {
    parallel_for(0, block.rows, grain(block.columns * sizeof(float)),
                 [&](int64_t begin, int64_t end) { REID_CPU_CALL(rerank_offer_rows, block, view_, begin, end); });
  }
  void offer_columns(const cpu::DistanceBlock& block) {
    parallel_for(0, block.columns, grain(block.rows * sizeof(float)),
                 [&](int64_t begin, int64_t end) { REID_CPU_CALL(rerank_offer_columns, block, view_, begin, end); });
  }

  Lists finish() {
    const int64_t n = ids_.size(0), k = view_.k;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t a = 0; a < k; ++a) {
        int32_t& id = view_.id[i * k + a];
        if (id == cpu::NeighbourLists::kSelf) id = static_cast<int32_t>(i);
        if (id == cpu::NeighbourLists::kNone) id = -1;
      }
    return {ids_, distances_, largest_};
  }

 private:
  Tensor ids_, distances_, bounds_, largest_;
  cpu::NeighbourLists view_;
};

// Whether a product in the square tiles used here has the bits of one in the tiles of for_each_block, for features of
// this length. Asked by an example.
bool square_tiles_agree(int64_t dim) {
  bool alike = true;
  for_each_task(1, [&](int64_t) {
    const Options options = cpu_options(kFloat);
    const int64_t width = tile_columns<float>();
    for (const int64_t k : {std::min(dim, kChunk), dim % kChunk}) {
      if (k == 0) continue;
      const Tensor a = empty({kTileColumns, k}, options), b = empty({std::max(kTileColumns, width), k}, options);
      float *x = a.mutable_data_ptr<float>(), *y = b.mutable_data_ptr<float>();
      for (int64_t i = 0; i < a.numel(); ++i) x[i] = static_cast<float>(std::sin(0.7 * static_cast<double>(i) + 1.0));
      for (int64_t i = 0; i < b.numel(); ++i) y[i] = static_cast<float>(std::sin(1.3 * static_cast<double>(i) + 2.0));
      const Tensor square = empty({kTileColumns, kTileColumns}, options), flat = empty({kTileRows, width}, options);
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
// -> the lists, base distances [Q, G] or empty, where it stopped (BadInput)
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> neighbours(const Tensor& query, const Tensor& gallery, int64_t k,
                                                              const Text& metric_name, bool square, int64_t part,
                                                              int64_t parts) {
  REID_CHECK_VALUE(parts >= 1 && part >= 0 && part < parts, "rerank: expected 0 <= part < parts, got ", part, " and ",
                   parts);
  check_features(query, gallery);
  const Metric metric = rerank_metric(metric_name);
  const int64_t n = query.size(0) + gallery.size(0), dim = query.size(1);
  REID_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(n, 1), "rerank: expected 1 <= k <= N=", n, ", got ", k);
  ListBuilder lists(n, k, /*self_first=*/true);
  const int64_t pair_bytes = 4 * query.size(0) * gallery.size(0);
  const bool keep = parts == 1 && query.size(0) > 32 && pair_bytes >= kKeptFrom && pair_bytes <= kKeptBytes &&
                    square_tiles_agree(dim);
  const Tensor kept =
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
    Pace pace(num_threads());
    int64_t number = 0;
    for (int64_t i = 0; i < n && !stop; i += side) {
      const int64_t rows = std::min(side, n - i);
      if (number++ % parts != part) continue;
      if (!pack(row_panel, i, rows)) break;
      for (int64_t j = i; j < n; j += side) {
        const int64_t columns = std::min(side, n - j);
        if (!pack(column_panel, j, columns)) break;
        tiles.clear();
        for (int64_t t = 0; t < row_panel.tiles(); ++t)
          for (int64_t u = i == j ? t : 0; u < column_panel.tiles(); ++u) tiles.emplace_back(t, u);
        pace.run(0, static_cast<int64_t>(tiles.size()), [&](int64_t first, int64_t last) {
          for_each_task(last - first, [&](int64_t task) {
            const auto [t, u] = tiles[first + task];
            float* tile = d + t * kTileColumns * side + u * kTileColumns;
            distance_tile(row_panel, t, column_panel, u, metric, tile, side);
            if (metric == Metric::kCosine)
              for (int64_t r = 0; r < kTileColumns; ++r) REID_CPU_CALL(rerank_clamp, tile + r * side, kTileColumns);
          });
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

// The same from distances: lists of column i of [[q_q, q_g], [q_g^T, g_g]], ties by index, no place kept for i itself.
Lists neighbours_from_distances(const Tensor& q_g, const Tensor& q_q, const Tensor& g_g, int64_t k, bool square) {
  check_blocks(q_g, q_q, g_g);
  const int64_t q = q_g.size(0), g = q_g.size(1);
  REID_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(q + g, 1), "rerank: expected 1 <= k <= N=", q + g, ", got ", k);
  ListBuilder lists(q + g, k, /*self_first=*/false);
  constexpr int64_t kRows = 256;
  Pace pace(kRows);
  const auto offer = [&](const Tensor& d, int64_t row0, int64_t column0, bool to_rows) {
    const int64_t columns = d.size(1);
    pace.run(0, d.size(0), [&](int64_t begin, int64_t end) {
      const cpu::DistanceBlock rows{d.const_data_ptr<float>() + begin * columns,
                                    columns,
                                    end - begin,
                                    columns,
                                    row0 + begin,
                                    column0,
                                    square,
                                    /*triangle=*/false};
      if (to_rows) lists.offer_rows(rows);
      lists.offer_columns(rows);
    });
  };
  offer(q_q, 0, 0, /*to_rows=*/false);
  offer(q_g, 0, q, /*to_rows=*/true);
  offer(g_g, q, q, /*to_rows=*/false);
  return lists.finish();
}

// The first `keep` entries of lists [n, k] after entries that rounding may have put in the wrong order (neighbours in
// the list closer to each other than kRerankRounding allows) are sorted by their distance in double, then by id.
std::tuple<Tensor, Tensor> resolve_ties(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                        const Tensor& distances, int64_t keep, const Text& metric_name, bool square) {
  const RerankPairs pairs = pairs_of_features(query, gallery);
  const bool cosine = rerank_metric(metric_name) == Metric::kCosine;
  const int64_t n = pairs.queries + pairs.galleries, dim = pairs.dim;
  check_lists(ids, distances, n);
  const int64_t k = ids.size(1);
  REID_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  const int32_t* id = ids.const_data_ptr<int32_t>();
  const float* d = distances.const_data_ptr<float>();
  for (int64_t e = 0; e < n * k; ++e) REID_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  std::vector<double> norm(n);  // squared
  paced_for(0, n, grain(dim * sizeof(float)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) REID_CPU_CALL(row_square_sum, rerank_item(pairs, i), 1, dim, &norm[i]);
  });
  const Tensor out_ids = empty({n, keep}, ids.options()), out_distances = empty({n, keep}, distances.options());
  int32_t* new_id = out_ids.mutable_data_ptr<int32_t>();
  float* new_d = out_distances.mutable_data_ptr<float>();
  paced_for(0, n, 64, [&](int64_t begin, int64_t end) {
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
            if (!(base(b) - base(b - 1) <= kRerankRounding * scale)) break;
          }
          if (b - a > 1 && a < keep) {
            run.clear();
            for (int64_t c = a; c < b; ++c) {
              const int32_t j = row[c].second;
              double exact = 0.0;
              REID_CPU_CALL(rerank_pair, rerank_item(pairs, i), rerank_item(pairs, j), dim, /*product=*/cosine, &exact);
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
  m.impl("rerank_neighbours", TORCH_BOX(&neighbours));
  m.impl("rerank_neighbours_from_distances", TORCH_BOX(&neighbours_from_distances));
  m.impl("rerank_settle", TORCH_BOX(&resolve_ties));
}

}  // namespace reidfast
