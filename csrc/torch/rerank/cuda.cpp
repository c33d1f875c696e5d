// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The steps of re-ranking that have CUDA kernels, and the schemas of those steps.
#include <numeric>

#include "csrc/torch/rerank/arguments.h"

#if defined(REID_WITH_CUDA)
#include "csrc/cuda/rerank.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {

#if defined(REID_WITH_CUDA)
namespace {

// Integers 0 .. n-1 on the device of `like`.
Tensor count_up(int64_t n, const Tensor& like) {
  const Tensor host = empty({n}, cpu_options(kInt));
  std::iota(host.mutable_data_ptr<int32_t>(), host.mutable_data_ptr<int32_t>() + n, 0);
  return torch::stable::to(host, torch::stable::Device(like.is_cuda() ? torch::headeronly::DeviceType::CUDA
                                                                      : torch::headeronly::DeviceType::CPU,
                                                       like.device().index));
}

int64_t item(const Tensor& x) {
  int64_t value = 0;
  REID_TORCH(aoti_torch_item_int64(x.get(), &value));
  return value;
}

Tensor::Base base(const Tensor& x) { return x; }

// x[i + 1] - x[i].
Tensor steps_of(const Tensor& x) {
  const std::optional<Tensor::Base> none;
  return call_torch<Tensor>("aten::diff", "", base(x), int64_t{1}, int64_t{-1}, none, none);
}

Tensor index_select(const Tensor& x, const Tensor& index) {
  return call_torch<Tensor>("aten::index_select", "", base(x), int64_t{0}, base(index)).contiguous();
}

// Values in ascending order, equal ones as they stand, and where they stood.
std::pair<Tensor, Tensor> stable_sort(const Tensor& x) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(base(x)), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  REID_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS,
             "reidfast: aten::sort of torch failed");
  return {Tensor(torch::stable::detail::to<Tensor::Base>(stack[0])),
          Tensor(torch::stable::detail::to<Tensor::Base>(stack[1]))};
}

struct Csr {
  Tensor indptr, columns, values;
};

// Sparse rows made in two runs of `fn(sizes, indptr, columns, values)`, once for sizes, once for entries. How many
// there are is asked of the device.
template <typename Fn>
Csr make_rows(int64_t n, const Tensor& like, const Fn& fn) {
  const Options options = like.options();
  const Tensor sizes = zeros({n}, options.dtype(kLong));
  if (n > 0) fn(sizes.mutable_data_ptr<int64_t>(), nullptr, nullptr, nullptr);
  Csr out;
  out.indptr = zeros({n + 1}, options.dtype(kLong));
  const std::optional<ScalarType> same;
  out.indptr.narrow(0, 1, n).copy_(call_torch<Tensor>("aten::cumsum", "", base(sizes), int64_t{0}, same));
  const int64_t entries = n > 0 ? item(out.indptr.narrow(0, n, 1)) : 0;
  out.columns = empty({entries}, options.dtype(kInt));
  out.values = empty({entries}, options.dtype(kFloat));
  if (entries > 0)
    fn(nullptr, out.indptr.const_data_ptr<int64_t>(), out.columns.mutable_data_ptr<int32_t>(),
       out.values.mutable_data_ptr<float>());
  return out;
}

cuda::RerankRows cuda_view(const Csr& rows) {
  return {rows.indptr.const_data_ptr<int64_t>(), rows.columns.const_data_ptr<int32_t>(),
          rows.values.const_data_ptr<float>()};
}

