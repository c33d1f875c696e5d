// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/batch_hard.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/batch_hard.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using Pairs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Below this many multiply-adds a tile product does not pay for itself.
constexpr int64_t kDirect = 32 * 1024;
// Entries of the product that exist at once: a tile of rows against all of them.
constexpr int64_t kTileEntries = 256 * 1024;
constexpr int64_t kMinTileRows = 64;

void check_inputs(const Tensor& x, const Tensor& labels) {
  check_device("batch_hard", "labels", labels, "x", x);
  REID_CHECK(is_float(x.scalar_type()) && x.dim() == 2, "batch_hard: expected x (B, D), got ", x.sizes());
  REID_CHECK(labels.dim() == 1 && labels.size(0) == x.size(0) && labels.scalar_type() == kLong,
             "batch_hard: expected int64 labels (B,) with B=", x.size(0), ", got ", labels.scalar_type(), " ",
             labels.sizes());
}

// What the forward op gave, and gradients of its distances.
void check_saved(const std::optional<Tensor>& grad_ap, const std::optional<Tensor>& grad_an, const Tensor& x,
                 const Tensor& d_ap, const Tensor& d_an, const Tensor& i_ap, const Tensor& i_an) {
  REID_CHECK(x.dim() == 2 && is_float(x.scalar_type()), "batch_hard_backward: expected x (B, D), got ", x.sizes());
  const int64_t rows = x.size(0);
  const auto check = [&](const Tensor& t, const char* name, ScalarType dtype, bool contiguous) {
    REID_CHECK(t.dim() == 1 && t.size(0) == rows && t.scalar_type() == dtype && t.device() == x.device() &&
                   (!contiguous || t.is_contiguous()),
               "batch_hard_backward: expected ", name, " of dtype ", dtype, " and shape (B,) with B=", rows, ", got ",
               t.scalar_type(), " ", t.sizes());
  };
  const ScalarType wide = acc_dtype(x.scalar_type());
  if (grad_ap) check(*grad_ap, "grad_ap", wide, false);
  if (grad_an) check(*grad_an, "grad_an", wide, false);
  check(d_ap, "d_ap", wide, true), check(d_an, "d_an", wide, true);
  check(i_ap, "i_ap", kLong, true), check(i_an, "i_an", kLong, true);
}

#if !defined(REID_WITH_CUDA)
// x in the dtype of the arithmetic, its D values adjacent.
Tensor wide_rows(const Tensor& x) {
  const Tensor wide = x.to(acc_dtype(x.scalar_type()));
  return wide.size(1) <= 1 || wide.stride(1) == 1 ? wide : wide.contiguous();
}

template <typename A>
void run_rows(const Tensor& x, const Tensor& labels, cpu::HardPairs<A> out) {
  const int64_t rows = x.size(0), dim = x.size(1), ldx = x.stride(0);
  const A* data = x.const_data_ptr<A>();
  const int64_t* ids = labels.const_data_ptr<int64_t>();
  const int64_t row_cost = rows * (dim + 16) * static_cast<int64_t>(sizeof(A)) / 4;
  if (rows * rows * dim <= kDirect) {
    REID_CPU_CALL(batch_hard_rows<A>, data, ldx, dim, rows, ids, nullptr, nullptr, 0, rows, out);
    return;
  }
  const Tensor norms = empty({rows}, x.options());
  A* sq_norms = norms.mutable_data_ptr<A>();
  parallel_for(0, rows, grain(dim * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    REID_CPU_CALL(batch_hard_norms<A>, data, ldx, dim, begin, end, sq_norms);
  });
  const int64_t tile = std::min(rows, std::max(kMinTileRows, kTileEntries / rows));
  Tensor products = empty({tile, rows}, x.options());
  const Tensor transposed = x.t();
  for (int64_t first = 0; first < rows; first += tile) {
    const int64_t last = std::min(rows, first + tile);
    Tensor part = products.narrow(0, 0, last - first);
    REID_TORCH(aoti_torch_cpu_mm_out(part.get(), x.narrow(0, first, last - first).get(), transposed.get()));
    A* product = part.mutable_data_ptr<A>();
    parallel_for(first, last, grain(row_cost), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(batch_hard_rows<A>, data, ldx, dim, rows, ids, product + (begin - first) * rows, sq_norms, begin,
                    end, out);
    });
  }
}

Pairs batch_hard(const Tensor& x, const Tensor& labels) {
  check_inputs(x, labels);
  const Tensor wide = wide_rows(x), ids = labels.contiguous();
  const auto distances = wide.options();
  const Tensor d_ap = empty({x.size(0)}, distances), d_an = empty({x.size(0)}, distances);
  const Tensor i_ap = empty({x.size(0)}, ids.options()), i_an = empty({x.size(0)}, ids.options());
  REID_DISPATCH_WIDE(wide.scalar_type(), "batch_hard", [&] {
    run_rows<scalar_t>(wide, ids,
                       {d_ap.mutable_data_ptr<scalar_t>(), d_an.mutable_data_ptr<scalar_t>(),
                        i_ap.mutable_data_ptr<int64_t>(), i_an.mutable_data_ptr<int64_t>()});
  });
  return {d_ap, d_an, i_ap, i_an};
}

// Which anchors chose each row, as linked lists in ascending order: lists [2, B] = heads, next.
void link(const int64_t* index, int64_t rows, int64_t* heads, int64_t* next) {
  std::fill(heads, heads + rows, int64_t{-1});
  for (int64_t i = rows - 1; i >= 0; --i) {
    const int64_t chosen = index[i];
    REID_CHECK_INDEX(chosen >= -1 && chosen < rows, "batch_hard: expected indices below B=", rows, ", got ", chosen);
    if (chosen < 0) continue;
    next[i] = heads[chosen];
    heads[chosen] = i;
  }
}

