// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// reidfast._C: build facts and instruction-set control. Ops are reached through torch's dispatcher, never through here.
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/version.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "csrc/torch/op.h"
#include "csrc/torch/product.h"

// torch lets ATEN_CPU_CAPABILITY=default|avx2|avx512 override what it found; asking it keeps both sides in step.
namespace reidfast {

namespace cpu {
namespace {
Isa current_isa = Isa::kDefault;
}
Isa isa() { return current_isa; }
void set_isa(Isa isa) { current_isa = isa; }
}  // namespace cpu

namespace {

constexpr const char* kIsaNames[] = {"default", "avx2", "avx512"};

cpu::Isa isa_from_torch() {
  const std::string capability = at::get_cpu_capability();  // "DEFAULT", "AVX2", "AVX512"
#if defined(REID_HAVE_X86_ISA)
  if (capability == "AVX512") return cpu::Isa::kAvx512;
  if (capability == "AVX2") return cpu::Isa::kAvx2;
#endif
  return cpu::Isa::kDefault;
}

void set_isa_by_name(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name != kIsaNames[i]) continue;
    if (i > static_cast<int>(isa_from_torch()))
      throw std::invalid_argument("set_isa: expected at most '" +
                                  std::string(kIsaNames[static_cast<int>(isa_from_torch())]) +
                                  "', what this processor and ATEN_CPU_CAPABILITY allow, got '" + name + "'");
    cpu::set_isa(static_cast<cpu::Isa>(i));
    return;
  }
  throw std::invalid_argument("set_isa: expected default, avx2 or avx512, got '" + name + "'");
}

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  if (last >= first + kHuge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Tensor empty_output(c10::IntArrayRef sizes, const c10::TensorOptions& options) {
  Tensor out = at::empty(sizes, options);
  if (out.is_cpu() && out.nbytes() >= size_t{4} << 20) advise_huge_pages(out.mutable_data_ptr(), out.nbytes());
  return out;
}

// torch 2.11 holds nodes by shared_ptr, 2.13 by intrusive_ptr.
template <typename Pointer>
Pointer make_node(std::string message, torch::autograd::edge_list edges) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>)
    return std::make_shared<torch::autograd::Error>(std::move(message), std::move(edges));
  else
    return c10::make_intrusive<torch::autograd::Error>(std::move(message), std::move(edges));
}

// The gradient itself is right; only differentiating it again is refused, and only when somebody does.
void no_double_backward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  variable_list recorded;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size()))
    if (value.isTensor() && value.toTensor().requires_grad()) recorded.push_back(value.toTensor());
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  if (recorded.empty() || !at::GradMode::is_enabled()) return;
  std::string name = op.schema().name();
  name = name.substr(name.find("::") + 2);
  name = name.substr(0, name.rfind("_backward"));
  const auto refuse = make_node<decltype(torch::autograd::Edge().function)>(
      name + ": double backward is not implemented; `with reidfast.use_backend('reference')` is differentiable twice",
      torch::autograd::collect_next_edges(recorded));
  for (const auto& value : torch::jit::last(*stack, op.schema().returns().size()))
    if (value.isTensor() && value.toTensor().defined()) torch::autograd::set_history(value.toTensor(), refuse);
}

}  // namespace reidfast

PYBIND11_MODULE(_C, m) {
  using namespace reidfast;
  cpu::set_isa(isa_from_torch());
  m.doc() = "Compiled part of reidfast: build facts and instruction-set control. Ops are torch.ops.reidfast.*.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] = REID_COMPILER;
    info["torch"] = TORCH_VERSION;
#if defined(REID_WITH_CUDA)
    info["cuda"] = true;
#else
    info["cuda"] = false;
#endif
#if defined(REID_CUDA_ARCHITECTURES)
    info["cuda_architectures"] = REID_CUDA_ARCHITECTURES;
#endif
    return info;
  });
  m.def(
      "isa", [] { return kIsaNames[static_cast<int>(cpu::isa())]; },
      "Instruction set in force: default, avx2 or avx512.");
  m.def("product_library", &product_library, "What multiplies feature rows on the CPU: onednn or blas.");
  m.def("set_isa", &set_isa_by_name, pybind11::arg("name"), "Choose an instruction set, for tests and measurements.");
}
