// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// memory_match and memory_loss: one pass over the bank for value and gradient with respect to x
// (docs/ops/memory_loss.md).
#include "csrc/cpu/memory.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>

#include <array>

#include "csrc/torch/op.h"
#include "csrc/torch/product.h"

namespace reidfast {
namespace {

using cpu::MemoryOutputs;
using cpu::MemoryPartials;
using cpu::MemoryPicks;
using cpu::MemoryQueries;
using cpu::MemoryTile;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kMaxQueries = 128;  // of one block: its products with a tile of the bank stay in cache
constexpr int64_t kMinChunk = 4096;   // rows: fewer, and merging would cost more than it spreads
constexpr int64_t kTasks = 64;        // as many as keep a large machine busy; the split depends on shapes alone

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Parameters of one call in one shape, [M, B, d] against [M, N, d], with the copies that odd strides and dtypes need.
struct Problem {
  const char* op;
  Tensor x, bank, exclude, targets;  // x in the accumulation dtype
  int64_t parts = 1, queries = 0, rows = 0, dim = 0, part_stride = 0, row_stride = 0;
  bool flat = false, dot = false;
  double scale = 0;
  at::ScalarType acc;

  Problem(const char* op, const Tensor& x_in, const Tensor& bank_in, double scale, std::string_view metric,
          const OptionalTensor& exclude_in, const OptionalTensor& targets_in)
      : op(op), x(x_in), bank(bank_in), scale(scale) {
    flat = x.dim() == 2;
    TORCH_CHECK(x.dim() == bank.dim() && (flat || x.dim() == 3) && x.size(-1) == bank.size(-1) &&
                    (flat || x.size(0) == bank.size(0)),
                op, ": expected x (M, B, d) and bank (M, N, d), or (B, d) and (N, d), got ", x.sizes(), " and ",
                bank.sizes());
    TORCH_CHECK((x.scalar_type() == at::kDouble) == (bank.scalar_type() == at::kDouble), op,
                ": expected x and bank both float64 or neither, got ", x.scalar_type(), " and ", bank.scalar_type());
    TORCH_CHECK(metric == "dot" || metric == "sqeuclidean", op, ": expected metric 'sqeuclidean' or 'dot', got '",
                metric, "'");
    dot = metric == "dot";
    acc = acc_dtype(bank.scalar_type());
    if (x.scalar_type() != acc) x = x.to(acc);
    if (!x.is_contiguous()) x = x.contiguous();
    parts = flat ? 1 : x.size(0), queries = x.size(-2), dim = x.size(-1), rows = bank.size(-2);
    if (dim > 1 && bank.stride(-1) != 1) bank = bank.contiguous();
    part_stride = flat ? 0 : bank.stride(0), row_stride = bank.stride(-2);
    exclude = indices(exclude_in, "exclude");
    targets = indices(targets_in, "targets");
  }

  Tensor indices(const OptionalTensor& t, const char* name) const {
    if (!t) return {};
    TORCH_CHECK(t->scalar_type() == at::kLong && t->dim() == 1 && t->size(0) == queries, op, ": expected ", name,
                " int64 (B,) with B=", queries, ", got ", t->scalar_type(), " ", t->sizes());
    return t->contiguous();
  }

  // What would read outside the bank, and k above the rows that a query may use.
  void check_data(int64_t k) const {
    const int64_t* skip = exclude_data();
    const int64_t* target = targets_data();
    for (int64_t b = 0; b < queries; ++b) {
      if (skip)
        TORCH_CHECK_VALUE(skip[b] >= -1 && skip[b] < rows, op, ": expected exclude from -1 to N-1=", rows - 1, ", got ",
                          skip[b], " at ", b);
      if (target) {
        TORCH_CHECK_VALUE(target[b] >= 0 && target[b] < rows, op, ": expected targets from 0 to N-1=", rows - 1,
                          ", got ", target[b], " at ", b);
        TORCH_CHECK_VALUE(!skip || skip[b] != target[b], op, ": expected targets that are not excluded, got row ",
                          target[b], " as both at ", b);
      } else {
        const int64_t usable = rows - (skip && skip[b] >= 0);
        TORCH_CHECK_VALUE(k <= usable, op, ": expected k of at most the usable rows (", usable, " of N=", rows,
                          " for query ", b, "), got k=", k);
      }
    }
  }

