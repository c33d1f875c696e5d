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

void check_inputs(const Tensor& map, const Tensor& boxes, const Tensor& image_index, int64_t height, int64_t width) {
  check_device("region_scores", "boxes", boxes, "attention", map);
  check_device("region_scores", "image_index", image_index, "attention", map);
  REID_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4 && (boxes.scalar_type() == kFloat || boxes.scalar_type() == kDouble),
      "region_scores: expected boxes (P, 4) of float32 or float64, got ", boxes.scalar_type(), " ", boxes.sizes());
  REID_CHECK(image_index.dim() == 1 && image_index.size(0) == boxes.size(0) && image_index.scalar_type() == kLong,
             "region_scores: expected int64 image_index (P,) with P=", boxes.size(0), ", got ",
             image_index.scalar_type(), " ", image_index.sizes());
  REID_CHECK_VALUE(boxes.size(0) == 0 || (height > 0 && width > 0),
                   "region_scores: expected a map with at least one cell beside boxes, got ", height, " x ", width);
}

Boxes view(const Tensor& boxes) { return {boxes.const_data_ptr(), boxes.scalar_type() == kDouble}; }

#if !defined(REID_WITH_CUDA)
void check_index(const Tensor& image_index, int64_t batch) {
  const int64_t* index = image_index.const_data_ptr<int64_t>();
  for (int64_t p = 0; p < image_index.size(0); ++p)
    REID_CHECK_VALUE(index[p] >= 0 && index[p] < batch, "region_scores: expected image_index in [0, B) with B=", batch,
                     ", got ", index[p], " for box ", p);
}

Tensor region_scores(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  REID_CHECK(attention.dim() == 3, "region_scores: expected attention (B, H, W), got ", attention.sizes());
  const int64_t batch = attention.size(0), height = attention.size(1), width = attention.size(2);
  check_inputs(attention, boxes, image_index, height, width);
  const Tensor maps = attention.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  check_index(index, batch);
  const int64_t num_boxes = boxes.size(0);
  const Tensor scores = empty({num_boxes}, attention.options());
  if (num_boxes == 0) return scores;
  const int64_t table_bytes = batch * (height + 1) * (width + 1) * static_cast<int64_t>(sizeof(long double));
  const Tensor tables = empty({table_bytes}, attention.options().dtype(kByte));
  const Tensor whole = empty({batch}, attention.options().dtype(kBool));
  REID_DISPATCH_FLOATS(attention.scalar_type(), "region_scores", [&] {
    parallel_for(0, batch, grain(height * width * 16), [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(region_scores_tables<scalar_t>, maps.const_data_ptr<scalar_t>(), height, width, begin, end,
                    static_cast<cpu::Table<scalar_t>*>(tables.mutable_data_ptr()), whole.mutable_data_ptr<bool>());
    });
    parallel_for(0, num_boxes, 2048, [&](int64_t begin, int64_t end) {
      REID_CPU_CALL(region_scores_boxes<scalar_t>, maps.const_data_ptr<scalar_t>(),
                    static_cast<const cpu::Table<scalar_t>*>(tables.const_data_ptr()), whole.const_data_ptr<bool>(),
                    height, width, view(box), index.const_data_ptr<int64_t>(), begin, end,
                    scores.mutable_data_ptr<scalar_t>());
    });
  });
  return scores;
}

