// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/pool_patches.h"

#include <memory>

#include "csrc/torch/patches.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/pool_patches.h"
#endif

namespace reidfast {
namespace {

// theta [B, M, 2, 3] -> interpolation weights [B, M, padded cells]
template <typename A>
std::unique_ptr<A[]> patch_weights(const Tensor& theta, const cpu::PatchGrid& grid) {
  const int64_t patches = theta.size(0) * theta.size(1), width = padded(grid.cells());
  auto weights = std::make_unique_for_overwrite<A[]>(patches * width);
  at::parallel_for(0, patches, grain(16 * grid.samples() + 4 * width), [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<A[]>(grid.map_height + grid.map_width);
    REID_CPU_CALL(pool_patches_weights<A>, theta.const_data_ptr<A>(), grid, width, begin, end, weights.get(),
                  scratch.get());
  });
  return weights;
}

Tensor pool_patches_cpu(const Tensor& features, const Tensor& theta, int64_t height, int64_t width,
                        bool align_corners) {
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  Tensor out = empty_output({x.size(0), t.size(1), x.size(1)}, x.options());
  if (out.numel() == 0) return out;
  REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const auto weights = patch_weights<acc_t>(t, grid);
    weighted_map_forward<scalar_t, acc_t>(x, weights.get(), t.size(1), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<Tensor, Tensor> pool_patches_backward_cpu(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                     int64_t height, int64_t width, bool align_corners,
                                                     std::array<bool, 2> needs) {
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const int64_t patches = t.size(1);
  TORCH_CHECK(
      grad.sizes() == c10::IntArrayRef({x.size(0), patches, x.size(1)}) && grad.scalar_type() == x.scalar_type(),
      "pool_patches_backward: expected grad (B, M, C) in features' dtype, got ", grad.sizes());
  const Tensor g = grad.contiguous();
  Tensor grad_x, grad_theta;
  if (needs[0]) grad_x = empty_map(x.sizes(), is_channels_last(x), x.options());
  if (needs[1]) grad_theta = at::empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs[0]) grad_x.zero_();
    if (needs[1]) grad_theta.zero_();
  } else {
    REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches_backward", [&] {
      using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
      const auto weights = patch_weights<acc_t>(t, grid);
      const auto blocks = channel_blocks(x.size(0), x.size(1), 128);
      const int64_t row = padded(grid.cells());
      std::unique_ptr<acc_t[]> grad_weights;
      if (needs[1]) grad_weights = std::make_unique_for_overwrite<acc_t[]>(x.size(0) * blocks.per_map * patches * row);
      weighted_map_backward<scalar_t, acc_t>(x, weights.get(), g.const_data_ptr<scalar_t>(), patches, grad_x, blocks,
                                             grad_weights.get());
      if (!needs[1]) return;
      at::parallel_for(0, x.size(0) * patches, grain(16 * grid.samples() + 4 * row), [&](int64_t begin, int64_t end) {
        const auto scratch =
            std::make_unique_for_overwrite<double[]>(grid.cells() + 4 * (grid.map_height + grid.map_width));
        REID_CPU_CALL(pool_patches_theta<acc_t>, t.const_data_ptr<acc_t>(), grid, grad_weights.get(), blocks.per_map,
                      patches, row, begin, end, grad_theta.mutable_data_ptr<acc_t>(), scratch.get());
      });
    });
  }
  if (needs[1]) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}