  const int64_t* exclude_data() const { return exclude.defined() ? exclude.const_data_ptr<int64_t>() : nullptr; }
  const int64_t* targets_data() const { return targets.defined() ? targets.const_data_ptr<int64_t>() : nullptr; }
  // So little work that calling a library would be most of it: products by plain loops, on one thread.
  bool small() const { return parts * queries * rows * dim <= 16 * 1024; }
  at::TensorOptions acc_options() const { return x.options().dtype(acc); }
  at::DimVector shape(std::initializer_list<int64_t> last = {}) const {
    at::DimVector s = flat ? at::DimVector{queries} : at::DimVector{parts, queries};
    s.append(last.begin(), last.end());
    return s;
  }
};

// Arrays of one lifetime in one piece of memory: first planned, then taken in the same order. Little ones stay on the
// stack.
struct Workspace {
  alignas(64) uint8_t little[8 * 1024];
  Tensor large;
  uint8_t* bytes = nullptr;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    const int64_t at = used;
    used += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return bytes ? reinterpret_cast<T*>(bytes + at) : nullptr;
  }
  void allocate() {
    if (used > static_cast<int64_t>(sizeof(little))) large = at::empty({used}, at::TensorOptions().dtype(at::kByte));
    bytes = large.defined() ? large.mutable_data_ptr<uint8_t>() : little;
    used = 0;
  }
};

// How the bank is cut. Every tile of a call has the same width (the last is padded): equal rows then give equal bits
// wherever they stand, and ties are ties.
struct Split {
  int64_t width, block, blocks, chunk, chunks;

  explicit Split(const Problem& p, int64_t k) {
    const int64_t fit = (64 * 1024 / std::max<int64_t>(1, p.dim)) / 64 * 64;  // 256 KiB of float rows
    width = std::min(std::clamp<int64_t>(fit, 128, 512), ceil_div(std::max<int64_t>(1, p.rows), 64) * 64);
    blocks = std::max<int64_t>(1, ceil_div(p.queries, kMaxQueries));
    block = std::max<int64_t>(1, ceil_div(p.queries, blocks));
    const int64_t wanted = ceil_div(kTasks, std::max<int64_t>(1, p.parts * blocks));
    const int64_t least = std::max(kMinChunk, 16 * k);
    chunks = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, p.rows / least));
    chunk = ceil_div(ceil_div(p.rows, chunks), width) * width;
    chunks = std::max<int64_t>(1, ceil_div(p.rows, chunk));
  }
};

// A matrix of a kernel as a tensor, without autograd and without a copy.
template <typename A>
Tensor matrix(const A* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride = 1) {
  return at::from_blob(const_cast<A*>(data), {rows, cols}, {row_stride, col_stride},
                       at::TensorOptions().dtype(c10::CppTypeToScalarType<A>()));
}

// What one thread works in: a tile of the bank in the accumulation type (the bank itself where it can be used as it
// stands), its offsets, and its products with a block of queries.
template <typename T, typename A>
struct Tile {
  const Problem& p;
  const Split& split;
  MemoryMetric<A> metric;
  bool small;
  Workspace workspace;
  A *copy = nullptr, *offsets = nullptr, *products = nullptr, *sums = nullptr, *weighted = nullptr;
  const A* rows = nullptr;
  int64_t row_stride = 0;

  Tile(const Problem& p, const Split& split, MemoryMetric<A> metric, bool backward)
      : p(p), split(split), metric(metric), small(p.small()) {
    for (int pass = 0; pass < 2; ++pass) {
      if (pass) workspace.allocate();
      products = workspace.take<A>(split.block * split.width);
      offsets = workspace.take<A>(p.dot ? 0 : split.width);
      copy = workspace.take<A>(small ? 0 : split.width * p.dim);
      sums = workspace.take<A>(backward ? split.width : 0);
      weighted = workspace.take<A>(backward ? split.width * p.dim : 0);
    }
    if (p.dot) offsets = nullptr;
  }

