// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/sample_patches.h"

#include <memory>

#include "csrc/torch/patches.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/sample_patches.h"
#endif

namespace reidfast {
namespace {

// Patches [B, M, C, h, w] as a map of B * M images in the features' layout.
template <typename T>
cpu::FeatureMap<T> patch_map(const Tensor& patches, bool channels_last) {
  const int64_t cells = patches.size(3) * patches.size(4), channels = patches.size(2);
  T* data;
  if constexpr (std::is_const_v<T>)
    data = patches.const_data_ptr<std::remove_const_t<T>>();
  else
    data = patches.mutable_data_ptr<T>();
  if (channels_last) return {data, cells * channels, 1, channels, channels, cells, true};
  return {data, cells * channels, cells, 1, channels, cells, false};
}

#if !defined(REID_WITH_CUDA)
template <typename A>
using Table = std::unique_ptr<PatchSample<A>[]>;

template <typename A>
Table<A> sample_table(const Tensor& theta, const cpu::PatchGrid& grid) {
  const int64_t patches = theta.size(0) * theta.size(1);
  auto table = std::make_unique_for_overwrite<PatchSample<A>[]>(patches * grid.samples());
  parallel_for(0, patches, grain(64 * grid.samples()), [&](int64_t begin, int64_t end) {
    REID_CPU_CALL(sample_patches_table<A>, theta.const_data_ptr<A>(), grid, begin, end, table.get());
  });
  return table;
}

// Tiles are at least a vector of channels wide (16 floats); channels last are read some more at a time.
cpu::ChannelBlocks sample_blocks(const Tensor& x, bool channels_last) {
  return channel_blocks(x.size(0), x.size(1), channels_last ? 64 : 16);
}

Tensor sample_patches(const Tensor& features, const Tensor& theta, int64_t height, int64_t width, bool align_corners) {
  const auto grid = patch_grid("sample_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const bool last = is_channels_last(x);
  const int64_t batch = x.size(0), patches = t.size(1);
  Tensor out;
  if (last)
    out = empty_output({batch, patches, height, width, x.size(1)}, x.options()).movedim(-1, 2);
  else
    out = empty_output({batch, patches, x.size(1), height, width}, x.options());
  if (out.numel() == 0) return out;
  REID_DISPATCH_FLOATS(x.scalar_type(), "sample_patches", [&] {
    using acc = acc_t<scalar_t>;
    const auto table = sample_table<acc>(t, grid);
    const auto blocks = sample_blocks(x, last);
    const auto map = feature_map<const scalar_t>(x, last);
    const auto patch = patch_map<scalar_t>(out, last);
    parallel_for(0, batch * blocks.per_map, grain(blocks.size * (map.cells + patches * patch.cells) * sizeof(scalar_t)),
                 [&](int64_t begin, int64_t end) {
                   const auto scratch = std::make_unique_for_overwrite<acc[]>(
                       cpu::sample_patches_scratch(map.cells, patch.cells, blocks, last));
                   REID_CPU_CALL(sample_patches_fwd<scalar_t>, map, table.get(), patches, blocks, begin, end, patch,
                                 scratch.get());
                 });
  });
  return out;
}

std::tuple<Tensor, Tensor> sample_patches_backward(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                   int64_t height, int64_t width, bool align_corners,
                                                   bool needs_features, bool needs_theta) {
  const auto grid = patch_grid("sample_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const bool last = is_channels_last(x);
  const int64_t batch = x.size(0), patches = t.size(1);
  REID_CHECK(
      grad.sizes() == IntList({batch, patches, x.size(1), height, width}) && grad.scalar_type() == x.scalar_type(),
      "sample_patches_backward: expected grad (B, M, C, h, w) in features' dtype, got ", grad.sizes());
  const Tensor g = last ? grad.movedim(2, -1).contiguous().movedim(-1, 2) : grad.contiguous();
  Tensor grad_x, grad_theta;
  if (needs_features) grad_x = empty_map(x.sizes(), last, x.options());
  if (needs_theta) grad_theta = empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs_features) grad_x.zero_();
    if (needs_theta) grad_theta.zero_();
  } else {
    REID_DISPATCH_FLOATS(x.scalar_type(), "sample_patches_backward", [&] {
      using acc = acc_t<scalar_t>;
      const auto table = sample_table<acc>(t, grid);
      const auto blocks = sample_blocks(x, last);
      const auto map = feature_map<const scalar_t>(x, last);
      const auto patch = patch_map<const scalar_t>(g, last);
      const auto grad_map = needs_features ? feature_map<scalar_t>(grad_x, last) : cpu::FeatureMap<scalar_t>{};
      const auto base = std::make_unique_for_overwrite<acc[]>(width + height);
      for (int64_t j = 0; j < width; ++j) base[j] = base_coordinate<acc>(j, width, align_corners);
      for (int64_t i = 0; i < height; ++i) base[width + i] = base_coordinate<acc>(i, height, align_corners);
      std::unique_ptr<double[]> partial;
      if (needs_theta) partial = std::make_unique_for_overwrite<double[]>(batch * blocks.per_map * patches * 6);
      parallel_for(
          0, batch * blocks.per_map, grain(blocks.size * (map.cells + patches * patch.cells) * sizeof(scalar_t)),
          [&](int64_t begin, int64_t end) {
            const auto scratch = std::make_unique_for_overwrite<acc[]>(
                cpu::sample_patches_scratch(map.cells, patch.cells, blocks, last));
            REID_CPU_CALL(sample_patches_bwd<scalar_t>, map, table.get(), base.get(), base.get() + width, height, width,
                          patches, blocks, begin, end, patch, grad_map, partial.get(), scratch.get());
          });
      if (!needs_theta) return;
      const acc scale[2] = {position_scale<acc>(grid.map_width, align_corners),
                            position_scale<acc>(grid.map_height, align_corners)};
      acc* out = grad_theta.mutable_data_ptr<acc>();
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t k = 0; k < patches * 6; ++k) {
          double sum = 0;
          for (int64_t part = 0; part < blocks.per_map; ++part)
            sum += partial[(b * blocks.per_map + part) * patches * 6 + k];
          out[b * patches * 6 + k] = static_cast<acc>(sum * scale[k % 6 / 3]);
        }
      }
    });
  }
  if (needs_theta) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}