#if defined(REID_WITH_CUDA)
Tensor pool_patches_cuda(const Tensor& features, const Tensor& theta, int64_t height, int64_t width,
                         bool align_corners) {
  const CudaScope scope(features);
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  Tensor out = at::empty({x.size(0), t.size(1), x.size(1)}, x.options());
  if (out.numel() == 0) return out;
  const Tensor weights = at::empty({x.size(0), t.size(1), grid.cells()}, t.options());
  REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    cuda::pool_patches(cuda_maps(feature_map<const scalar_t>(x, is_channels_last(x))), cuda_const<acc_t>(t),
                       cuda_grid(grid), x.size(0), t.size(1), cuda_mutable<acc_t>(weights), cuda_mutable<scalar_t>(out),
                       scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> pool_patches_backward_cuda(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                      int64_t height, int64_t width, bool align_corners,
                                                      std::array<bool, 2> needs) {
  const CudaScope scope(features);
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const int64_t batch = x.size(0), patches = t.size(1);
  TORCH_CHECK(grad.sizes() == c10::IntArrayRef({batch, patches, x.size(1)}) && grad.scalar_type() == x.scalar_type(),
              "pool_patches_backward: expected grad (B, M, C) in features' dtype, got ", grad.sizes());
  const Tensor g = grad.contiguous();
  const bool last = is_channels_last(x);
  Tensor grad_x, grad_theta, grad_weights;
  if (needs[0]) grad_x = empty_map(x.sizes(), last, x.options());
  if (needs[1]) grad_theta = at::empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs[0]) grad_x.zero_();
    if (needs[1]) grad_theta.zero_();
  } else {
    const int64_t blocks = (x.size(1) + cuda::kPoolChannels - 1) / cuda::kPoolChannels;
    const Tensor weights = at::empty({batch, patches, grid.cells()}, t.options());
    if (needs[1]) grad_weights = at::empty({batch, blocks, patches, grid.cells()}, t.options());
    REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches_backward", [&] {
      using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
      const auto grad_map = needs[0] ? feature_map<scalar_t>(grad_x, last) : cpu::FeatureMap<scalar_t>{};
      cuda::pool_patches_backward(cuda_maps(feature_map<const scalar_t>(x, last)), cuda_const<acc_t>(t),
                                  cuda_grid(grid), batch, patches, cuda_const<scalar_t>(g), cuda_maps(grad_map),
                                  cuda_mutable<acc_t>(weights), cuda_mutable<acc_t>(grad_weights),
                                  cuda_mutable<acc_t>(grad_theta), scope.stream);
    });
  }
  if (needs[1]) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}
#endif

// ---- autograd ----

Tensor pool_patches_dispatch(const Tensor& features, const Tensor& theta, c10::SymInt height, c10::SymInt width,
                             bool align_corners) {
  static const auto op = find_op<decltype(pool_patches_dispatch)>("reidfast::pool_patches");
  return op.call(features, theta, height, width, align_corners);
}

std::tuple<Tensor, Tensor> pool_patches_backward_dispatch(const Tensor& grad, const Tensor& features,
                                                          const Tensor& theta, c10::SymInt height, c10::SymInt width,
                                                          bool align_corners, std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(pool_patches_backward_dispatch)>("reidfast::pool_patches_backward");
  return op.call(grad, features, theta, height, width, align_corners, needs);
}

struct PoolPatches : torch::autograd::Function<PoolPatches> {
  static Variable forward(AutogradContext* ctx, const Tensor& features, const Tensor& theta, c10::SymInt height,
                          c10::SymInt width, bool align_corners) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({features, theta});
    ctx->saved_data["height"] = height;
    ctx->saved_data["width"] = width;
    ctx->saved_data["align_corners"] = align_corners;
    return pool_patches_dispatch(features, theta, height, width, align_corners);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [grad_features, grad_theta] = pool_patches_backward_dispatch(
        grads[0], saved[0], saved[1], ctx->saved_data["height"].toSymInt(), ctx->saved_data["width"].toSymInt(),
        ctx->saved_data["align_corners"].toBool(), {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_features, grad_theta, Variable(), Variable(), Variable()};
  }
};

Tensor pool_patches_autograd(const Tensor& features, const Tensor& theta, c10::SymInt height, c10::SymInt width,
                             bool align_corners) {
  return PoolPatches::apply(features, theta, height, width, align_corners);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("pool_patches(Tensor features, Tensor theta, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def(
      "pool_patches_backward(Tensor grad, Tensor features, Tensor theta, SymInt height, SymInt width, "
      "bool align_corners, bool[2] needs) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("pool_patches", pool_patches_cpu);
  m.impl("pool_patches_backward", pool_patches_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("pool_patches", pool_patches_cuda);
  m.impl("pool_patches_backward", pool_patches_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("pool_patches", pool_patches_autograd);
  m.impl("pool_patches_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