  // Tile of rows [first, first + count) of a part, and its products with `count_x` queries x.
  MemoryTile<T, A> load(const T* bank, int64_t first, int64_t count) {
    const T* from = bank + first * p.row_stride;
    const bool as_is = small || (std::is_same_v<T, A> && count == split.width && p.row_stride >= p.dim);
    A* to = as_is ? nullptr : copy;
    if (to || offsets)
      REID_CPU_CALL(memory_load_tile, from, p.row_stride, count, split.width, p.dim, metric, to, offsets);
    rows = as_is ? reinterpret_cast<const A*>(from) : copy;
    row_stride = as_is ? p.row_stride : p.dim;
    return {bank, p.row_stride, p.dim, first, count, split.width, offsets};
  }
  void multiply(const MemoryTile<T, A>& tile, const A* x, int64_t count) {
    if (small) {
      REID_CPU_CALL(memory_small_products, tile, x, count, products);
      return;
    }
    Tensor out = matrix(products, count, split.width, split.width);
    product_into(out, matrix(x, count, p.dim, p.dim), matrix(rows, split.width, p.dim, row_stride),
                 /*accumulate=*/false);
  }
  void add_rows(const MemoryTile<T, A>& tile, A* sum, int64_t count) {  // sum [count, d] += products x rows
    if (small) {
      REID_CPU_CALL(memory_small_rows, tile, products, count, sum);
      return;
    }
    Tensor out = matrix(sum, count, p.dim, p.dim);
    product_into(out, matrix(products, count, split.width, split.width),
                 matrix(rows, p.dim, split.width, 1, row_stride),
                 /*accumulate=*/true);
  }
};

// Tasks that multiply run inside a parallel region even where there is one only: the libraries are then serial, as they
// are beside other tasks, and no sum depends on the number of threads.
template <typename F>
void parallel_tasks(const Problem& p, int64_t tasks, const F& run) {
  if (p.small()) {
    if (tasks) run(0, tasks);
  } else if (tasks) {
    at::parallel_for(0, std::max<int64_t>(2, tasks), 1, [&](int64_t begin, int64_t end) {
      if (begin < tasks) run(begin, std::min(end, tasks));
    });
  }
}

