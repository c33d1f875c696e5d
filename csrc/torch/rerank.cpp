// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking on the CPU. Items are queries 0 .. Q-1 followed by gallery Q .. Q+G-1; nothing here grows
// with the square of their number. Steps: rerank_neighbours (or _from_distances), rerank_encode, rerank_jaccard, and
// rerank_distances, which makes final distances for as many queries as it is given.
#include "csrc/cpu/rerank.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "csrc/torch/distance_tile.h"
#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/where.h>

#include "csrc/cuda/rerank.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

// Items a side of a block of the symmetric product, in square tiles of kTileColumns, so that the library packs little
// beside what it multiplies; a block holds many of them, so that threads seldom wait for each other.
constexpr int64_t kBlockItems = 2048;

Metric parse_metric(std::string_view name) {
  TORCH_CHECK_VALUE(name == "cosine" || name == "sqeuclidean",
                    "rerank: expected metric 'cosine' or 'sqeuclidean', got '", name, "'");
  return name == "cosine" ? Metric::kCosine : Metric::kSquaredEuclidean;
}

void check_features(const Tensor& query, const Tensor& gallery) {
  TORCH_CHECK(query.dim() == 2 && gallery.dim() == 2 && query.size(1) == gallery.size(1),
              "rerank: expected query (Q, D) and gallery (G, D), got ", query.sizes(), " and ", gallery.sizes());
  TORCH_CHECK(query.scalar_type() == at::kFloat && gallery.scalar_type() == at::kFloat && query.is_contiguous() &&
                  gallery.is_contiguous(),
              "rerank: expected contiguous float32 features");
  TORCH_CHECK(query.size(0) + gallery.size(0) < std::numeric_limits<int32_t>::max(), "rerank: too many items");
}

// Nearest-neighbour lists of n items, in the making.
struct Lists {
  Tensor ids, distances, bound, largest;
  cpu::NeighbourLists view;

