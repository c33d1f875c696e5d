// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// Runs CUDA kernels on the CPU, for tests. Every CUDA thread is a fiber (a stack of its own, switched in a few
// nanoseconds); a block lives on one OS thread and runs its fibers one after the other until each of them waits at a
// barrier, votes, shuffles or ends; blocks are spread over OS threads. Types and conversions come from the toolkit's
// own headers, which a host compiler understands.
//
// What it finds: wrong indices (under AddressSanitizer with file and line), wrong results, missing or divergent
// barriers, shuffles that read a lane which takes no part, deadlocks, launches that a GPU would refuse. Dynamic shared
// memory starts as NaN. Fibers run in a chosen order, REID_CUDA_EMU_ORDER=forward (default), reverse, or a number that
// seeds a shuffle: a kernel whose result changes with the order lacks a barrier. REID_CUDA_EMU_THREADS limits the OS
// threads. What it cannot find: races that need two threads at the same instant, and anything about speed. Inline PTX,
// cooperative groups, tensor-core and asynchronous-copy instructions do not exist here.
#pragma once

// The standard library first: the toolkit's headers define macros (__noinline__) that its headers use as attribute
// names.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __grid_constant__
#define __global__ static
#define __device__
#define __host__
#define __shared__ static thread_local  // a block stays on its OS thread, and one OS thread runs one block at a time
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__

namespace reid_emu {

constexpr int kWarp = 32;
constexpr unsigned kMaxBlock = 1024;
constexpr size_t kMaxShared = 227 * 1024;  // sm_90; sm_80 has 163 KB
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif

using Site = std::source_location;

// ---- switching stacks
// ----------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
using Context = void*;
// Pushes what a call preserves, stores the stack pointer in *save, takes `load` for the new one, pops, returns there.
extern "C" void reid_emu_switch(void** save, void* load);
asm(R"(
.text
.weak reid_emu_switch
.hidden reid_emu_switch
.type reid_emu_switch,@function
reid_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size reid_emu_switch, .-reid_emu_switch
)");
inline void switch_context(Context& from, Context& to) { reid_emu_switch(&from, to); }
inline void make_context(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + kStack) - 1;  // so that `ret` leaves the stack as a call would: 16n + 8
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#else
using Context = ucontext_t;
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
inline void make_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// ---- a block and its threads
// -----------------------------------------------------------------------------------------------------------

struct FreeAligned {
  void operator()(unsigned char* data) const { ::operator delete[](data, std::align_val_t(128)); }
};

enum class State { kRuns, kAtBarrier, kInWarp, kEnded };

struct Fiber {
  Context context;
  State state = State::kRuns;
  uint3 index{};
  Site site;           // where it waits
  unsigned mask = 0;   // lanes that take part in what it waits for
  uint64_t value = 0;  // what it brings to a barrier, a vote or a shuffle
};

struct Block {
  std::vector<Fiber> fibers;
  std::unique_ptr<char[]> stacks;
  std::vector<uint64_t> published;                       // per thread: the value it brought to the last vote or shuffle
  std::vector<uint8_t> given;                            // per thread: whether `published` may be read
  std::unique_ptr<unsigned char[], FreeAligned> shared;  // exactly as long as asked: AddressSanitizer guards its ends
  Context scheduler;
  const std::function<void()>* body = nullptr;
  const char* kernel = "";
  std::string error;
  int current = 0;
  int barrier_count = 0, barrier_size = 0;  // of the last barrier: threads with a non-zero predicate, threads
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#endif
};

inline thread_local Block* block = nullptr;
inline thread_local uint3 thread_index, block_index;
inline thread_local dim3 block_size, grid_size;

inline void enter_fiber(int i) {
  Block& b = *block;
  b.current = i;
  thread_index = b.fibers[i].index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, b.stacks.get() + kStack * i, kStack);
#endif
  switch_context(b.scheduler, b.fibers[i].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void leave_fiber() {
  Block& b = *block;
  Fiber& me = b.fibers[b.current];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(me.state == State::kEnded ? nullptr : &fake, b.scheduler_stack,
                                 b.scheduler_stack_size);
#endif
  switch_context(me.context, b.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &b.scheduler_stack, &b.scheduler_stack_size);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize_address))
#endif
inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_size);
#endif
  (*block->body)();
  block->fibers[block->current].state = State::kEnded;
  leave_fiber();
  std::abort();  // nobody enters a fiber that has ended
}

