// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// What memory_match and memory_loss share: the arguments of a call, how the bank is cut into tiles, and the one pass
// over it for value and gradient with respect to x (docs/ops/memory_loss.md).
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cmath>
#include <limits>

#include "csrc/cpu/memory.h"
#include "csrc/torch/op.h"
#include "csrc/torch/product.h"

namespace reidfast {

using OptionalTensor = std::optional<Tensor>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The arguments of one call in one shape, [M, B, d] against [M, N, d], with the copies that odd strides and dtypes
// need.
struct MemoryArgs {
  const char* op;
  Tensor x, bank, exclude, targets;  // x in the accumulation dtype
  int64_t parts = 1, queries = 0, rows = 0, dim = 0, part_stride = 0, row_stride = 0;
  bool flat = false, dot = false;
  double scale = 0;
  ScalarType acc = kFloat;

  MemoryArgs(const char* op, const Tensor& x_in, const Tensor& bank_in, double scale, std::string_view metric,
             const OptionalTensor& exclude_in, const OptionalTensor& targets_in)
      : op(op), x(x_in), bank(bank_in), scale(scale) {
    flat = x.dim() == 2;
    REID_CHECK(x.dim() == bank.dim() && (flat || x.dim() == 3) && x.size(-1) == bank.size(-1) &&
                   (flat || x.size(0) == bank.size(0)),
               op, ": expected x (M, B, d) and bank (M, N, d), or (B, d) and (N, d), got ", x.sizes(), " and ",
               bank.sizes());
    const ScalarType x_dtype = x.scalar_type(), bank_dtype = bank.scalar_type();
    REID_CHECK(is_float(x_dtype) && is_float(bank_dtype), op,
               ": expected x and bank of dtype float32, float64, float16 or bfloat16, got ", x_dtype, " and ",
               bank_dtype);
    REID_CHECK((x_dtype == kDouble) == (bank_dtype == kDouble), op,
               ": expected x and bank both float64 or neither, got ", x_dtype, " and ", bank_dtype);
    check_device(op, "bank", bank, "x", x);
    REID_CHECK(metric == "dot" || metric == "sqeuclidean", op, ": expected metric 'sqeuclidean' or 'dot', got '",
               metric, "'");
    REID_CHECK_VALUE(std::abs(scale) <= std::numeric_limits<double>::max(), op, ": expected a finite scale, got ",
                     scale);
    dot = metric == "dot";
    acc = acc_dtype(bank_dtype);
    parts = flat ? 1 : x.size(0), queries = x.size(-2), dim = x.size(-1), rows = bank.size(-2);
    exclude = checked_rows(exclude_in, "exclude");
    targets = checked_rows(targets_in, "targets");
    x = x.to(acc).contiguous();
    if (dim > 1 && bank.stride(-1) != 1) bank = bank.contiguous();
    part_stride = flat ? 0 : bank.stride(0), row_stride = bank.stride(-2);
  }

  const int64_t* exclude_data() const { return exclude.defined() ? exclude.const_data_ptr<int64_t>() : nullptr; }
  const int64_t* targets_data() const { return targets.defined() ? targets.const_data_ptr<int64_t>() : nullptr; }
  // So little work that calling a library would be most of it: products by plain loops, on one thread.
  bool small() const { return parts * queries * rows * dim <= 16 * 1024; }
  Options options(ScalarType dtype) const { return x.options().dtype(dtype); }
  Shape shape(std::initializer_list<int64_t> last = {}) const {
    Shape sizes;
    sizes.reserve(4);
    if (!flat) sizes.push_back(parts);
    sizes.push_back(queries);
    sizes.insert(sizes.end(), last);
    return sizes;
  }