  Lists(int64_t n, int64_t k, bool self_first) {
    ids = at::full({n, k}, cpu::NeighbourLists::kNone, at::kInt);
    distances = at::full({n, k}, INFINITY, at::kFloat);
    bound = at::full({n}, INFINITY, at::kFloat);
    largest = at::zeros({n}, at::kFloat);
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
    at::parallel_for(0, block.rows, grain(block.columns * sizeof(float)),
                     [&](int64_t begin, int64_t end) { REID_CPU_CALL(rerank_offer_rows, block, view, begin, end); });
  }
  void offer_columns(const cpu::DistanceBlock& block) {
    at::parallel_for(0, block.columns, grain(block.rows * sizeof(float)),
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
      const Tensor a = at::empty({kTileColumns, k}, at::kFloat);
      const Tensor b = at::empty({std::max(kTileColumns, width), k}, at::kFloat);
      float *x = a.mutable_data_ptr<float>(), *y = b.mutable_data_ptr<float>();
      for (int64_t i = 0; i < a.numel(); ++i) x[i] = static_cast<float>(std::sin(0.7 * static_cast<double>(i) + 1.0));
      for (int64_t i = 0; i < b.numel(); ++i) y[i] = static_cast<float>(std::sin(1.3 * static_cast<double>(i) + 2.0));
      const Tensor square = at::empty({kTileColumns, kTileColumns}, at::kFloat);
      const Tensor flat = at::empty({kTileRows, width}, at::kFloat);
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
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rerank_neighbours_cpu(const Tensor& query, const Tensor& gallery,
                                                                         int64_t k, std::string_view metric_name,
                                                                         bool square, int64_t part, int64_t parts) {
  TORCH_CHECK_VALUE(parts >= 1 && part >= 0 && part < parts, "rerank: expected 0 <= part < parts, got ", part, " and ",
                    parts);
  check_features(query, gallery);
  const Metric metric = parse_metric(metric_name);
  const int64_t n = query.size(0) + gallery.size(0), dim = query.size(1);
  TORCH_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(n, 1), "rerank: expected 1 <= k <= N=", n, ", got ", k);
  Lists lists(n, k, /*self_first=*/true);
  const int64_t pair_bytes = 4 * query.size(0) * gallery.size(0);
  const bool keep = parts == 1 && query.size(0) > 32 && pair_bytes >= kKeptFrom && pair_bytes <= kKeptBytes &&
                    square_tiles_agree(dim);
  Tensor kept = keep ? empty_output({query.size(0), gallery.size(0)}, at::TensorOptions(at::kFloat))
                     : at::empty({0, 0}, at::kFloat);
  BadInput stop;
  if (n > 0) {
    const Rows sides[2] = {Rows(query), Rows(gallery)};
    const int64_t side = std::min(round_up(n, kTileColumns), kBlockItems);
    Panel<float> row_panel(side, kTileColumns, dim), column_panel(side, kTileColumns, dim);
    const Tensor buffer = at::empty({side * side}, at::kFloat);
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
          at::parallel_for(0, std::clamp(queries - i, int64_t{0}, rows), grain(columns * sizeof(float)),
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
std::tuple<Tensor, Tensor> rerank_settle_cpu(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                             const Tensor& distances, int64_t keep, std::string_view metric_name,
                                             bool square) {
  constexpr double kRounding = 8.0 / (1 << 24);
  check_features(query, gallery);
  const bool cosine = parse_metric(metric_name) == Metric::kCosine;
  const int64_t n = ids.size(0), k = ids.size(1), dim = query.size(1), queries = query.size(0);
  TORCH_CHECK(n == queries + gallery.size(0) && ids.scalar_type() == at::kInt && ids.is_contiguous() &&
                  distances.scalar_type() == at::kFloat && distances.is_contiguous() &&
                  distances.sizes() == ids.sizes(),
              "rerank: expected the results of rerank_neighbours");
  TORCH_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  const int32_t* id = ids.const_data_ptr<int32_t>();
  const float* d = distances.const_data_ptr<float>();
  for (int64_t e = 0; e < n * k; ++e) TORCH_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  const float *q = query.const_data_ptr<float>(), *g = gallery.const_data_ptr<float>();
  const auto item = [&](int64_t i) { return i < queries ? q + i * dim : g + (i - queries) * dim; };
  std::vector<double> norm(n);  // squared
  at::parallel_for(0, n, grain(dim * sizeof(float)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) REID_CPU_CALL(row_square_sum, item(i), 1, dim, &norm[i]);
  });
  Tensor out_ids = at::empty({n, keep}, at::kInt), out_distances = at::empty({n, keep}, at::kFloat);
  int32_t* new_id = out_ids.mutable_data_ptr<int32_t>();
  float* new_d = out_distances.mutable_data_ptr<float>();
  at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
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

void check_blocks(const Tensor& q_g, const Tensor& q_q, const Tensor& g_g) {
  TORCH_CHECK(q_g.dim() == 2 && q_q.dim() == 2 && g_g.dim() == 2 && q_q.size(0) == q_g.size(0) &&
                  q_q.size(1) == q_g.size(0) && g_g.size(0) == q_g.size(1) && g_g.size(1) == q_g.size(1),
              "rerank: expected distances (Q, G), (Q, Q) and (G, G), got ", q_g.sizes(), ", ", q_q.sizes(), " and ",
              g_g.sizes());
  for (const Tensor* t : {&q_g, &q_q, &g_g})
    TORCH_CHECK(t->scalar_type() == at::kFloat && t->is_contiguous(), "rerank: expected contiguous float32 distances");
}

// The same from distances: lists of column i of [[q_q, q_g], [q_g^T, g_g]], ties by index, no place kept for i itself.
std::tuple<Tensor, Tensor, Tensor> rerank_neighbours_from_distances_cpu(const Tensor& q_g, const Tensor& q_q,
                                                                        const Tensor& g_g, int64_t k, bool square) {
  check_blocks(q_g, q_q, g_g);
  const int64_t q = q_g.size(0), g = q_g.size(1);
  TORCH_CHECK_VALUE(k >= 1 && k <= std::max<int64_t>(q + g, 1), "rerank: expected 1 <= k <= N=", q + g, ", got ", k);
  Lists lists(q + g, k, /*self_first=*/false);
  lists.offer_columns({q_q.const_data_ptr<float>(), q, q, q, 0, 0, square, false});
  lists.offer_rows({q_g.const_data_ptr<float>(), g, q, g, 0, q, square, false});
  lists.offer_columns({q_g.const_data_ptr<float>(), g, q, g, 0, q, square, false});
  lists.offer_columns({g_g.const_data_ptr<float>(), g, g, g, q, q, square, false});
  return lists.finish();
}

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
      TORCH_CHECK(data, "rerank: no memory for ", wanted, " entries of the graph");
      data_ = static_cast<T*>(data), capacity_ = wanted;
      advise_huge_pages(data_, wanted * sizeof(T));
    }
    return data_;
  }

  Tensor take(int64_t n, at::ScalarType type) {
    if (!data_) return at::empty({0}, type);
    T* data = std::exchange(data_, nullptr);
    if (void* less = std::realloc(data, std::max<int64_t>(n, 1) * sizeof(T))) data = static_cast<T*>(less);
    return at::from_blob(data, {n}, [](void* p) { std::free(p); }, at::TensorOptions(type));
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
  const int64_t some = std::clamp<int64_t>(kRowBytes / (8 * std::max<int64_t>(1, most)), 32, 1024);
  const auto some_columns = std::make_unique_for_overwrite<int32_t[]>(std::min(some, n) * most);
  const auto some_values = std::make_unique_for_overwrite<float[]>(std::min(some, n) * most);
  Csr out;
  out.indptr = at::zeros({n + 1}, at::kLong);
  int64_t* ends = out.indptr.mutable_data_ptr<int64_t>();
  Growing<int32_t> all_columns;
  Growing<float> all_values;
  for (int64_t r0 = 0; r0 < n; r0 += some) {
    const int64_t r1 = std::min(n, r0 + some);
    at::parallel_for(r0, r1, 16, [&](int64_t begin, int64_t end) {
      auto own = state();
      for (int64_t i = begin; i < end; ++i)
        ends[i + 1] = row(i, own, &some_columns[(i - r0) * most], &some_values[(i - r0) * most]);
    });
    for (int64_t i = r0; i < r1; ++i) ends[i + 1] += ends[i];
    // what is expected of all rows, so that it rarely has to grow
    const int64_t expected = static_cast<int64_t>(1.1 * static_cast<double>(ends[r1]) / r1 * n);
    int32_t* columns = all_columns.grow(ends[r1], expected);
    float* values = all_values.grow(ends[r1], expected);
    at::parallel_for(r0, r1, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(&some_columns[(i - r0) * most], ends[i + 1] - ends[i], columns + ends[i]);
        std::copy_n(&some_values[(i - r0) * most], ends[i + 1] - ends[i], values + ends[i]);
      }
    });
  }
  out.columns = all_columns.take(ends[n], at::kInt), out.values = all_values.take(ends[n], at::kFloat);
  return out;
}

// A dense row of sums and a set of bits, zero, as the kernels want and leave them.
struct Scratch {
  std::vector<float> sum;
  std::vector<uint64_t> bits;
  explicit Scratch(int64_t n) : sum(n), bits(n / 64 + 1) {}
};

// Weights V after the local query expansion, as sparse rows. Either features or distances are given.
std::tuple<Tensor, Tensor, Tensor> rerank_encode_cpu(const Tensor& ids, const Tensor& distances, const Tensor& largest,
                                                     const std::optional<Tensor>& query,
                                                     const std::optional<Tensor>& gallery,
                                                     const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q,
                                                     const std::optional<Tensor>& g_g, std::string_view metric_name,
                                                     int64_t near, int64_t half, int64_t expand, bool square,
                                                     bool raw_weights, bool store_half) {
  const int64_t n = ids.size(0), k = ids.size(1);
  TORCH_CHECK(ids.scalar_type() == at::kInt && distances.scalar_type() == at::kFloat && ids.is_contiguous() &&
                  distances.is_contiguous() && distances.sizes() == ids.sizes() && largest.numel() == n,
              "rerank: expected the results of rerank_neighbours");
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < n * k; ++e) TORCH_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  RerankOptions options;
  options.near = std::min(near, k), options.half = std::min(half, k), options.expand = expand;
  options.square = square, options.raw_weights = raw_weights, options.store_half = store_half;
  const Metric metric = parse_metric(metric_name);
  options.raw_scale = metric == Metric::kCosine ? 2.0f : 1.0f;

