// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What every binding needs of torch: its stable ABI and nothing else, so that one library serves every torch from 2.11
// on. Only C functions and header-only code of torch may be used in csrc/torch.
//
// A binding is compiled once for the CPU library and, where it names REID_WITH_CUDA, once more for the CUDA library:
//
//   #if defined(REID_WITH_CUDA)
//   Tensor op(const Tensor& x) { ... }                  // the CUDA implementation
//   #else
//   Tensor op(const Tensor& x) { ... }                  // the CPU implementation
//   #endif
//   REID_SCHEMAS(reidfast, m) { m.def("op(Tensor x) -> Tensor"); }
//   REID_KERNELS(reidfast, m) { m.impl("op", TORCH_BOX(&op)); }
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "csrc/cpu/isa.h"

namespace reidfast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using Shape = std::vector<int64_t>;

constexpr ScalarType kFloat = ScalarType::Float, kDouble = ScalarType::Double, kLong = ScalarType::Long,
                     kInt = ScalarType::Int, kByte = ScalarType::Byte, kBool = ScalarType::Bool;

// The dtype of a C++ type.
template <typename T>
constexpr ScalarType dtype_of() {
  if constexpr (std::is_same_v<T, float>) return kFloat;
  if constexpr (std::is_same_v<T, double>) return kDouble;
  if constexpr (std::is_same_v<T, int64_t>) return kLong;
  if constexpr (std::is_same_v<T, int32_t>) return kInt;
  if constexpr (std::is_same_v<T, uint8_t>) return kByte;
  if constexpr (std::is_same_v<T, bool>) return kBool;
}

// The type and the dtype that a kernel accumulates in.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
inline ScalarType acc_dtype(ScalarType dtype) { return dtype == kDouble ? kDouble : kFloat; }

// Sizes or strides, borrowed for the length of a call.
struct IntList {
  const int64_t* values;
  size_t count;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winit-list-lifetime"
  IntList(std::initializer_list<int64_t> list) : values(list.begin()), count(list.size()) {}
#pragma GCC diagnostic pop
  IntList(const Shape& shape) : values(shape.data()), count(shape.size()) {}                        // NOLINT
  IntList(torch::headeronly::IntHeaderOnlyArrayRef ref) : values(ref.data()), count(ref.size()) {}  // NOLINT
  IntList(const int64_t* values, size_t count) : values(values), count(count) {}

  const int64_t* begin() const { return values; }
  const int64_t* end() const { return values + count; }
  size_t size() const { return count; }
  int64_t operator[](size_t i) const { return values[i]; }
  IntList slice(size_t first) const { return {values + first, count - first}; }
  IntList slice(size_t first, size_t n) const { return {values + first, n}; }
  Shape vec() const { return Shape(begin(), end()); }
  int64_t product() const {
    int64_t result = 1;
    for (const int64_t n : *this) result *= n;
    return result;
  }
  torch::headeronly::IntHeaderOnlyArrayRef ref() const { return {values, count}; }
};
inline bool operator==(IntList a, IntList b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }
inline bool operator!=(IntList a, IntList b) { return !(a == b); }

// Where a tensor lives.
struct Device {
  int32_t type = 0, index = -1;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
  bool operator!=(const Device& other) const { return !(*this == other); }
};

// Device and dtype of a tensor to make.
struct Options {
  Device device;
  ScalarType scalar_type = kFloat;
  Options dtype(ScalarType dtype) const { return {device, dtype}; }
};

// ---- errors: in Python std::invalid_argument is ValueError, std::out_of_range IndexError, std::runtime_error
// RuntimeError --------------------------------------------------------------------------------------------------------

inline std::ostream& operator<<(std::ostream& out, IntList list) {  // as torch prints sizes: [2, 3]
  out << '[';
  for (size_t i = 0; i < list.size(); ++i) out << (i ? ", " : "") << list[i];
  return out << ']';
}
inline std::ostream& operator<<(std::ostream& out, Device device) {
  out << (device.type == aoti_torch_device_type_cpu()    ? "cpu"
          : device.type == aoti_torch_device_type_cuda() ? "cuda"
                                                         : "another device");
  if (device.type != aoti_torch_device_type_cpu() && device.index >= 0) out << ':' << device.index;
  return out;
}

template <typename Part>
void put(std::ostream& out, const Part& part) {
  if constexpr (std::is_same_v<Part, ScalarType>)
    out << torch::headeronly::toString(part);
  else if constexpr (std::is_same_v<Part, torch::headeronly::IntHeaderOnlyArrayRef>)
    out << IntList(part);
  else
    out << part;
}

