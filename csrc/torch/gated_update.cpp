// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/gated_update.h"

#include <ATen/ops/sum.h>

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/gated_update.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Tensors of one call in one memory format: channels_last where x is, else contiguous.
struct Problem {
  at::MemoryFormat format;
  Tensor down, along, state, x;
  bool channels_last;
  GateShape shape;

  Problem(const Tensor& channel, const Tensor& spatial, const Tensor& s, const Tensor& input) {
    TORCH_CHECK(input.dim() == 4 && s.sizes() == input.sizes() && channel.dim() == 2 && spatial.dim() == 3 &&
                    channel.size(0) == input.size(0) && channel.size(1) == input.size(1) &&
                    spatial.size(0) == input.size(0) && spatial.size(1) == input.size(2) &&
                    spatial.size(2) == input.size(3),
                "gated_update: expected channel (B, C), spatial (B, H, W) and state, x (B, C, H, W), got ",
                channel.sizes(), ", ", spatial.sizes(), ", ", s.sizes(), " and ", input.sizes());
    TORCH_CHECK(channel.scalar_type() == input.scalar_type() && spatial.scalar_type() == input.scalar_type() &&
                    s.scalar_type() == input.scalar_type(),
                "gated_update: expected one dtype, got ", channel.scalar_type(), ", ", spatial.scalar_type(), ", ",
                s.scalar_type(), " and ", input.scalar_type());
    channels_last = !input.is_contiguous() && input.is_contiguous(at::MemoryFormat::ChannelsLast);
    format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    x = input.contiguous(format);
    state = s.contiguous(format);
    down = (channels_last ? spatial : channel).contiguous();
    along = (channels_last ? channel : spatial).contiguous();
    const int64_t cells = input.size(2) * input.size(3), channels = input.size(1);
    shape = {input.size(0), channels_last ? cells : channels, channels_last ? channels : cells, 128};
  }
};

