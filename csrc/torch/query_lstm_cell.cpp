// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/query_lstm_cell.h"

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/query_lstm_cell.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using State = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// Tensors of one call in one memory format: channels_last where the gates are, else contiguous.
struct QueryLstmArgs {
  MemoryFormat format;
  Tensor gates, query, c;
  CellShape shape;

  QueryLstmArgs(const Tensor& g, const Tensor& q, const Tensor& state) {
    REID_CHECK(g.dim() == 4 && state.dim() == 4 && q.dim() == 4 && g.size(1) == 4 * state.size(1) &&
                   g.size(0) == state.size(0) && g.size(2) == state.size(2) && g.size(3) == state.size(3) &&
                   q.size(1) == g.size(1) && q.size(2) == g.size(2) && q.size(3) == g.size(3) &&
                   (q.size(0) == g.size(0) || q.size(0) == 1),
               "query_lstm_cell: expected gates (B, 4*Dh, H, W), query_gates of that shape or (1, 4*Dh, H, W) and c "
               "(B, Dh, H, W), got ",
               g.sizes(), ", ", q.sizes(), " and ", state.sizes());
    REID_CHECK(g.scalar_type() == q.scalar_type() && g.scalar_type() == state.scalar_type(),
               "query_lstm_cell: expected one dtype, got ", g.scalar_type(), ", ", q.scalar_type(), " and ",
               state.scalar_type());
    check_device("query_lstm_cell", "query_gates", q, "gates", g);
    check_device("query_lstm_cell", "c", state, "gates", g);
    format = output_format(g);
    gates = g.contiguous(format);
    query = q.contiguous(format);
    c = state.contiguous(format);
    const int64_t cells = g.size(2) * g.size(3), batch = g.size(0);
    if (format == MemoryFormat::ChannelsLast)
      shape = {batch * cells, q.size(0) * cells, state.size(1)};
    else
      shape = {batch, q.size(0), state.size(1) * cells};
  }

  static MemoryFormat output_format(const Tensor& g) {
    return !g.is_contiguous() && g.is_contiguous(MemoryFormat::ChannelsLast) ? MemoryFormat::ChannelsLast
                                                                             : MemoryFormat::Contiguous;
  }
};

#if !defined(REID_WITH_CUDA)
// Cells per task; an activation costs some twenty times a copied byte.
constexpr int64_t kGrain = 4096;

State query_lstm_cell(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const QueryLstmArgs p(gates, query_gates, c);
  const Tensor h = empty_like(p.c), c_new = empty_like(p.c);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell", [&] {
    parallel_for(0, p.shape.rows * p.shape.run, kGrain, [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(query_lstm_cell_forward<scalar_t>, p.gates.const_data_ptr<scalar_t>(),
                    p.query.const_data_ptr<scalar_t>(), p.c.const_data_ptr<scalar_t>(), p.shape, begin, end,
                    h.mutable_data_ptr<scalar_t>(), c_new.mutable_data_ptr<scalar_t>());
    });
  });
  return {h, c_new};
}

// -> grad_gates, grad_query, grad_c; grad_query is undefined where nothing is broadcast: it is grad_gates then.
Gradients query_lstm_cell_backward(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c_new,
                                   const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const QueryLstmArgs p(gates, query_gates, c);
  const Tensor gh = grad_h ? grad_h->contiguous(p.format) : Tensor();
  const Tensor gc = grad_c_new ? grad_c_new->contiguous(p.format) : Tensor();
  const Tensor grad_gates = empty_like(p.gates), grad_c = empty_like(p.c);
  Tensor grad_query;
  if (query_gates.size(0) != gates.size(0)) grad_query = empty_like(p.query);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell_backward", [&] {
    parallel_for(0, p.shape.query_rows * p.shape.run, kGrain / 2, [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(query_lstm_cell_backward<scalar_t>, gh.defined() ? gh.const_data_ptr<scalar_t>() : nullptr,
                    gc.defined() ? gc.const_data_ptr<scalar_t>() : nullptr, p.gates.const_data_ptr<scalar_t>(),
                    p.query.const_data_ptr<scalar_t>(), p.c.const_data_ptr<scalar_t>(), p.shape, begin, end,
                    grad_gates.mutable_data_ptr<scalar_t>(),
                    grad_query.defined() ? grad_query.mutable_data_ptr<scalar_t>() : nullptr,
                    grad_c.mutable_data_ptr<scalar_t>());
    });
  });
  return {grad_gates, grad_query, grad_c};
}

#else
State query_lstm_cell(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const CudaScope scope(gates);
  const QueryLstmArgs p(gates, query_gates, c);
  const Tensor h = empty_like(p.c), c_new = empty_like(p.c);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell", [&] {
    cuda::query_lstm_cell(cuda_const<scalar_t>(p.gates), cuda_const<scalar_t>(p.query), cuda_const<scalar_t>(p.c),
                          p.shape, cuda_mutable<scalar_t>(h), cuda_mutable<scalar_t>(c_new), scope.stream);
  });
  return {h, c_new};
}

Gradients query_lstm_cell_backward(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c_new,
                                   const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const CudaScope scope(gates);
  const QueryLstmArgs p(gates, query_gates, c);
  const Tensor gh = grad_h ? grad_h->contiguous(p.format) : Tensor();
  const Tensor gc = grad_c_new ? grad_c_new->contiguous(p.format) : Tensor();
  const Tensor grad_gates = empty_like(p.gates), grad_c = empty_like(p.c);
  Tensor grad_query;
  if (query_gates.size(0) != gates.size(0)) grad_query = empty_like(p.query);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell_backward", [&] {
    cuda::query_lstm_cell_backward(cuda_const<scalar_t>(gh), cuda_const<scalar_t>(gc), cuda_const<scalar_t>(p.gates),
                                   cuda_const<scalar_t>(p.query), cuda_const<scalar_t>(p.c), p.shape,
                                   cuda_mutable<scalar_t>(grad_gates), cuda_mutable<scalar_t>(grad_query),
                                   cuda_mutable<scalar_t>(grad_c), scope.stream);
  });
  return {grad_gates, grad_query, grad_c};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("query_lstm_cell(Tensor gates, Tensor query_gates, Tensor c) -> (Tensor, Tensor)");
  m.def(
      "query_lstm_cell_backward(Tensor? grad_h, Tensor? grad_c_new, Tensor gates, Tensor query_gates, Tensor c) -> "
      "(Tensor, Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("query_lstm_cell", TORCH_BOX(&query_lstm_cell));
  m.impl("query_lstm_cell_backward", TORCH_BOX(&query_lstm_cell_backward));
}

}  // namespace reidfast