  // What would read outside the bank, and k above the rows that a query may use.
  void check_data(int64_t k) const {
    const int64_t* skip = exclude_data();
    const int64_t* target = targets_data();
    for (int64_t b = 0; b < queries; ++b) {
      if (skip)
        REID_CHECK_VALUE(skip[b] >= -1 && skip[b] < rows, op, ": expected exclude from -1 to N-1=", rows - 1, ", got ",
                         skip[b], " at ", b);
      if (target) {
        REID_CHECK_VALUE(target[b] >= 0 && target[b] < rows, op, ": expected targets from 0 to N-1=", rows - 1,
                         ", got ", target[b], " at ", b);
        REID_CHECK_VALUE(!skip || skip[b] != target[b], op, ": expected targets that are not excluded, got row ",
                         target[b], " as both at ", b);
      } else {
        const int64_t usable = rows - (skip && skip[b] >= 0);
        REID_CHECK_VALUE(k <= usable, op, ": expected k of at most the usable rows (", usable, " of N=", rows,
                         " for query ", b, "), got k=", k);
      }
    }
  }

  // ---- for the backward ops: memory that the forward saved may have been written since, past every version counter

  // A gradient of the forward's output, in the accumulation dtype.
  Tensor checked_grad(const Tensor& grad, const char* name, IntList sizes) const {
    REID_CHECK(is_float(grad.scalar_type()) && grad.sizes() == sizes, op, ": expected ", name,
               " of a floating-point dtype and shape ", sizes, ", got ", grad.scalar_type(), " ", grad.sizes());
    check_device(op, name, grad, "x", x);
    return grad.to(acc).contiguous();
  }

  Tensor checked_saved(const OptionalTensor& saved, const char* name, ScalarType dtype, IntList sizes) const {
    REID_CHECK(saved && saved->defined(), op, ": expected ", name, ", which the forward saves for this gradient");
    REID_CHECK(saved->scalar_type() == dtype && saved->sizes() == sizes, op, ": expected ", name, " ", dtype, " ",
               sizes, ", as the forward saved it, got ", saved->scalar_type(), " ", saved->sizes());
    check_device(op, name, *saved, "x", x);
    return saved->contiguous();
  }

  void check_range(const Tensor& indices, const char* name, int64_t lowest) const {
    if (!indices.defined()) return;
    const int64_t* row = indices.const_data_ptr<int64_t>();
    const int64_t count = indices.numel();
    for (int64_t i = 0; i < count; ++i)
      REID_CHECK_INDEX(row[i] >= lowest && row[i] < rows, op, ": expected ", name, " from ", lowest,
                       " to N-1=", rows - 1, ", got ", row[i], " at ", i);
  }

 private:
  Tensor checked_rows(const OptionalTensor& indices, const char* name) const {
    if (!indices) return {};
    REID_CHECK(indices->scalar_type() == kLong && indices->dim() == 1 && indices->size(0) == queries, op, ": expected ",
               name, " int64 (B,) with B=", queries, ", got ", indices->scalar_type(), " ", indices->sizes());
    check_device(op, name, *indices, "x", x);
    return indices->contiguous();
  }
};

// Arrays of one lifetime in one piece of memory: first planned, then taken in the same order. Little ones stay on the
// stack.
struct MemoryWorkspace {
  alignas(64) uint8_t little[8 * 1024];
  Tensor large;
  uint8_t* bytes = nullptr;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    const int64_t offset = used;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return bytes ? reinterpret_cast<T*>(bytes + offset) : nullptr;
  }
  void allocate() {
    if (used > static_cast<int64_t>(sizeof(little))) large = empty({used}, cpu_options(kByte));
    bytes = large.defined() ? large.mutable_data_ptr<uint8_t>() : little;
    used = 0;
  }
};

// How the bank is cut. Every tile of a call has the same width (the last is padded): equal rows then give equal bits
// wherever they stand, and ties are ties.
struct MemorySplit {
  static constexpr int64_t kMaxQueries = 128;  // of one block: its products with a tile of the bank stay in cache
  static constexpr int64_t kMinChunk = 4096;   // rows: fewer, and merging would cost more than it spreads
  static constexpr int64_t kTasks = 64;        // keep a large machine busy; the split depends on shapes alone