Tensor batch_hard_backward(const std::optional<Tensor>& grad_ap, const std::optional<Tensor>& grad_an, const Tensor& x,
                           const Tensor& d_ap, const Tensor& d_an, const Tensor& i_ap, const Tensor& i_an) {
  check_saved(grad_ap, grad_an, x, d_ap, d_an, i_ap, i_an);
  const Tensor wide = wide_rows(x);
  const int64_t rows = x.size(0), dim = x.size(1);
  const Tensor g_ap = grad_ap ? grad_ap->contiguous() : Tensor(), g_an = grad_an ? grad_an->contiguous() : Tensor();
  const Tensor grad_x = empty_output({rows, dim}, wide.options());
  const Tensor lists = empty({4, rows}, i_ap.options());
  int64_t* list = lists.mutable_data_ptr<int64_t>();
  link(i_ap.const_data_ptr<int64_t>(), rows, list, list + rows);
  link(i_an.const_data_ptr<int64_t>(), rows, list + 2 * rows, list + 3 * rows);
  REID_DISPATCH_WIDE(wide.scalar_type(), "batch_hard_backward", [&] {
    const cpu::ChosenPairs<scalar_t> positives{g_ap.defined() ? g_ap.const_data_ptr<scalar_t>() : nullptr,
                                               d_ap.const_data_ptr<scalar_t>(), i_ap.const_data_ptr<int64_t>(), list,
                                               list + rows};
    const cpu::ChosenPairs<scalar_t> negatives{g_an.defined() ? g_an.const_data_ptr<scalar_t>() : nullptr,
                                               d_an.const_data_ptr<scalar_t>(), i_an.const_data_ptr<int64_t>(),
                                               list + 2 * rows, list + 3 * rows};
    parallel_for(0, rows, grain(4 * dim * static_cast<int64_t>(sizeof(scalar_t))), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(batch_hard_backward_rows<scalar_t>, wide.const_data_ptr<scalar_t>(), wide.stride(0), dim, positives,
                    negatives, begin, end, grad_x.mutable_data_ptr<scalar_t>());
    });
  });
  return grad_x.to(x.scalar_type());
}

#else
Pairs batch_hard(const Tensor& x, const Tensor& labels) {
  check_inputs(x, labels);
  const CudaScope scope(x);
  const Tensor rows = x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous(), ids = labels.contiguous();
  const int64_t count = x.size(0);
  const auto distances = x.options().dtype(acc_dtype(x.scalar_type()));
  const Tensor d_ap = empty({count}, distances), d_an = empty({count}, distances);
  const Tensor i_ap = empty({count}, ids.options()), i_an = empty({count}, ids.options());
  const int splits = cuda::batch_hard_splits(count);
  const Tensor partial_sq = empty({splits, 2, count}, distances);
  const Tensor partial_index = empty({splits, 2, count}, ids.options());
  REID_DISPATCH_FLOATS(x.scalar_type(), "batch_hard", [&] {
    using acc = acc_t<scalar_t>;
    cuda::batch_hard(cuda_const<scalar_t>(rows), rows.stride(0), count, x.size(1), cuda_const<int64_t>(ids), splits,
                     cuda_mutable<acc>(partial_sq), cuda_mutable<int64_t>(partial_index), cuda_mutable<acc>(d_ap),
                     cuda_mutable<acc>(d_an), cuda_mutable<int64_t>(i_ap), cuda_mutable<int64_t>(i_an), scope.stream);
  });
  return {d_ap, d_an, i_ap, i_an};
}

Tensor batch_hard_backward(const std::optional<Tensor>& grad_ap, const std::optional<Tensor>& grad_an, const Tensor& x,
                           const Tensor& d_ap, const Tensor& d_an, const Tensor& i_ap, const Tensor& i_an) {
  check_saved(grad_ap, grad_an, x, d_ap, d_an, i_ap, i_an);
  const CudaScope scope(x);
  const Tensor rows = x.size(1) <= 1 || x.stride(1) == 1 ? x : x.contiguous();
  const Tensor g_ap = grad_ap ? grad_ap->contiguous() : Tensor(), g_an = grad_an ? grad_an->contiguous() : Tensor();
  const Tensor grad_x = empty(x.sizes(), x.options());
  REID_DISPATCH_FLOATS(x.scalar_type(), "batch_hard_backward", [&] {
    using acc = acc_t<scalar_t>;
    cuda::batch_hard_backward(cuda_const<scalar_t>(rows), rows.stride(0), x.size(0), x.size(1), cuda_const<acc>(g_ap),
                              cuda_const<acc>(g_an), cuda_const<acc>(d_ap), cuda_const<acc>(d_an),
                              cuda_const<int64_t>(i_ap), cuda_const<int64_t>(i_an), cuda_mutable<scalar_t>(grad_x),
                              scope.stream);
  });
  return grad_x;
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("batch_hard(Tensor x, Tensor labels) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "batch_hard_backward(Tensor? grad_ap, Tensor? grad_an, Tensor x, Tensor d_ap, Tensor d_an, Tensor i_ap, "
      "Tensor i_an) -> Tensor");
}
REID_KERNELS(reidfast, m) {
  m.impl("batch_hard", TORCH_BOX(&batch_hard));
  m.impl("batch_hard_backward", TORCH_BOX(&batch_hard_backward));
}

}  // namespace reidfast