inline std::string where(const Site& site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

// Ends the launch with an error. Called inside a fiber, which is never entered again.
[[noreturn]] inline void fail(const std::string& what, const Site& site) {
  Block& b = *block;
  if (b.error.empty())
    b.error = what + " at " + where(site) + ", thread (" + std::to_string(thread_index.x) + ", " +
              std::to_string(thread_index.y) + ", " + std::to_string(thread_index.z) + ")";
  b.fibers[b.current].state = State::kEnded;
  leave_fiber();
  std::abort();
}

inline void wait(State state, unsigned mask, uint64_t value, const Site& site) {
  Fiber& me = block->fibers[block->current];
  me.state = state;
  me.mask = mask;
  me.value = value;
  me.site = site;
  leave_fiber();
}

// A vote or shuffle is complete when every lane of its mask that has not ended waits in it. -> whether any lane goes on
inline bool release_warp(Block& b, int first, int last) {
  bool any = false;
  for (int i = first; i < last; ++i) {
    if (b.fibers[i].state != State::kInWarp) continue;
    const unsigned mask = b.fibers[i].mask;
    bool complete = true;
    for (int j = first; j < last; ++j) {
      const Fiber& f = b.fibers[j];
      if (!(mask >> (j - first) & 1) || f.state == State::kEnded) continue;
      complete &= f.state == State::kInWarp && f.mask == mask && f.site.line() == b.fibers[i].site.line();
    }
    if (!complete) continue;
    for (int j = first; j < last; ++j) {
      if (!(mask >> (j - first) & 1)) continue;
      b.given[j] = b.fibers[j].state == State::kInWarp;
      b.published[j] = b.fibers[j].value;
      if (b.given[j]) b.fibers[j].state = State::kRuns;
    }
    any = true;
  }
  return any;
}

// All threads that have not ended stand at one barrier. -> whether they go on
inline bool release_barrier(Block& b) {
  const Site* site = nullptr;
  int count = 0, size = 0;
  for (const Fiber& f : b.fibers) {
    if (f.state == State::kEnded) continue;
    if (f.state != State::kAtBarrier) return false;
    if (site && (site->line() != f.site.line() || std::strcmp(site->file_name(), f.site.file_name()) != 0)) {
      b.error = "threads of one block wait at different barriers, " + where(*site) + " and " + where(f.site);
      return false;
    }
    site = &f.site;
    count += f.value != 0;
    ++size;
  }
  if (!site) return false;
  b.barrier_count = count;
  b.barrier_size = size;
  for (Fiber& f : b.fibers)
    if (f.state == State::kAtBarrier) f.state = State::kRuns;
  return true;
}

struct Order {
  bool reverse = false, shuffle = false;
  uint64_t seed = 0;

  static Order from_environment() {
    const char* text = std::getenv("REID_CUDA_EMU_ORDER");
    Order order;
    if (!text || !*text || std::strcmp(text, "forward") == 0) return order;
    order.reverse = std::strcmp(text, "reverse") == 0;
    order.shuffle = !order.reverse;
    if (order.shuffle) order.seed = std::strtoull(text, nullptr, 10);
    return order;
  }
  std::vector<int> of(int n, uint64_t salt) const {
    std::vector<int> result(n);
    std::iota(result.begin(), result.end(), 0);
    if (reverse) std::reverse(result.begin(), result.end());
    if (shuffle) std::shuffle(result.begin(), result.end(), std::mt19937_64(seed * 0x9E3779B97F4A7C15ull + salt));
    return result;
  }
};

inline void run_block(Block& b, const Order& order) {
  const int n = static_cast<int>(block_size.x * block_size.y * block_size.z);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(b.stacks.get(), kStack * n);
#endif
  b.fibers.assign(n, Fiber{});
  b.published.assign(n, 0);
  b.given.assign(n, 0);
  for (int i = 0; i < n; ++i) {
    make_context(b.fibers[i].context, b.stacks.get() + kStack * i, fiber_main);
    b.fibers[i].index = uint3{i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
  }
  const int warps = (n + kWarp - 1) / kWarp;
  const std::vector<int> warp_order = order.of(warps, block_index.x), lane_order = order.of(kWarp, block_index.x + 1);
  for (;;) {
    bool ran = false;
    for (int w : warp_order) {
      const int first = w * kWarp, last = std::min(first + kWarp, n);
      do {
        for (int lane : lane_order) {
          if (first + lane >= last || b.fibers[first + lane].state != State::kRuns) continue;
          enter_fiber(first + lane);
          ran = true;
          if (!b.error.empty()) return;
        }
      } while (release_warp(b, first, last));
    }
    if (std::all_of(b.fibers.begin(), b.fibers.end(), [](const Fiber& f) { return f.state == State::kEnded; })) return;
    if (release_barrier(b)) continue;
    if (!b.error.empty()) return;
    if (!ran) {
      b.error = "deadlock: ";
      for (int i = 0; i < n; ++i) {
        const Fiber& f = b.fibers[i];
        if (f.state == State::kEnded) continue;
        b.error += "thread " + std::to_string(i) +
                   (f.state == State::kAtBarrier ? " waits at the barrier of " : " waits for its warp at ") +
                   where(f.site) + "; ";
        if (b.error.size() > 600) break;
      }
      return;
    }
  }
}

// Stacks and buffers outlive a launch: touching fresh pages costs more than most kernels here.
inline std::mutex pool_mutex;
inline std::vector<std::unique_ptr<Block>> pool;

inline void launch(const char* kernel, dim3 grid, dim3 size, size_t shared_bytes, cudaStream_t,
                   const std::function<void()>& body) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  const auto refuse = [&](const std::string& what) {
    throw std::runtime_error(std::string(kernel) + ": a GPU would refuse this launch: " + what);
  };
  if (blocks == 0) return;
  if (threads == 0 || threads > kMaxBlock || size.z > 64) refuse("a block of " + std::to_string(threads) + " threads");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) +
           " blocks");
  if (shared_bytes > kMaxShared)
    refuse(std::to_string(shared_bytes) + " bytes of shared memory, the limit is " + std::to_string(kMaxShared));

  const Order order = Order::from_environment();
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::exception_ptr thrown;
  const auto work = [&] {
    std::unique_ptr<Block> b;
    {
      std::lock_guard lock(pool_mutex);
      if (!pool.empty()) b = std::move(pool.back()), pool.pop_back();
    }
    if (!b) {
      b = std::make_unique<Block>();
      b->stacks.reset(new char[kStack * kMaxBlock]);
    }
    block = b.get();
    b->body = &body;
    b->kernel = kernel;
    b->shared.reset(new (std::align_val_t(128)) unsigned char[std::max<size_t>(shared_bytes, 1)]);
    block_size = size;
    grid_size = grid;
    for (uint64_t i; (i = next++) < blocks;) {
      if (order.reverse) i = blocks - 1 - i;
      block_index =
          uint3{unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t(grid.x) * grid.y))};
      std::memset(b->shared.get(), 0xff, shared_bytes);  // NaN in every floating-point type
      b->error.clear();
      run_block(*b, order);
      if (b->error.empty()) continue;
      next = blocks;
      std::lock_guard lock(mutex);
      thrown = std::make_exception_ptr(
          std::runtime_error(std::string(kernel) + ", block (" + std::to_string(block_index.x) + ", " +
                             std::to_string(block_index.y) + ", " + std::to_string(block_index.z) + "): " + b->error));
    }
    b->shared.reset();
    block = nullptr;
    std::lock_guard lock(pool_mutex);
    pool.push_back(std::move(b));
  };
  const char* limit = std::getenv("REID_CUDA_EMU_THREADS");
  const uint64_t wanted = limit ? std::strtoull(limit, nullptr, 10) : std::max(1u, std::thread::hardware_concurrency());
  const uint64_t workers =
      std::min(blocks, std::min<uint64_t>(std::max<uint64_t>(wanted, 1), 1 + blocks * threads / 4096));
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  if (thrown) std::rethrow_exception(thrown);
}