  int64_t width, block, blocks, chunk, chunks;

  explicit MemorySplit(const MemoryArgs& args, int64_t k) {
    const int64_t fit = (64 * 1024 / std::max<int64_t>(1, args.dim)) / 64 * 64;  // 256 KiB of float rows
    width = std::min(std::clamp<int64_t>(fit, 128, 512), ceil_div(std::max<int64_t>(1, args.rows), 64) * 64);
    blocks = std::max<int64_t>(1, ceil_div(args.queries, kMaxQueries));
    block = std::max<int64_t>(1, ceil_div(args.queries, blocks));
    const int64_t wanted = ceil_div(kTasks, std::max<int64_t>(1, args.parts * blocks));
    const int64_t least = std::max(kMinChunk, 16 * k);
    chunks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, args.rows / least));
    chunk = ceil_div(ceil_div(args.rows, chunks), width) * width;
    chunks = std::max<int64_t>(1, ceil_div(args.rows, chunk));
  }
};

// What one thread works in: a tile of the bank in the accumulation type (the bank itself where it can be used as it
// stands), its offsets, and its products with a block of queries.
template <typename T, typename A>
struct MemoryTileBuffer {
  const MemoryArgs& args;
  const MemorySplit& split;
  MemoryMetric<A> metric;
  bool small;
  MemoryWorkspace workspace;
  A *copy = nullptr, *offsets = nullptr, *products = nullptr, *sums = nullptr, *weighted = nullptr;
  const A* rows = nullptr;
  int64_t row_stride = 0;

  MemoryTileBuffer(const MemoryArgs& args, const MemorySplit& split, MemoryMetric<A> metric, bool backward)
      : args(args), split(split), metric(metric), small(args.small()) {
    for (int pass = 0; pass < 2; ++pass) {
      if (pass) workspace.allocate();
      products = workspace.take<A>(split.block * split.width);
      offsets = workspace.take<A>(args.dot ? 0 : split.width);
      copy = workspace.take<A>(small ? 0 : split.width * args.dim);
      sums = workspace.take<A>(backward ? split.width : 0);
      weighted = workspace.take<A>(backward ? split.width * args.dim : 0);
    }
    if (args.dot) offsets = nullptr;
  }

  // Tile of rows [first, first + count) of a part.
  cpu::MemoryTile<T, A> load(const T* bank, int64_t first, int64_t count) {
    const T* from = bank + first * args.row_stride;
    const bool as_is = small || (std::is_same_v<T, A> && count == split.width && args.row_stride >= args.dim);
    A* to = as_is ? nullptr : copy;
    if (to || offsets)
      REID_CPU_CALL(memory_load_tile, from, args.row_stride, count, split.width, args.dim, metric, to, offsets);
    rows = as_is ? reinterpret_cast<const A*>(from) : copy;
    row_stride = as_is ? args.row_stride : args.dim;
    return {bank, args.row_stride, args.dim, first, count, split.width, offsets};
  }
  // products = queries x [count, d] times the rows of the tile
  void multiply(const cpu::MemoryTile<T, A>& tile, const A* x, int64_t count) {
    if (small) {
      REID_CPU_CALL(memory_small_products, tile, x, count, products);
      return;
    }
    product_into(from_blob(products, count, split.width), from_blob(x, count, args.dim),
                 from_blob(rows, {split.width, args.dim}, {row_stride, 1}), /*accumulate=*/false);
  }
  // sum [count, d] += products times the rows of the tile
  void add_rows(const cpu::MemoryTile<T, A>& tile, A* sum, int64_t count) {
    if (small) {
      REID_CPU_CALL(memory_small_rows, tile, products, count, sum);
      return;
    }
    product_into(from_blob(sum, count, args.dim), from_blob(products, count, split.width),
                 from_blob(rows, {args.dim, split.width}, {1, row_stride}), /*accumulate=*/true);
  }
  // weighted [width, d] += products^T times queries x [count, d]
  void add_weighted(const A* x, int64_t count) {
    const Tensor out = from_blob(weighted, split.width, args.dim);
    const Tensor weights = from_blob(products, {split.width, count}, {1, split.width});
    const Tensor queries = from_blob(x, count, args.dim);
    REID_TORCH(aoti_torch_cpu_addmm_out(out.get(), out.get(), weights.get(), queries.get(), 1.0, 1.0));
  }
};

