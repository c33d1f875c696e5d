// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The steps of k-reciprocal re-ranking that have a CUDA implementation: their schemas, and that implementation. Where
// sizes are not known beforehand they are asked of the device.
#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/rerank.h"
#include "csrc/torch/cuda.h"
#include "csrc/torch/rerank/inputs.h"
#include "csrc/torch/rerank/sparse_rows.h"
#endif

namespace reidfast {

#if defined(REID_WITH_CUDA)
namespace {

// The value of the only element.
int64_t item(const Tensor& x) {
  int64_t value = 0;
  REID_TORCH(aoti_torch_item_int64(x.get(), &value));
  return value;
}

Tensor cumsum(const Tensor& x) {
  return call_torch<Tensor>("aten::cumsum", "", x, int64_t{0}, std::optional<ScalarType>(x.scalar_type()));
}

// 0, 1, ... n - 1
Tensor counting(int64_t n, const Options& options) {
  const Tensor steps = full({n}, 1, options);
  if (n > 0) steps.narrow(0, 0, 1).zero_();
  return cumsum(steps);
}

// Differences of neighbours in x [n + 1].
Tensor diff(const Tensor& x) {
  return call_torch<Tensor>("aten::diff", "", x, int64_t{1}, int64_t{0}, std::nullopt, std::nullopt);
}

Tensor index_select(const Tensor& x, const Tensor& index) {
  return call_torch<Tensor>("aten::index_select", "", x, int64_t{0}, index);
}

// x ascending, and where each element stood; equal ones in the order they had.
std::pair<Tensor, Tensor> stable_sort(const Tensor& x) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(x), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  REID_TORCH(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Sparse rows made in two runs of `fn(sizes, indptr, columns, values)`, once for sizes, once for entries.
template <typename Fn>
SparseRows make_rows_on_device(int64_t n, const Options& options, const Fn& fn) {
  const Tensor sizes = zeros({n + 1}, options.dtype(kLong));  // behind a zero
  if (n > 0) fn(sizes.mutable_data_ptr<int64_t>() + 1, nullptr, nullptr, nullptr);
  SparseRows out;
  out.indptr = cumsum(sizes);
  const int64_t entries = n > 0 ? item(out.indptr.narrow(0, n, 1)) : 0;
  out.columns = empty({entries}, options.dtype(kInt));
  out.values = empty({entries}, options.dtype(kFloat));
  if (entries > 0)
    fn(nullptr, out.indptr.const_data_ptr<int64_t>(), out.columns.mutable_data_ptr<int32_t>(),
       out.values.mutable_data_ptr<float>());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> kreciprocal_weights(
    const Tensor& ids, const Tensor& distances, const Tensor& largest, const std::optional<Tensor>& query,
    const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g, const std::optional<Tensor>& q_q,
    const std::optional<Tensor>& g_g, const Text& metric, int64_t k1, int64_t k1_half, int64_t k2, bool square,
    bool raw_weights, bool store_half) {
  WeightArgs args(ids, distances, largest, query, gallery, q_g, q_q, g_g, metric, k1, k1_half, k2, square, raw_weights,
                  store_half);
  const RerankOptions& options = args.options;
  REID_CHECK(cuda::rerank_sets_shared(options) <= cuda::kRerankSharedLimit,
             "rerank: k1 is too large for the CUDA kernels, with neighbourhoods of ", k1, " and ", k1_half, " items");
  const CudaScope scope(ids);
  const int64_t n = args.n;
  const cuda::RerankLists lists{ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(),
                                largest.const_data_ptr<float>(), n, args.k};
  Tensor inverse_norm;
  if (args.needs_norms) {
    inverse_norm = empty({n}, ids.options().dtype(kDouble));
    cuda::rerank_norms(args.pairs, nullptr, inverse_norm.mutable_data_ptr<double>(), scope.stream);
    args.pairs.inverse_norm = inverse_norm.const_data_ptr<double>();
  }
  const Tensor half_sets = empty({n, options.k1_half}, ids.options()), half_sizes = empty({n}, ids.options());
  cuda::rerank_half_sets(lists, options.k1_half, half_sets.mutable_data_ptr<int32_t>(),
                         half_sizes.mutable_data_ptr<int32_t>(), scope.stream);
  SparseRows v = make_rows_on_device(
      n, ids.options(), [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
        cuda::rerank_sets(lists, half_sets.const_data_ptr<int32_t>(), half_sizes.const_data_ptr<int32_t>(), options,
                          sizes, indptr, columns, scope.stream);
        if (indptr) cuda::rerank_weights(lists, args.pairs, options, indptr, columns, values, scope.stream);
      });
  if (k2 > 1 && n > 0) {
    const int64_t longest = item(call_torch<Tensor>("aten::max", "", diff(v.indptr)));
    REID_CHECK(cuda::rerank_expand_shared(options, longest) <= cuda::kRerankSharedLimit,
               "rerank: k2 is too large for the CUDA kernels, k2=", k2, " rows of up to ", longest, " items");
    v = make_rows_on_device(
        n, ids.options(), [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
          cuda::rerank_expand(lists, v.view(), options, longest, sizes, indptr, columns, values, scope.stream);
        });
  }
  return v.tensors();
}

std::tuple<Tensor, Tensor> resolve_ties(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                        const Tensor& distances, int64_t keep, const Text& metric_name, bool square) {
  const RerankPairs pairs = pairs_of_features(query, gallery);
  const bool cosine = rerank_metric(metric_name) == Metric::kCosine;
  const int64_t n = pairs.queries + pairs.galleries;
  check_lists(ids, distances, n);
  check_device("rerank", "ids", ids, "query", query);
  const int64_t k = ids.size(1);
  REID_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  REID_CHECK(cuda::rerank_resolve_ties_shared(k) <= cuda::kRerankSharedLimit,
             "rerank: k1 is too large for the CUDA kernels");
  const CudaScope scope(ids);
  const Tensor norm = empty({n}, ids.options().dtype(kDouble));
  cuda::rerank_norms(pairs, norm.mutable_data_ptr<double>(), nullptr, scope.stream);
  const Tensor out_ids = empty({n, keep}, ids.options()), out_distances = empty({n, keep}, distances.options());
  cuda::rerank_resolve_ties({ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(), nullptr, n, k}, pairs,
                            norm.const_data_ptr<double>(), keep, cosine, square, out_ids.mutable_data_ptr<int32_t>(),
                            out_distances.mutable_data_ptr<float>(), scope.stream);
  return {out_ids, out_distances};
}

// The entries of rows [first, n) by column: rows, counted from `first`, ascend within a column.
SparseRows by_column(const SparseRows& v, int64_t first) {
  const int64_t n = v.rows();
  const Tensor bounds = v.indptr.narrow(0, first, n + 1 - first);
  const int64_t begin = item(bounds.narrow(0, 0, 1)), entries = v.columns.numel() - begin;
  REID_CHECK_VALUE(begin >= 0 && entries >= 0, "rerank: broken sparse rows");
  const auto [column, order] = stable_sort(v.columns.narrow(0, begin, entries));
  const Tensor owner =
      call_torch<Tensor>("aten::repeat_interleave", "Tensor", diff(bounds), std::optional<int64_t>(entries));
  const Tensor starts = call_torch<Tensor>("aten::searchsorted", "Tensor", column, counting(n + 1, column.options()),
                                           /*out_int32=*/false, /*right=*/false, /*side=*/std::nullopt,
                                           /*sorter=*/std::nullopt);
  return {starts, index_select(owner.to(kInt), order), index_select(v.values.narrow(0, begin, entries), order)};
}

std::tuple<Tensor, Tensor, Tensor> jaccard_distances(const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                     int64_t rows, int64_t first, bool store_half) {
  const SparseRows v{indptr, columns, values};
  v.check_tensors();
  const int64_t n = v.rows(), targets = n - first;
  REID_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const CudaScope scope(indptr);
  const SparseRows inverse = by_column(v, first);
  const Tensor scratch = zeros({cuda::rerank_jaccard_scratch(rows, targets)}, columns.options().dtype(kByte));
  return make_rows_on_device(rows, columns.options(),
                             [&](int64_t* sizes, const int64_t* starts, int32_t* others, float* distances) {
                               cuda::rerank_jaccard(v.view(), inverse.view(), rows, targets, store_half,
                                                    scratch.mutable_data_ptr(), sizes, starts, others, distances,
                                                    scope.stream);
                             })
      .tensors();
}

void final_distances_(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                      const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  const SparseRows jaccard{indptr, columns, values};
  jaccard.check_tensors();
  check_device("rerank", "largest", largest, "d", d);
  check_device("rerank", "indptr", indptr, "d", d);
  REID_CHECK(d.dim() == 2 && d.scalar_type() == kFloat && d.is_contiguous() && jaccard.rows() == d.size(0) &&
                 largest.numel() >= d.size(0) && largest.scalar_type() == kFloat && largest.is_contiguous(),
             "rerank: expected contiguous float32 distances (Q, G), and one sparse row and one largest distance per "
             "query");
  const CudaScope scope(d);
  RerankOptions options;
  options.square = square, options.store_half = store_half;
  float rest = static_cast<float>(1.0 - lambda);
  if (store_half) rest = static_cast<float>(static_cast<c10::Half>(rest));
  cuda::rerank_final(d.mutable_data_ptr<float>(), d.size(0), d.size(1), largest.const_data_ptr<float>(),
                     static_cast<float>(lambda), rest, blend_raw, options, jaccard.view(), scope.stream);
}

}  // namespace
#endif

REID_SCHEMAS(reidfast_eval, m) {
  m.def(
      "rerank_settle(Tensor query, Tensor gallery, Tensor ids, Tensor distances, int keep, str metric, bool square) -> "
      "(Tensor, Tensor)");
  m.def(
      "rerank_encode(Tensor ids, Tensor distances, Tensor largest, Tensor? query, Tensor? gallery, Tensor? q_g, "
      "Tensor? q_q, Tensor? g_g, str metric, int k1, int k1_half, int k2, bool square, bool raw_weights, bool "
      "store_half) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rerank_jaccard(Tensor indptr, Tensor columns, Tensor values, int rows, int first, bool store_half) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "rerank_final_(Tensor(a!) d, Tensor largest, Tensor indptr, Tensor columns, Tensor values, float lambda_, bool "
      "square, bool blend_raw, bool store_half) -> ()");
}

#if defined(REID_WITH_CUDA)
REID_KERNELS(reidfast_eval, m) {
  m.impl("rerank_settle", TORCH_BOX(&resolve_ties));
  m.impl("rerank_encode", TORCH_BOX(&kreciprocal_weights));
  m.impl("rerank_jaccard", TORCH_BOX(&jaccard_distances));
  m.impl("rerank_final_", TORCH_BOX(&final_distances_));
}
#endif

}  // namespace reidfast
