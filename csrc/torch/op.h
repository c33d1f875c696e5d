// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What every binding needs of torch, and no more: narrow includes keep a binding file at some 10 s of compile time.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "csrc/cpu/isa.h"

// Runs the lambda with `scalar_t` = the C++ type of a floating-point dtype.
#define REID_DISPATCH_FLOATS(dtype, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::ScalarType::Half, at::ScalarType::BFloat16, dtype, name, __VA_ARGS__)

#if defined(REID_CUDA_EMU)
#include "tests/csrc/emu_library.h"
#endif

namespace reidfast {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// The dtype that a kernel accumulates in.
inline at::ScalarType acc_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

// Rows of at least `bytes` bytes in all per task, so that small inputs stay on one thread. Work is split by rows alone:
// how many threads take part changes who computes a row, never how.
inline int64_t grain(int64_t bytes_per_row, int64_t bytes = 64 * 1024) {
  return std::max<int64_t>(1, bytes / std::max<int64_t>(1, bytes_per_row));
}

// Above a few MiB the time to fault in fresh 4 KiB pages rivals a kernel's own (0.1 to 0.35 ms per MB), so huge pages
// are asked for; where there are none to give, nothing changes.
void advise_huge_pages(void* data, int64_t bytes);

// at::empty for outputs that are written whole, on huge pages.
Tensor empty_output(c10::IntArrayRef sizes, const c10::TensorOptions& options);

// Autograd kernel of `<op>_backward` ops: recording through it would give wrong second derivatives silently, so it
// refuses. Register with: m.impl("<op>_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>())
// under the Autograd key.
void no_double_backward(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// The typed dispatcher entry of an op, looked up once: static auto op = find_op<decltype(fn)>("reidfast::set_pool");
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
#if defined(REID_CUDA_EMU)
  const std::string emulated = "reidfast_emu" + std::string(name).substr(std::string_view("reidfast").size());
  name = emulated.c_str();
#endif
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace reidfast