template <typename Error, typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream out;
  (put(out, parts), ...);
  throw Error(out.str());
}

#define REID_CHECK_AS(error, condition, ...)                \
  do {                                                      \
    if (!(condition)) ::reidfast::fail<error>(__VA_ARGS__); \
  } while (false)
#define REID_CHECK(condition, ...) REID_CHECK_AS(std::runtime_error, condition, __VA_ARGS__)
#define REID_CHECK_VALUE(condition, ...) REID_CHECK_AS(std::invalid_argument, condition, __VA_ARGS__)
#define REID_CHECK_INDEX(condition, ...) REID_CHECK_AS(std::out_of_range, condition, __VA_ARGS__)

// A call of torch's C interface. What went wrong inside is on stderr, so a binding checks its inputs before it calls.
#define REID_TORCH(...) \
  REID_CHECK((__VA_ARGS__) == AOTI_TORCH_SUCCESS, "reidfast: a function of torch failed: " #__VA_ARGS__)

// ---- tensors --------------------------------------------------------------------------------------------------------

template <typename Result, typename... Args>
Result call_torch(const char* op, const char* overload, const Args&... args);

// torch::stable::Tensor with the methods that bindings use. Each skips torch's dispatcher where there is nothing to
// do: a call by name costs two microseconds.
class Tensor : public torch::stable::Tensor {
 public:
  using Base = torch::stable::Tensor;
  Tensor() : Base(AtenTensorHandle{nullptr}) {}
  explicit Tensor(AtenTensorHandle handle) : Base(handle) {}
  Tensor(Base base) : Base(std::move(base)) {}  // NOLINT

  bool defined() const { return get() != nullptr && Base::defined(); }
  IntList sizes() const { return Base::sizes(); }
  IntList strides() const { return Base::strides(); }
  Device device() const {
    Device result;
    REID_TORCH(aoti_torch_get_device_type(get(), &result.type));
    REID_TORCH(aoti_torch_get_device_index(get(), &result.index));
    return result;
  }
  Options options() const { return {device(), scalar_type()}; }

  template <typename T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(Base::const_data_ptr());
  }
  const void* const_data_ptr() const { return Base::const_data_ptr(); }
  template <typename T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(Base::mutable_data_ptr());
  }
  void* mutable_data_ptr() const { return Base::mutable_data_ptr(); }

  using Base::is_contiguous;
  bool is_contiguous(MemoryFormat format) const {
    if (format == MemoryFormat::Contiguous) return is_contiguous();
    if (dim() != 4) return false;
    int64_t expected = 1;
    for (const int64_t d : {1, 3, 2, 0}) {
      if (size(d) != 1 && stride(d) != expected) return false;
      expected *= size(d);
    }
    return true;
  }
  Tensor contiguous(MemoryFormat format = MemoryFormat::Contiguous) const {
    return is_contiguous(format) ? *this : Tensor(torch::stable::contiguous(*this, format));
  }
  Tensor to(ScalarType dtype) const { return scalar_type() == dtype ? *this : Tensor(torch::stable::to(*this, dtype)); }
  Tensor reshape(IntList sizes) const { return torch::stable::reshape(*this, sizes.ref()); }
  Tensor view(IntList sizes) const { return torch::stable::view(*this, sizes.ref()); }
  Tensor narrow(int64_t dim, int64_t start, int64_t length) const {
    Base self = *this;
    return torch::stable::narrow(self, dim, start, length);
  }
  Tensor transpose(int64_t a, int64_t b) const { return torch::stable::transpose(*this, a, b); }
  Tensor t() const { return transpose(0, 1); }
  Tensor movedim(int64_t from, int64_t to) const {
    return call_torch<Tensor>("aten::movedim", "int", static_cast<Base>(*this), from, to);
  }
  Tensor unsqueeze(int64_t dim) const { return torch::stable::unsqueeze(*this, dim); }
  const Tensor& zero_() const {
    Base self = *this;
    torch::stable::zero_(self);
    return *this;
  }
  const Tensor& copy_(const Tensor& source) const {
    Base self = *this;
    torch::stable::copy_(self, source);
    return *this;
  }
};

// An op of torch by name. Its schema may not hold a Scalar, which cannot be passed.
template <typename Result, typename... Args>
Result call_torch(const char* op, const char* overload, const Args&... args) {
  std::array<StableIValue, std::max<size_t>(sizeof...(Args), 1)> stack{torch::stable::detail::from(args)...};
  const AOTITorchError error = torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION);
  REID_CHECK(error == AOTI_TORCH_SUCCESS, "reidfast: ", op, " of torch failed");
  if constexpr (!std::is_void_v<Result>) return Result(torch::stable::detail::to<torch::stable::Tensor>(stack[0]));
}