// The one pass: tasks are (part, chunk of the bank, block of queries), each walks its chunk tile by tile.
template <typename T, typename A>
void run_forward(const Problem& p, int64_t k, bool with_direction, const MemoryOutputs<A>& out) {
  const Split split(p, k);
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  const int64_t queries = p.parts * p.queries, total = split.chunks * queries;  // partials are [chunk, part, query]
  Workspace workspace;
  MemoryPartials<A> partials{split.chunks, queries, k, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (int pass = 0; pass < 2; ++pass) {
    if (pass) workspace.allocate();
    partials.best = workspace.take<MemoryCandidate<A>>(total * k);
    partials.filled = workspace.take<int64_t>(total);
    partials.rest_max = workspace.take<A>(total);
    partials.rest_sum = workspace.take<double>(total);
    partials.rest_rows = workspace.take<A>(with_direction ? total * p.dim : 0);
  }
  if (!with_direction) partials.rest_rows = nullptr;
  std::fill(partials.filled, partials.filled + total, 0);
  std::fill(partials.rest_max, partials.rest_max + total, -std::numeric_limits<A>::infinity());
  std::fill(partials.rest_sum, partials.rest_sum + total, 0.0);
  if (with_direction) std::fill(partials.rest_rows, partials.rest_rows + total * p.dim, A(0));
  const A* x = p.x.const_data_ptr<A>();
  const T* bank = p.bank.const_data_ptr<T>();

  const int64_t tasks = p.queries ? p.parts * split.chunks * split.blocks : 0;
  parallel_tasks(p, tasks, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tile<T, A> tile(p, split, metric, false);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % split.blocks, chunk = task / split.blocks % split.chunks,
                    part = task / split.blocks / split.chunks;
      const int64_t first_query = block * split.block, count = std::min(split.block, p.queries - first_query);
      if (count <= 0) continue;
      const int64_t query = part * p.queries + first_query, partial = chunk * queries + query;
      const MemoryQueries<A> block_queries{count,
                                           k,
                                           p.exclude_data() ? p.exclude_data() + first_query : nullptr,
                                           p.targets_data() ? p.targets_data() + first_query : nullptr,
                                           partials.best + partial * k,
                                           partials.filled + partial,
                                           partials.rest_max + partial,
                                           partials.rest_sum + partial,
                                           with_direction ? partials.rest_rows + partial * p.dim : nullptr};
      const int64_t last = std::min((chunk + 1) * split.chunk, p.rows);
      for (int64_t first = chunk * split.chunk; first < last; first += split.width) {
        const MemoryTile<T, A> view =
            tile.load(bank + part * p.part_stride, first, std::min(split.width, last - first));
        tile.multiply(view, x + query * p.dim, count);
        REID_CPU_CALL(memory_select, view, block_queries, metric, tile.products);
        if (with_direction) tile.add_rows(view, block_queries.rest_rows, count);
      }
    }
  });

  at::parallel_for(0, queries, grain(16 * p.dim * (k + split.chunks)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {  // within one part: its rows and the targets start anew
      const int64_t part = q / p.queries, first = part * p.queries, stop = std::min(end, first + p.queries);
      const MemoryPartials<A> of_part{split.chunks,
                                      queries,
                                      k,
                                      partials.best + first * k,
                                      partials.filled + first,
                                      partials.rest_max + first,
                                      partials.rest_sum + first,
                                      with_direction ? partials.rest_rows + first * p.dim : nullptr};
      const MemoryOutputs<A> out_of_part{out.loss ? out.loss + first : nullptr,
                                         out.lse ? out.lse + first : nullptr,
                                         out.state ? out.state + first : nullptr,
                                         out.shares ? out.shares + first * k : nullptr,
                                         out.topk_logits ? out.topk_logits + first * k : nullptr,
                                         out.topk ? out.topk + first * k : nullptr,
                                         with_direction ? out.direction + first * p.dim : nullptr};
      REID_CPU_CALL(memory_finish, bank + part * p.part_stride, p.row_stride, p.dim, x + first * p.dim,
                    p.targets_data(), metric, of_part, q - first, stop - first, out_of_part);
      q = stop;
    }
  });
}

// Gradient of the bank, tile by tile: weights = d loss / d logit, grad rows = slope * (weights^T x - column sums *
// row).
template <typename T, typename A>
Tensor run_grad_bank(const Problem& p, const Tensor& grad_lse, const Tensor& state, const MemoryPicks<A>& picks) {
  const Split split(p, 0);
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  Tensor grad = empty_output(p.bank.sizes(), p.bank.options());
  const int64_t tiles = ceil_div(p.rows, split.width);
  const A *x = p.x.const_data_ptr<A>(), *g = grad_lse.const_data_ptr<A>();
  const double* shift = state.const_data_ptr<double>();
  const T* bank = p.bank.const_data_ptr<T>();
  T* grad_data = grad.mutable_data_ptr<T>();
  parallel_tasks(p, p.parts * tiles, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tile<T, A> tile(p, split, metric, true);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / tiles, first = task % tiles * split.width;
      const MemoryTile<T, A> view =
          tile.load(bank + part * p.part_stride, first, std::min(split.width, p.rows - first));
      std::fill(tile.sums, tile.sums + split.width, A(0));
      std::fill(tile.weighted, tile.weighted + split.width * p.dim, A(0));
      for (int64_t q = 0; q < p.queries; q += split.block) {
        const int64_t count = std::min(split.block, p.queries - q), at = part * p.queries + q;
        const MemoryPicks<A> block_picks{picks.rows + at * picks.k, picks.weights + at * picks.k, picks.k,
                                         picks.replace};
        tile.multiply(view, x + at * p.dim, count);
        REID_CPU_CALL(memory_weights, view, count, p.exclude_data() ? p.exclude_data() + q : nullptr, g + at,
                      shift + at, block_picks, metric, tile.products, tile.sums);
        Tensor weighted = matrix(tile.weighted, split.width, p.dim, p.dim);
        at::addmm_out(weighted, weighted, matrix(tile.products, split.width, count, 1, split.width),
                      matrix(x + at * p.dim, count, p.dim, p.dim));
      }
      REID_CPU_CALL(memory_grad_rows, view, tile.weighted, tile.sums, metric,
                    grad_data + (part * p.rows + first) * p.dim);
    }
  });
  return grad;
}

