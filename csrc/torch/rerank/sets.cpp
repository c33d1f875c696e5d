// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal weights, Jaccard distances as sparse rows, and final distances. Nothing here grows with the square of
// the number of items.
#include <cmath>
#include <vector>

#include "csrc/torch/evaluation/distance_tile.h"
#include "csrc/torch/rerank/arguments.h"
#include "csrc/torch/rerank/sparse_rows.h"

namespace reidfast {
namespace {

// Weights V after the local query expansion, as sparse rows. Either features or distances are given.
std::tuple<Tensor, Tensor, Tensor> rerank_encode(const Tensor& ids, const Tensor& distances, const Tensor& largest,
                                                 const std::optional<Tensor>& query,
                                                 const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g,
                                                 const std::optional<Tensor>& q_q, const std::optional<Tensor>& g_g,
                                                 const Text& metric_name, int64_t k1, int64_t k1_half, int64_t k2,
                                                 bool square, bool raw_weights, bool store_half) {
  const int64_t n = ids.size(0), k = ids.size(1);
  check_lists(ids, distances);
  REID_CHECK(largest.numel() == n && largest.scalar_type() == kFloat && largest.is_contiguous(),
             "rerank: expected the largest distance of each of ", n, " items");
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < n * k; ++e) REID_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  const Metric metric = parse_metric(metric_name);
  const RerankOptions options = rerank_options(k, k1, k1_half, k2, metric, square, raw_weights, store_half);

  cpu::PairSource pairs{};
  fill_pairs(pairs, n, query, gallery, q_g, q_q, g_g);
  std::vector<double> inverse_norm;
  if (!q_g && metric == Metric::kCosine) {
    inverse_norm.resize(n);
    parallel_for(0, n, grain(pairs.dim * sizeof(float)), [&](int64_t begin, int64_t end) {
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

  const Tensor half_sets = empty({n, options.half}, cpu_options(kInt)), half_sizes = empty({n}, cpu_options(kInt));
  parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
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
  if (k2 > 1) {
    const cpu::SparseRows rows = v.view();
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) longest = std::max(longest, rows.indptr[i + 1] - rows.indptr[i]);
    v = make_rows(
        n, std::min(n, k2 * longest), [&] { return Scratch(n); },
        [&](int64_t i, Scratch& scratch, int32_t* columns, float* values) {
          int64_t size = 0;
          REID_CPU_CALL(rerank_expand_row, id, k, rows, n, options, i, scratch.sum.data(), scratch.bits.data(), columns,
                        values, &size);
          return size;
        });
  }
  return {v.indptr, v.columns, v.values};
}

// Jaccard distances below 1 of items [0, rows) to items [first, n), as sparse rows over n - first columns.
std::tuple<Tensor, Tensor, Tensor> rerank_jaccard(const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                  int64_t rows, int64_t first, bool store_half) {
  const int64_t n = indptr.numel() - 1;
  check_rows(indptr, columns, values, n);
  REID_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const cpu::SparseRows v = Csr{indptr, columns, values}.view();

  // by column: counting sort, rows ascending within a column
  const int64_t entries = v.indptr[n] - v.indptr[first];
  Csr inverse{zeros({n + 1}, cpu_options(kLong)), empty({entries}, cpu_options(kInt)),
              empty({entries}, cpu_options(kFloat))};
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
    REID_CHECK(
        indptr.numel() == queries + 1 && top.numel() >= queries && top.scalar_type() == kFloat && top.is_contiguous(),
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
void rerank_final_(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                   const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  REID_CHECK(d.dim() == 2 && d.scalar_type() == kFloat && d.is_contiguous(),
             "rerank: expected contiguous float32 distances (Q, G)");
  const int64_t queries = d.size(0), galleries = d.size(1);
  const Final final(queries, galleries, largest, indptr, columns, values, lambda, square, blend_raw, store_half);
  float* data = d.mutable_data_ptr<float>();
  parallel_for(0, queries, grain(galleries * sizeof(float)), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(galleries);
    for (int64_t q = begin; q < end; ++q) final.row(data + q * galleries, q, 0, galleries, scratch.data());
  });
}

// Final distances [Q, G] from the features, block by block. Which queries are asked for together changes nothing.
std::tuple<Tensor, Tensor> rerank_distances(const Tensor& query, const Tensor& gallery, const Tensor& largest,
                                            const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                            const Text& metric_name, double lambda, bool square, bool blend_raw,
                                            bool store_half) {
  const Metric metric = parse_metric(metric_name);
  check_features(query, gallery);
  const int64_t queries = query.size(0), galleries = gallery.size(0);
  const Final final(queries, galleries, largest, indptr, columns, values, lambda, square, blend_raw, store_half);
  Tensor out = empty_output({queries, galleries}, cpu_options(kFloat));
  float* data = out.mutable_data_ptr<float>();
  const auto finish = [&](const float* d, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
    parallel_for(0, nq, grain(ng * sizeof(float)), [&](int64_t begin, int64_t end) {
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

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "rerank_distances(Tensor query, Tensor gallery, Tensor largest, Tensor indptr, Tensor columns, Tensor values, "
      "str "
      "metric, float lambda_, bool square, bool blend_raw, bool store_half) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("rerank_encode", TORCH_BOX(&rerank_encode));
  m.impl("rerank_jaccard", TORCH_BOX(&rerank_jaccard));
  m.impl("rerank_distances", TORCH_BOX(&rerank_distances));
  m.impl("rerank_final_", TORCH_BOX(&rerank_final_));
}

}  // namespace reidfast
