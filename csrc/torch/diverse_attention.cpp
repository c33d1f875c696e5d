// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/diverse_attention.h"

#include <memory>

#include "csrc/torch/feature_map.h"

namespace reidfast {
namespace {

using Attended = std::tuple<Tensor, Tensor, Tensor>;

void check(const Tensor& features, const Tensor& logits) {
  REID_CHECK((features.dim() == 3 || features.dim() == 4) && logits.dim() == features.dim(),
             "diverse_attention: expected features (B, D, L) with logits (B, K, L), or (B, D, H, W) with "
             "(B, K, H, W), got ",
             features.sizes(), " and ", logits.sizes());
  REID_CHECK(features.size(0) == logits.size(0) && features.sizes().slice(2) == logits.sizes().slice(2),
             "diverse_attention: expected features and logits that agree in all but dimension 1, got ",
             features.sizes(), " and ", logits.sizes());
  REID_CHECK(features.device() == logits.device() && features.scalar_type() == logits.scalar_type(),
             "diverse_attention: expected features and logits of one device and dtype");
}

// Softmax of the logits in the accumulation type, [B, K, padded cells].
template <typename T, typename A>
std::unique_ptr<A[]> softmax(const Tensor& logits, T* attention, A* overlap) {
  const int64_t maps = logits.size(1), cells = logits.sizes().slice(2).product(), row = padded(cells);
  auto weights = std::make_unique_for_overwrite<A[]>(logits.size(0) * maps * row);
  parallel_for(0, logits.size(0), grain(maps * row * 32), [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<A[]>(maps * row);
    REID_CPU_CALL(diverse_attention_softmax<T>, logits.const_data_ptr<T>(), maps, cells, row, begin, end, weights.get(),
                  attention, overlap, scratch.get());
  });
  return weights;
}

Attended diverse_attention(const Tensor& features, const Tensor& logits) {
  check(features, logits);
  const Tensor x = walkable(features), z = logits.contiguous();
  const int64_t batch = x.size(0), maps = z.size(1), dim = x.size(1);
  const int64_t cells = x.sizes().slice(2).product();
  Tensor pooled = empty_output({batch, maps, dim}, x.options());
  Tensor attention = empty({batch, maps, cells}, x.options());
  Tensor overlap = empty({batch}, x.options().dtype(acc_dtype(x.scalar_type())));
  if (x.numel() == 0 || z.numel() == 0) pooled.zero_();
  if (z.numel() == 0) overlap.zero_();
  if (z.numel() == 0) return {pooled, attention, overlap};
  REID_DISPATCH_FLOATS(x.scalar_type(), "diverse_attention", [&] {
    using acc = acc_t<scalar_t>;
    const auto weights =
        softmax<scalar_t, acc>(z, attention.mutable_data_ptr<scalar_t>(), overlap.mutable_data_ptr<acc>());
    if (x.numel() > 0) weighted_map_forward<scalar_t, acc>(x, weights.get(), maps, pooled.mutable_data_ptr<scalar_t>());
  });
  return {pooled, attention, overlap};
}

// -> grad_features, grad_logits. A gradient of an output that nobody used is absent.
std::tuple<Tensor, Tensor> diverse_attention_backward(const std::optional<Tensor>& grad_pooled,
                                                      const std::optional<Tensor>& grad_attention,
                                                      const std::optional<Tensor>& grad_overlap, const Tensor& features,
                                                      const Tensor& logits, bool needs_features, bool needs_logits) {
  check(features, logits);
  const Tensor x = walkable(features), z = logits.contiguous();
  const int64_t batch = x.size(0), maps = z.size(1), dim = x.size(1);
  const int64_t cells = x.sizes().slice(2).product(), row = padded(cells);
  const auto acc = acc_dtype(x.scalar_type());
  Tensor gp, ga, go, grad_x, grad_z;
  if (grad_pooled) {
    REID_CHECK(grad_pooled->sizes() == IntList({batch, maps, dim}),
               "diverse_attention_backward: expected grad_pooled (B, K, D), got ", grad_pooled->sizes());
    gp = grad_pooled->to(x.scalar_type()).contiguous();
  }
  if (grad_attention) {
    REID_CHECK(grad_attention->sizes() == IntList({batch, maps, cells}),
               "diverse_attention_backward: expected grad_attention (B, K, L), got ", grad_attention->sizes());
    ga = grad_attention->to(x.scalar_type()).contiguous();
  }
  if (grad_overlap) {
    REID_CHECK(grad_overlap->sizes() == IntList({batch}),
               "diverse_attention_backward: expected grad_overlap (B,), got ", grad_overlap->sizes());
    go = grad_overlap->to(acc).contiguous();
  }
  if (needs_features) grad_x = empty_map(x.sizes(), is_channels_last(x), x.options());
  if (needs_logits) grad_z = empty(z.sizes(), z.options());
  const bool pools = gp.defined() && x.numel() > 0 && z.numel() > 0;
  if (needs_features && !pools) grad_x.zero_();
  if (z.numel() > 0) {
    REID_DISPATCH_FLOATS(x.scalar_type(), "diverse_attention_backward", [&] {
      using acc = acc_t<scalar_t>;
      const auto weights = softmax<scalar_t, acc>(z, nullptr, nullptr);
      const auto blocks = channel_blocks(batch, dim, 256);
      std::unique_ptr<acc[]> grad_weights;
      if (pools) {
        if (needs_logits) grad_weights = std::make_unique_for_overwrite<acc[]>(batch * blocks.per_map * maps * row);
        weighted_map_backward<scalar_t, acc>(x, weights.get(), gp.const_data_ptr<scalar_t>(), maps, grad_x, blocks,
                                             grad_weights.get());
      }
      if (!needs_logits) return;
      parallel_for(0, batch, grain(maps * row * 32), [&](int64_t begin, int64_t end) {
        const auto scratch = std::make_unique_for_overwrite<acc[]>(maps * (3 * row + maps));
        REID_CPU_CALL(diverse_attention_logits<scalar_t>, weights.get(), grad_weights.get(), blocks.per_map,
                      ga.defined() ? ga.const_data_ptr<scalar_t>() : nullptr,
                      go.defined() ? go.const_data_ptr<acc>() : nullptr, maps, cells, row, begin, end,
                      grad_z.mutable_data_ptr<scalar_t>(), scratch.get());
      });
    });
  }
  return {grad_x, grad_z};
}

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("diverse_attention(Tensor features, Tensor logits) -> (Tensor, Tensor, Tensor)");
  m.def(
      "diverse_attention_backward(Tensor? grad_pooled, Tensor? grad_attention, Tensor? grad_overlap, Tensor features, "
      "Tensor logits, bool needs_features, bool needs_logits) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("diverse_attention", TORCH_BOX(&diverse_attention));
  m.impl("diverse_attention_backward", TORCH_BOX(&diverse_attention_backward));
}

}  // namespace reidfast