template <typename T, typename A>
Tensor run_grad_x(const Problem& p, at::ScalarType dtype, const Tensor& grad_lse, const Tensor& direction,
                  const MemoryPicks<A>& picks) {
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  Tensor grad = at::empty(p.shape({p.dim}), p.acc_options());
  const A *x = p.x.const_data_ptr<A>(), *g = grad_lse.const_data_ptr<A>(), *dir = direction.const_data_ptr<A>();
  const T* bank = p.bank.const_data_ptr<T>();
  A* out = grad.mutable_data_ptr<A>();
  at::parallel_for(0, p.parts * p.queries, grain(8 * p.dim * (1 + picks.k)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {
      const int64_t part = q / p.queries, stop = std::min(end, (part + 1) * p.queries);
      REID_CPU_CALL(memory_grad_x, bank + part * p.part_stride, p.row_stride, p.dim, x, g, dir, picks, metric, q, stop,
                    out);
      q = stop;
    }
  });
  return grad.to(dtype);
}

// ---- memory_match
// ------------------------------------------------------------------------------------------------------------------

// -> lse, topk_logits, topk_indices, state and shares (float64, for the gradient of the bank), direction (d lse / dx);
// the last three are undefined where `needs` (x, bank) says that nobody asks
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> memory_match_forward_cpu(const Tensor& x, const Tensor& bank,
                                                                                    int64_t k, double scale,
                                                                                    std::string_view metric,
                                                                                    const OptionalTensor& exclude,
                                                                                    std::array<bool, 2> needs) {
  const Problem p("memory_match", x, bank, scale, metric, exclude, std::nullopt);
  TORCH_CHECK_VALUE(k >= 1 && k <= p.rows, "memory_match: expected k from 1 to the usable rows (N=", p.rows,
                    "), got k=", k);
  p.check_data(k);
  const Tensor lse = at::empty(p.shape(), p.acc_options()), logits = at::empty(p.shape({k}), p.acc_options());
  const Tensor rows = at::empty(p.shape({k}), p.x.options().dtype(at::kLong));
  const Tensor state = needs[1] ? at::empty(p.shape(), p.x.options().dtype(at::kDouble)) : Tensor();
  const Tensor shares = needs[1] ? at::empty(p.shape({k}), p.x.options().dtype(at::kDouble)) : Tensor();
  const Tensor direction = needs[0] ? at::empty(p.shape({p.dim}), p.acc_options()) : Tensor();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryOutputs<acc_t> out{nullptr,
                                   lse.mutable_data_ptr<acc_t>(),
                                   needs[1] ? state.mutable_data_ptr<double>() : nullptr,
                                   needs[1] ? shares.mutable_data_ptr<double>() : nullptr,
                                   logits.mutable_data_ptr<acc_t>(),
                                   rows.mutable_data_ptr<int64_t>(),
                                   needs[0] ? direction.mutable_data_ptr<acc_t>() : nullptr};
    run_forward<scalar_t, acc_t>(p, k, needs[0], out);
  });
  return {lse, logits, rows, state, shares, direction};
}