  cpu::PairSource pairs{};
  std::vector<double> inverse_norm;
  if (q_g) {
    check_blocks(*q_g, *q_q, *g_g);
    pairs.q_g = q_g->const_data_ptr<float>(), pairs.q_q = q_q->const_data_ptr<float>();
    pairs.g_g = g_g->const_data_ptr<float>();
    pairs.queries = q_g->size(0), pairs.galleries = q_g->size(1);
  } else {
    TORCH_CHECK(query && gallery, "rerank: expected features or distances");
    check_features(*query, *gallery);
    pairs.query = query->const_data_ptr<float>(), pairs.gallery = gallery->const_data_ptr<float>();
    pairs.queries = query->size(0), pairs.galleries = gallery->size(0), pairs.dim = query->size(1);
    if (metric == Metric::kCosine) {
      inverse_norm.resize(n);
      at::parallel_for(0, n, grain(pairs.dim * sizeof(float)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float* x =
              i < pairs.queries ? pairs.query + i * pairs.dim : pairs.gallery + (i - pairs.queries) * pairs.dim;
          double sq = 0.0;
          REID_CPU_CALL(row_square_sum, x, 1, pairs.dim, &sq);
          inverse_norm[i] = sq > 0.0 ? 1.0 / std::sqrt(sq) : 0.0;
        }
      });
      pairs.inverse_norm = inverse_norm.data();
    }
  }
  TORCH_CHECK(pairs.queries + pairs.galleries == n, "rerank: expected lists of ", pairs.queries + pairs.galleries,
              " items, got ", n);

  const Tensor half_sets = at::empty({n, options.half}, at::kInt), half_sizes = at::empty({n}, at::kInt);
  at::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    REID_CPU_CALL(rerank_half_sets, id, k, options.half, begin, end, half_sets.mutable_data_ptr<int32_t>(),
                  half_sizes.mutable_data_ptr<int32_t>());
  });
  const float* d = distances.const_data_ptr<float>();
  const float* top = largest.const_data_ptr<float>();
  const auto nothing = [] { return 0; };
  Csr v =
      make_rows(n, options.near * (options.half + 1), nothing, [&](int64_t i, int, int32_t* columns, float* weights) {
        int64_t size = 0;
        REID_CPU_CALL(rerank_set_row, id, k, half_sets.const_data_ptr<int32_t>(), half_sizes.const_data_ptr<int32_t>(),
                      options, i, columns, &size);
        REID_CPU_CALL(rerank_weight_row, id, d, top, k, pairs, options, i, columns, size, weights);
        return size;
      });
  if (expand > 1) {
    const cpu::SparseRows rows = v.view();
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) longest = std::max(longest, rows.indptr[i + 1] - rows.indptr[i]);
    v = make_rows(
        n, std::min(n, expand * longest), [&] { return Scratch(n); },
        [&](int64_t i, Scratch& scratch, int32_t* columns, float* values) {
          int64_t size = 0;
          REID_CPU_CALL(rerank_expand_row, id, k, rows, n, options, i, scratch.sum.data(), scratch.bits.data(), columns,
                        values, &size);
          return size;
        });
  }
  return {v.indptr, v.columns, v.values};
}

