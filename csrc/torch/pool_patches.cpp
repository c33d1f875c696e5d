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

#if !defined(REID_WITH_CUDA)
// theta [B, M, 2, 3] -> interpolation weights [B, M, padded cells]
template <typename A>
std::unique_ptr<A[]> patch_weights(const Tensor& theta, const cpu::PatchGrid& grid) {
  const int64_t patches = theta.size(0) * theta.size(1), width = padded(grid.cells());
  auto weights = std::make_unique_for_overwrite<A[]>(patches * width);
  parallel_for(0, patches, grain(16 * grid.samples() + 4 * width), [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<A[]>(grid.map_height + grid.map_width);
    REID_CPU_CALL(pool_patches_weights<A>, theta.const_data_ptr<A>(), grid, width, begin, end, weights.get(),
                  scratch.get());
  });
  return weights;
}

Tensor pool_patches(const Tensor& features, const Tensor& theta, int64_t height, int64_t width, bool align_corners) {
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  Tensor out = empty_output({x.size(0), t.size(1), x.size(1)}, x.options());
  if (out.numel() == 0) return out;
  REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches", [&] {
    using acc = acc_t<scalar_t>;
    const auto weights = patch_weights<acc>(t, grid);
    weighted_map_forward<scalar_t, acc>(x, weights.get(), t.size(1), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<Tensor, Tensor> pool_patches_backward(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                 int64_t height, int64_t width, bool align_corners, bool needs_features,
                                                 bool needs_theta) {
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const int64_t patches = t.size(1);
  REID_CHECK(grad.sizes() == IntList({x.size(0), patches, x.size(1)}) && grad.scalar_type() == x.scalar_type(),
             "pool_patches_backward: expected grad (B, M, C) in features' dtype, got ", grad.sizes());
  const Tensor g = grad.contiguous();
  Tensor grad_x, grad_theta;
  if (needs_features) grad_x = empty_map(x.sizes(), is_channels_last(x), x.options());
  if (needs_theta) grad_theta = empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs_features) grad_x.zero_();
    if (needs_theta) grad_theta.zero_();
  } else {
    REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches_backward", [&] {
      using acc = acc_t<scalar_t>;
      const auto weights = patch_weights<acc>(t, grid);
      const auto blocks = channel_blocks(x.size(0), x.size(1), 128);
      const int64_t row = padded(grid.cells());
      std::unique_ptr<acc[]> grad_weights;
      if (needs_theta) grad_weights = std::make_unique_for_overwrite<acc[]>(x.size(0) * blocks.per_map * patches * row);
      weighted_map_backward<scalar_t, acc>(x, weights.get(), g.const_data_ptr<scalar_t>(), patches, grad_x, blocks,
                                           grad_weights.get());
      if (!needs_theta) return;
      parallel_for(0, x.size(0) * patches, grain(16 * grid.samples() + 4 * row), [&](int64_t begin, int64_t end) {
        const auto scratch =
            std::make_unique_for_overwrite<double[]>(grid.cells() + 4 * (grid.map_height + grid.map_width));
        REID_CPU_CALL(pool_patches_theta<acc>, t.const_data_ptr<acc>(), grid, grad_weights.get(), blocks.per_map,
                      patches, row, begin, end, grad_theta.mutable_data_ptr<acc>(), scratch.get());
      });
    });
  }
  if (needs_theta) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}

#else
Tensor pool_patches(const Tensor& features, const Tensor& theta, int64_t height, int64_t width, bool align_corners) {
  const CudaScope scope(features);
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  Tensor out = empty({x.size(0), t.size(1), x.size(1)}, x.options());
  if (out.numel() == 0) return out;
  const Tensor weights = empty({x.size(0), t.size(1), grid.cells()}, t.options());
  REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches", [&] {
    using acc = acc_t<scalar_t>;
    cuda::pool_patches(cuda_maps(feature_map<const scalar_t>(x, is_channels_last(x))), cuda_const<acc>(t),
                       cuda_grid(grid), x.size(0), t.size(1), cuda_mutable<acc>(weights), cuda_mutable<scalar_t>(out),
                       scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> pool_patches_backward(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                 int64_t height, int64_t width, bool align_corners, bool needs_features,
                                                 bool needs_theta) {
  const CudaScope scope(features);
  const auto grid = patch_grid("pool_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const int64_t batch = x.size(0), patches = t.size(1);
  REID_CHECK(grad.sizes() == IntList({batch, patches, x.size(1)}) && grad.scalar_type() == x.scalar_type(),
             "pool_patches_backward: expected grad (B, M, C) in features' dtype, got ", grad.sizes());
  const Tensor g = grad.contiguous();
  const bool last = is_channels_last(x);
  Tensor grad_x, grad_theta, grad_weights;
  if (needs_features) grad_x = empty_map(x.sizes(), last, x.options());
  if (needs_theta) grad_theta = empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs_features) grad_x.zero_();
    if (needs_theta) grad_theta.zero_();
  } else {
    const int64_t blocks = (x.size(1) + cuda::kPoolChannels - 1) / cuda::kPoolChannels;
    const Tensor weights = empty({batch, patches, grid.cells()}, t.options());
    if (needs_theta) grad_weights = empty({batch, blocks, patches, grid.cells()}, t.options());
    REID_DISPATCH_FLOATS(x.scalar_type(), "pool_patches_backward", [&] {
      using acc = acc_t<scalar_t>;
      const auto grad_map = needs_features ? feature_map<scalar_t>(grad_x, last) : cpu::FeatureMap<scalar_t>{};
      cuda::pool_patches_backward(cuda_maps(feature_map<const scalar_t>(x, last)), cuda_const<acc>(t), cuda_grid(grid),
                                  batch, patches, cuda_const<scalar_t>(g), cuda_maps(grad_map),
                                  cuda_mutable<acc>(weights), cuda_mutable<acc>(grad_weights),
                                  cuda_mutable<acc>(grad_theta), scope.stream);
    });
  }
  if (needs_theta) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("pool_patches(Tensor features, Tensor theta, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def(
      "pool_patches_backward(Tensor grad, Tensor features, Tensor theta, SymInt height, SymInt width, "
      "bool align_corners, bool needs_features, bool needs_theta) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("pool_patches", TORCH_BOX(&pool_patches));
  m.impl("pool_patches_backward", TORCH_BOX(&pool_patches_backward));
}

}  // namespace reidfast