inline Options cpu_options(ScalarType dtype) { return {{aoti_torch_device_type_cpu(), -1}, dtype}; }

inline int32_t shim_dtype(ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

inline Tensor empty_strided(IntList sizes, IntList strides, const Options& options) {
  AtenTensorHandle made = nullptr;
  REID_TORCH(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.values, strides.values,
                                      shim_dtype(options.scalar_type), options.device.type,
                                      std::max<int32_t>(options.device.index, 0), &made));
  return Tensor(made);
}

inline Tensor empty(IntList sizes, const Options& options) {
  constexpr size_t kMost = 8;
  REID_CHECK(sizes.size() <= kMost || sizes.product() >= 0, "reidfast: too many dimensions");
  std::array<int64_t, kMost> little;
  Shape large(sizes.size() > kMost ? sizes.size() : 0);
  int64_t* strides = large.empty() ? little.data() : large.data();
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) strides[i] = step, step *= std::max<int64_t>(sizes[i], 1);
  return empty_strided(sizes, {strides, sizes.size()}, options);
}
// Of the sizes and strides of x, which is dense.
inline Tensor empty_like(const Tensor& x) { return empty_strided(x.sizes(), x.strides(), x.options()); }
inline Tensor zeros(IntList sizes, const Options& options) { return empty(sizes, options).zero_(); }
inline Tensor full(IntList sizes, double value, const Options& options) {
  Tensor out = empty(sizes, options);
  Tensor::Base base = out;
  torch::stable::fill_(base, value);
  return out;
}

// A view of memory on the CPU that somebody else owns.
template <typename T>
Tensor from_blob(T* data, IntList sizes, IntList strides) {
  using Plain = std::remove_const_t<T>;
  AtenTensorHandle made = nullptr;
  REID_TORCH(aoti_torch_create_tensor_from_blob(const_cast<Plain*>(data), static_cast<int64_t>(sizes.size()),
                                                sizes.values, strides.values, 0, shim_dtype(dtype_of<Plain>()),
                                                aoti_torch_device_type_cpu(), -1, &made));
  return Tensor(made);
}
template <typename T>
Tensor from_blob(T* data, int64_t rows, int64_t cols) {
  return from_blob(data, {rows, cols}, {cols, 1});
}