void check_rows(const Tensor& indptr, const Tensor& columns, const Tensor& values, int64_t width) {
  TORCH_CHECK(indptr.scalar_type() == at::kLong && columns.scalar_type() == at::kInt &&
                  values.scalar_type() == at::kFloat && indptr.is_contiguous() && columns.is_contiguous() &&
                  values.is_contiguous() && indptr.numel() >= 1,
              "rerank: expected sparse rows of int64, int32 and float32");
  const int64_t* p = indptr.const_data_ptr<int64_t>();
  const int64_t n = indptr.numel() - 1, entries = columns.numel();
  TORCH_CHECK_VALUE(p[0] == 0 && p[n] == entries && values.numel() == entries, "rerank: broken sparse rows");
  for (int64_t i = 0; i < n; ++i) TORCH_CHECK_VALUE(p[i] <= p[i + 1], "rerank: broken sparse rows");
  const int32_t* c = columns.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < entries; ++e) TORCH_CHECK_VALUE(c[e] >= 0 && c[e] < width, "rerank: column out of range");
}

// Jaccard distances below 1 of items [0, rows) to items [first, n), as sparse rows over n - first columns.
std::tuple<Tensor, Tensor, Tensor> rerank_jaccard_cpu(const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                      int64_t rows, int64_t first, bool store_half) {
  const int64_t n = indptr.numel() - 1;
  check_rows(indptr, columns, values, n);
  TORCH_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const cpu::SparseRows v = Csr{indptr, columns, values}.view();

  // by column: counting sort, rows ascending within a column
  const int64_t entries = v.indptr[n] - v.indptr[first];
  Csr inverse{at::zeros({n + 1}, at::kLong), at::empty({entries}, at::kInt), at::empty({entries}, at::kFloat)};
  int64_t* start = inverse.indptr.mutable_data_ptr<int64_t>();
  int32_t* row = inverse.columns.mutable_data_ptr<int32_t>();
  float* value = inverse.values.mutable_data_ptr<float>();
  for (int64_t e = v.indptr[first]; e < v.indptr[n]; ++e) ++start[v.column[e] + 1];
  for (int64_t c = 0; c < n; ++c) start[c + 1] += start[c];
  for (int64_t j = first; j < n; ++j)
    for (int64_t e = v.indptr[j]; e < v.indptr[j + 1]; ++e) {
      const int64_t at = start[v.column[e]]++;
      row[at] = static_cast<int32_t>(j - first);
      value[at] = v.value[e];
    }
  for (int64_t c = n; c > 0; --c) start[c] = start[c - 1];
  if (n > 0) start[0] = 0;

  const cpu::SparseRows by_column = inverse.view();
  const int64_t targets = n - first;
  const Csr out = make_rows(
      rows, targets, [&] { return Scratch(targets); },
      [&](int64_t i, Scratch& scratch, int32_t* others, float* distances) {
        int64_t size = 0;
        REID_CPU_CALL(rerank_jaccard_row, v, by_column, targets, store_half, i, scratch.sum.data(), scratch.bits.data(),
                      others, distances, &size);
        return size;
      });
  return {out.indptr, out.columns, out.values};
}

