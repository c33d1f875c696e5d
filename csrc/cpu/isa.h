// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Every file of csrc/cpu is compiled three times, into the namespaces isa_default, isa_avx2 and isa_avx512
// (CMakeLists.txt sets REID_ISA). A kernel is declared for all of them at once and called for the one in force:
//
// clang-format off
//   csrc/cpu/op.h         REID_CPU_DECLARE(template <typename T> void op_rows(const T* x, int64_t begin, int64_t end);)
//   csrc/cpu/op.cpp       namespace reidfast::cpu::REID_ISA { template <typename T> void op_rows(...) {...} }
//   csrc/torch/op.cpp     REID_CPU_CALL(op_rows<scalar_t>, x, begin, end);
// clang-format on
//
// Put no comma between template arguments inside REID_CPU_CALL: name the instantiation with `using`, or take a single
// parameter.
#pragma once

#include <cstdint>

namespace reidfast::cpu {

enum class Isa : int { kDefault = 0, kAvx2 = 1, kAvx512 = 2 };
Isa isa();          // the one in force
void set_isa(Isa);  // set once when the module loads, from torch's own choice (ATEN_CPU_CAPABILITY), and by tests

}  // namespace reidfast::cpu

#define REID_CPU_DECLARE(...) \
  namespace reidfast::cpu {   \
  namespace isa_default {     \
  __VA_ARGS__                 \
  }                           \
  namespace isa_avx2 {        \
  __VA_ARGS__                 \
  }                           \
  namespace isa_avx512 {      \
  __VA_ARGS__                 \
  }                           \
  }

#if defined(REID_HAVE_X86_ISA)
#define REID_CPU_CALL(fn, ...)                         \
  do {                                                 \
    switch (::reidfast::cpu::isa()) {                  \
      case ::reidfast::cpu::Isa::kAvx512:              \
        ::reidfast::cpu::isa_avx512::fn(__VA_ARGS__);  \
        break;                                         \
      case ::reidfast::cpu::Isa::kAvx2:                \
        ::reidfast::cpu::isa_avx2::fn(__VA_ARGS__);    \
        break;                                         \
      default:                                         \
        ::reidfast::cpu::isa_default::fn(__VA_ARGS__); \
    }                                                  \
  } while (false)
#else
#define REID_CPU_CALL(fn, ...) ::reidfast::cpu::isa_default::fn(__VA_ARGS__)
#endif
