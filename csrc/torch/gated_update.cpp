// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/gated_update.h"

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/gated_update.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Tensors of one call in one memory format: channels_last where x is, else contiguous.
struct GatedUpdateArgs {
  MemoryFormat format;
  Tensor down, along, state, x;
  bool channels_last;
  GateShape shape;

  GatedUpdateArgs(const Tensor& channel, const Tensor& spatial, const Tensor& s, const Tensor& input) {
    REID_CHECK(input.dim() == 4 && s.sizes() == input.sizes() && channel.dim() == 2 && spatial.dim() == 3 &&
                   channel.size(0) == input.size(0) && channel.size(1) == input.size(1) &&
                   spatial.size(0) == input.size(0) && spatial.size(1) == input.size(2) &&
                   spatial.size(2) == input.size(3),
               "gated_update: expected channel (B, C), spatial (B, H, W) and state, x (B, C, H, W), got ",
               channel.sizes(), ", ", spatial.sizes(), ", ", s.sizes(), " and ", input.sizes());
    REID_CHECK(channel.scalar_type() == input.scalar_type() && spatial.scalar_type() == input.scalar_type() &&
                   s.scalar_type() == input.scalar_type(),
               "gated_update: expected one dtype, got ", channel.scalar_type(), ", ", spatial.scalar_type(), ", ",
               s.scalar_type(), " and ", input.scalar_type());
    check_device("gated_update", "channel", channel, "x", input);
    check_device("gated_update", "spatial", spatial, "x", input);
    check_device("gated_update", "state", s, "x", input);
    channels_last = !input.is_contiguous() && input.is_contiguous(MemoryFormat::ChannelsLast);
    format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
    x = input.contiguous(format);
    state = s.contiguous(format);
    down = (channels_last ? spatial : channel).contiguous();
    along = (channels_last ? channel : spatial).contiguous();
    const int64_t cells = input.size(2) * input.size(3), channels = input.size(1);
    shape = {input.size(0), channels_last ? cells : channels, channels_last ? channels : cells, 128};
  }
};

#if !defined(REID_WITH_CUDA)
Tensor gated_update(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  const GatedUpdateArgs p(channel, spatial, state, x);
  const Tensor out = empty_like(p.x);
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update", [&] {
    parallel_for(0, p.shape.batch * p.shape.rows, grain(p.shape.cols * 12), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(gated_update_forward<scalar_t>, p.down.const_data_ptr<scalar_t>(),
                    p.along.const_data_ptr<scalar_t>(), p.state.const_data_ptr<scalar_t>(),
                    p.x.const_data_ptr<scalar_t>(), p.shape, begin, end, out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

Gradients gated_update_backward(const Tensor& grad, const Tensor& channel, const Tensor& spatial, const Tensor& state,
                                const Tensor& x) {
  const GatedUpdateArgs p(channel, spatial, state, x);
  const Tensor g = grad.contiguous(p.format);
  const Tensor grad_state = empty_like(p.x), grad_x = empty_like(p.x), grad_down = empty_like(p.down);
  const Tensor partial =
      empty({p.shape.batch, p.shape.chunks(), p.shape.cols}, x.options().dtype(acc_dtype(x.scalar_type())));
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update_backward", [&] {
    using acc = acc_t<scalar_t>;
    const int64_t task_bytes = p.shape.chunk * p.shape.cols * 24;
    parallel_for(0, p.shape.batch * p.shape.chunks(), grain(task_bytes), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(gated_update_backward<scalar_t>, g.const_data_ptr<scalar_t>(), p.down.const_data_ptr<scalar_t>(),
                    p.along.const_data_ptr<scalar_t>(), p.state.const_data_ptr<scalar_t>(),
                    p.x.const_data_ptr<scalar_t>(), p.shape, begin, end, grad_state.mutable_data_ptr<scalar_t>(),
                    grad_x.mutable_data_ptr<scalar_t>(), grad_down.mutable_data_ptr<scalar_t>(),
                    partial.mutable_data_ptr<acc>());
    });
  });
  const Tensor sum = p.shape.chunks() == 1 ? partial : sum_of(partial, 1);
  const Tensor grad_along = sum.to(x.scalar_type()).view(p.along.sizes());
  if (p.channels_last) return {grad_along, grad_down, grad_state, grad_x};
  return {grad_down, grad_along, grad_state, grad_x};
}

#else
constexpr int64_t kCudaChunk = 32;  // rows of a block in the backward pass

Tensor gated_update(const Tensor& channel, const Tensor& spatial, const Tensor& state, const Tensor& x) {
  const CudaScope scope(x);
  const GatedUpdateArgs p(channel, spatial, state, x);
  const Tensor out = empty_like(p.x);
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update", [&] {
    cuda::gated_update(cuda_const<scalar_t>(p.down), cuda_const<scalar_t>(p.along), cuda_const<scalar_t>(p.state),
                       cuda_const<scalar_t>(p.x), p.shape, cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}

Gradients gated_update_backward(const Tensor& grad, const Tensor& channel, const Tensor& spatial, const Tensor& state,
                                const Tensor& x) {
  const CudaScope scope(x);
  GatedUpdateArgs p(channel, spatial, state, x);
  p.shape.chunk = kCudaChunk;
  const Tensor g = grad.contiguous(p.format);
  const Tensor grad_state = empty_like(p.x), grad_x = empty_like(p.x);
  const Tensor grad_down = empty_like(p.down), grad_along = empty_like(p.along);
  const Tensor partial =
      empty({p.shape.batch, p.shape.chunks(), p.shape.cols}, x.options().dtype(acc_dtype(x.scalar_type())));
  REID_DISPATCH_FLOATS(x.scalar_type(), "gated_update_backward", [&] {
    using acc = acc_t<scalar_t>;
    cuda::gated_update_backward(cuda_const<scalar_t>(g), cuda_const<scalar_t>(p.down), cuda_const<scalar_t>(p.along),
                                cuda_const<scalar_t>(p.state), cuda_const<scalar_t>(p.x), p.shape,
                                cuda_mutable<acc>(partial), cuda_mutable<scalar_t>(grad_state),
                                cuda_mutable<scalar_t>(grad_x), cuda_mutable<scalar_t>(grad_down),
                                cuda_mutable<scalar_t>(grad_along), scope.stream);
  });
  if (p.channels_last) return {grad_along, grad_down, grad_state, grad_x};
  return {grad_down, grad_along, grad_state, grad_x};
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("gated_update(Tensor channel, Tensor spatial, Tensor state, Tensor x) -> Tensor");
  m.def(
      "gated_update_backward(Tensor grad, Tensor channel, Tensor spatial, Tensor state, Tensor x) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
}
REID_KERNELS(reidfast, m) {
  m.impl("gated_update", TORCH_BOX(&gated_update));
  m.impl("gated_update_backward", TORCH_BOX(&gated_update_backward));
}

}  // namespace reidfast