// What turns base distances into final ones: largest [>= Q], jaccard rows of the Q queries.
struct Final {
  const float* largest;
  cpu::SparseRows jaccard;
  double lambda;
  bool blend_raw;
  RerankOptions options;

  Final(int64_t queries, int64_t galleries, const Tensor& top, const Tensor& indptr, const Tensor& columns,
        const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half)
      : lambda(lambda), blend_raw(blend_raw) {
    check_rows(indptr, columns, values, galleries);
    TORCH_CHECK(indptr.numel() == queries + 1 && top.numel() >= queries && top.scalar_type() == at::kFloat &&
                    top.is_contiguous(),
                "rerank: expected one sparse row and one largest distance per query");
    largest = top.const_data_ptr<float>();
    jaccard = Csr{indptr, columns, values}.view();
    options.square = square, options.store_half = store_half;
  }

  // Query q, gallery rows g0 ... g0 + n, in place. scratch [n].
  void row(float* d, int64_t q, int64_t g0, int64_t n, float* scratch) const {
    REID_CPU_CALL(rerank_final_row, d, n, g0, largest[q], lambda, blend_raw, options, jaccard, jaccard.indptr[q],
                  jaccard.indptr[q + 1], scratch);
  }
};

// Base distances d [Q, G] -> final distances, in place.
void rerank_final_cpu(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                      const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  TORCH_CHECK(d.dim() == 2 && d.scalar_type() == at::kFloat && d.is_contiguous(),
              "rerank: expected contiguous float32 distances (Q, G)");
  const int64_t queries = d.size(0), galleries = d.size(1);
  const Final final(queries, galleries, largest, indptr, columns, values, lambda, square, blend_raw, store_half);
  float* data = d.mutable_data_ptr<float>();
  at::parallel_for(0, queries, grain(galleries * sizeof(float)), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(galleries);
    for (int64_t q = begin; q < end; ++q) final.row(data + q * galleries, q, 0, galleries, scratch.data());
  });
}

// Final distances [Q, G] from the features, block by block. Which queries are asked for together changes nothing.
std::tuple<Tensor, Tensor> rerank_distances_cpu(const Tensor& query, const Tensor& gallery, const Tensor& largest,
                                                const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                std::string_view metric_name, double lambda, bool square,
                                                bool blend_raw, bool store_half) {
  const Metric metric = parse_metric(metric_name);
  check_features(query, gallery);
  const int64_t queries = query.size(0), galleries = gallery.size(0);
  const Final final(queries, galleries, largest, indptr, columns, values, lambda, square, blend_raw, store_half);
  Tensor out = empty_output({queries, galleries}, at::TensorOptions(at::kFloat));
  float* data = out.mutable_data_ptr<float>();
  const auto finish = [&](const float* d, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
    at::parallel_for(0, nq, grain(ng * sizeof(float)), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(ng);
      for (int64_t r = begin; r < end; ++r) {
        float* row = data + (q0 + r) * galleries + g0;
        std::copy_n(d + r * ld, ng, row);
        if (metric == Metric::kCosine) REID_CPU_CALL(rerank_clamp, row, ng);
        final.row(row, q0 + r, g0, ng, scratch.data());
      }
    });
  };
  const BadInput stop = for_each_block<float>(Rows(query), Rows(gallery), metric, BlockSize{}, finish);
  return {out, stop.tensor()};
}