inline void* dynamic_shared() { return block->shared.get(); }
inline int thread_rank() { return block->current; }
inline int lane() { return thread_rank() % kWarp; }

inline void check_mask(unsigned mask, const Site& site) {
  if (!(mask >> lane() & 1)) fail("a lane calls a warp function whose mask leaves it out", site);
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// The value of lane `source` of this warp, after all lanes of the mask have brought theirs.
template <typename T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  check_mask(mask, site);
  wait(State::kInWarp, mask, to_bits(value), site);
  const int thread = thread_rank() - lane() + source;
  if (!(mask >> source & 1) || thread >= static_cast<int>(block->fibers.size()) || !block->given[thread])
    fail("a shuffle reads lane " + std::to_string(source) + ", which takes no part in it", site);
  T result;
  std::memcpy(&result, &block->published[thread], sizeof(T));
  return result;
}

// f(lane, value) for every lane that takes part
template <typename F>
void gather(unsigned mask, uint64_t value, const Site& site, F f) {
  check_mask(mask, site);
  wait(State::kInWarp, mask, value, site);
  const int first = thread_rank() - lane();
  for (int i = 0; i < kWarp && first + i < static_cast<int>(block->fibers.size()); ++i)
    if ((mask >> i & 1) && block->given[first + i]) f(i, block->published[first + i]);
}

template <typename T, typename F>
T atomic_update(T* address, F f) {
  std::atomic_ref<T> cell(*address);
  T old = cell.load();
  while (!cell.compare_exchange_weak(old, f(old))) {
  }
  return old;
}

}  // namespace reid_emu

#define threadIdx ::reid_emu::thread_index
#define blockIdx ::reid_emu::block_index
#define blockDim ::reid_emu::block_size
#define gridDim ::reid_emu::grid_size
constexpr int warpSize = 32;

