// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/region_scores.h"

#include "csrc/torch/op.h"
#if defined(REID_WITH_CUDA)
#include "csrc/cuda/region_scores.h"
#include "csrc/torch/cuda.h"
#endif

namespace reidfast {
namespace {

void check_inputs(const Tensor& boxes, const Tensor& image_index, int64_t height, int64_t width) {
  TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 &&
                  (boxes.scalar_type() == at::kFloat || boxes.scalar_type() == at::kDouble),
              "region_scores: expected boxes (P, 4) of float32 or float64, got ", boxes.scalar_type(), " ",
              boxes.sizes());
  TORCH_CHECK(image_index.dim() == 1 && image_index.size(0) == boxes.size(0) && image_index.scalar_type() == at::kLong,
              "region_scores: expected int64 image_index (P,) with P=", boxes.size(0), ", got ",
              image_index.scalar_type(), " ", image_index.sizes());
  TORCH_CHECK_VALUE(boxes.size(0) == 0 || (height > 0 && width > 0),
                    "region_scores: expected a map with at least one cell beside boxes, got ", height, " x ", width);
}

void check_index(const Tensor& image_index, int64_t batch) {
  const int64_t* index = image_index.const_data_ptr<int64_t>();
  for (int64_t p = 0; p < image_index.size(0); ++p)
    TORCH_CHECK_VALUE(index[p] >= 0 && index[p] < batch, "region_scores: expected image_index in [0, B) with B=", batch,
                      ", got ", index[p], " for box ", p);
}

Boxes view(const Tensor& boxes) { return {boxes.const_data_ptr(), boxes.scalar_type() == at::kDouble}; }

Tensor region_scores_cpu(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  TORCH_CHECK(attention.dim() == 3, "region_scores: expected attention (B, H, W), got ", attention.sizes());
  const int64_t batch = attention.size(0), height = attention.size(1), width = attention.size(2);
  check_inputs(boxes, image_index, height, width);
  const Tensor maps = attention.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  check_index(index, batch);
  const int64_t num_boxes = boxes.size(0);
  const Tensor scores = at::empty({num_boxes}, attention.options());
  if (num_boxes == 0) return scores;
  const int64_t table_bytes = batch * (height + 1) * (width + 1) * static_cast<int64_t>(sizeof(long double));
  const Tensor tables = at::empty({table_bytes}, attention.options().dtype(at::kByte));
  const Tensor whole = at::empty({batch}, attention.options().dtype(at::kBool));
  REID_DISPATCH_FLOATS(attention.scalar_type(), "region_scores", [&] {
    at::parallel_for(0, batch, grain(height * width * 16), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(region_scores_tables<scalar_t>, maps.const_data_ptr<scalar_t>(), height, width, begin, end,
                    static_cast<cpu::Table<scalar_t>*>(tables.mutable_data_ptr()), whole.mutable_data_ptr<bool>());
    });
    at::parallel_for(0, num_boxes, 2048, [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(region_scores_boxes<scalar_t>, maps.const_data_ptr<scalar_t>(),
                    static_cast<const cpu::Table<scalar_t>*>(tables.const_data_ptr()), whole.const_data_ptr<bool>(),
                    height, width, view(box), index.const_data_ptr<int64_t>(), begin, end,
                    scores.mutable_data_ptr<scalar_t>());
    });
  });
  return scores;
}

