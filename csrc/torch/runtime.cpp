// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What holds for the whole library: the instruction set in force, the interrupt check, facts of the build.
#include "csrc/torch/op.h"
#include "csrc/torch/product.h"

namespace reidfast {

namespace cpu {
namespace {
std::atomic<Isa> current_isa{Isa::kDefault};
}
Isa isa() { return current_isa.load(std::memory_order_relaxed); }
void set_isa(Isa isa) { current_isa.store(isa, std::memory_order_relaxed); }
}  // namespace cpu

namespace {

using InterruptCheck = int (*)();
std::atomic<InterruptCheck> interrupt_check{nullptr};

int64_t isa_op() { return static_cast<int64_t>(cpu::isa()); }

void set_isa_op(int64_t isa) {
#if defined(REID_HAVE_X86_ISA)
  constexpr int64_t kMost = 2;
#else
  constexpr int64_t kMost = 0;
#endif
  REID_CHECK_VALUE(isa >= 0 && isa <= kMost, "set_isa: expected an instruction set from 0 to ", kMost, ", got ", isa);
  cpu::set_isa(static_cast<cpu::Isa>(isa));
}

std::string product_library_op() { return product_library(); }

std::string compiler_op() { return REID_COMPILER; }

// The address of an `int check()` that returns nonzero after Ctrl-C; 0 for none. reidfast._C hands one over.
void set_interrupt_check_op(int64_t address) { interrupt_check.store(reinterpret_cast<InterruptCheck>(address)); }

}  // namespace

void check_interrupt() {
  const InterruptCheck check = interrupt_check.load(std::memory_order_relaxed);
  if (check && check()) throw std::runtime_error("reidfast: interrupted");
}

STABLE_TORCH_LIBRARY_FRAGMENT(reidfast_runtime, m) {
  m.def("isa() -> int");
  m.def("set_isa(int isa) -> ()");
  m.def("product_library() -> str");
  m.def("compiler() -> str");
  m.def("set_interrupt_check(int address) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(reidfast_runtime, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&isa_op));
  m.impl("set_isa", TORCH_BOX(&set_isa_op));
  m.impl("product_library", TORCH_BOX(&product_library_op));
  m.impl("compiler", TORCH_BOX(&compiler_op));
  m.impl("set_interrupt_check", TORCH_BOX(&set_interrupt_check_op));
}

}  // namespace reidfast