Tensor gated_update_cpu(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  const Problem p(channel, spatial, state, x);
  const Tensor out = at::empty_like(p.x);
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update", [&] {
    at::parallel_for(0, p.shape.batch * p.shape.rows, grain(p.shape.cols * 12), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(gated_update_forward<scalar_t>, p.down.const_data_ptr<scalar_t>(),
                    p.along.const_data_ptr<scalar_t>(), p.state.const_data_ptr<scalar_t>(),
                    p.x.const_data_ptr<scalar_t>(), p.shape, begin, end, out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

Four gated_update_backward_cpu(const Tensor& grad, const Tensor& channel, const Tensor& spatial, const Tensor& state,
                               const Tensor& x) {
  const Problem p(channel, spatial, state, x);
  const Tensor g = grad.contiguous(p.format);
  const Tensor grad_state = at::empty_like(p.x), grad_x = at::empty_like(p.x), grad_down = at::empty_like(p.down);
  const Tensor partial =
      at::empty({p.shape.batch, p.shape.chunks(), p.shape.cols}, x.options().dtype(acc_dtype(x.scalar_type())));
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const int64_t task_bytes = p.shape.chunk * p.shape.cols * 24;
    at::parallel_for(0, p.shape.batch * p.shape.chunks(), grain(task_bytes), [&](int64_t begin, int64_t end) {
      using Kernel = scalar_t;
      REID_CPU_CALL(gated_update_backward<Kernel>, g.const_data_ptr<scalar_t>(), p.down.const_data_ptr<scalar_t>(),
                    p.along.const_data_ptr<scalar_t>(), p.state.const_data_ptr<scalar_t>(),
                    p.x.const_data_ptr<scalar_t>(), p.shape, begin, end, grad_state.mutable_data_ptr<scalar_t>(),
                    grad_x.mutable_data_ptr<scalar_t>(), grad_down.mutable_data_ptr<scalar_t>(),
                    partial.mutable_data_ptr<acc_t>());
    });
  });
  const Tensor sum = p.shape.chunks() == 1 ? partial : at::sum(partial, 1);
  const Tensor grad_along = sum.to(x.scalar_type()).view(p.along.sizes());
  if (p.channels_last) return {grad_along, grad_down, grad_state, grad_x};
  return {grad_down, grad_along, grad_state, grad_x};
}

#if defined(REID_WITH_CUDA)
constexpr int64_t kCudaChunk = 32;  // rows of a block in the backward pass

Tensor gated_update_cuda(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  const CudaScope scope(x);
  const Problem p(channel, spatial, state, x);
  const Tensor out = at::empty_like(p.x);
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update", [&] {
    cuda::gated_update(cuda_const<scalar_t>(p.down), cuda_const<scalar_t>(p.along), cuda_const<scalar_t>(p.state),
                       cuda_const<scalar_t>(p.x), p.shape, cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

Four gated_update_backward_cuda(const Tensor& grad, const Tensor& channel, const Tensor& spatial, const Tensor& state,
                                const Tensor& x) {
  const CudaScope scope(x);
  Problem p(channel, spatial, state, x);
  p.shape.chunk = kCudaChunk;
  const Tensor g = grad.contiguous(p.format);
  const Tensor grad_state = at::empty_like(p.x), grad_x = at::empty_like(p.x);
  const Tensor grad_down = at::empty_like(p.down), grad_along = at::empty_like(p.along);
  const Tensor partial =
      at::empty({p.shape.batch, p.shape.chunks(), p.shape.cols}, x.options().dtype(acc_dtype(x.scalar_type())));
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    cuda::gated_update_backward(cuda_const<scalar_t>(g), cuda_const<scalar_t>(p.down), cuda_const<scalar_t>(p.along),
                                cuda_const<scalar_t>(p.state), cuda_const<scalar_t>(p.x), p.shape,
                                cuda_mutable<acc_t>(partial), cuda_mutable<scalar_t>(grad_state),
                                cuda_mutable<scalar_t>(grad_x), cuda_mutable<scalar_t>(grad_down),
                                cuda_mutable<scalar_t>(grad_along), scope.stream);
  });
  if (p.channels_last) return {grad_along, grad_down, grad_state, grad_x};
  return {grad_down, grad_along, grad_state, grad_x};
}
#endif

// ---- autograd
// --------------------------------------------------------------------------------------------------------

Tensor gated_update_dispatch(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  static const auto op = find_op<decltype(gated_update_dispatch)>("reidfast::gated_update");
  return op.call(channel, spatial, state, x);
}

Four gated_update_backward_dispatch(const Tensor& grad, const Tensor& channel, const Tensor& spatial,
                                    const Tensor& state, const Tensor& x) {
  static const auto op = find_op<decltype(gated_update_backward_dispatch)>("reidfast::gated_update_backward");
  return op.call(grad, channel, spatial, state, x);
}

struct GatedUpdate : torch::autograd::Function<GatedUpdate> {
  static Variable forward(AutogradContext* ctx, const Tensor& channel, const Tensor& spatial, const Tensor& state,
                          const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({channel, spatial, state, x});
    return gated_update_dispatch(channel, spatial, state, x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto [channel, spatial, state, x] =
        gated_update_backward_dispatch(grads[0], saved[0], saved[1], saved[2], saved[3]);
    return {channel, spatial, state, x};
  }
};

Tensor gated_update_autograd(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  return GatedUpdate::apply(channel, spatial, state, x);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("gated_update(Tensor channel, Tensor spatial, Tensor state, Tensor x) -> Tensor");
  m.def(
      "gated_update_backward(Tensor grad, Tensor channel, Tensor spatial, Tensor state, Tensor x) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("gated_update", gated_update_cpu);
  m.impl("gated_update_backward", gated_update_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("gated_update", gated_update_cuda);
  m.impl("gated_update_backward", gated_update_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("gated_update", gated_update_autograd);
  m.impl("gated_update_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