#if defined(REID_WITH_CUDA)
// Sparse rows made in two runs of `fn(sizes, indptr, columns, values)`, once for sizes, once for entries. How many
// there are is asked of the device.
template <typename Fn>
Csr make_rows_cuda(int64_t n, const Tensor& like, const Fn& fn) {
  const auto options = like.options();
  const Tensor sizes = at::zeros({n}, options.dtype(at::kLong));
  if (n > 0) fn(sizes.mutable_data_ptr<int64_t>(), nullptr, nullptr, nullptr);
  Csr out;
  out.indptr = at::constant_pad_nd(at::cumsum(sizes, 0), {1, 0});
  const int64_t entries = n > 0 ? out.indptr.select(0, n).item().toLong() : 0;
  out.columns = at::empty({entries}, options.dtype(at::kInt));
  out.values = at::empty({entries}, options.dtype(at::kFloat));
  if (entries > 0)
    fn(nullptr, out.indptr.const_data_ptr<int64_t>(), out.columns.mutable_data_ptr<int32_t>(),
       out.values.mutable_data_ptr<float>());
  return out;
}

cuda::RerankRows cuda_view(const Csr& rows) {
  return {rows.indptr.const_data_ptr<int64_t>(), rows.columns.const_data_ptr<int32_t>(),
          rows.values.const_data_ptr<float>()};
}

// |x| of every item, in double.
Tensor norms_of(const Tensor& query, const Tensor& gallery) {
  return at::cat({at::linalg_vector_norm(query, 2, at::IntArrayRef{1}, false, at::kDouble),
                  at::linalg_vector_norm(gallery, 2, at::IntArrayRef{1}, false, at::kDouble)});
}

std::tuple<Tensor, Tensor, Tensor> rerank_encode_cuda(
    const Tensor& ids, const Tensor& distances, const Tensor& largest, const std::optional<Tensor>& query,
    const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q,
    const std::optional<Tensor>& g_g, std::string_view metric_name, int64_t near, int64_t half, int64_t expand,
    bool square, bool raw_weights, bool store_half) {
  const int64_t n = ids.size(0), k = ids.size(1);
  TORCH_CHECK(ids.scalar_type() == at::kInt && distances.scalar_type() == at::kFloat && ids.is_contiguous() &&
                  distances.is_contiguous() && distances.sizes() == ids.sizes() && largest.numel() == n &&
                  largest.scalar_type() == at::kFloat && largest.is_contiguous() && n < (int64_t{1} << 31) - 1,
              "rerank: expected the results of rerank_neighbours");
  RerankOptions options;
  options.near = std::min(near, k), options.half = std::min(half, k), options.expand = expand;
  options.square = square, options.raw_weights = raw_weights, options.store_half = store_half;
  const Metric metric = parse_metric(metric_name);
  options.raw_scale = metric == Metric::kCosine ? 2.0f : 1.0f;
  TORCH_CHECK(cuda::rerank_sets_shared(options) <= cuda::kRerankSharedLimit,
              "rerank: k1 is too large for the CUDA kernels, near=", near, ", half=", half);
  const CudaScope scope(ids);

  cuda::RerankPairs pairs{};
  Tensor inverse_norm;
  if (q_g) {
    check_blocks(*q_g, *q_q, *g_g);
    pairs.q_g = q_g->const_data_ptr<float>(), pairs.q_q = q_q->const_data_ptr<float>();
    pairs.g_g = g_g->const_data_ptr<float>();
    pairs.queries = q_g->size(0), pairs.galleries = q_g->size(1);
  } else {
    TORCH_CHECK(query && gallery, "rerank: expected features or distances");
    check_features(*query, *gallery);
    pairs.query = query->const_data_ptr<float>(), pairs.gallery = gallery->const_data_ptr<float>();
    pairs.queries = query->size(0), pairs.galleries = gallery->size(0), pairs.dim = query->size(1);
    if (metric == Metric::kCosine) {
      const Tensor norms = norms_of(*query, *gallery);
      inverse_norm = at::where(norms.gt(0), at::reciprocal(norms), at::zeros_like(norms));
      pairs.inverse_norm = inverse_norm.const_data_ptr<double>();
    }
  }
  TORCH_CHECK(pairs.queries + pairs.galleries == n, "rerank: expected lists of ", pairs.queries + pairs.galleries,
              " items, got ", n);
  const cuda::RerankLists lists{ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(),
                                largest.const_data_ptr<float>(), n, k};
  const Tensor half_sets = at::empty({n, options.half}, ids.options());
  const Tensor half_sizes = at::empty({n}, ids.options());
  cuda::rerank_half_sets(lists, options.half, half_sets.mutable_data_ptr<int32_t>(),
                         half_sizes.mutable_data_ptr<int32_t>(), scope.stream);
  Csr v = make_rows_cuda(n, ids, [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
    cuda::rerank_sets(lists, half_sets.const_data_ptr<int32_t>(), half_sizes.const_data_ptr<int32_t>(), options, sizes,
                      indptr, columns, scope.stream);
    if (indptr) cuda::rerank_weights(lists, pairs, options, indptr, columns, values, scope.stream);
  });
  if (expand > 1 && n > 0) {
    const int64_t longest = v.indptr.diff().max().item().toLong();
    TORCH_CHECK(cuda::rerank_expand_shared(options, longest) <= cuda::kRerankSharedLimit,
                "rerank: k2 is too large for the CUDA kernels, k2=", expand, " rows of up to ", longest, " items");
    v = make_rows_cuda(n, ids, [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
      cuda::rerank_expand(lists, cuda_view(v), options, longest, sizes, indptr, columns, values, scope.stream);
    });
  }
  return {v.indptr, v.columns, v.values};
}

