// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/grad_cam.h"

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/grad_cam.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using Two = std::tuple<Tensor, Tensor>;

struct GradCamArgs {
  Tensor features, weights;
  int64_t batch;
  CamShape shape;

  GradCamArgs(const Tensor& f, const Tensor& w) {
    REID_CHECK(f.dim() == 4 && w.dim() == 2 && w.size(0) == f.size(0) && w.size(1) == f.size(1),
               "grad_cam: expected features (B, C, H, W) and weights (B, C), got ", f.sizes(), " and ", w.sizes());
    REID_CHECK(f.scalar_type() == w.scalar_type(), "grad_cam: expected one dtype, got ", f.scalar_type(), " and ",
               w.scalar_type());
    check_device("grad_cam", "weights", w, "features", f);
    const bool last = !f.is_contiguous() && f.is_contiguous(MemoryFormat::ChannelsLast);
    features = f.contiguous(last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    weights = w.contiguous();
    batch = f.size(0);
    shape = {f.size(1), f.size(2) * f.size(3), last};
  }
};

#if !defined(REID_WITH_CUDA)
Tensor grad_cam(const Tensor& features, const Tensor& weights) {
  const GradCamArgs p(features, weights);
  const Tensor out = empty({p.batch, features.size(2), features.size(3)}, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam", [&] {
    const int64_t task_bytes = p.shape.channels * std::min(p.shape.cells, cpu::kCamCells) * features.element_size();
    parallel_for(0, p.batch * cpu::cam_cell_blocks(p.shape), grain(task_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(grad_cam_forward<scalar_t>, p.features.const_data_ptr<scalar_t>(),
                    p.weights.const_data_ptr<scalar_t>(), p.shape, begin, end, out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

// -> grad_features, grad_weights; an undefined tensor where the mask says that nobody asks.
Two grad_cam_backward(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                      bool needs_features, bool needs_weights) {
  const GradCamArgs p(features, weights);
  const Tensor g = grad.contiguous(), map = out.contiguous();
  REID_CHECK(g.numel() == p.batch * p.shape.cells && map.numel() == g.numel(),
             "grad_cam: expected a gradient (B, H, W) beside features ", features.sizes(), ", got ", grad.sizes());
  Tensor grad_features, grad_weights;
  if (needs_features)
    grad_features =
        p.shape.channels_last ? empty_like(p.features) : empty_output(p.features.sizes(), p.features.options());
  if (needs_weights) grad_weights = empty_like(p.weights);
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam_backward", [&] {
    const int64_t task_bytes = 2 * p.shape.cells * cpu::kCamChannels * features.element_size();
    parallel_for(0, p.batch * cpu::cam_channel_blocks(p.shape), grain(task_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(grad_cam_backward<scalar_t>, g.const_data_ptr<scalar_t>(), map.const_data_ptr<scalar_t>(),
                    p.features.const_data_ptr<scalar_t>(), p.weights.const_data_ptr<scalar_t>(), p.shape, begin, end,
                    needs_features ? grad_features.mutable_data_ptr<scalar_t>() : nullptr,
                    needs_weights ? grad_weights.mutable_data_ptr<scalar_t>() : nullptr);
    });
  });
  return {grad_features, grad_weights};
}

#else
Tensor grad_cam(const Tensor& features, const Tensor& weights) {
  const CudaScope scope(features);
  const GradCamArgs p(features, weights);
  const Tensor out = empty({p.batch, features.size(2), features.size(3)}, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam", [&] {
    cuda::grad_cam(cuda_const<scalar_t>(p.features), cuda_const<scalar_t>(p.weights), p.batch, p.shape,
                   cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

Two grad_cam_backward(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                      bool needs_features, bool needs_weights) {
  const CudaScope scope(features);
  const GradCamArgs p(features, weights);
  const Tensor g = grad.contiguous(), map = out.contiguous();
  REID_CHECK(g.numel() == p.batch * p.shape.cells && map.numel() == g.numel(),
             "grad_cam: expected a gradient (B, H, W) beside features ", features.sizes(), ", got ", grad.sizes());
  Tensor grad_features, grad_weights;
  if (needs_features) grad_features = empty_like(p.features);
  if (needs_weights) grad_weights = empty_like(p.weights);
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam_backward", [&] {
    cuda::grad_cam_backward(cuda_const<scalar_t>(g), cuda_const<scalar_t>(map), cuda_const<scalar_t>(p.features),
                            cuda_const<scalar_t>(p.weights), p.batch, p.shape, cuda_mutable<scalar_t>(grad_features),
                            cuda_mutable<scalar_t>(grad_weights), scope.stream);
  });
  return {grad_features, grad_weights};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("grad_cam(Tensor features, Tensor weights) -> Tensor");
  m.def(
      "grad_cam_backward(Tensor grad, Tensor out, Tensor features, Tensor weights, bool needs_features, bool "
      "needs_weights) -> (Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("grad_cam", TORCH_BOX(&grad_cam));
  m.impl("grad_cam_backward", TORCH_BOX(&grad_cam_backward));
}

}  // namespace reidfast