Tensor region_scores_backward_cpu(const Tensor& grad, const Tensor& boxes, const Tensor& image_index, int64_t batch,
                                  int64_t height, int64_t width) {
  check_inputs(boxes, image_index, height, width);
  const Tensor g = grad.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  check_index(index, batch);
  const int64_t num_boxes = boxes.size(0);
  TORCH_CHECK(g.dim() == 1 && g.size(0) == num_boxes, "region_scores: expected a gradient (P,) with P=", num_boxes,
              ", got ", g.sizes());
  const Tensor out = at::empty({batch, height, width}, grad.options());
  const Tensor shares = at::empty({num_boxes}, grad.options().dtype(at::kDouble));
  const Tensor cells = at::empty({num_boxes, 4}, index.options());
  auto* cell = reinterpret_cast<CellRange*>(cells.mutable_data_ptr<int64_t>());
  REID_DISPATCH_FLOATS(grad.scalar_type(), "region_scores_backward", [&] {
    REID_CPU_CALL(region_scores_shares<scalar_t>, g.const_data_ptr<scalar_t>(), view(box), height, width, 0, num_boxes,
                  cell, shares.mutable_data_ptr<double>());
    at::parallel_for(0, batch * height, grain((num_boxes + width) * 16), [&](int64_t begin, int64_t end) {
      const Tensor row = at::empty({width}, shares.options());
      REID_CPU_CALL(region_scores_backward_rows<scalar_t>, cell, shares.const_data_ptr<double>(),
                    index.const_data_ptr<int64_t>(), num_boxes, height, width, begin, end,
                    row.mutable_data_ptr<double>(), out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

#if defined(REID_WITH_CUDA)
Tensor region_scores_cuda(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  TORCH_CHECK(attention.dim() == 3, "region_scores: expected attention (B, H, W), got ", attention.sizes());
  const CudaScope scope(attention);
  const int64_t batch = attention.size(0), height = attention.size(1), width = attention.size(2);
  check_inputs(boxes, image_index, height, width);
  const Tensor maps = attention.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  const int64_t num_boxes = boxes.size(0);
  const Tensor scores = at::empty({num_boxes}, attention.options());
  if (num_boxes == 0) return scores;
  const Tensor tables = at::empty({batch, height + 1, width + 1}, attention.options().dtype(at::kDouble));
  const Tensor whole = at::empty({batch}, attention.options().dtype(at::kBool));
  REID_DISPATCH_FLOATS(attention.scalar_type(), "region_scores", [&] {
    cuda::region_scores(cuda_const<scalar_t>(maps), batch, height, width, view(box), cuda_const<int64_t>(index),
                        num_boxes, cuda_mutable<double>(tables), cuda_mutable<bool>(whole),
                        cuda_mutable<scalar_t>(scores), scope.stream);
  });
  return scores;
}

Tensor region_scores_backward_cuda(const Tensor& grad, const Tensor& boxes, const Tensor& image_index, int64_t batch,
                                   int64_t height, int64_t width) {
  const CudaScope scope(grad);
  check_inputs(boxes, image_index, height, width);
  const Tensor g = grad.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  const int64_t num_boxes = boxes.size(0);
  TORCH_CHECK(g.dim() == 1 && g.size(0) == num_boxes, "region_scores: expected a gradient (P,) with P=", num_boxes,
              ", got ", g.sizes());
  const Tensor out = at::empty({batch, height, width}, grad.options());
  const Tensor shares = at::empty({num_boxes}, grad.options().dtype(at::kDouble));
  const Tensor cells = at::empty({num_boxes, 4}, index.options());
  REID_DISPATCH_FLOATS(grad.scalar_type(), "region_scores_backward", [&] {
    cuda::region_scores_backward(cuda_const<scalar_t>(g), batch, height, width, view(box), cuda_const<int64_t>(index),
                                 num_boxes, reinterpret_cast<CellRange*>(cells.mutable_data_ptr<int64_t>()),
                                 cuda_mutable<double>(shares), cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}
#endif

// ---- autograd
// --------------------------------------------------------------------------------------------------------

Tensor region_scores_dispatch(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  static const auto op = find_op<decltype(region_scores_dispatch)>("reidfast::region_scores");
  return op.call(attention, boxes, image_index);
}

Tensor region_scores_backward_dispatch(const Tensor& grad, const Tensor& boxes, const Tensor& image_index,
                                       c10::SymInt batch, c10::SymInt height, c10::SymInt width) {
  static const auto op = find_op<decltype(region_scores_backward_dispatch)>("reidfast::region_scores_backward");
  return op.call(grad, boxes, image_index, std::move(batch), std::move(height), std::move(width));
}

struct RegionScores : torch::autograd::Function<RegionScores> {
  static Variable forward(AutogradContext* ctx, const Tensor& attention, const Tensor& boxes,
                          const Tensor& image_index) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({boxes, image_index});
    ctx->saved_data["sizes"] = attention.sym_sizes();
    return region_scores_dispatch(attention, boxes, image_index);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto sizes = ctx->saved_data["sizes"].toSymIntVector();
    return {region_scores_backward_dispatch(grads[0], saved[0], saved[1], sizes[0], sizes[1], sizes[2]), Variable(),
            Variable()};
  }
};

Tensor region_scores_autograd(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  return RegionScores::apply(attention, boxes, image_index);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("region_scores(Tensor attention, Tensor boxes, Tensor image_index) -> Tensor");
  m.def(
      "region_scores_backward(Tensor grad, Tensor boxes, Tensor image_index, SymInt batch, SymInt height, SymInt width)"
      " -> Tensor");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("region_scores", region_scores_cpu);
  m.impl("region_scores_backward", region_scores_backward_cpu);
}
#if defined(REID_WITH_CUDA)
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {
  m.impl("region_scores", region_scores_cuda);
  m.impl("region_scores_backward", region_scores_backward_cuda);
}
#endif
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("region_scores", region_scores_autograd);
  m.impl("region_scores_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
