// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The CPU kernels of memory_match. Those for CUDA are Triton's (reidfast/ops/triton/memory.py).
#include "csrc/torch/memory_tiles.h"

namespace reidfast {
namespace {

// -> lse, topk_logits, topk_indices, state and shares (float64, for the gradient of the bank), direction (d lse / dx);
// the last three are undefined where nobody asks
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> memory_match_forward(const Tensor& x, const Tensor& bank,
                                                                                int64_t k, double scale,
                                                                                const Text& metric,
                                                                                const OptionalTensor& exclude,
                                                                                bool needs_x, bool needs_bank) {
  const MemoryArgs args("memory_match", x, bank, scale, metric, exclude, std::nullopt);
  REID_CHECK_VALUE(k >= 1 && k <= args.rows, "memory_match: expected k from 1 to the usable rows (N=", args.rows,
                   "), got k=", k);
  args.check_data(k);
  const Tensor lse = empty(args.shape(), args.options(args.acc)),
               logits = empty(args.shape({k}), args.options(args.acc)),
               rows = empty(args.shape({k}), args.options(kLong));
  const Tensor state = needs_bank ? empty(args.shape(), args.options(kDouble)) : Tensor();
  const Tensor shares = needs_bank ? empty(args.shape({k}), args.options(kDouble)) : Tensor();
  const Tensor direction = needs_x ? empty(args.shape({args.dim}), args.options(args.acc)) : Tensor();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match", [&] {
    using acc = acc_t<scalar_t>;
    const cpu::MemoryOutputs<acc> out{nullptr,
                                      lse.mutable_data_ptr<acc>(),
                                      needs_bank ? state.mutable_data_ptr<double>() : nullptr,
                                      needs_bank ? shares.mutable_data_ptr<double>() : nullptr,
                                      logits.mutable_data_ptr<acc>(),
                                      rows.mutable_data_ptr<int64_t>(),
                                      needs_x ? direction.mutable_data_ptr<acc>() : nullptr};
    memory_pass<scalar_t, acc>(args, k, needs_x, out);
  });
  return {lse, logits, rows, state, shares, direction};
}

std::tuple<Tensor, Tensor, Tensor> memory_match(const Tensor& x, const Tensor& bank, int64_t k, double scale,
                                                const Text& metric, const OptionalTensor& exclude) {
  const auto [lse, logits, rows, state, shares, direction] =
      memory_match_forward(x, bank, k, scale, metric, exclude, false, false);
  return {lse, logits, rows};
}

template <typename T, typename A>
Tensor grad_x(const MemoryArgs& args, ScalarType dtype, const Tensor& grad_lse, const Tensor& direction,
              const cpu::MemoryPicks<A>& picks) {
  const MemoryMetric<A> metric{args.dot, static_cast<A>(args.scale)};
  const Tensor grad = empty(args.shape({args.dim}), args.options(args.acc));
  const A *x = args.x.const_data_ptr<A>(), *scales = grad_lse.const_data_ptr<A>(),
          *directions = direction.const_data_ptr<A>();
  const T* bank = args.bank.const_data_ptr<T>();
  A* out = grad.mutable_data_ptr<A>();
  parallel_for(0, args.parts * args.queries, grain(8 * args.dim * (1 + picks.k)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {
      const int64_t part = q / args.queries, stop = std::min(end, (part + 1) * args.queries);
      REID_CPU_CALL(memory_grad_x, bank + part * args.part_stride, args.row_stride, args.dim, x, scales, directions,
                    picks, metric, q, stop, out);
      q = stop;
    }
  });
  return grad.to(dtype);
}

// d loss / d logit of the k best, whose softmax comes from the logits that the forward recomputed directly.
template <typename A>
Tensor best_weights(const Tensor& grad_lse, const Tensor& grad_logits, const Tensor& shares) {
  const Tensor weights = empty(grad_logits.sizes(), grad_logits.options());
  const A *scales = grad_lse.const_data_ptr<A>(), *logits = grad_logits.const_data_ptr<A>();
  const double* share = shares.const_data_ptr<double>();
  A* out = weights.mutable_data_ptr<A>();
  const int64_t k = grad_logits.size(-1);
  parallel_for(0, grad_lse.numel(), grain(k * 16), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q)
      for (int64_t i = q * k; i < (q + 1) * k; ++i)
        out[i] = logits[i] + static_cast<A>(static_cast<double>(scales[q]) * share[i]);
  });
  return weights;
}

// `direction` is needed for x; `state` and `shares` for the bank.
std::tuple<Tensor, Tensor> memory_match_backward(const Tensor& grad_lse, const Tensor& grad_logits, const Tensor& x,
                                                 const Tensor& bank, const Tensor& indices, const OptionalTensor& state,
                                                 const OptionalTensor& shares, const OptionalTensor& direction,
                                                 double scale, const Text& metric, const OptionalTensor& exclude,
                                                 bool needs_x, bool needs_bank) {
  const MemoryArgs args("memory_match_backward", x, bank, scale, metric, exclude, std::nullopt);
  const Shape shape = args.shape(), best = args.shape({indices.dim() > 0 ? indices.size(-1) : 0});
  const Tensor rows = args.checked_saved(indices, "indices", kLong, best);
  args.check_range(rows, "indices", -1);
  args.check_range(args.exclude, "exclude", -1);
  const Tensor scales = args.checked_grad(grad_lse, "grad_lse", shape),
               logits = args.checked_grad(grad_logits, "grad_logits", best);
  Tensor directions, shifts, softmax;
  if (needs_x) directions = args.checked_saved(direction, "direction", args.acc, x.sizes());
  if (needs_bank) {
    shifts = args.checked_saved(state, "state", kDouble, shape);
    softmax = args.checked_saved(shares, "shares", kDouble, best);
  }
  Tensor of_x, of_bank;
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match_backward", [&] {
    using acc = acc_t<scalar_t>;
    cpu::MemoryPicks<acc> picks{rows.const_data_ptr<int64_t>(), logits.const_data_ptr<acc>(), best.back(), false};
    if (needs_x) of_x = grad_x<scalar_t, acc>(args, x.scalar_type(), scales, directions, picks);
    if (!needs_bank) return;
    const Tensor weights = best_weights<acc>(scales, logits, softmax);
    picks.weights = weights.const_data_ptr<acc>(), picks.replace = true;
    of_bank = memory_grad_bank<scalar_t, acc>(args, scales, shifts, picks);
  });
  return {of_x, of_bank};
}

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def(
      "memory_match(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "memory_match_forward(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude, bool needs_x, "
      "bool needs_bank) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "memory_match_backward(Tensor grad_lse, Tensor grad_logits, Tensor x, Tensor bank, Tensor indices, Tensor? "
      "state, Tensor? shares, Tensor? direction, float scale, str metric, Tensor? exclude, bool needs_x, bool "
      "needs_bank) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("memory_match", TORCH_BOX(&memory_match));
  m.impl("memory_match_forward", TORCH_BOX(&memory_match_forward));
  m.impl("memory_match_backward", TORCH_BOX(&memory_match_backward));
}

}  // namespace reidfast