Tensor region_scores_backward(const Tensor& grad, const Tensor& boxes, const Tensor& image_index, int64_t batch,
                              int64_t height, int64_t width) {
  check_inputs(grad, boxes, image_index, height, width);
  const Tensor g = grad.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  check_index(index, batch);
  const int64_t num_boxes = boxes.size(0);
  REID_CHECK(g.dim() == 1 && g.size(0) == num_boxes, "region_scores: expected a gradient (P,) with P=", num_boxes,
             ", got ", g.sizes());
  const Tensor out = empty({batch, height, width}, grad.options());
  const Tensor shares = empty({num_boxes}, grad.options().dtype(kDouble));
  const Tensor cells = empty({num_boxes, 4}, index.options());
  auto* cell = reinterpret_cast<CellRange*>(cells.mutable_data_ptr<int64_t>());
  REID_DISPATCH_FLOATS(grad.scalar_type(), "region_scores_backward", [&] {
    REID_CPU_CALL(region_scores_shares<scalar_t>, g.const_data_ptr<scalar_t>(), view(box), height, width, 0, num_boxes,
                  cell, shares.mutable_data_ptr<double>());
    parallel_for(0, batch * height, grain((num_boxes + width) * 16), [&](int64_t begin, int64_t end) {
      const Tensor row = empty({width}, shares.options());
      REID_CPU_CALL(region_scores_backward_rows<scalar_t>, cell, shares.const_data_ptr<double>(),
                    index.const_data_ptr<int64_t>(), num_boxes, height, width, begin, end,
                    row.mutable_data_ptr<double>(), out.mutable_data_ptr<scalar_t>());
    });
  });
  return out;
}

#else
Tensor region_scores(const Tensor& attention, const Tensor& boxes, const Tensor& image_index) {
  REID_CHECK(attention.dim() == 3, "region_scores: expected attention (B, H, W), got ", attention.sizes());
  const CudaScope scope(attention);
  const int64_t batch = attention.size(0), height = attention.size(1), width = attention.size(2);
  check_inputs(attention, boxes, image_index, height, width);
  const Tensor maps = attention.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  const int64_t num_boxes = boxes.size(0);
  const Tensor scores = empty({num_boxes}, attention.options());
  if (num_boxes == 0) return scores;
  const Tensor tables = empty({batch, height + 1, width + 1}, attention.options().dtype(kDouble));
  const Tensor whole = empty({batch}, attention.options().dtype(kBool));
  REID_DISPATCH_FLOATS(attention.scalar_type(), "region_scores", [&] {
    cuda::region_scores(cuda_const<scalar_t>(maps), batch, height, width, view(box), cuda_const<int64_t>(index),
                        num_boxes, cuda_mutable<double>(tables), cuda_mutable<bool>(whole),
                        cuda_mutable<scalar_t>(scores), scope.stream);
  });
  return scores;
}

Tensor region_scores_backward(const Tensor& grad, const Tensor& boxes, const Tensor& image_index, int64_t batch,
                              int64_t height, int64_t width) {
  const CudaScope scope(grad);
  check_inputs(grad, boxes, image_index, height, width);
  const Tensor g = grad.contiguous(), box = boxes.contiguous(), index = image_index.contiguous();
  const int64_t num_boxes = boxes.size(0);
  REID_CHECK(g.dim() == 1 && g.size(0) == num_boxes, "region_scores: expected a gradient (P,) with P=", num_boxes,
             ", got ", g.sizes());
  const Tensor out = empty({batch, height, width}, grad.options());
  const Tensor shares = empty({num_boxes}, grad.options().dtype(kDouble));
  const Tensor cells = empty({num_boxes, 4}, index.options());
  REID_DISPATCH_FLOATS(grad.scalar_type(), "region_scores_backward", [&] {
    cuda::region_scores_backward(cuda_const<scalar_t>(g), batch, height, width, view(box), cuda_const<int64_t>(index),
                                 num_boxes, reinterpret_cast<CellRange*>(cells.mutable_data_ptr<int64_t>()),
                                 cuda_mutable<double>(shares), cuda_mutable<scalar_t>(out), scope.stream);
  });
  return out;
}
#endif

}  // namespace

REID_SCHEMAS(reidfast, m) {
  m.def("region_scores(Tensor attention, Tensor boxes, Tensor image_index) -> Tensor");
  m.def(
      "region_scores_backward(Tensor grad, Tensor boxes, Tensor image_index, SymInt batch, SymInt height, SymInt width)"
      " -> Tensor");
}
REID_KERNELS(reidfast, m) {
  m.impl("region_scores", TORCH_BOX(&region_scores));
  m.impl("region_scores_backward", TORCH_BOX(&region_scores_backward));
}

}  // namespace reidfast