std::tuple<Tensor, Tensor> rerank_settle_cuda(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                              const Tensor& distances, int64_t keep, std::string_view metric_name,
                                              bool square) {
  check_features(query, gallery);
  const bool cosine = parse_metric(metric_name) == Metric::kCosine;
  const int64_t n = ids.size(0), k = ids.size(1);
  TORCH_CHECK(n == query.size(0) + gallery.size(0) && ids.scalar_type() == at::kInt && ids.is_contiguous() &&
                  distances.scalar_type() == at::kFloat && distances.is_contiguous() &&
                  distances.sizes() == ids.sizes(),
              "rerank: expected the results of rerank_neighbours");
  TORCH_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  TORCH_CHECK(cuda::rerank_settle_shared(k) <= cuda::kRerankSharedLimit,
              "rerank: k1 is too large for the CUDA kernels");
  const CudaScope scope(ids);
  const Tensor norm = norms_of(query, gallery);
  cuda::RerankPairs pairs{};
  pairs.query = query.const_data_ptr<float>(), pairs.gallery = gallery.const_data_ptr<float>();
  pairs.queries = query.size(0), pairs.galleries = gallery.size(0), pairs.dim = query.size(1);
  const Tensor out_ids = at::empty({n, keep}, ids.options()), out_distances = at::empty({n, keep}, distances.options());
  cuda::rerank_settle({ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(), nullptr, n, k}, pairs,
                      norm.const_data_ptr<double>(), keep, cosine, square, out_ids.mutable_data_ptr<int32_t>(),
                      out_distances.mutable_data_ptr<float>(), scope.stream);
  return {out_ids, out_distances};
}

void check_rows_cuda(const Tensor& indptr, const Tensor& columns, const Tensor& values) {
  TORCH_CHECK(indptr.scalar_type() == at::kLong && columns.scalar_type() == at::kInt &&
                  values.scalar_type() == at::kFloat && indptr.is_contiguous() && columns.is_contiguous() &&
                  values.is_contiguous() && indptr.numel() >= 1 && values.numel() == columns.numel() &&
                  columns.device() == indptr.device() && values.device() == indptr.device(),
              "rerank: expected sparse rows of int64, int32 and float32 on one device");
}

