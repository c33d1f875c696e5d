// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/set_pool.h"

#include "csrc/torch/op.h"

#if defined(REID_WITH_CUDA)
#include "csrc/cuda/set_pool.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

SetPoolWeighting parse_weighting(std::string_view name) {
  if (name == "linear") return SetPoolWeighting::kLinear;
  if (name == "sigmoid") return SetPoolWeighting::kSigmoid;
  TORCH_CHECK(name == "softmax", "set_pool: expected weighting 'linear', 'sigmoid' or 'softmax', got '", name, "'");
  return SetPoolWeighting::kSoftmax;
}

// The shapes of one call: ragged features [T, D] with offsets [S+1], or dense features [..., N, D]. Holds the
// contiguous copies that odd strides need.
struct Problem {
  Tensor features, scores, offsets;
  int64_t num_sets = 0, num_frames = 0, frames = 0, dim = 0, set_stride = 0, frame_stride = 0;
  c10::DimVector pooled_shape;

  Problem(const Tensor& x, const Tensor& s, const std::optional<Tensor>& o) {
    TORCH_CHECK(x.dim() >= 2, "set_pool: expected features with at least two dimensions, got ", x.dim());
    TORCH_CHECK(s.sizes() == x.sizes().slice(0, x.dim() - 1), "set_pool: expected scores of shape ",
                x.sizes().slice(0, x.dim() - 1), ", got ", s.sizes());
    scores = s.to(acc_dtype(x.scalar_type())).contiguous();
    dim = x.size(-1);
    pooled_shape = c10::DimVector(x.sizes());
    pooled_shape.erase(pooled_shape.end() - 2);
    if (o) {
      TORCH_CHECK(x.dim() == 2, "set_pool: expected features (T, D) beside offsets, got ", x.sizes());
      TORCH_CHECK(o->dim() == 1 && o->size(0) >= 1 && o->scalar_type() == at::kLong,
                  "set_pool: expected int64 offsets (S+1,), got ", o->scalar_type(), " ", o->sizes());
      offsets = o->contiguous();
      num_sets = offsets.size(0) - 1;
      num_frames = x.size(0);
      pooled_shape = {num_sets, dim};
      features = dim <= 1 || x.stride(1) == 1 ? x : x.contiguous();
      frame_stride = features.stride(0);
    } else {
      frames = x.size(-2);
      num_sets = c10::multiply_integers(x.sizes().slice(0, x.dim() - 2));
      num_frames = num_sets * frames;
      const Tensor flat = x.reshape({num_sets, frames, dim});
      features = dim <= 1 || flat.stride(2) == 1 ? flat : flat.contiguous();
      set_stride = features.stride(0);
      frame_stride = features.stride(1);
    }
  }

  SetRanges sets() const { return {offsets.defined() ? offsets.const_data_ptr<int64_t>() : nullptr, frames}; }

  template <typename T>
  SetFrames<T> view() const {
    return {features.const_data_ptr<T>(), set_stride, frame_stride, dim, sets()};
  }

#if defined(REID_WITH_CUDA)
  template <typename T>
  SetFrames<cuda_t<T>> cuda_view() const {
    return {cuda_const<T>(features), set_stride, frame_stride, dim, sets()};
  }
#endif

  // Memory safety: the kernels walk offsets without looking left or right.
  void check_offsets() const {
    if (!offsets.defined()) return;
    const int64_t* o = offsets.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(o[0] == 0 && o[num_sets] == num_frames, "set_pool: expected offsets from 0 to T=", num_frames,
                      ", got ", o[0], " to ", o[num_sets]);
    for (int64_t s = 0; s < num_sets; ++s)
      TORCH_CHECK_VALUE(o[s] <= o[s + 1], "set_pool: expected offsets that never decrease, got ", o[s], " before ",
                        o[s + 1], " at ", s + 1);
  }
};

template <typename A>
Tensor weights_cpu(const Problem& p, SetPoolWeighting weighting) {
  Tensor weights = at::empty({p.num_frames}, p.scores.options());
  at::parallel_for(0, p.num_sets, grain(p.num_frames / std::max<int64_t>(1, p.num_sets) * 64),
                   [&](int64_t begin, int64_t end) {
                     REID_CPU_CALL(set_pool_weights<A>, p.scores.const_data_ptr<A>(), p.sets(), weighting, begin, end,
                                   weights.mutable_data_ptr<A>());
                   });
  return weights;
}