// Tasks that multiply run inside a parallel region even where there is one only: the libraries are then serial, as they
// are beside other tasks, and no sum depends on the number of threads.
template <typename Fn>
void parallel_memory_tasks(const MemoryArgs& args, int64_t tasks, const Fn& run) {
  if (args.small()) {
    if (tasks) run(0, tasks);
  } else if (tasks) {
    parallel_for(0, std::max<int64_t>(2, tasks), 1, [&](int64_t begin, int64_t end) {
      if (begin < tasks) run(begin, std::min(end, tasks));
    });
  }
}

// The one pass: tasks are (part, chunk of the bank, block of queries), each walks its chunk tile by tile.
template <typename T, typename A>
void memory_pass(const MemoryArgs& args, int64_t k, bool with_direction, const cpu::MemoryOutputs<A>& out) {
  const MemorySplit split(args, k);
  const MemoryMetric<A> metric{args.dot, static_cast<A>(args.scale)};
  const int64_t queries = args.parts * args.queries, total = split.chunks * queries;
  MemoryWorkspace workspace;
  cpu::MemoryPartials<A> partials{split.chunks, queries, k, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (int pass = 0; pass < 2; ++pass) {  // partials are [chunk, part, query]
    if (pass) workspace.allocate();
    partials.best = workspace.take<MemoryCandidate<A>>(total * k);
    partials.filled = workspace.take<int64_t>(total);
    partials.rest_max = workspace.take<A>(total);
    partials.rest_sum = workspace.take<double>(total);
    partials.rest_rows = workspace.take<A>(with_direction ? total * args.dim : 0);
  }
  if (!with_direction) partials.rest_rows = nullptr;
  std::fill(partials.filled, partials.filled + total, 0);
  std::fill(partials.rest_max, partials.rest_max + total, -std::numeric_limits<A>::infinity());
  std::fill(partials.rest_sum, partials.rest_sum + total, 0.0);
  if (with_direction) std::fill(partials.rest_rows, partials.rest_rows + total * args.dim, A(0));
  const A* x = args.x.const_data_ptr<A>();
  const T* bank = args.bank.const_data_ptr<T>();

  const int64_t tasks = args.queries ? args.parts * split.chunks * split.blocks : 0;
  parallel_memory_tasks(args, tasks, [&](int64_t begin, int64_t end) {
    MemoryTileBuffer<T, A> buffer(args, split, metric, false);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % split.blocks, chunk = task / split.blocks % split.chunks,
                    part = task / split.blocks / split.chunks;
      const int64_t first_query = block * split.block, count = std::min(split.block, args.queries - first_query);
      if (count <= 0) continue;
      const int64_t query = part * args.queries + first_query, partial = chunk * queries + query;
      const cpu::MemoryQueries<A> block_queries{count,
                                                k,
                                                args.exclude_data() ? args.exclude_data() + first_query : nullptr,
                                                args.targets_data() ? args.targets_data() + first_query : nullptr,
                                                partials.best + partial * k,
                                                partials.filled + partial,
                                                partials.rest_max + partial,
                                                partials.rest_sum + partial,
                                                with_direction ? partials.rest_rows + partial * args.dim : nullptr};
      const int64_t last = std::min((chunk + 1) * split.chunk, args.rows);
      for (int64_t first = chunk * split.chunk; first < last; first += split.width) {
        const cpu::MemoryTile<T, A> tile =
            buffer.load(bank + part * args.part_stride, first, std::min(split.width, last - first));
        buffer.multiply(tile, x + query * args.dim, count);
        REID_CPU_CALL(memory_select, tile, block_queries, metric, buffer.products);
        if (with_direction) buffer.add_rows(tile, block_queries.rest_rows, count);
      }
    }
  });

  parallel_for(0, queries, grain(16 * args.dim * (k + split.chunks)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {  // within one part: its rows and the targets start anew
      const int64_t part = q / args.queries, first = part * args.queries, stop = std::min(end, first + args.queries);
      const cpu::MemoryPartials<A> of_part{split.chunks,
                                           queries,
                                           k,
                                           partials.best + first * k,
                                           partials.filled + first,
                                           partials.rest_max + first,
                                           partials.rest_sum + first,
                                           with_direction ? partials.rest_rows + first * args.dim : nullptr};
      const cpu::MemoryOutputs<A> out_of_part{out.loss ? out.loss + first : nullptr,
                                              out.lse ? out.lse + first : nullptr,
                                              out.state ? out.state + first : nullptr,
                                              out.shares ? out.shares + first * k : nullptr,
                                              out.topk_logits ? out.topk_logits + first * k : nullptr,
                                              out.topk ? out.topk + first * k : nullptr,
                                              with_direction ? out.direction + first * args.dim : nullptr};
      REID_CPU_CALL(memory_finish, bank + part * args.part_stride, args.row_stride, args.dim, x + first * args.dim,
                    args.targets_data(), metric, of_part, q - first, stop - first, out_of_part);
      q = stop;
    }
  });
}