// |x| of every item, in double; some rows at a time, for their squares are made.
Tensor norms_of(const Tensor& query, const Tensor& gallery) {
  constexpr int64_t kRows = 8192;
  const Tensor out = empty({query.size(0) + gallery.size(0)}, query.options().dtype(kDouble));
  int64_t at = 0;
  for (const Tensor* side : {&query, &gallery})
    for (int64_t first = 0; first < side->size(0); first += kRows) {
      const int64_t count = std::min(kRows, side->size(0) - first);
      const Tensor wide = side->narrow(0, first, count).to(kDouble);
      const Tensor square = call_torch<Tensor>("aten::mul", "Tensor", base(wide), base(wide));
      out.narrow(0, at, count).copy_(call_torch<Tensor>("aten::sqrt", "", base(sum_of(square, 1))));
      at += count;
    }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> rerank_encode(const Tensor& ids, const Tensor& distances, const Tensor& largest,
                                                 const std::optional<Tensor>& query,
                                                 const std::optional<Tensor>& gallery, const std::optional<Tensor>& q_g,
                                                 const std::optional<Tensor>& q_q, const std::optional<Tensor>& g_g,
                                                 const Text& metric_name, int64_t k1, int64_t k1_half, int64_t k2,
                                                 bool square, bool raw_weights, bool store_half) {
  const int64_t n = ids.size(0), k = ids.size(1);
  check_lists(ids, distances);
  REID_CHECK(largest.numel() == n && largest.scalar_type() == kFloat && largest.is_contiguous() &&
                 largest.device() == ids.device() && n < (int64_t{1} << 31) - 1,
             "rerank: expected the largest distance of each of ", n, " items");
  const Metric metric = parse_metric(metric_name);
  const RerankOptions options = rerank_options(k, k1, k1_half, k2, metric, square, raw_weights, store_half);
  REID_CHECK(cuda::rerank_sets_shared(options) <= cuda::kRerankSharedLimit,
             "rerank: k1 is too large for the CUDA kernels, k1=", k1, ", half of it=", k1_half);
  const CudaScope scope(ids);

  cuda::RerankPairs pairs{};
  fill_pairs(pairs, n, query, gallery, q_g, q_q, g_g);
  Tensor inverse_norm;
  if (!q_g && metric == Metric::kCosine) {
    const Tensor norms = norms_of(*query, *gallery), none = zeros(norms.sizes(), norms.options());
    inverse_norm = call_torch<Tensor>("aten::where", "self",
                                      base(call_torch<Tensor>("aten::gt", "Tensor", base(norms), base(none))),
                                      base(call_torch<Tensor>("aten::reciprocal", "", base(norms))), base(none));
    pairs.inverse_norm = inverse_norm.const_data_ptr<double>();
  }
  const cuda::RerankLists lists{ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(),
                                largest.const_data_ptr<float>(), n, k};
  const Tensor half_sets = empty({n, options.half}, ids.options());
  const Tensor half_sizes = empty({n}, ids.options());
  cuda::rerank_half_sets(lists, options.half, half_sets.mutable_data_ptr<int32_t>(),
                         half_sizes.mutable_data_ptr<int32_t>(), scope.stream);
  Csr v = make_rows(n, ids, [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
    cuda::rerank_sets(lists, half_sets.const_data_ptr<int32_t>(), half_sizes.const_data_ptr<int32_t>(), options, sizes,
                      indptr, columns, scope.stream);
    if (indptr) cuda::rerank_weights(lists, pairs, options, indptr, columns, values, scope.stream);
  });
  if (k2 > 1 && n > 0) {
    const int64_t longest = item(call_torch<Tensor>("aten::max", "", base(steps_of(v.indptr))));
    REID_CHECK(cuda::rerank_expand_shared(options, longest) <= cuda::kRerankSharedLimit,
               "rerank: k2 is too large for the CUDA kernels, k2=", k2, " rows of up to ", longest, " items");
    v = make_rows(n, ids, [&](int64_t* sizes, const int64_t* indptr, int32_t* columns, float* values) {
      cuda::rerank_expand(lists, cuda_view(v), options, longest, sizes, indptr, columns, values, scope.stream);
    });
  }
  return {v.indptr, v.columns, v.values};
}

std::tuple<Tensor, Tensor> rerank_settle(const Tensor& query, const Tensor& gallery, const Tensor& ids,
                                         const Tensor& distances, int64_t keep, const Text& metric_name, bool square) {
  check_features(query, gallery);
  const bool cosine = parse_metric(metric_name) == Metric::kCosine;
  const int64_t n = ids.size(0), k = ids.size(1);
  check_lists(ids, distances);
  REID_CHECK(n == query.size(0) + gallery.size(0), "rerank: expected lists of ", query.size(0) + gallery.size(0),
             " items, got ", n);
  REID_CHECK_VALUE(keep >= 0 && keep <= k, "rerank: expected at most ", k, " entries to keep, got ", keep);
  REID_CHECK(cuda::rerank_settle_shared(k) <= cuda::kRerankSharedLimit, "rerank: k1 is too large for the CUDA kernels");
  const CudaScope scope(ids);
  const Tensor norm = norms_of(query, gallery);
  cuda::RerankPairs pairs{};
  pairs.query = query.const_data_ptr<float>(), pairs.gallery = gallery.const_data_ptr<float>();
  pairs.queries = query.size(0), pairs.galleries = gallery.size(0), pairs.dim = query.size(1);
  const Tensor out_ids = empty({n, keep}, ids.options()), out_distances = empty({n, keep}, distances.options());
  cuda::rerank_settle({ids.const_data_ptr<int32_t>(), distances.const_data_ptr<float>(), nullptr, n, k}, pairs,
                      norm.const_data_ptr<double>(), keep, cosine, square, out_ids.mutable_data_ptr<int32_t>(),
                      out_distances.mutable_data_ptr<float>(), scope.stream);
  return {out_ids, out_distances};
}

void check_rows_cuda(const Tensor& indptr, const Tensor& columns, const Tensor& values) {
  REID_CHECK(indptr.scalar_type() == kLong && columns.scalar_type() == kInt && values.scalar_type() == kFloat &&
                 indptr.is_contiguous() && columns.is_contiguous() && values.is_contiguous() && indptr.numel() >= 1 &&
                 values.numel() == columns.numel() && columns.device() == indptr.device() &&
                 values.device() == indptr.device(),
             "rerank: expected sparse rows of int64, int32 and float32 on one device");
}

std::tuple<Tensor, Tensor, Tensor> rerank_jaccard(const Tensor& indptr, const Tensor& columns, const Tensor& values,
                                                  int64_t rows, int64_t first, bool store_half) {
  check_rows_cuda(indptr, columns, values);
  const int64_t n = indptr.numel() - 1, targets = n - first;
  REID_CHECK_VALUE(rows >= 0 && rows <= n && first >= 0 && first <= n, "rerank: rows out of range");
  const CudaScope scope(indptr);
  // by column: a stable sort keeps rows ascending within a column
  const Tensor bounds = indptr.narrow(0, first, targets + 1);
  const int64_t skipped = item(bounds.narrow(0, 0, 1)), entries = columns.numel() - skipped;
  const Tensor late = columns.narrow(0, skipped, entries);
  const auto [by_column, order] = stable_sort(late);
  const Tensor owner =
      call_torch<Tensor>("aten::repeat_interleave", "self_Tensor", base(count_up(targets, columns)),
                         base(steps_of(bounds)), std::optional<int64_t>(0), std::optional<int64_t>(entries));
  const std::optional<std::string> side;
  const std::optional<Tensor::Base> sorter;
  const Tensor starts_of = call_torch<Tensor>("aten::searchsorted", "Tensor", base(by_column),
                                              base(count_up(n + 1, columns)), false, false, side, sorter);
  const Csr inverse{starts_of, index_select(owner, order), index_select(values.narrow(0, skipped, entries), order)};
  const Tensor scratch = zeros({cuda::rerank_jaccard_scratch(rows, targets)}, columns.options().dtype(kByte));
  const Csr v{indptr, columns, values};
  const Csr out =
      make_rows(rows, columns, [&](int64_t* sizes, const int64_t* starts, int32_t* others, float* distances) {
        cuda::rerank_jaccard(cuda_view(v), cuda_view(inverse), rows, targets, store_half, scratch.mutable_data_ptr(),
                             sizes, starts, others, distances, scope.stream);
      });
  return {out.indptr, out.columns, out.values};
}

void rerank_final_(const Tensor& d, const Tensor& largest, const Tensor& indptr, const Tensor& columns,
                   const Tensor& values, double lambda, bool square, bool blend_raw, bool store_half) {
  check_rows_cuda(indptr, columns, values);
  REID_CHECK(d.dim() == 2 && d.scalar_type() == kFloat && d.is_contiguous() && indptr.numel() == d.size(0) + 1 &&
                 largest.numel() >= d.size(0) && largest.scalar_type() == kFloat && largest.is_contiguous() &&
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
  m.impl("rerank_settle", TORCH_BOX(&rerank_settle));
  m.impl("rerank_encode", TORCH_BOX(&rerank_encode));
  m.impl("rerank_jaccard", TORCH_BOX(&rerank_jaccard));
  m.impl("rerank_final_", TORCH_BOX(&rerank_final_));
}
#endif

}  // namespace reidfast