#else
Tensor sample_patches(const Tensor& features, const Tensor& theta, int64_t height, int64_t width, bool align_corners) {
  const CudaScope scope(features);
  const auto grid = patch_grid("sample_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const bool last = is_channels_last(x);
  const int64_t batch = x.size(0), patches = t.size(1);
  Tensor out = last ? empty({batch, patches, height, width, x.size(1)}, x.options()).movedim(-1, 2)
                    : empty({batch, patches, x.size(1), height, width}, x.options());
  if (out.numel() == 0) return out;
  REID_DISPATCH_FLOATS(x.scalar_type(), "sample_patches", [&] {
    using acc = acc_t<scalar_t>;
    cuda::sample_patches(cuda_maps(feature_map<const scalar_t>(x, last)), cuda_const<acc>(t), cuda_grid(grid), batch,
                         patches, cuda_maps(patch_map<scalar_t>(out, last)), scope.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor> sample_patches_backward(const Tensor& grad, const Tensor& features, const Tensor& theta,
                                                   int64_t height, int64_t width, bool align_corners,
                                                   bool needs_features, bool needs_theta) {
  const CudaScope scope(features);
  const auto grid = patch_grid("sample_patches", features, theta, height, width, align_corners);
  const Tensor x = walkable(features);
  const Tensor t = theta.to(acc_dtype(features.scalar_type())).contiguous();
  const bool last = is_channels_last(x);
  const int64_t batch = x.size(0), patches = t.size(1), channels = x.size(1);
  REID_CHECK(
      grad.sizes() == IntList({batch, patches, channels, height, width}) && grad.scalar_type() == x.scalar_type(),
      "sample_patches_backward: expected grad (B, M, C, h, w) in features' dtype, got ", grad.sizes());
  const Tensor g = last ? grad.movedim(2, -1).contiguous().movedim(-1, 2) : grad.contiguous();
  Tensor grad_x, grad_theta;
  if (needs_features) grad_x = empty_map(x.sizes(), last, x.options());
  if (needs_theta) grad_theta = empty(t.sizes(), t.options());
  if (g.numel() == 0) {
    if (needs_features) grad_x.zero_();
    if (needs_theta) grad_theta.zero_();
  } else {
    REID_DISPATCH_FLOATS(x.scalar_type(), "sample_patches_backward", [&] {
      using acc = acc_t<scalar_t>;
      const int64_t blocks = (channels + cuda::kSampleChannels - 1) / cuda::kSampleChannels;
      Tensor partial, sums;
      if (needs_theta) partial = empty({batch * patches * blocks * 6}, t.options());
      if (needs_features && !cuda::sample_patches_fits<acc>(grid.cells()))
        sums = zeros({batch, channels, grid.cells()}, t.options());
      const auto grad_map = needs_features ? feature_map<scalar_t>(grad_x, last) : cpu::FeatureMap<scalar_t>{};
      cuda::sample_patches_backward(cuda_maps(feature_map<const scalar_t>(x, last)), cuda_const<acc>(t),
                                    cuda_grid(grid), batch, patches, cuda_maps(patch_map<const scalar_t>(g, last)),
                                    cuda_maps(grad_map), cuda_mutable<acc>(sums), cuda_mutable<acc>(partial),
                                    cuda_mutable<acc>(grad_theta), scope.stream);
    });
  }
  if (needs_theta) grad_theta = grad_theta.to(theta.scalar_type());
  return {grad_x, grad_theta};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("sample_patches(Tensor features, Tensor theta, SymInt height, SymInt width, bool align_corners) -> Tensor");
  m.def(
      "sample_patches_backward(Tensor grad, Tensor features, Tensor theta, SymInt height, SymInt width, "
      "bool align_corners, bool needs_features, bool needs_theta) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("sample_patches", TORCH_BOX(&sample_patches));
  m.impl("sample_patches_backward", TORCH_BOX(&sample_patches_backward));
}

}  // namespace reidfast