// Gradient of the bank, tile by tile: weights = d loss / d logit, grad rows = slope * (weights^T x - column sums *
// row).
template <typename T, typename A>
Tensor memory_grad_bank(const MemoryArgs& args, const Tensor& grad_lse, const Tensor& state,
                        const cpu::MemoryPicks<A>& picks) {
  const MemorySplit split(args, 0);
  const MemoryMetric<A> metric{args.dot, static_cast<A>(args.scale)};
  const Tensor grad = empty_output(args.bank.sizes(), args.bank.options());
  const int64_t tiles = ceil_div(args.rows, split.width);
  const A *x = args.x.const_data_ptr<A>(), *scales = grad_lse.const_data_ptr<A>();
  const double* shift = state.const_data_ptr<double>();
  const T* bank = args.bank.const_data_ptr<T>();
  T* grad_data = grad.mutable_data_ptr<T>();
  parallel_memory_tasks(args, args.parts * tiles, [&](int64_t begin, int64_t end) {
    MemoryTileBuffer<T, A> buffer(args, split, metric, true);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / tiles, first = task % tiles * split.width;
      const cpu::MemoryTile<T, A> tile =
          buffer.load(bank + part * args.part_stride, first, std::min(split.width, args.rows - first));
      std::fill(buffer.sums, buffer.sums + split.width, A(0));
      std::fill(buffer.weighted, buffer.weighted + split.width * args.dim, A(0));
      for (int64_t q = 0; q < args.queries; q += split.block) {
        const int64_t count = std::min(split.block, args.queries - q), query = part * args.queries + q;
        const cpu::MemoryPicks<A> block_picks{picks.rows + query * picks.k, picks.weights + query * picks.k, picks.k,
                                              picks.replace};
        buffer.multiply(tile, x + query * args.dim, count);
        REID_CPU_CALL(memory_weights, tile, count, args.exclude_data() ? args.exclude_data() + q : nullptr,
                      scales + query, shift + query, block_picks, metric, buffer.products, buffer.sums);
        buffer.add_weighted(x + query * args.dim, count);
      }
      REID_CPU_CALL(memory_grad_rows, tile, buffer.weighted, buffer.sums, metric,
                    grad_data + (part * args.rows + first) * args.dim);
    }
  });
  return grad;
}

}  // namespace reidfast