std::tuple<Tensor, Tensor> memory_match_backward_cpu(const Tensor& grad_lse, const Tensor& grad_logits, const Tensor& x,
                                                     const Tensor& bank, const Tensor& indices,
                                                     const OptionalTensor& state, const OptionalTensor& shares,
                                                     const OptionalTensor& direction, double scale,
                                                     std::string_view metric, const OptionalTensor& exclude,
                                                     std::array<bool, 2> needs) {
  const Problem p("memory_match", x, bank, scale, metric, exclude, std::nullopt);
  const Tensor g = grad_lse.to(p.acc).contiguous(), weights = grad_logits.to(p.acc).contiguous(),
               rows = indices.contiguous();
  TORCH_CHECK(
      g.sizes() == p.shape() && weights.sizes() == rows.sizes() && rows.sizes().slice(0, rows.dim() - 1) == p.shape(),
      "memory_match_backward: expected gradients of the forward's shapes");
  TORCH_CHECK((!needs[0] || (direction && direction->sizes() == x.sizes() && direction->is_contiguous())) &&
                  (!needs[1] || (state && shares && state->sizes() == p.shape() && state->is_contiguous() &&
                                 shares->sizes() == rows.sizes())),
              "memory_match_backward: expected what the forward saved");
  Tensor grad_x, grad_bank;
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryPicks<acc_t> picks{rows.const_data_ptr<int64_t>(), weights.const_data_ptr<acc_t>(), rows.size(-1),
                                   false};
    if (needs[0]) grad_x = run_grad_x<scalar_t, acc_t>(p, x.scalar_type(), g, *direction, picks);
    if (!needs[1]) return;  // the k best: their softmax from the logits that the forward recomputed directly
    const Tensor whole = weights.add(g.unsqueeze(-1).mul(*shares).to(p.acc)).contiguous();
    grad_bank =
        run_grad_bank<scalar_t, acc_t>(p, g, *state, {picks.rows, whole.const_data_ptr<acc_t>(), picks.k, true});
  });
  return {grad_x, grad_bank};
}

// ---- memory_loss
// -------------------------------------------------------------------------------------------------------------------

// -> loss, state (float64, for the gradient of the bank), direction (d loss / dx); undefined where `needs` (x, bank)
// says that nobody asks
std::tuple<Tensor, Tensor, Tensor> memory_loss_forward_cpu(const Tensor& x, const Tensor& bank,
                                                           std::optional<int64_t> k, const OptionalTensor& targets,
                                                           double scale, std::string_view metric,
                                                           const OptionalTensor& exclude, std::array<bool, 2> needs) {
  const Problem p("memory_loss", x, bank, scale, metric, exclude, targets);
  TORCH_CHECK_VALUE(k.has_value() != targets.has_value(), "memory_loss: expected exactly one of k and targets, got ",
                    k.has_value() ? "both" : "neither");
  TORCH_CHECK_VALUE(!k || (*k >= 1 && *k <= p.rows), "memory_loss: expected k from 1 to the usable rows (N=", p.rows,
                    "), got k=", k.value_or(0));
  p.check_data(k.value_or(0));
  const Tensor loss = at::empty(p.shape(), p.acc_options()),
               state = needs[1] ? at::empty(p.shape(), p.x.options().dtype(at::kDouble)) : Tensor();
  const Tensor direction = needs[0] ? at::empty(p.shape({p.dim}), p.acc_options()) : Tensor();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_loss", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryOutputs<acc_t> out{loss.mutable_data_ptr<acc_t>(),
                                   nullptr,
                                   needs[1] ? state.mutable_data_ptr<double>() : nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   needs[0] ? direction.mutable_data_ptr<acc_t>() : nullptr};
    run_forward<scalar_t, acc_t>(p, k.value_or(0), needs[0], out);
  });
  return {loss, state, direction};
}

