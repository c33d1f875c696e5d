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
  REID_CHECK(name == "softmax", "set_pool: expected weighting 'linear', 'sigmoid' or 'softmax', got '", name, "'");
  return SetPoolWeighting::kSoftmax;
}

// The shapes of one call: ragged features [T, D] with offsets [S+1], or dense features [..., N, D]. Holds the
// contiguous copies that odd strides need.
struct SetPoolArgs {
  Tensor features, scores, offsets;
  int64_t num_sets = 0, num_frames = 0, frames = 0, dim = 0, set_stride = 0, frame_stride = 0;
  Shape pooled_shape;

  SetPoolArgs(const Tensor& x, const Tensor& s, const std::optional<Tensor>& o) {
    check_device("set_pool", "scores", s, "features", x);
    REID_CHECK(x.dim() >= 2, "set_pool: expected features with at least two dimensions, got ", x.dim());
    REID_CHECK(s.sizes() == x.sizes().slice(0, x.dim() - 1), "set_pool: expected scores of shape ",
               x.sizes().slice(0, x.dim() - 1), ", got ", s.sizes());
    REID_CHECK(is_float(x.scalar_type()) &&
                   (s.scalar_type() == x.scalar_type() || (s.scalar_type() == kFloat && x.scalar_type() != kDouble)),
               "set_pool: expected scores of dtype ", x.scalar_type(), " (or float32 beside half features), got ",
               s.scalar_type());
    scores = s.to(acc_dtype(x.scalar_type())).contiguous();
    dim = x.size(-1);
    pooled_shape = x.sizes().vec();
    pooled_shape.erase(pooled_shape.end() - 2);
    if (o) {
      REID_CHECK(x.dim() == 2, "set_pool: expected features (T, D) beside offsets, got ", x.sizes());
      REID_CHECK(o->dim() == 1 && o->size(0) >= 1 && o->scalar_type() == kLong,
                 "set_pool: expected int64 offsets (S+1,), got ", o->scalar_type(), " ", o->sizes());
      check_device("set_pool", "offsets", *o, "features", x);
      offsets = o->contiguous();
      num_sets = offsets.size(0) - 1;
      num_frames = x.size(0);
      pooled_shape = {num_sets, dim};
      features = dim <= 1 || x.stride(1) == 1 ? x : x.contiguous();
      frame_stride = features.stride(0);
    } else {
      frames = x.size(-2);
      num_sets = x.sizes().slice(0, x.dim() - 2).product();
      num_frames = num_sets * frames;
      const Tensor flat = x.dim() == 3 ? x : x.reshape({num_sets, frames, dim});
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
    REID_CHECK_VALUE(o[0] == 0 && o[num_sets] == num_frames, "set_pool: expected offsets from 0 to T=", num_frames,
                     ", got ", o[0], " to ", o[num_sets]);
    for (int64_t s = 0; s < num_sets; ++s)
      REID_CHECK_VALUE(o[s] <= o[s + 1], "set_pool: expected offsets that never decrease, got ", o[s], " before ",
                       o[s + 1], " at ", s + 1);
  }
};

#if !defined(REID_WITH_CUDA)
template <typename A>
Tensor weights_cpu(const SetPoolArgs& p, SetPoolWeighting weighting) {
  Tensor weights = empty({p.num_frames}, p.scores.options());
  parallel_for(0, p.num_sets, grain(p.num_frames / std::max<int64_t>(1, p.num_sets) * 64),
               [&](int64_t begin, int64_t end) {
                 REID_CPU_CALL(set_pool_weights<A>, p.scores.const_data_ptr<A>(), p.sets(), weighting, begin, end,
                               weights.mutable_data_ptr<A>());
               });
  return weights;
}

Tensor set_pool(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                const Text& weighting) {
  const SetPoolArgs p(features, scores, offsets);
  p.check_offsets();
  Tensor out = empty_output(p.pooled_shape, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool", [&] {
    using acc = acc_t<scalar_t>;
    const Tensor weights = weights_cpu<acc>(p, parse_weighting(weighting));
    const auto x = p.view<scalar_t>();
    const int64_t set_bytes = p.num_frames / std::max<int64_t>(1, p.num_sets) * p.dim * features.element_size();
    parallel_for(0, p.num_sets, grain(set_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(set_pool_sum<scalar_t>, x, weights.const_data_ptr<acc>(), begin, end,
                    out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

// -> grad_features, grad_scores; an undefined tensor where the mask says that nobody asks.
std::tuple<Tensor, Tensor> set_pool_backward(const Tensor& grad, const Tensor& features, const Tensor& scores,
                                             const std::optional<Tensor>& offsets, const Text& weighting_name,
                                             bool needs_features, bool needs_scores) {
  const SetPoolArgs p(features, scores, offsets);
  p.check_offsets();
  const SetPoolWeighting weighting = parse_weighting(weighting_name);
  const Tensor g = grad.contiguous();
  REID_CHECK(g.sizes() == IntList(p.pooled_shape) && g.scalar_type() == features.scalar_type() &&
                 g.device() == features.device(),
             "set_pool_backward: expected a gradient of the output's shape, dtype and device, got ", g.scalar_type(),
             " ", g.sizes());
  Tensor grad_x, grad_scores;
  if (needs_features) grad_x = empty_output(features.sizes(), features.options());
  if (needs_scores) grad_scores = empty(scores.sizes(), p.scores.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool_backward", [&] {
    using acc = acc_t<scalar_t>;
    const Tensor weights = weights_cpu<acc>(p, weighting);
    const Tensor dots = needs_scores ? empty({p.num_frames}, p.scores.options()) : Tensor();
    acc* dots_data = needs_scores ? dots.mutable_data_ptr<acc>() : nullptr;
    const auto x = p.view<scalar_t>();
    parallel_for(0, p.num_frames, grain(2 * p.dim * features.element_size()), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(set_pool_backward_frames<scalar_t>, x, weights.const_data_ptr<acc>(), g.const_data_ptr<scalar_t>(),
                    p.num_sets, begin, end, needs_features ? grad_x.mutable_data_ptr<scalar_t>() : nullptr, dots_data);
    });
    if (needs_scores)
      REID_CPU_CALL(set_pool_backward_scores<acc>, p.scores.const_data_ptr<acc>(), weights.const_data_ptr<acc>(),
                    dots_data, p.sets(), weighting, 0, p.num_sets, grad_scores.mutable_data_ptr<acc>());
  });
  if (needs_scores) grad_scores = grad_scores.to(scores.scalar_type());
  return {grad_x, grad_scores};
}

#else
Tensor set_pool(const Tensor& features, const Tensor& scores, const std::optional<Tensor>& offsets,
                const Text& weighting) {
  const CudaScope scope(features);
  const SetPoolArgs p(features, scores, offsets);
  Tensor out = empty(p.pooled_shape, features.options());
  const int splits = cuda::set_pool_splits(p.num_sets, p.num_frames, p.dim);
  const Tensor partial = splits > 1 ? empty({splits, p.num_sets, p.dim}, p.scores.options()) : Tensor();
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool", [&] {
    using acc = acc_t<scalar_t>;
    cuda::set_pool(p.cuda_view<scalar_t>(), cuda_const<acc>(p.scores), parse_weighting(weighting), p.num_sets,
                   p.num_frames, splits, cuda_mutable<acc>(partial), cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> set_pool_backward(const Tensor& grad, const Tensor& features, const Tensor& scores,
                                             const std::optional<Tensor>& offsets, const Text& weighting,
                                             bool needs_features, bool needs_scores) {
  const CudaScope scope(features);
  const SetPoolArgs p(features, scores, offsets);
  const Tensor g = grad.contiguous();
  const Tensor weights = empty({p.num_frames}, p.scores.options());
  Tensor grad_x, grad_scores, dots;
  if (needs_features) grad_x = empty(features.sizes(), features.options());
  if (needs_scores) {
    grad_scores = empty(scores.sizes(), p.scores.options());
    dots = empty({p.num_frames}, p.scores.options());
  }
  REID_DISPATCH_FLOATS(features.scalar_type(), "set_pool_backward", [&] {
    using acc = acc_t<scalar_t>;
    cuda::set_pool_backward(p.cuda_view<scalar_t>(), cuda_const<acc>(p.scores), parse_weighting(weighting), p.num_sets,
                            p.num_frames, cuda_const<scalar_t>(g), cuda_mutable<acc>(weights), cuda_mutable<acc>(dots),
                            cuda_mutable<scalar_t>(grad_x), cuda_mutable<acc>(grad_scores), scope.stream);
  });
  if (needs_scores) grad_scores = grad_scores.to(scores.scalar_type());
  return {grad_x, grad_scores};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("set_pool(Tensor features, Tensor scores, Tensor? offsets, str weighting) -> Tensor");
  m.def(
      "set_pool_backward(Tensor grad, Tensor features, Tensor scores, Tensor? offsets, str weighting, bool "
      "needs_features, bool needs_scores) "
      "-> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("set_pool", TORCH_BOX(&set_pool));
  m.impl("set_pool_backward", TORCH_BOX(&set_pool_backward));
}

}  // namespace reidfast
