// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/torch/product.h"

#include <cstdlib>
#include <string_view>

namespace reidfast {

// The C functions of torch's CPU ops, which take the Scalars that its dispatcher does not take by name. Declared here:
// torch's own header of them does not go with a target version. Weak where a torch may have been built without.
extern "C" {
AOTITorchError aoti_torch_cpu_mm_out(AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle mat2);
AOTITorchError aoti_torch_cpu_addmm_out(AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle mat1,
                                        AtenTensorHandle mat2, double beta, double alpha);
__attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(AtenTensorHandle x, AtenTensorHandle w,
                                                                      AtenTensorHandle* b, const char* attr,
                                                                      const double** scalars, int64_t scalars_len,
                                                                      const char** algorithm, AtenTensorHandle* result);
}

namespace {

// Whether oneDNN's product of a float32 tensor with transposed weights, as torch.compile uses it, is to be taken.
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
  chosen = aoti_torch_cpu__linear_pointwise != nullptr &&
           (wanted == "onednn" || (__builtin_cpu_supports("avx512f") && !__builtin_cpu_is("intel")));
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

// sum += part, both [M, N] of float32 with contiguous rows.
void add_to(const Tensor& sum, const Tensor& part) {
  const int64_t rows = sum.size(0), cols = sum.size(1), sum_step = sum.stride(0), part_step = part.stride(0);
  float* to = sum.mutable_data_ptr<float>();
  const float* from = part.const_data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) to[r * sum_step + c] += from[r * part_step + c];
}

}  // namespace

const char* product_library() { return onednn() ? "onednn" : "blas"; }

Tensor product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& sum) {
  if (onednn() && out.scalar_type() == kFloat && a.size(0) >= kFewRows) {
    AtenTensorHandle handle = nullptr;
    const char* algorithm = "";
    REID_TORCH(aoti_torch_cpu__linear_pointwise(a.get(), b.get(), nullptr, "none", nullptr, 0, &algorithm, &handle));
    const Tensor made(handle);
    if (!sum.defined()) return made;
    add_to(sum, made);
    return sum;
  }
  const Tensor transposed = b.t();
  if (sum.defined())
    REID_TORCH(aoti_torch_cpu_addmm_out(out.get(), sum.get(), a.get(), transposed.get(), 1.0, 1.0));
  else
    REID_TORCH(aoti_torch_cpu_mm_out(out.get(), a.get(), transposed.get()));
  return out;
}

void product_into(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  const Tensor made = product(out, a, b, accumulate ? out : Tensor());
  if (made.const_data_ptr() != out.const_data_ptr()) out.copy_(made);
}

}  // namespace reidfast