// `direction` is needed for x; `bank`, `loss`, `state` and `targets` for the bank.
std::tuple<Tensor, Tensor> memory_loss_backward_cpu(const Tensor& grad, const Tensor& x, const OptionalTensor& bank,
                                                    const OptionalTensor& loss, const OptionalTensor& state,
                                                    const OptionalTensor& direction, const OptionalTensor& targets,
                                                    double scale, std::string_view metric,
                                                    const OptionalTensor& exclude, std::array<bool, 2> needs) {
  Tensor grad_x, grad_bank;
  TORCH_CHECK(!needs[0] || direction, "memory_loss_backward: expected the direction for the gradient of x");
  if (needs[0]) grad_x = grad.unsqueeze(-1).mul(*direction).to(x.scalar_type());
  if (!needs[1]) return {grad_x, grad_bank};
  TORCH_CHECK(targets && bank && loss && state, "memory_loss_backward: the bank has a gradient only with targets");
  const Problem p("memory_loss", x, *bank, scale, metric, exclude, targets);
  const Tensor g = grad.to(p.acc).contiguous();
  TORCH_CHECK(
      g.sizes() == p.shape() && state->sizes() == p.shape() && state->is_contiguous() && loss->sizes() == p.shape(),
      "memory_loss_backward: expected gradients of the forward's shapes");
  // d loss / d logit of the target is p - 1 = -(1 - e^-loss)
  const Tensor weights = loss->neg().expm1().mul_(g), rows = p.targets.expand({p.parts, p.queries}).contiguous();
  REID_DISPATCH_FLOATS(bank->scalar_type(), "memory_loss_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryPicks<acc_t> picks{rows.const_data_ptr<int64_t>(), weights.const_data_ptr<acc_t>(), 1, true};
    grad_bank = run_grad_bank<scalar_t, acc_t>(p, g, *state, picks);
  });
  return {grad_x, grad_bank};
}

// ---- dispatch and autograd
// ---------------------------------------------------------------------------------------------------------

auto memory_match_forward(const Tensor& x, const Tensor& bank, int64_t k, double scale, std::string_view metric,
                          const OptionalTensor& exclude, std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(memory_match_forward_cpu)>("reidfast::memory_match_forward");
  return op.call(x, bank, k, scale, metric, exclude, needs);
}

