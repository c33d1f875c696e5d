// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// reidfast._C: what only a Python extension can do. The kernels are in libreidfast.so, which knows no Python; without
// this module all of them work, and long calls notice Ctrl-C at their end only.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

namespace py = pybind11;

namespace {

py::object* pending = nullptr;  // the exception that a signal's handler raised during a native loop

// Runs the handlers of signals that have arrived, as Python does between two instructions. Signals are handled on the
// main thread alone; elsewhere nothing happens.
int check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return 0;
  py::error_already_set error;  // takes the exception
  delete pending;
  pending = new py::object(error.value());
  return 1;
}

py::object take_interrupt() {
  if (!pending) return py::none();
  const py::object error = std::move(*pending);
  delete std::exchange(pending, nullptr);
  return error;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Interrupts of long native loops. Ops are torch.ops.reidfast.*.";
  m.def(
      "interrupt_check", [] { return reinterpret_cast<intptr_t>(&check_signals); },
      "Address of a C function `int check()`: nonzero once a signal's handler has raised.");
  m.def("take_interrupt", &take_interrupt, "The exception that stopped a native loop, once; else None.");
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = REID_COMPILER;
        info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
        info["python"] = PY_VERSION;
        return info;
      },
      "How this module was built.");
}
