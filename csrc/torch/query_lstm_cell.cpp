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

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// Tensors of one call in one memory format: channels_last where the gates are, else contiguous.
struct Problem {
  at::MemoryFormat format;
  Tensor gates, query, c;
  CellShape shape;

  Problem(const Tensor& g, const Tensor& q, const Tensor& state) {
    TORCH_CHECK(g.dim() == 4 && state.dim() == 4 && q.dim() == 4 && g.size(1) == 4 * state.size(1) &&
                    g.size(0) == state.size(0) && g.size(2) == state.size(2) && g.size(3) == state.size(3) &&
                    q.size(1) == g.size(1) && q.size(2) == g.size(2) && q.size(3) == g.size(3) &&
                    (q.size(0) == g.size(0) || q.size(0) == 1),
                "query_lstm_cell: expected gates (B, 4*Dh, H, W), query_gates of that shape or (1, 4*Dh, H, W) and c "
                "(B, Dh, H, W), got ",
                g.sizes(), ", ", q.sizes(), " and ", state.sizes());
    TORCH_CHECK(g.scalar_type() == q.scalar_type() && g.scalar_type() == state.scalar_type(),
                "query_lstm_cell: expected one dtype, got ", g.scalar_type(), ", ", q.scalar_type(), " and ",
                state.scalar_type());
    format = output_format(g);
    gates = g.contiguous(format);
    query = q.contiguous(format);
    c = state.contiguous(format);
    const int64_t cells = g.size(2) * g.size(3), batch = g.size(0);
    if (format == at::MemoryFormat::ChannelsLast)
      shape = {batch * cells, q.size(0) * cells, state.size(1)};
    else
      shape = {batch, q.size(0), state.size(1) * cells};
  }

  static at::MemoryFormat output_format(const Tensor& g) {
    return !g.is_contiguous() && g.is_contiguous(at::MemoryFormat::ChannelsLast) ? at::MemoryFormat::ChannelsLast
                                                                                 : at::MemoryFormat::Contiguous;
  }
};

// Cells per task; an activation costs some twenty times a copied byte.
constexpr int64_t kGrain = 4096;

Two query_lstm_cell_cpu(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const Problem p(gates, query_gates, c);
  const Tensor h = at::empty_like(p.c), c_new = at::empty_like(p.c);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell", [&] {
    at::parallel_for(0, p.shape.rows * p.shape.run, kGrain, [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(query_lstm_cell_forward<scalar_t>, p.gates.const_data_ptr<scalar_t>(),
                    p.query.const_data_ptr<scalar_t>(), p.c.const_data_ptr<scalar_t>(), p.shape, begin, end,
                    h.mutable_data_ptr<scalar_t>(), c_new.mutable_data_ptr<scalar_t>());
    });
  });
  return {h, c_new};
}

// -> grad_gates, grad_query, grad_c; grad_query is undefined where nothing is broadcast: it is grad_gates then.
Three query_lstm_cell_backward_cpu(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c_new,
                                   const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const Problem p(gates, query_gates, c);
  const Tensor gh = grad_h ? grad_h->contiguous(p.format) : Tensor();
  const Tensor gc = grad_c_new ? grad_c_new->contiguous(p.format) : Tensor();
  const Tensor grad_gates = at::empty_like(p.gates), grad_c = at::empty_like(p.c);
  Tensor grad_query;
  if (query_gates.size(0) != gates.size(0)) grad_query = at::empty_like(p.query);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell_backward", [&] {
    at::parallel_for(0, p.shape.query_rows * p.shape.run, kGrain / 2, [&](int64_t begin, int64_t end) {
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

#if defined(REID_WITH_CUDA)
Two query_lstm_cell_cuda(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const CudaScope scope(gates);
  const Problem p(gates, query_gates, c);
  const Tensor h = at::empty_like(p.c), c_new = at::empty_like(p.c);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell", [&] {
    cuda::query_lstm_cell(cuda_const<scalar_t>(p.gates), cuda_const<scalar_t>(p.query), cuda_const<scalar_t>(p.c),
                          p.shape, cuda_mutable<scalar_t>(h), cuda_mutable<scalar_t>(c_new), scope.stream);
  });
  return {h, c_new};
}

Three query_lstm_cell_backward_cuda(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c_new,
                                    const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const CudaScope scope(gates);
  const Problem p(gates, query_gates, c);
  const Tensor gh = grad_h ? grad_h->contiguous(p.format) : Tensor();
  const Tensor gc = grad_c_new ? grad_c_new->contiguous(p.format) : Tensor();
  const Tensor grad_gates = at::empty_like(p.gates), grad_c = at::empty_like(p.c);
  Tensor grad_query;
  if (query_gates.size(0) != gates.size(0)) grad_query = at::empty_like(p.query);
  REID_DISPATCH_FLOATS(gates.scalar_type(), "query_lstm_cell_backward", [&] {
    cuda::query_lstm_cell_backward(cuda_const<scalar_t>(gh), cuda_const<scalar_t>(gc), cuda_const<scalar_t>(p.gates),
                                   cuda_const<scalar_t>(p.query), cuda_const<scalar_t>(p.c), p.shape,
                                   cuda_mutable<scalar_t>(grad_gates), cuda_mutable<scalar_t>(grad_query),
                                   cuda_mutable<scalar_t>(grad_c), scope.stream);
  });
  return {grad_gates, grad_query, grad_c};
}
#endif

// ---- autograd
// --------------------------------------------------------------------------------------------------------

Two query_lstm_cell_dispatch(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  static const auto op = find_op<decltype(query_lstm_cell_dispatch)>("reidfast::query_lstm_cell");
  return op.call(gates, query_gates, c);
}

Three query_lstm_cell_backward_dispatch(const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_c_new,
                                        const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  static const auto op = find_op<decltype(query_lstm_cell_backward_dispatch)>("reidfast::query_lstm_cell_backward");
  return op.call(grad_h, grad_c_new, gates, query_gates, c);
}

struct QueryLstmCell : torch::autograd::Function<QueryLstmCell> {
  static variable_list forward(AutogradContext* ctx, const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({gates, query_gates, c});
    ctx->set_materialize_grads(false);
    const auto [h, c_new] = query_lstm_cell_dispatch(gates, query_gates, c);
    return {h, c_new};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) return {Variable(), Variable(), Variable()};
    const auto saved = ctx->get_saved_variables();
    const auto given = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    const auto [grad_gates, grad_query, grad_c] =
        query_lstm_cell_backward_dispatch(given(grads[0]), given(grads[1]), saved[0], saved[1], saved[2]);
    return {grad_gates, saved[0].sym_size(0) == saved[1].sym_size(0) ? grad_gates : grad_query, grad_c};
  }
};

Two query_lstm_cell_autograd(const Tensor& gates, const Tensor& query_gates, const Tensor& c) {
  const variable_list out = QueryLstmCell::apply(gates, query_gates, c);
  return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("query_lstm_cell(Tensor gates, Tensor query_gates, Tensor c) -> (Tensor, Tensor)");
  m.def(
      "query_lstm_cell_backward(Tensor? grad_h, Tensor? grad_c_new, Tensor gates, Tensor query_gates, Tensor c) -> "
      "(Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("query_lstm_cell", query_lstm_cell_cpu);
  m.impl("query_lstm_cell_backward", query_lstm_cell_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("query_lstm_cell", query_lstm_cell_cuda);
  m.impl("query_lstm_cell_backward", query_lstm_cell_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("query_lstm_cell", query_lstm_cell_autograd);
  m.impl("query_lstm_cell_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
