// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/grad_cam.h"

#include <ATen/ops/add.h>
#include <ATen/ops/bmm.h>

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/grad_cam.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using Two = std::tuple<Tensor, Tensor>;

bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast); }

struct Problem {
  Tensor features, weights;
  int64_t batch;
  CamShape shape;

  Problem(const Tensor& f, const Tensor& w) {
    TORCH_CHECK(f.dim() == 4 && w.dim() == 2 && w.size(0) == f.size(0) && w.size(1) == f.size(1),
                "grad_cam: expected features (B, C, H, W) and weights (B, C), got ", f.sizes(), " and ", w.sizes());
    TORCH_CHECK(f.scalar_type() == w.scalar_type(), "grad_cam: expected one dtype, got ", f.scalar_type(), " and ",
                w.scalar_type());
    const bool last = is_channels_last(f);
    features = f.contiguous(last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
    weights = w.contiguous();
    batch = f.size(0);
    shape = {f.size(1), f.size(2) * f.size(3), last};
  }
};

Tensor grad_cam_cpu(const Tensor& features, const Tensor& weights) {
  const Problem p(features, weights);
  const Tensor out = at::empty({p.batch, features.size(2), features.size(3)}, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam", [&] {
    const int64_t task_bytes = p.shape.channels * std::min(p.shape.cells, cpu::kCamCells) * features.element_size();
    at::parallel_for(0, p.batch * cpu::cam_cell_blocks(p.shape), grain(task_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(grad_cam_forward<scalar_t>, p.features.const_data_ptr<scalar_t>(),
                    p.weights.const_data_ptr<scalar_t>(), p.shape, begin, end, out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

// -> grad_features, grad_weights; an undefined tensor where the mask says that nobody asks.
Two grad_cam_backward_cpu(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                          std::array<bool, 2> needs) {
  const Problem p(features, weights);
  const Tensor g = grad.contiguous(), map = out.contiguous();
  TORCH_CHECK(g.numel() == p.batch * p.shape.cells && map.numel() == g.numel(),
              "grad_cam: expected a gradient (B, H, W) beside features ", features.sizes(), ", got ", grad.sizes());
  Tensor grad_features, grad_weights;
  if (needs[0])
    grad_features =
        p.shape.channels_last ? at::empty_like(p.features) : empty_output(p.features.sizes(), p.features.options());
  if (needs[1]) grad_weights = at::empty_like(p.weights);
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam_backward", [&] {
    const int64_t task_bytes = 2 * p.shape.cells * cpu::kCamChannels * features.element_size();
    at::parallel_for(0, p.batch * cpu::cam_channel_blocks(p.shape), grain(task_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(grad_cam_backward<scalar_t>, g.const_data_ptr<scalar_t>(), map.const_data_ptr<scalar_t>(),
                    p.features.const_data_ptr<scalar_t>(), p.weights.const_data_ptr<scalar_t>(), p.shape, begin, end,
                    needs[0] ? grad_features.mutable_data_ptr<scalar_t>() : nullptr,
                    needs[1] ? grad_weights.mutable_data_ptr<scalar_t>() : nullptr);
    });
  });
  return {grad_features, grad_weights};
}

#if defined(REID_WITH_CUDA)
Tensor grad_cam_cuda(const Tensor& features, const Tensor& weights) {
  const CudaScope scope(features);
  const Problem p(features, weights);
  const Tensor out = at::empty({p.batch, features.size(2), features.size(3)}, features.options());
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam", [&] {
    cuda::grad_cam(cuda_const<scalar_t>(p.features), cuda_const<scalar_t>(p.weights), p.batch, p.shape,
                   cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

Two grad_cam_backward_cuda(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                           std::array<bool, 2> needs) {
  const CudaScope scope(features);
  const Problem p(features, weights);
  const Tensor g = grad.contiguous(), map = out.contiguous();
  TORCH_CHECK(g.numel() == p.batch * p.shape.cells && map.numel() == g.numel(),
              "grad_cam: expected a gradient (B, H, W) beside features ", features.sizes(), ", got ", grad.sizes());
  Tensor grad_features, grad_weights;
  if (needs[0]) grad_features = at::empty_like(p.features);
  if (needs[1]) grad_weights = at::empty_like(p.weights);
  REID_DISPATCH_FLOATS(features.scalar_type(), "grad_cam_backward", [&] {
    cuda::grad_cam_backward(cuda_const<scalar_t>(g), cuda_const<scalar_t>(map), cuda_const<scalar_t>(p.features),
                            cuda_const<scalar_t>(p.weights), p.batch, p.shape, cuda_mutable<scalar_t>(grad_features),
                            cuda_mutable<scalar_t>(grad_weights), scope.stream);
  });
  return {grad_features, grad_weights};
}
#endif

// ---- autograd: any number of times
// -----------------------------------------------------------------------------------

Tensor grad_cam_dispatch(const Tensor& features, const Tensor& weights) {
  static const auto op = find_op<decltype(grad_cam_dispatch)>("reidfast::grad_cam");
  return op.call(features, weights);
}

Two grad_cam_backward_dispatch(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                               std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(grad_cam_backward_dispatch)>("reidfast::grad_cam_backward");
  return op.call(grad, out, features, weights, needs);
}

struct GradCam : torch::autograd::Function<GradCam> {
  static Variable forward(AutogradContext* ctx, const Tensor& features, const Tensor& weights) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor out = grad_cam_dispatch(features, weights);
    ctx->save_for_backward({out, features, weights});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [features, weights] = grad_cam_backward_dispatch(grads[0], saved[0], saved[1], saved[2],
                                                                {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {features, weights};
  }
};

// With m = 1[out > 0] g the first pass gave gF = w (x) m and gw = F m; both are linear in w, F and g, so their
// derivatives are products of the same kind. Written in torch ops, which record in their turn.
struct GradCamBackward : torch::autograd::Function<GradCamBackward> {
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& out, const Tensor& features,
                               const Tensor& weights) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({grad, out, features, weights});
    ctx->set_materialize_grads(false);
    const auto [grad_features, grad_weights] = grad_cam_backward_dispatch(grad, out, features, weights, {true, true});
    return {grad_features, grad_weights};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &features = saved[2], &weights = saved[3];
    const Tensor cut = saved[1].detach().le(0), m = grad.masked_fill(cut, 0).flatten(1).unsqueeze(1);  // [B, 1, L]
    Tensor to_map, to_features, to_weights;
    if (grads[0].defined()) {  // of gF
      const Tensor v = grads[0].flatten(2);
      to_map = at::bmm(weights.unsqueeze(1), v);
      to_weights = at::bmm(v, m.transpose(1, 2)).squeeze(2);
    }
    if (grads[1].defined()) {  // of gw
      const Tensor v = grads[1].unsqueeze(1);
      const Tensor part = at::bmm(v, features.flatten(2));
      to_map = to_map.defined() ? at::add(to_map, part) : part;
      to_features = at::bmm(v.transpose(1, 2), m).reshape_symint(features.sym_sizes());
    }
    if (to_map.defined()) to_map = to_map.reshape_symint(grad.sym_sizes()).masked_fill(cut, 0);
    return {to_map, Variable(), to_features, to_weights};
  }
};

Tensor grad_cam_autograd(const Tensor& features, const Tensor& weights) { return GradCam::apply(features, weights); }

Two grad_cam_backward_autograd(const Tensor& grad, const Tensor& out, const Tensor& features, const Tensor& weights,
                               std::array<bool, 2> needs) {
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return grad_cam_backward_dispatch(grad, out, features, weights, needs);
  }
  const variable_list grads =
      GradCamBackward::apply(grad, out, features, weights);  // both: a node has no absent output
  return {needs[0] ? grads[0] : Tensor(), needs[1] ? grads[1] : Tensor()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("grad_cam(Tensor features, Tensor weights) -> Tensor");
  m.def(
      "grad_cam_backward(Tensor grad, Tensor out, Tensor features, Tensor weights, bool[2] needs) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("grad_cam", grad_cam_cpu);
  m.impl("grad_cam_backward", grad_cam_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("grad_cam", grad_cam_cuda);
  m.impl("grad_cam_backward", grad_cam_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("grad_cam", grad_cam_autograd);
  m.impl("grad_cam_backward", grad_cam_backward_autograd);
}

}  // namespace reidfast