// ---- barriers
// --------------------------------------------------------------------------------------------------------------------------

using ReidEmuSite = std::source_location;

inline void __syncthreads(ReidEmuSite site = ReidEmuSite::current()) {
  reid_emu::wait(reid_emu::State::kAtBarrier, ~0u, 0, site);
}
inline int __syncthreads_count(int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  reid_emu::wait(reid_emu::State::kAtBarrier, ~0u, predicate != 0, site);
  return reid_emu::block->barrier_count;
}
inline int __syncthreads_or(int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  return __syncthreads_count(predicate, site) > 0;
}
inline int __syncthreads_and(int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  return __syncthreads_count(predicate, site) == reid_emu::block->barrier_size;
}
inline void __syncwarp(unsigned mask = ~0u, ReidEmuSite site = ReidEmuSite::current()) {
  reid_emu::check_mask(mask, site);
  reid_emu::wait(reid_emu::State::kInWarp, mask, 0, site);
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// ---- shuffles and votes
// ----------------------------------------------------------------------------------------------------------------

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, ReidEmuSite site = ReidEmuSite::current()) {
  return reid_emu::shuffle(mask, value, (reid_emu::lane() & ~(width - 1)) | (source & (width - 1)), site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, ReidEmuSite site = ReidEmuSite::current()) {
  const int lane = reid_emu::lane(), other = lane ^ lane_mask;
  return reid_emu::shuffle(mask, value, other < (lane | (width - 1)) + 1 ? other : lane, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, ReidEmuSite site = ReidEmuSite::current()) {
  const int lane = reid_emu::lane(), other = lane + static_cast<int>(delta);
  return reid_emu::shuffle(mask, value, other <= (lane | (width - 1)) ? other : lane, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, ReidEmuSite site = ReidEmuSite::current()) {
  const int lane = reid_emu::lane(), other = lane - static_cast<int>(delta);
  return reid_emu::shuffle(mask, value, other >= (lane & ~(width - 1)) ? other : lane, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  unsigned result = 0;
  reid_emu::gather(mask, predicate != 0, site, [&](int lane, uint64_t value) { result |= unsigned(value) << lane; });
  return result;
}
inline int __any_sync(unsigned mask, int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ReidEmuSite site = ReidEmuSite::current()) {
  return __ballot_sync(mask, !predicate, site) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, ReidEmuSite site = ReidEmuSite::current()) {
  const uint64_t mine = reid_emu::to_bits(value);
  unsigned result = 0;
  reid_emu::gather(mask, mine, site, [&](int lane, uint64_t other) { result |= unsigned(other == mine) << lane; });
  return result;
}
template <typename T, typename F>
T reid_emu_reduce(unsigned mask, T value, ReidEmuSite site, F f) {
  bool first = true;
  T result{};
  reid_emu::gather(mask, reid_emu::to_bits(value), site, [&](int, uint64_t bits) {
    T other;
    std::memcpy(&other, &bits, sizeof(T));
    result = first ? other : f(result, other);
    first = false;
  });
  return result;
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, ReidEmuSite site = ReidEmuSite::current()) {
  return reid_emu_reduce(mask, value, site, [](T a, T b) { return static_cast<T>(a + b); });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, ReidEmuSite site = ReidEmuSite::current()) {
  return reid_emu_reduce(mask, value, site, [](T a, T b) { return a < b ? a : b; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, ReidEmuSite site = ReidEmuSite::current()) {
  return reid_emu_reduce(mask, value, site, [](T a, T b) { return a < b ? b : a; });
}

// ---- atomics
// ---------------------------------------------------------------------------------------------------------------------------

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return reid_emu::atomic_update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return reid_emu::atomic_update(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return reid_emu::atomic_update(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value);
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_or(value);
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_and(value);
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*address).compare_exchange_strong(compare, value);
  return compare;
}

// ---- loads, bits, mathematics
// ----------------------------------------------------------------------------------------------------------
// Approximate intrinsics are exact here: a test that passes with them says nothing about their error on a GPU.

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// As on the device: of a NaN and a number, the number.
template <typename A, typename B>
constexpr auto min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>)
    return std::fmin(static_cast<C>(a), static_cast<C>(b));
  else
    return static_cast<C>(b) < static_cast<C>(a) ? static_cast<C>(b) : static_cast<C>(a);
}
template <typename A, typename B>
constexpr auto max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>)
    return std::fmax(static_cast<C>(a), static_cast<C>(b));
  else
    return static_cast<C>(a) < static_cast<C>(b) ? static_cast<C>(b) : static_cast<C>(a);
}

// ---- the runtime calls that launchers make
// ---------------------------------------------------------------------------------------------

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
