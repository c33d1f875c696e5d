// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/torch/product.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstdlib>
#include <string_view>

// oneDNN's product with transposed weights, as torch.compile uses it. Weak: a torch without oneDNN lacks it. Declared
// here because the header that declares it refuses TORCH_TARGET_VERSION.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, const char* attr, const double** scalars,
    int64_t n_scalars, const char** algorithm, AtenTensorHandle* out);

namespace reidfast {

namespace {

bool choose_onednn() {
  const char* wish = std::getenv("REIDFAST_PRODUCT");
  const std::string_view wanted = wish ? wish : "auto";
  REID_CHECK_VALUE(wanted == "auto" || wanted == "blas" || wanted == "onednn",
                   "REIDFAST_PRODUCT: expected auto, blas or onednn, got ", wanted);
  if (wanted == "blas") return false;
  bool chosen = false;
#if defined(REID_HAVE_X86_ISA)
  // MKL, torch's BLAS on x86, keeps AVX-512 from processors that are not Intel's. There oneDNN is faster
  // (docs/evaluation.md); on Intel's nothing was measured, and the BLAS stays.
  __builtin_cpu_init();
  chosen = (wanted == "onednn" || (__builtin_cpu_supports("avx512f") && !__builtin_cpu_is("intel"))) &&
           &aoti_torch_cpu__linear_pointwise != nullptr;
#endif
  REID_CHECK_VALUE(chosen || wanted == "auto",
                   "REIDFAST_PRODUCT: expected auto or blas, for this torch has no oneDNN for x86, got onednn");
  return chosen;
}

bool onednn() {
  static const bool chosen = choose_onednn();
  return chosen;
}

constexpr int64_t kFewRows = 16;  // of a: oneDNN then spends its time on putting b in order

// a b^T of float32, in memory of its own.
Tensor onednn_product(const Tensor& a, const Tensor& b) {
  AtenTensorHandle made = nullptr;
  REID_TORCH(aoti_torch_cpu__linear_pointwise(a.get(), b.get(), /*bias=*/nullptr, "none", /*scalars=*/nullptr,
                                              /*n_scalars=*/0, /*algorithm=*/nullptr, &made));
  return Tensor(made);
}

// sum += x, rows of float32.
void add_rows(const Tensor& sum, const Tensor& x) {
  const int64_t rows = sum.size(0), columns = sum.size(1), sum_step = sum.stride(0), x_step = x.stride(0);
  float* to = sum.mutable_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[r * sum_step + c] += from[r * x_step + c];
}

}  // namespace

const char* product_library() { return onednn() ? "onednn" : "blas"; }

Tensor product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& sum) {
  if (onednn() && out.scalar_type() == kFloat && a.size(0) >= kFewRows) {
    const Tensor made = onednn_product(a, b);
    if (!sum.defined()) return made;
    add_rows(sum, made);
    return sum;
  }
  const Tensor b_t = b.t();
  if (sum.defined()) {
    REID_TORCH(aoti_torch_cpu_addmm_out(out.get(), sum.get(), a.get(), b_t.get(), /*beta=*/1, /*alpha=*/1));
  } else {
    REID_TORCH(aoti_torch_cpu_mm_out(out.get(), a.get(), b_t.get()));
  }
  return out;
}

void product_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const Tensor made = product(out, a, b, accumulate ? out : Tensor());
  if (made.const_data_ptr() != out.const_data_ptr()) out.copy_(made);
}

}  // namespace reidfast
