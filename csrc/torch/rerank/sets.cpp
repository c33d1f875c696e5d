// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// k-reciprocal re-ranking on the CPU, second half: the neighbourhoods of every item and their weights, Jaccard
// distances between them, final distances for as many queries as it is given.
#include <cmath>
#include <vector>

#include "csrc/cpu/rerank.h"
#include "csrc/torch/distance_tile.h"
#include "csrc/torch/rerank/inputs.h"
#include "csrc/torch/rerank/sparse_rows.h"

namespace reidfast {
namespace {

// A dense row of sums and a set of bits, zero, as the kernels want and leave them.
struct Scratch {
  std::vector<float> sum;
  std::vector<uint64_t> bits;
  explicit Scratch(int64_t n) : sum(n), bits(n / 64 + 1) {}
};

// k-reciprocal weights V after the local query expansion, as sparse rows. Either features or distances are given.
std::tuple<Tensor, Tensor, Tensor> kreciprocal_weights(
    const Tensor& ids, const Tensor& distances, const Tensor& largest, const std::optional<Tensor>& query,
    const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q,
    const std::optional<Tensor>& g_g, const Text& metric, int64_t k1, int64_t k1_half, int64_t k2, bool square,
    bool raw_weights, bool store_half) {
  WeightArgs args(ids, distances, largest, query, gallery, q_g, q_q, g_g, metric, k1, k1_half, k2, square, raw_weights,
                  store_half);
  const int64_t n = args.n, k = args.k;
  const RerankOptions& options = args.options;
  RerankPairs& pairs = args.pairs;
  const int32_t* id = ids.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < n * k; ++e) REID_CHECK_VALUE(id[e] >= -1 && id[e] < n, "rerank: neighbour out of range");
  std::vector<double> inverse_norm;
  if (args.needs_norms) {
    inverse_norm.resize(n);
    paced_for(0, n, grain(pairs.dim * sizeof(float)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double sq = 0.0;
        REID_CPU_CALL(row_square_sum, rerank_item(pairs, i), 1, pairs.dim, &sq);
        inverse_norm[i] = sq > 0.0 ? 1.0 / std::sqrt(sq) : 0.0;
      }
    });
    pairs.inverse_norm = inverse_norm.data();
  }

  const Tensor half_sets = empty({n, options.k1_half}, ids.options()), half_sizes = empty({n}, ids.options());
  int32_t *half_set = half_sets.mutable_data_ptr<int32_t>(), *half_size = half_sizes.mutable_data_ptr<int32_t>();
  paced_for(0, n, 64, [&](int64_t begin, int64_t end) {
    REID_CPU_CALL(rerank_half_sets, id, k, options.k1_half, begin, end, half_set, half_size);
  });
  const float* d = distances.const_data_ptr<float>();
  const float* top = largest.const_data_ptr<float>();
  const auto no_state = [] { return 0; };
  SparseRows v =
      make_rows(n, options.k1 * (options.k1_half + 1), no_state, [&](int64_t i, int, int32_t* columns, float* weights) {
        int64_t size = 0;
        REID_CPU_CALL(rerank_set_row, id, k, half_set, half_size, options, i, columns, &size);
        REID_CPU_CALL(rerank_weight_row, id, d, top, k, pairs, options, i, columns, size, weights);
        return size;
      });
  if (options.k2 > 1) {
    const RerankRows rows = v.view();
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) longest = std::max(longest, rows.indptr[i + 1] - rows.indptr[i]);
    v = make_rows(
        n, std::min(n, options.k2 * longest), [&] { return Scratch(n); },
        [&](int64_t i, Scratch& scratch, int32_t* columns, float* values) {
          int64_t size = 0;
          REID_CPU_CALL(rerank_expand_row, id, k, rows, n, options, i, scratch.sum.data(), scratch.bits.data(), columns,
                        values, &size);
          return size;
        });
  }
  return v.tensors();
}

// The entries of rows [first, n) by column, in a counting sort: rows, counted from `first`, ascend within a column.
SparseRows by_column(const RerankRows& v, int64_t first, int64_t n) {
  const int64_t entries = v.indptr[n] - v.indptr[first];
  SparseRows inverse{zeros({n + 1}, cpu_options(kLong)), empty({entries}, cpu_options(kInt)),
                     empty({entries}, cpu_options(kFloat))};
  int64_t* start = inverse.indptr.mutable_data_ptr<int64_t>();
  int32_t* row = inverse.columns.mutable_data_ptr<int32_t>();
  float* value = inverse.values.mutable_data_ptr<float>();
  for (int64_t e = v.indptr[first]; e < v.indptr[n]; ++e) ++start[v.column[e] + 1];
  for (int64_t c = 0; c < n; ++c) start[c + 1] += start[c];
  Pace(4096).run(first, n, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j)
      for (int64_t e = v.indptr[j]; e < v.indptr[j + 1]; ++e) {
        const int64_t slot = start[v.column[e]]++;
        row[slot] = static_cast<int32_t>(j - first);
        value[slot] = v.value[e];
      }
  });
  for (int64_t c = n; c > 0; --c) start[c] = start[c - 1];
  if (n > 0) start[0] = 0;
  return inverse;
}

