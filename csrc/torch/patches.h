// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What sample_patches and pool_patches check alike.
#pragma once

#include "csrc/cpu/pool_patches.h"
#include "csrc/torch/feature_map.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/patches.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {

inline cpu::PatchGrid patch_grid(const char* op, const Tensor& features, const Tensor& theta, int64_t height,
                                 int64_t width, bool align_corners) {
  REID_CHECK(features.dim() == 4, op, ": expected features (B, C, H, W), got ", features.sizes());
  REID_CHECK(theta.dim() == 4 && theta.size(0) == features.size(0) && theta.size(2) == 2 && theta.size(3) == 3, op,
             ": expected theta (B, M, 2, 3) with B=", features.size(0), ", got ", theta.sizes());
  check_device(op, "theta", theta, "features", features);
  REID_CHECK(is_float(features.scalar_type()) && (theta.scalar_type() == features.scalar_type() ||
                                                  (theta.scalar_type() == kFloat && features.scalar_type() != kDouble)),
             op, ": expected theta of dtype ", features.scalar_type(), " (or float32 beside half features), got ",
             theta.scalar_type());
  REID_CHECK(height >= 1 && width >= 1, op, ": expected a size of at least 1 x 1, got ", height, " x ", width);
  REID_CHECK(features.size(2) >= 1 && features.size(3) >= 1, op, ": expected a map of at least one cell, got ",
             features.sizes());
  REID_CHECK(features.size(2) * features.size(3) < (int64_t{1} << 31), op, ": expected fewer than 2^31 cells, got ",
             features.sizes());
  return {features.size(2), features.size(3), height, width, align_corners};
}

#if defined(REID_WITH_CUDA)
// The kernels' view of a map, T the C++ type of torch, const or not.
template <typename T>
auto cuda_maps(const cpu::FeatureMap<T>& map) {
  using Plain = std::remove_const_t<T>;
  using Element = std::conditional_t<std::is_const_v<T>, const cuda_t<Plain>, cuda_t<Plain>>;
  return cuda::Maps<Element>{reinterpret_cast<Element*>(map.data),
                             map.batch_stride,
                             map.channel_stride,
                             map.cell_stride,
                             map.channels,
                             map.cells,
                             map.channels_last};
}

inline cuda::Grid cuda_grid(const cpu::PatchGrid& grid) {
  return {grid.map_height, grid.map_width, grid.height, grid.width, grid.align_corners};
}
#endif

}  // namespace reidfast