auto memory_loss_forward(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets,
                         double scale, std::string_view metric, const OptionalTensor& exclude,
                         std::array<bool, 2> needs) {
  static const auto op = find_op<decltype(memory_loss_forward_cpu)>("reidfast::memory_loss_forward");
  return op.call(x, bank, k, targets, scale, metric, exclude, needs);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

bool records(const Tensor& t) { return t.requires_grad() && at::GradMode::is_enabled(); }

struct MemoryMatch : torch::autograd::Function<MemoryMatch> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& bank, int64_t k, double scale,
                               std::string_view metric, const OptionalTensor& exclude, std::array<bool, 2> needs) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [lse, logits, rows, state, shares, direction] =
        memory_match_forward(x, bank, k, scale, metric, exclude, needs);
    ctx->save_for_backward({x, bank, rows, state, shares, direction, exclude.value_or(Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["metric"] = std::string(metric);
    ctx->mark_non_differentiable({rows});
    return {lse, logits, rows};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(memory_match_backward_cpu)>("reidfast::memory_match_backward");
    const auto saved = ctx->get_saved_variables();
    const auto [grad_x, grad_bank] =
        op.call(grads[0], grads[1], saved[0], saved[1], saved[2], optional(saved[3]), optional(saved[4]),
                optional(saved[5]), ctx->saved_data["scale"].toDouble(), ctx->saved_data["metric"].toStringRef(),
                optional(saved[6]), {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_x, grad_bank, Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

std::tuple<Tensor, Tensor, Tensor> memory_match_autograd(const Tensor& x, const Tensor& bank, int64_t k, double scale,
                                                         std::string_view metric, const OptionalTensor& exclude) {
  if (!records(x) && !records(bank)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [lse, logits, rows, state, shares, direction] =
        memory_match_forward(x, bank, k, scale, metric, exclude, {false, false});
    return {lse, logits, rows};
  }
  const auto out =
      MemoryMatch::apply(x, bank, k, scale, metric, exclude, std::array<bool, 2>{records(x), records(bank)});
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor, Tensor> memory_match(const Tensor& x, const Tensor& bank, int64_t k, double scale,
                                                std::string_view metric, const OptionalTensor& exclude) {
  auto [lse, logits, rows, state, shares, direction] =
      memory_match_forward(x, bank, k, scale, metric, exclude, {false, false});
  return {lse, logits, rows};
}

struct MemoryLoss : torch::autograd::Function<MemoryLoss> {
  // With k nothing of the bank is needed later: it may be updated between forward and backward.
  static Variable forward(AutogradContext* ctx, const Tensor& x, const Tensor& bank, std::optional<int64_t> k,
                          const OptionalTensor& targets, double scale, std::string_view metric,
                          const OptionalTensor& exclude, std::array<bool, 2> needs) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, state, direction] = memory_loss_forward(x, bank, k, targets, scale, metric, exclude, needs);
    if (needs[1]) {
      ctx->save_for_backward({x, direction, bank, loss, state, targets.value_or(Tensor()), exclude.value_or(Tensor())});
      ctx->saved_data["scale"] = scale;
      ctx->saved_data["metric"] = std::string(metric);
    } else {
      ctx->save_for_backward({x, direction});
    }
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(memory_loss_backward_cpu)>("reidfast::memory_loss_backward");
    const auto saved = ctx->get_saved_variables();
    const bool with_bank = saved.size() > 2;
    const auto [grad_x, grad_bank] =
        with_bank ? op.call(grads[0], saved[0], saved[2], saved[3], saved[4], optional(saved[1]), optional(saved[5]),
                            ctx->saved_data["scale"].toDouble(), ctx->saved_data["metric"].toStringRef(),
                            optional(saved[6]), {ctx->needs_input_grad(0), ctx->needs_input_grad(1)})
                  : op.call(grads[0], saved[0], std::nullopt, std::nullopt, std::nullopt, saved[1], std::nullopt, 0.0,
                            "dot", std::nullopt, {true, false});
    return {grad_x, grad_bank, Variable(), Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

Tensor memory_loss_autograd(const Tensor& x, const Tensor& bank, std::optional<int64_t> k,
                            const OptionalTensor& targets, double scale, std::string_view metric,
                            const OptionalTensor& exclude) {
  const std::array<bool, 2> needs{records(x), targets && records(bank)};  // with k the bank is a constant of the loss
  if (!needs[0] && !needs[1]) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return std::get<0>(memory_loss_forward(x, bank, k, targets, scale, metric, exclude, needs));
  }
  return MemoryLoss::apply(x, bank, k, targets, scale, metric, exclude, needs);
}

Tensor memory_loss(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets,
                   double scale, std::string_view metric, const OptionalTensor& exclude) {
  return std::get<0>(memory_loss_forward(x, bank, k, targets, scale, metric, exclude, {false, false}));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def(
      "memory_match(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "memory_match_forward(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude, bool[2] needs)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "memory_match_backward(Tensor grad_lse, Tensor grad_logits, Tensor x, Tensor bank, Tensor indices, Tensor? "
      "state, Tensor? shares, Tensor? direction,"
      " float scale, str metric, Tensor? exclude, bool[2] needs) -> (Tensor, Tensor)");
  m.def(
      "memory_loss(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude) -> "
      "Tensor");
  m.def(
      "memory_loss_forward(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude,"
      " bool[2] needs) -> (Tensor, Tensor, Tensor)");
  m.def(
      "memory_loss_backward(Tensor grad, Tensor x, Tensor? bank, Tensor? loss, Tensor? state, Tensor? direction, "
      "Tensor? targets, float scale,"
      " str metric, Tensor? exclude, bool[2] needs) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(reidfast, CPU, m) {
  m.impl("memory_match", memory_match);
  m.impl("memory_match_forward", memory_match_forward_cpu);
  m.impl("memory_match_backward", memory_match_backward_cpu);
  m.impl("memory_loss", memory_loss);
  m.impl("memory_loss_forward", memory_loss_forward_cpu);
  m.impl("memory_loss_backward", memory_loss_backward_cpu);
}
TORCH_LIBRARY_IMPL(reidfast, CUDA,
                   m) {  // the forward and backward ops of this key are Triton's (reidfast/ops/triton/memory.py)
  m.impl("memory_match", memory_match);
  m.impl("memory_loss", memory_loss);
}
TORCH_LIBRARY_IMPL(reidfast, Autograd, m) {
  m.impl("memory_match", memory_match_autograd);
  m.impl("memory_loss", memory_loss_autograd);
  m.impl("memory_match_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
  m.impl("memory_loss_backward", torch::CppFunction::makeFromBoxedFunction<&no_double_backward>());
}

}  // namespace reidfast
