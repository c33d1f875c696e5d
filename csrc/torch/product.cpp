// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/torch/product.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <cstdlib>
#include <string_view>

namespace reidfast {

namespace {

// oneDNN's product of a float32 tensor with transposed weights, as torch.compile uses it. Called through the stack, for
// it is no public function.
std::optional<c10::OperatorHandle> find_onednn() {
  const char* wish = std::getenv("REIDFAST_PRODUCT");
  const std::string_view wanted = wish ? wish : "auto";
  TORCH_CHECK_VALUE(wanted == "auto" || wanted == "blas" || wanted == "onednn",
                    "REIDFAST_PRODUCT: expected auto, blas or onednn, got ", wanted);
  if (wanted == "blas") return std::nullopt;
  std::optional<c10::OperatorHandle> op;
#if defined(REID_HAVE_X86_ISA)
  // MKL, torch's BLAS on x86, keeps AVX-512 from processors that are not Intel's. There oneDNN is faster
  // (docs/evaluation.md); on Intel's nothing was measured, and the BLAS stays.
  __builtin_cpu_init();
  if (wanted == "onednn" || (__builtin_cpu_supports("avx512f") && !__builtin_cpu_is("intel")))
    op = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
#endif
  TORCH_CHECK_VALUE(op || wanted == "auto",
                    "REIDFAST_PRODUCT: expected auto or blas, for this torch has no oneDNN for x86, got onednn");
  return op;
}

constexpr int64_t kFewRows = 16;  // of a: oneDNN then spends its time on putting b in order

const std::optional<c10::OperatorHandle>& onednn() {
  static const std::optional<c10::OperatorHandle> op = find_onednn();
  return op;
}

}  // namespace

const char* product_library() { return onednn() ? "onednn" : "blas"; }

Tensor product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& sum) {
  const auto& op = onednn();
  if (op && out.scalar_type() == at::kFloat && a.size(0) >= kFewRows) {
    torch::jit::Stack stack{a, b, c10::IValue(), "none", c10::List<std::optional<at::Scalar>>(), ""};
    op->callBoxed(&stack);
    Tensor made = std::move(stack[0]).toTensor();
    return sum.defined() ? sum.add_(made) : made;
  }
  Tensor result = out;
  return sum.defined() ? at::addmm_out(result, sum, a, b.t()) : at::mm_out(result, a, b.t());
}

void product_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const Tensor made = product(out, a, b, accumulate ? out : Tensor());
  if (made.const_data_ptr() != out.const_data_ptr()) out.copy_(made);
}

}  // namespace reidfast