// Above a few MiB the time to fault in fresh 4 KiB pages rivals a kernel's own (0.1 to 0.35 ms per MB), so huge pages
// are asked for; where there are none to give, nothing changes.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge, last = end / kHuge * kHuge;
  if (last >= first + kHuge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// `empty` for outputs that are written whole, on huge pages.
inline Tensor empty_output(IntList sizes, const Options& options) {
  Tensor out = empty(sizes, options);
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  if (bytes >= int64_t{4} << 20 && out.is_cpu()) advise_huge_pages(out.mutable_data_ptr(), bytes);
  return out;
}

inline Tensor sum_of(const Tensor& x, int64_t dim) {
  return torch::stable::sum(x, torch::headeronly::IntHeaderOnlyArrayRef(&dim, 1));
}
// A `str` argument. torch's own conversion to std::string loses 48 bytes or more a call in the headers before 2.14.
struct Text {
  std::string value;
  operator std::string_view() const { return value; }  // NOLINT
};

// Refuses tensors that do not live where `like` lives: the dispatcher goes by one of them alone.
inline void check_device(const char* op, const char* name, const Tensor& x, const char* other, const Tensor& like) {
  REID_CHECK_VALUE(x.device() == like.device(), op, ": expected ", name, " on ", other, "'s device ", like.device(),
                   ", got ", x.device());
}

// ---- work -----------------------------------------------------------------------------------------------------------

// Runs the lambda with `scalar_t` = the C++ type of a floating-point dtype.
#define REID_CASE(dtype, type, ...)              \
  case ::torch::headeronly::ScalarType::dtype: { \
    using scalar_t = type;                       \
    __VA_ARGS__();                               \
    break;                                       \
  }
#define REID_DISPATCH_WIDE(dtype, name, ...)                                                      \
  switch (dtype) {                                                                                \
    REID_CASE(Float, float, __VA_ARGS__)                                                          \
    REID_CASE(Double, double, __VA_ARGS__)                                                        \
    default:                                                                                      \
      ::reidfast::fail<std::runtime_error>(name, ": expected float32 or float64, got ", (dtype)); \
  }
#define REID_DISPATCH_FLOATS(dtype, name, ...)                                                        \
  switch (dtype) {                                                                                    \
    REID_CASE(Float, float, __VA_ARGS__)                                                              \
    REID_CASE(Double, double, __VA_ARGS__)                                                            \
    REID_CASE(Half, c10::Half, __VA_ARGS__)                                                           \
    REID_CASE(BFloat16, c10::BFloat16, __VA_ARGS__)                                                   \
    default:                                                                                          \
      ::reidfast::fail<std::runtime_error>(name, ": expected a floating-point dtype, got ", (dtype)); \
  }

inline bool is_float(ScalarType dtype) {
  return dtype == kFloat || dtype == kDouble || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

// Rows of at least `bytes` bytes in all per task, so that small inputs stay on one thread. Work is split by rows alone:
// how many threads take part changes who computes a row, never how.
inline int64_t grain(int64_t bytes_per_row, int64_t bytes = 64 * 1024) {
  return std::max<int64_t>(1, bytes / std::max<int64_t>(1, bytes_per_row));
}

inline int64_t num_threads() {
  uint32_t n = 1;
  REID_TORCH(torch_get_num_threads(&n));
  return n;
}
inline int64_t thread_index() {
  uint32_t n = 0;
  REID_TORCH(torch_get_thread_idx(&n));
  return n;
}

// Parallel over [begin, end) by torch's threads. What fn throws is carried around torch's C interface, which would
// lose its type and message. A single piece of work is done here, without the call.
template <typename Fn>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const Fn& fn) {
  if (end <= begin) return;
  if (end - begin <= grain_size) return fn(begin, end);
  struct Carrier {
    const Fn& fn;
    std::atomic<bool> failed{false};
    std::exception_ptr error = nullptr;
  } carrier{fn};
  const auto piece = [](int64_t first, int64_t last, void* context) {
    auto& c = *static_cast<Carrier*>(context);
    try {
      c.fn(first, last);
    } catch (...) {
      if (!c.failed.exchange(true)) c.error = std::current_exception();
    }
  };
  REID_TORCH(torch_parallel_for(begin, end, grain_size, piece, &carrier));
  if (carrier.error) std::rethrow_exception(carrier.error);
}

// Whether the user pressed Ctrl-C: asked by loops that may run for long, on the calling thread or any other. Throws
// `Interrupted` where so (csrc/torch/runtime.cpp).
void check_interrupt();

}  // namespace reidfast

namespace torch::stable::detail {
template <>
struct ToImpl<reidfast::Tensor> {
  static reidfast::Tensor call(StableIValue value, uint64_t, bool) {
    return reidfast::Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
};
template <>
struct FromImpl<reidfast::Tensor> {
  static StableIValue call(const reidfast::Tensor& x, uint64_t version, bool internal) {
    AtenTensorHandle none = nullptr;
    if (x.get() != nullptr) return FromImpl<Tensor>::call(x, version, internal);
    REID_TORCH(aoti_torch_new_uninitialized_tensor(&none));
    return torch::stable::detail::from(none);
  }
};
template <>
struct ToImpl<reidfast::Text> {
  static reidfast::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = torch::stable::detail::to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    REID_TORCH(torch_string_length(handle, &length));
    REID_TORCH(torch_string_c_str(handle, &data));
    reidfast::Text text{std::string(data, length)};
    torch_delete_string(handle);
    return text;
  }
};
}  // namespace torch::stable::detail

// Schemas are defined by the CPU library alone; the CUDA library adds kernels to them. The emulation of the tests
// defines its own, in a namespace of its own, and registers what is written for CUDA under the CPU's key.
#define REID_PASTE_(a, b) a##b
#define REID_PASTE(a, b) REID_PASTE_(a, b)
#if defined(REID_CUDA_EMU)
#define REID_SCHEMAS(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(REID_PASTE(ns, _emu), m)
#define REID_KERNELS(ns, m) STABLE_TORCH_LIBRARY_IMPL(REID_PASTE(ns, _emu), CPU, m)
#elif defined(REID_WITH_CUDA)
#define REID_SCHEMAS(ns, m) \
  [[maybe_unused]] static void REID_PASTE(reid_schemas_, __LINE__)(torch::stable::detail::StableLibrary & m)
#define REID_KERNELS(ns, m) STABLE_TORCH_LIBRARY_IMPL(ns, CUDA, m)
#else
#define REID_SCHEMAS(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define REID_KERNELS(ns, m) STABLE_TORCH_LIBRARY_IMPL(ns, CPU, m)
#endif