Tensor set_pool_cpu(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                    std::string_view weighting) {
  const Problem p(features, scores, offsets);
  p.check_offsets();
  Tensor out = empty_output(p.pooled_shape, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const Tensor weights = weights_cpu<acc_t>(p, parse_weighting(weighting));
    const auto x = p.view<scalar_t>();
    const int64_t set_bytes = p.num_frames / std::max<int64_t>(1, p.num_sets) * p.dim * features.element_size();
    at::parallel_for(0, p.num_sets, grain(set_bytes), [&](int64_t begin, int64_t end) {
      using Kernel = scalar_t;
      REID_CPU_CALL(set_pool_sum<Kernel>, x, weights.const_data_ptr<acc_t>(), begin, end,
                    out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

// -> grad_features, grad_scores; an undefined tensor where the mask says that nobody asks.
std::tuple<Tensor, Tensor> set_pool_backward_cpu(const Tensor& grad, const Tensor& features, const Tensor& scores,
                                                 const std::optional<Tensor>& offsets, std::string_view weighting_name,
                                                 std::array<bool, 2> needs) {
  const Problem p(features, scores, offsets);
  p.check_offsets();
  const SetPoolWeighting weighting = parse_weighting(weighting_name);
  const Tensor g = grad.contiguous();
  Tensor grad_x, grad_scores;
  if (needs[0]) grad_x = empty_output(features.sizes(), features.options());
  if (needs[1]) grad_scores = at::empty(scores.sizes(), p.scores.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const Tensor weights = weights_cpu<acc_t>(p, weighting);
    const Tensor dots = needs[1] ? at::empty({p.num_frames}, p.scores.options()) : Tensor();
    acc_t* dots_data = needs[1] ? dots.mutable_data_ptr<acc_t>() : nullptr;
    const auto x = p.view<scalar_t>();
    at::parallel_for(0, p.num_frames, grain(2 * p.dim * features.element_size()), [&](int64_t begin, int64_t end) {
      using Kernel = scalar_t;
      REID_CPU_CALL(set_pool_backward_frames<Kernel>, x, weights.const_data_ptr<acc_t>(), g.const_data_ptr<scalar_t>(),
                    p.num_sets, begin, end, needs[0] ? grad_x.mutable_data_ptr<scalar_t>() : nullptr, dots_data);
    });
    if (needs[1])
      REID_CPU_CALL(set_pool_backward_scores<acc_t>, p.scores.const_data_ptr<acc_t>(), weights.const_data_ptr<acc_t>(),
                    dots_data, p.sets(), weighting, 0, p.num_sets, grad_scores.mutable_data_ptr<acc_t>());
  });
  if (needs[1]) grad_scores = grad_scores.to(scores.scalar_type());
  return {grad_x, grad_scores};
}

#if defined(REID_WITH_CUDA)
Tensor set_pool_cuda(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                     std::string_view weighting) {
  const CudaScope scope(features);
  const Problem p(features, scores, offsets);
  Tensor out = at::empty(p.pooled_shape, features.options());
  const int splits = cuda::set_pool_splits(p.num_sets, p.num_frames, p.dim);
  const Tensor partial = splits > 1 ? at::empty({splits, p.num_sets, p.dim}, p.scores.options()) : Tensor();
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    cuda::set_pool(p.cuda_view<scalar_t>(), cuda_const<acc_t>(p.scores), parse_weighting(weighting), p.num_sets,
                   p.num_frames, splits, cuda_mutable<acc_t>(partial), cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> set_pool_backward_cuda(const Tensor& grad, const Tensor& features, const Tensor& scores,
                                                  const std::optional<Tensor>& offsets, std::string_view weighting,
                                                  std::array<bool, 2> needs) {
  const CudaScope scope(features);
  const Problem p(features, scores, offsets);
  const Tensor g = grad.contiguous();
  const Tensor weights = at::empty({p.num_frames}, p.scores.options());
  Tensor grad_x, grad_scores, dots;
  if (needs[0]) grad_x = at::empty(features.sizes(), features.options());
  if (needs[1]) {
    grad_scores = at::empty(scores.sizes(), p.scores.options());
    dots = at::empty({p.num_frames}, p.scores.options());
  }
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    cuda::set_pool_backward(p.cuda_view<scalar_t>(), cuda_const<acc_t>(p.scores), parse_weighting(weighting),
                            p.num_sets, p.num_frames, cuda_const<scalar_t>(g), cuda_mutable<acc_t>(weights),
                            cuda_mutable<acc_t>(dots), cuda_mutable<scalar_t>(grad_x), cuda_mutable<acc_t>(grad_scores),
                            scope.stream);
  });
  if (needs[1]) grad_scores = grad_scores.to(scores.scalar_type());
  return {grad_x, grad_scores};
}
#endif

// ---- autograd
// ----------------------------------------------------------------------------------------------------------------

Tensor set_pool_dispatch(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                         std::string_view weighting) {
  static const auto op = find_op<decltype(set_pool_dispatch)>("reidfast::set_pool");
  return op.call(features, scores, offsets, weighting);
}

std::tuple<Tensor, Tensor> set_pool_backward_dispatch(const Tensor& grad, const Tensor& features, const Tensor& scores,
                                                      const std::optional<Tensor>& offsets, std::string_view weighting,
                                                      std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(set_pool_backward_dispatch)>("reidfast::set_pool_backward");
  return op.call(grad, features, scores, offsets, weighting, needs);
}

struct SetPool : torch::autograd::Function<SetPool> {
  static Variable forward(AutogradContext* ctx, const Tensor& features, const Tensor& scores,
                          const std::optional<Tensor>& offsets, std::string_view weighting) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({features, scores, offsets.value_or(Tensor())});
    ctx->saved_data["weighting"] = std::string(weighting);
    return set_pool_dispatch(features, scores, offsets, weighting);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::optional<Tensor> offsets = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const auto [grad_features, grad_scores] =
        set_pool_backward_dispatch(grads[0], saved[0], saved[1], offsets, ctx->saved_data["weighting"].toStringRef(),
                                   {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_features, grad_scores, Variable(), Variable()};
  }
};

Tensor set_pool_autograd(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                         std::string_view weighting) {
  return SetPool::apply(features, scores, offsets, weighting);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("set_pool(Tensor features, Tensor scores, Tensor? offsets, str weighting) -> Tensor");
  m.def(
      "set_pool_backward(Tensor grad, Tensor features, Tensor scores, Tensor? offsets, str weighting, bool[2] needs) "
      "-> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("set_pool", set_pool_cpu);
  m.impl("set_pool_backward", set_pool_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("set_pool", set_pool_cuda);
  m.impl("set_pool_backward", set_pool_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("set_pool", set_pool_autograd);
  m.impl("set_pool_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
