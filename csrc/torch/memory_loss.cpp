// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The CPU kernels of memory_loss. Those for CUDA are Triton's (reidfast/ops/triton/memory.py).
#include <functional>

#include "csrc/torch/memory_tiles.h"

namespace reidfast {
namespace {

// -> loss, state (float64, for the gradient of the bank), direction (d loss / dx); undefined where nobody asks
std::tuple<Tensor, Tensor, Tensor> memory_loss_forward(const Tensor& x, const Tensor& bank, std::optional<int64_t> k,
                                                       const OptionalTensor& targets, double scale, const Text& metric,
                                                       const OptionalTensor& exclude, bool needs_x, bool needs_bank) {
  const MemoryArgs args("memory_loss", x, bank, scale, metric, exclude, targets);
  REID_CHECK_VALUE(k.has_value() != targets.has_value(), "memory_loss: expected exactly one of k and targets, got ",
                   k.has_value() ? "both" : "neither");
  REID_CHECK_VALUE(!k || (*k >= 1 && *k <= args.rows),
                   "memory_loss: expected k from 1 to the usable rows (N=", args.rows, "), got k=", k.value_or(0));
  args.check_data(k.value_or(0));
  const Tensor loss = empty(args.shape(), args.options(args.acc)),
               state = needs_bank ? empty(args.shape(), args.options(kDouble)) : Tensor(),
               direction = needs_x ? empty(args.shape({args.dim}), args.options(args.acc)) : Tensor();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_loss", [&] {
    using acc = acc_t<scalar_t>;
    const cpu::MemoryOutputs<acc> out{loss.mutable_data_ptr<acc>(),
                                      nullptr,
                                      needs_bank ? state.mutable_data_ptr<double>() : nullptr,
                                      nullptr,
                                      nullptr,
                                      nullptr,
                                      needs_x ? direction.mutable_data_ptr<acc>() : nullptr};
    memory_pass<scalar_t, acc>(args, k.value_or(0), needs_x, out);
  });
  return {loss, state, direction};
}

Tensor memory_loss(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets,
                   double scale, const Text& metric, const OptionalTensor& exclude) {
  return std::get<0>(memory_loss_forward(x, bank, k, targets, scale, metric, exclude, false, false));
}

// The gradient of x is the gradient of the loss times the direction; it needs no bank, which may have been updated.
Tensor grad_x(const Tensor& grad, const Tensor& x, const OptionalTensor& direction) {
  constexpr const char* op = "memory_loss_backward";
  REID_CHECK(is_float(x.scalar_type()) && (x.dim() == 2 || x.dim() == 3), op,
             ": expected x (M, B, d) or (B, d) of a floating-point dtype, got ", x.scalar_type(), " ", x.sizes());
  REID_CHECK(is_float(grad.scalar_type()) && grad.sizes() == x.sizes().slice(0, x.dim() - 1), op,
             ": expected grad of a floating-point dtype and x's shape (", x.sizes(), ") without d, got ",
             grad.scalar_type(), " ", grad.sizes());
  check_device(op, "grad", grad, "x", x);
  REID_CHECK(direction && direction->defined(), op, ": expected the direction for the gradient of x");
  const ScalarType acc = acc_dtype(x.scalar_type());
  REID_CHECK(direction->scalar_type() == acc && direction->sizes() == x.sizes(), op, ": expected direction ", acc, " ",
             x.sizes(), ", as the forward saved it, got ", direction->scalar_type(), " ", direction->sizes());
  check_device(op, "direction", *direction, "x", x);
  const Tensor scales = grad.to(acc).contiguous(), directions = direction->contiguous();
  const Tensor out = empty(x.sizes(), x.options().dtype(acc));
  const int64_t dim = x.size(-1);
  REID_DISPATCH_WIDE(acc, op, [&] {
    const scalar_t* from = directions.const_data_ptr<scalar_t>();
    const scalar_t* scale = scales.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_for(0, scales.numel(), grain(dim * 2 * sizeof(scalar_t)), [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q)
        for (int64_t i = q * dim; i < (q + 1) * dim; ++i) to[i] = scale[q] * from[i];
    });
  });
  return out.to(x.scalar_type());
}

// d loss / d logit of the targets is p - 1 = -(1 - e^-loss), times the gradient of the loss.
template <typename A>
Tensor target_weights(const Tensor& loss, const Tensor& grad) {
  const Tensor negative = empty(loss.sizes(), loss.options());
  const int64_t count = loss.numel();
  std::transform(loss.const_data_ptr<A>(), loss.const_data_ptr<A>() + count, negative.mutable_data_ptr<A>(),
                 std::negate<A>());
  const auto weights = call_torch<Tensor>("aten::expm1", "", negative);
  A* weight = weights.mutable_data_ptr<A>();
  std::transform(weight, weight + count, grad.const_data_ptr<A>(), weight, std::multiplies<A>());
  return weights;
}

// `direction` is needed for x; `bank`, `loss`, `state` and `targets` for the bank.
std::tuple<Tensor, Tensor> memory_loss_backward(const Tensor& grad, const Tensor& x, const OptionalTensor& bank,
                                                const OptionalTensor& loss, const OptionalTensor& state,
                                                const OptionalTensor& direction, const OptionalTensor& targets,
                                                double scale, const Text& metric, const OptionalTensor& exclude,
                                                bool needs_x, bool needs_bank) {
  Tensor of_x, of_bank;
  if (needs_x) of_x = grad_x(grad, x, direction);
  if (!needs_bank) return {of_x, of_bank};
  REID_CHECK(targets && bank, "memory_loss_backward: the bank has a gradient only with targets");
  const MemoryArgs args("memory_loss_backward", x, *bank, scale, metric, exclude, targets);
  args.check_range(args.targets, "targets", 0);
  args.check_range(args.exclude, "exclude", -1);
  const Shape shape = args.shape();
  const Tensor scales = args.checked_grad(grad, "grad", shape),
               losses = args.checked_saved(loss, "loss", args.acc, shape),
               shifts = args.checked_saved(state, "state", kDouble, shape);
  const Tensor rows = empty(shape, args.options(kLong));
  for (int64_t part = 0; part < args.parts; ++part)
    std::copy_n(args.targets_data(), args.queries, rows.mutable_data_ptr<int64_t>() + part * args.queries);
  REID_DISPATCH_FLOATS(bank->scalar_type(), "memory_loss_backward", [&] {
    using acc = acc_t<scalar_t>;
    const Tensor weights = target_weights<acc>(losses, scales);
    const cpu::MemoryPicks<acc> picks{rows.const_data_ptr<int64_t>(), weights.const_data_ptr<acc>(), 1, true};
    of_bank = memory_grad_bank<scalar_t, acc>(args, scales, shifts, picks);
  });
  return {of_x, of_bank};
}

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def(
      "memory_loss(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude) -> "
      "Tensor");
  m.def(
      "memory_loss_forward(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude, "
      "bool needs_x, bool needs_bank) -> (Tensor, Tensor, Tensor)");
  m.def(
      "memory_loss_backward(Tensor grad, Tensor x, Tensor? bank, Tensor? loss, Tensor? state, Tensor? direction, "
      "Tensor? targets, float scale, str metric, Tensor? exclude, bool needs_x, bool needs_bank) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("memory_loss", TORCH_BOX(&memory_loss));
  m.impl("memory_loss_forward", TORCH_BOX(&memory_loss_forward));
  m.impl("memory_loss_backward", TORCH_BOX(&memory_loss_backward));
}

}  // namespace reidfast