std::tuple<Tensor, Tensor, Tensor> rerank_jaccard_cuda(const Tensor& indptr, const Tensor& columns,
                                                       const Tensor& values, int64_t rows, int64_t first,
                                                       bool store_half) {
  check_rows_cuda(indptr, columns, values);
  const int64_t n = indptr.numel() - 1, targets = n - first;
  TORCH_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const CudaScope scope(indptr);
  // by column: a stable sort keeps rows ascending within a column
  const Tensor bounds = indptr.slice(0, first, n + 1);
  const Tensor late = columns.slice(0, bounds.select(0, 0).item().toLong());
  auto [by_column, order] = at::sort(late, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor owner = at::repeat_interleave(at::arange(targets, columns.options()), bounds.diff(), 0, late.numel());
  const Csr inverse{at::searchsorted(by_column, at::arange(n + 1, columns.options())),
                    owner.index_select(0, order).contiguous(),
                    values.slice(0, values.numel() - late.numel()).index_select(0, order).contiguous()};
  const Tensor scratch = at::zeros({cuda::rerank_jaccard_scratch(rows, targets)}, columns.options().dtype(at::kByte));
  const Csr v{indptr, columns, values};
  const Csr out =
      make_rows_cuda(rows, columns, [&](int64_t* sizes, const int64_t* starts, int32_t* others, float* distances) {
        cuda::rerank_jaccard(cuda_view(v), cuda_view(inverse), rows, targets, store_half, scratch.mutable_data_ptr(),
                             sizes, starts, others, distances, scope.stream);
      });
  return {out.indptr, out.columns, out.values};
}

void rerank_final_cuda(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                       const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  check_rows_cuda(indptr, columns, values);
  TORCH_CHECK(d.dim() == 2 && d.scalar_type() == at::kFloat && d.is_contiguous() && indptr.numel() == d.size(0) + 1 &&
                  largest.numel() >= d.size(0) && largest.scalar_type() == at::kFloat && largest.is_contiguous() &&
                  largest.device() == d.device() && indptr.device() == d.device(),
              "rerank: expected contiguous float32 distances (Q, G), and one sparse row and one largest distance per "
              "query");
  const CudaScope scope(d);
  RerankOptions options;
  options.square = square, options.store_half = store_half;
  float rest = static_cast<float>(1.0 - lambda);
  if (store_half) rest = static_cast<float>(static_cast<c10::Half>(rest));
  cuda::rerank_final(d.mutable_data_ptr<float>(), d.size(0), d.size(1), largest.const_data_ptr<float>(),
                     static_cast<float>(lambda), rest, blend_raw, options, cuda_view({indptr, columns, values}),
                     scope.stream);
}
#endif

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def(
      "rerank_final_(Tensor(a!) d, Tensor largest, Tensor indptr, Tensor columns, Tensor values, float lambda_, bool "
      "square, bool blend_raw, bool store_half) -> ()");
  m.def(
      "rerank_neighbours(Tensor query, Tensor gallery, int k, str metric, bool square, int part, int parts) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "rerank_settle(Tensor query, Tensor gallery, Tensor ids, Tensor distances, int keep, str metric, bool square) -> "
      "(Tensor, Tensor)");
  m.def(
      "rerank_neighbours_from_distances(Tensor q_g, Tensor q_q, Tensor g_g, int k, bool square) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "rerank_encode(Tensor ids, Tensor distances, Tensor largest, Tensor? query, Tensor? gallery, Tensor? q_g, "
      "Tensor? q_q, Tensor? g_g, str metric, int near, int half, int expand, bool square, bool raw_weights, bool "
      "store_half) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rerank_jaccard(Tensor indptr, Tensor columns, Tensor values, int rows, int first, bool store_half) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "rerank_distances(Tensor query, Tensor gallery, Tensor largest, Tensor indptr, Tensor columns, Tensor values, "
      "str "
      "metric, float lambda_, bool square, bool blend_raw, bool store_half) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("rerank_neighbours", rerank_neighbours_cpu);
  m.impl("rerank_settle", rerank_settle_cpu);
  m.impl("rerank_neighbours_from_distances", rerank_neighbours_from_distances_cpu);
  m.impl("rerank_encode", rerank_encode_cpu);
  m.impl("rerank_jaccard", rerank_jaccard_cpu);
  m.impl("rerank_distances", rerank_distances_cpu);
  m.impl("rerank_final_", rerank_final_cpu);
}

#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("rerank_settle", rerank_settle_cuda);
  m.impl("rerank_encode", rerank_encode_cuda);
  m.impl("rerank_jaccard", rerank_jaccard_cuda);
  m.impl("rerank_final_", rerank_final_cuda);
}
#endif

}  // namespace reidfast
