// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Histograms of the distances to non-matches, for exact thresholds at a false accept rate.
#include "csrc/cpu/ranking.h"
#include "csrc/torch/evaluation/inputs.h"

namespace reidfast {
namespace {

// Adds to histogram [prefixes, 2^bits] the distances to non-matches whose order-preserving integer begins with one of
// `prefixes` (each prefix_bits long).
Tensor histogram_features(const Tensor& query, const Tensor& gallery, const std::optional<Tensor>& rows, int64_t metric,
                          int64_t first, const Tensor& same_ptr, const Tensor& same, int64_t prefix_bits,
                          const Tensor& prefixes, int64_t bits, const Tensor& histogram) {
  check_features(query, gallery, rows);
  const Exclusions exclusions(same_ptr, same, query.size(0), "same");
  const int64_t* prefix = int64_data(prefixes, "prefixes");
  REID_CHECK(bits > 0 && bits <= 20 && prefix_bits >= 0 && prefix_bits + bits <= 64,
             "evaluation: expected bits in 1..20 after prefix_bits, got ", bits, " after ", prefix_bits);
  const int64_t n_prefix = prefixes.numel(), bins = int64_t{1} << bits;
  REID_CHECK(histogram.numel() == n_prefix * bins, "evaluation: expected histogram (", n_prefix, ", ", bins, "), got ",
             histogram.sizes());
  int64_t* out = int64_output(histogram, "histogram");
  BadInput stop;
  REID_DISPATCH_WIDE(distance_dtype(query, gallery), "histogram_features", [&] {
    std::vector<std::vector<int64_t>> per_thread(num_threads());
    stop = for_each_block<scalar_t>(
        Rows(query), Rows(gallery, rows), metric_of(metric), {},
        [&](scalar_t* block, int64_t ld, int64_t q0, int64_t nq, int64_t g0, int64_t ng) {
          parallel_for(0, nq, grain(ng * 4, 256 * 1024), [&](int64_t begin, int64_t end) {
            std::vector<int64_t>& part = per_thread[thread_index()];
            part.resize(n_prefix * bins);
            for (int64_t r = begin; r < end; ++r) {
              exclusions.leave_out(q0 + r, block + r * ld, first + g0, ng);
              for (int64_t i = 0; i < n_prefix; ++i)
                REID_CPU_CALL(histogram_row, block + r * ld, ng, static_cast<int>(prefix_bits),
                              static_cast<uint64_t>(prefix[i]), static_cast<int>(bits), part.data() + i * bins);
            }
          });
        });
    for (const std::vector<int64_t>& part : per_thread)
      for (size_t i = 0; i < part.size(); ++i) out[i] += part[i];
  });
  return stop.tensor();
}

}  // namespace

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "histogram_features(Tensor query, Tensor gallery, Tensor? rows, int metric, int first, Tensor same_ptr, Tensor "
      "same, int prefix_bits, Tensor prefixes, int bits, Tensor(a!) histogram) -> Tensor");
}
REID_KERNELS(reidfast_eval, m) { m.impl("histogram_features", TORCH_BOX(&histogram_features)); }

}  // namespace reidfast