// Jaccard distances below 1 of items [0, rows) to items [first, n), as sparse rows over n - first columns.
std::tuple<Tensor, Tensor, Tensor> jaccard_distances(const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                     int64_t rows, int64_t first, bool store_half) {
  const SparseRows weights{indptr, columns, values};
  const int64_t n = weights.rows();
  weights.check(n);
  REID_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const RerankRows v = weights.view();
  const SparseRows inverse_rows = by_column(v, first, n);
  const RerankRows inverse = inverse_rows.view();
  const int64_t targets = n - first;
  return make_rows(
             rows, targets, [&] { return Scratch(targets); },
             [&](int64_t i, Scratch& scratch, int32_t* others, float* distances) {
               int64_t size = 0;
               REID_CPU_CALL(rerank_jaccard_row, v, inverse, targets, store_half, i, scratch.sum.data(),
                             scratch.bits.data(), others, distances, &size);
               return size;
             })
      .tensors();
}

// What turns base distances into final ones: largest [>= Q], jaccard rows of the Q queries.
struct Final {
  const float* largest;
  RerankRows jaccard;
  double lambda;
  bool blend_raw;
  RerankOptions options;

  Final(int64_t queries, int64_t galleries, const Tensor& top, const SparseRows& rows, double lambda, bool square,
        bool blend_raw, bool store_half)
      : lambda(lambda), blend_raw(blend_raw) {
    rows.check(galleries);
    REID_CHECK(rows.rows() == queries && top.numel() >= queries && top.scalar_type() == kFloat && top.is_contiguous(),
               "rerank: expected one sparse row and one largest distance per query");
    largest = top.const_data_ptr<float>();
    jaccard = rows.view();
    options.square = square, options.store_half = store_half;
  }

  // Query q, gallery rows g0 ... g0 + n, in place. scratch [n].
  void row(float* d, int64_t q, int64_t g0, int64_t n, float* scratch) const {
    REID_CPU_CALL(rerank_final_row, d, n, g0, largest[q], lambda, blend_raw, options, jaccard, jaccard.indptr[q],
                  jaccard.indptr[q + 1], scratch);
  }
};

// Base distances d [Q, G] -> final distances, in place.
void final_distances_(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                      const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  REID_CHECK(d.dim() == 2 && d.scalar_type() == kFloat && d.is_contiguous(),
             "rerank: expected contiguous float32 distances (Q, G)");
  const int64_t queries = d.size(0), galleries = d.size(1);
  const Final final(queries, galleries, largest, {indptr, columns, values}, lambda, square, blend_raw, store_half);
  float* data = d.mutable_data_ptr<float>();
  paced_for(0, queries, grain(galleries * sizeof(float)), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(galleries);
    for (int64_t q = begin; q < end; ++q) final.row(data + q * galleries, q, 0, galleries, scratch.data());
  });
}

// Final distances [Q, G] from the features, block by block. Which queries are asked for together changes nothing.
// -> distances, where it stopped (BadInput)
std::tuple<Tensor, Tensor> final_distances(const Tensor& query, const Tensor& gallery, const Tensor& largest,
                                           const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                           const Text& metric_name, double lambda, bool square, bool blend_raw,
                                           bool store_half) {
  const Metric metric = rerank_metric(metric_name);
  check_features(query, gallery);
  const int64_t queries = query.size(0), galleries = gallery.size(0);
  const Final final(queries, galleries, largest, {indptr, columns, values}, lambda, square, blend_raw, store_half);
  const Tensor out = empty_output({queries, galleries}, cpu_options(kFloat));
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

// The schemas of the steps that have a CUDA implementation stand in cuda.cpp.
REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "rerank_distances(Tensor query, Tensor gallery, Tensor largest, Tensor indptr, Tensor columns, Tensor values, "
      "str metric, float lambda_, bool square, bool blend_raw, bool store_half) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast_eval, m) {
  m.impl("rerank_encode", TORCH_BOX(&kreciprocal_weights));
  m.impl("rerank_jaccard", TORCH_BOX(&jaccard_distances));
  m.impl("rerank_final_", TORCH_BOX(&final_distances_));
  m.impl("rerank_distances", TORCH_BOX(&final_distances));
}

}  // namespace reidfast
