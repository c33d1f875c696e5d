// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/diverse_attention.h"

#include <memory>

#include "csrc/torch/feature_map.h"

namespace reidfast {
namespace {

using Attended = std::tuple<Tensor, Tensor, Tensor>;

void check(const Tensor& features, const Tensor& logits) {
  TORCH_CHECK((features.dim() == 3 || features.dim() == 4) && logits.dim() == features.dim(),
              "diverse_attention: expected features (B, D, L) with logits (B, K, L), or (B, D, H, W) with "
              "(B, K, H, W), got ",
              features.sizes(), " and ", logits.sizes());
  TORCH_CHECK(features.size(0) == logits.size(0) && features.sizes().slice(2) == logits.sizes().slice(2),
              "diverse_attention: expected features and logits that agree in all but dimension 1, got ",
              features.sizes(), " and ", logits.sizes());
  TORCH_CHECK(features.device() == logits.device() && features.scalar_type() == logits.scalar_type(),
              "diverse_attention: expected features and logits of one device and dtype");
}

// Softmax of the logits in the accumulation type, [B, K, padded cells].
template <typename T, typename A>
std::unique_ptr<A[]> softmax(const Tensor& logits, T* attention, A* overlap) {
  const int64_t maps = logits.size(1), cells = c10::multiply_integers(logits.sizes().slice(2)), row = padded(cells);
  auto weights = std::make_unique_for_overwrite<A[]>(logits.size(0) * maps * row);
  at::parallel_for(0, logits.size(0), grain(maps * row * 32), [&](int64_t begin, int64_t end) {
    using Kernel = T;
    const auto scratch = std::make_unique_for_overwrite<A[]>(maps * row);
    REID_CPU_CALL(diverse_attention_softmax<Kernel>, logits.const_data_ptr<T>(), maps, cells, row, begin, end,
                  weights.get(), attention, overlap, scratch.get());
  });
  return weights;
}

Attended diverse_attention_cpu(const Tensor& features, const Tensor& logits) {
  check(features, logits);
  const Tensor x = walkable(features), z = logits.contiguous();
  const int64_t batch = x.size(0), maps = z.size(1), dim = x.size(1);
  const int64_t cells = c10::multiply_integers(x.sizes().slice(2));
  Tensor pooled = empty_output({batch, maps, dim}, x.options());
  Tensor attention = at::empty({batch, maps, cells}, x.options());
  Tensor overlap = at::empty({batch}, x.options().dtype(acc_dtype(x.scalar_type())));
  if (x.numel() == 0 || z.numel() == 0) pooled.zero_();
  if (z.numel() == 0) overlap.zero_();
  if (z.numel() == 0) return {pooled, attention, overlap};
  REID_DISPATCH_FLOATS(x.scalar_type(), "diverse_attention", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const auto weights =
        softmax<scalar_t, acc_t>(z, attention.mutable_data_ptr<scalar_t>(), overlap.mutable_data_ptr<acc_t>());
    if (x.numel() > 0)
      weighted_map_forward<scalar_t, acc_t>(x, weights.get(), maps, pooled.mutable_data_ptr<scalar_t>());
  });
  return {pooled, attention, overlap};
}

// -> grad_features, grad_logits. A gradient of an output that nobody used is absent.
std::tuple<Tensor, Tensor> diverse_attention_backward_cpu(const std::optional<Tensor>& grad_pooled,
                                                          const std::optional<Tensor>& grad_attention,
                                                          const std::optional<Tensor>& grad_overlap,
                                                          const Tensor& features, const Tensor& logits,
                                                          std::array<bool, 2> needs) {
  check(features, logits);
  const Tensor x = walkable(features), z = logits.contiguous();
  const int64_t batch = x.size(0), maps = z.size(1), dim = x.size(1);
  const int64_t cells = c10::multiply_integers(x.sizes().slice(2)), row = padded(cells);
  const auto acc = acc_dtype(x.scalar_type());
  Tensor gp, ga, go, grad_x, grad_z;
  if (grad_pooled) {
    TORCH_CHECK(grad_pooled->sizes() == c10::IntArrayRef({batch, maps, dim}),
                "diverse_attention_backward: expected grad_pooled (B, K, D), got ", grad_pooled->sizes());
    gp = grad_pooled->to(x.scalar_type()).contiguous();
  }
  if (grad_attention) {
    TORCH_CHECK(grad_attention->sizes() == c10::IntArrayRef({batch, maps, cells}),
                "diverse_attention_backward: expected grad_attention (B, K, L), got ", grad_attention->sizes());
    ga = grad_attention->to(x.scalar_type()).contiguous();
  }
  if (grad_overlap) {
    TORCH_CHECK(grad_overlap->sizes() == c10::IntArrayRef({batch}),
                "diverse_attention_backward: expected grad_overlap (B,), got ", grad_overlap->sizes());
    go = grad_overlap->to(acc).contiguous();
  }
  if (needs[0]) grad_x = empty_map(x.sizes(), is_channels_last(x), x.options());
  if (needs[1]) grad_z = at::empty(z.sizes(), z.options());
  const bool pools = gp.defined() && x.numel() > 0 && z.numel() > 0;
  if (needs[0] && !pools) grad_x.zero_();
  if (z.numel() > 0) {
    REID_DISPATCH_FLOATS(x.scalar_type(), "diverse_attention_backward", [&] {
      using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
      const auto weights = softmax<scalar_t, acc_t>(z, nullptr, nullptr);
      const auto blocks = channel_blocks(batch, dim, 256);
      std::unique_ptr<acc_t[]> grad_weights;
      if (pools) {
        if (needs[1]) grad_weights = std::make_unique_for_overwrite<acc_t[]>(batch * blocks.per_map * maps * row);
        weighted_map_backward<scalar_t, acc_t>(x, weights.get(), gp.const_data_ptr<scalar_t>(), maps, grad_x, blocks,
                                               grad_weights.get());
      }
      if (!needs[1]) return;
      at::parallel_for(0, batch, grain(maps * row * 32), [&](int64_t begin, int64_t end) {
        using Kernel = scalar_t;
        const auto scratch = std::make_unique_for_overwrite<acc_t[]>(maps * (3 * row + maps));
        REID_CPU_CALL(diverse_attention_logits<Kernel>, weights.get(), grad_weights.get(), blocks.per_map,
                      ga.defined() ? ga.const_data_ptr<scalar_t>() : nullptr,
                      go.defined() ? go.const_data_ptr<acc_t>() : nullptr, maps, cells, row, begin, end,
                      grad_z.mutable_data_ptr<scalar_t>(), scratch.get());
      });
    });
  }
  return {grad_x, grad_z};
}

// ---- autograd ----

Attended diverse_attention_dispatch(const Tensor& features, const Tensor& logits) {
  static const auto op = find_op<decltype(diverse_attention_dispatch)>("reidfast::diverse_attention");
  return op.call(features, logits);
}

std::tuple<Tensor, Tensor> diverse_attention_backward_dispatch(const std::optional<Tensor>& grad_pooled,
                                                               const std::optional<Tensor>& grad_attention,
                                                               const std::optional<Tensor>& grad_overlap,
                                                               const Tensor& features, const Tensor& logits,
                                                               std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(diverse_attention_backward_dispatch)>("reidfast::diverse_attention_backward");
  return op.call(grad_pooled, grad_attention, grad_overlap, features, logits, needs);
}

struct DiverseAttention : torch::autograd::Function<DiverseAttention> {
  static variable_list forward(AutogradContext* ctx, const Tensor& features, const Tensor& logits) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({features, logits});
    ctx->set_materialize_grads(false);
    auto [pooled, attention, overlap] = diverse_attention_dispatch(features, logits);
    return {std::move(pooled), std::move(attention), std::move(overlap)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto given = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    const auto [grad_features, grad_logits] =
        diverse_attention_backward_dispatch(given(grads[0]), given(grads[1]), given(grads[2]), saved[0], saved[1],
                                            {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_features, grad_logits};
  }
};

Attended diverse_attention_autograd(const Tensor& features, const Tensor& logits) {
  auto out = DiverseAttention::apply(features, logits);
  return {std::move(out[0]), std::move(out[1]), std::move(out[2])};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("diverse_attention(Tensor features, Tensor logits) -> (Tensor, Tensor, Tensor)");
  m.def(
      "diverse_attention_backward(Tensor? grad_pooled, Tensor? grad_attention, Tensor? grad_overlap, Tensor features, "
      "Tensor logits, bool[2] needs) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("diverse_attention", diverse_attention_cpu);
  m.impl("diverse_attention_backward", diverse_attention_backward_cpu);
}
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("diverse_attention", diverse_attention_autograd);
  m.impl("diverse_attention_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
