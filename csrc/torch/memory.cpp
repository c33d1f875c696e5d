// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// memory_match and memory_loss: one pass over the bank for value and gradient with respect to x (docs/ops/memory_loss.md).
#include "csrc/cpu/memory.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <array>

#include "csrc/torch/op.h"

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
  int64_t parts = 1, queries = 0, rows = 0, dim = 0;
  bool flat = false, dot = false;
  double scale = 0;
  at::ScalarType acc;

  Problem(const char* op, const Tensor& x_in, const Tensor& bank_in, double scale, std::string_view metric, const OptionalTensor& exclude_in,
          const OptionalTensor& targets_in)
      : op(op), scale(scale) {
    flat = x_in.dim() == 2;
    TORCH_CHECK(x_in.dim() == bank_in.dim() && (flat || x_in.dim() == 3) && x_in.size(-1) == bank_in.size(-1) &&
                    (flat || x_in.size(0) == bank_in.size(0)),
                op, ": expected x (M, B, d) and bank (M, N, d), or (B, d) and (N, d), got ", x_in.sizes(), " and ", bank_in.sizes());
    TORCH_CHECK((x_in.scalar_type() == at::kDouble) == (bank_in.scalar_type() == at::kDouble), op,
                ": expected x and bank both float64 or neither, got ", x_in.scalar_type(), " and ", bank_in.scalar_type());
    TORCH_CHECK(metric == "dot" || metric == "sqeuclidean", op, ": expected metric 'sqeuclidean' or 'dot', got '", metric, "'");
    dot = metric == "dot";
    acc = acc_dtype(bank_in.scalar_type());
    x = (flat ? x_in.unsqueeze(0) : x_in).to(acc).contiguous();
    bank = flat ? bank_in.unsqueeze(0) : bank_in;
    parts = x.size(0), queries = x.size(1), dim = x.size(2), rows = bank.size(1);
    if (dim > 1 && bank.stride(2) != 1) bank = bank.contiguous();
    exclude = indices(exclude_in, "exclude");
    targets = indices(targets_in, "targets");
  }

  Tensor indices(const OptionalTensor& t, const char* name) const {
    if (!t) return {};
    TORCH_CHECK(t->scalar_type() == at::kLong && t->dim() == 1 && t->size(0) == queries, op, ": expected ", name, " int64 (B,) with B=",
                queries, ", got ", t->scalar_type(), " ", t->sizes());
    return t->contiguous();
  }

  // What would read outside the bank, and k above the rows that a query may use.
  void check_data(int64_t k) const {
    const int64_t* skip = exclude_data();
    const int64_t* target = targets_data();
    for (int64_t b = 0; b < queries; ++b) {
      if (skip)
        TORCH_CHECK_VALUE(skip[b] >= -1 && skip[b] < rows, op, ": expected exclude from -1 to N-1=", rows - 1, ", got ", skip[b], " at ", b);
      if (target) {
        TORCH_CHECK_VALUE(target[b] >= 0 && target[b] < rows, op, ": expected targets from 0 to N-1=", rows - 1, ", got ", target[b], " at ",
                          b);
        TORCH_CHECK_VALUE(!skip || skip[b] != target[b], op, ": expected targets that are not excluded, got row ", target[b], " as both at ",
                          b);
      } else {
        const int64_t usable = rows - (skip && skip[b] >= 0);
        TORCH_CHECK_VALUE(k <= usable, op, ": expected k of at most the usable rows (", usable, " of N=", rows, " for query ", b, "), got k=",
                          k);
      }
    }
  }

  const int64_t* exclude_data() const { return exclude.defined() ? exclude.const_data_ptr<int64_t>() : nullptr; }
  const int64_t* targets_data() const { return targets.defined() ? targets.const_data_ptr<int64_t>() : nullptr; }
  int64_t row_stride() const { return bank.stride(1); }
  at::TensorOptions acc_options() const { return x.options().dtype(acc); }
  at::DimVector shape(std::initializer_list<int64_t> last = {}) const {
    at::DimVector s = flat ? at::DimVector{queries} : at::DimVector{parts, queries};
    s.append(last.begin(), last.end());
    return s;
  }
};

// How the bank is cut. Every tile of a call has the same width (the last is padded): equal rows then give equal bits wherever they
// stand, and ties are ties.
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
  return at::from_blob(const_cast<A*>(data), {rows, cols}, {row_stride, col_stride}, at::TensorOptions().dtype(c10::CppTypeToScalarType<A>()));
}

// One tile of the bank in the accumulation type: the bank itself where it can be used as it stands.
template <typename T, typename A>
struct TileBuffer {
  Tensor copy, offsets;
  const A* rows = nullptr;
  int64_t row_stride = 0;

  void load(const Problem& p, const Split& split, MemoryMetric<A> metric, const T* first, int64_t count) {
    const bool as_is = std::is_same_v<T, A> && count == split.width && p.row_stride() >= p.dim;
    if (!as_is && !copy.defined()) copy = at::empty({split.width, p.dim}, p.acc_options());
    if (!p.dot && !offsets.defined()) offsets = at::empty({split.width}, p.acc_options());
    A* tile = as_is ? nullptr : copy.mutable_data_ptr<A>();
    A* offset = p.dot ? nullptr : offsets.mutable_data_ptr<A>();
    if (tile || offset)
      REID_CPU_CALL(memory_load_tile, first, p.row_stride(), count, split.width, p.dim, metric, tile, offset);
    rows = as_is ? reinterpret_cast<const A*>(first) : tile;
    row_stride = as_is ? p.row_stride() : p.dim;
  }
  const A* offset_data() const { return offsets.defined() ? offsets.template const_data_ptr<A>() : nullptr; }
};

template <typename A>
Tensor query_offsets(const Problem& p, MemoryMetric<A> metric) {
  Tensor offsets = at::empty({p.parts * p.queries}, p.acc_options());
  A* out = offsets.mutable_data_ptr<A>();
  if (p.dot) {
    std::fill(out, out + offsets.numel(), A(0));
  } else {
    const A* x = p.x.const_data_ptr<A>();
    REID_CPU_CALL(memory_load_tile, x, p.dim, offsets.numel(), offsets.numel(), p.dim, metric, static_cast<A*>(nullptr), out);
  }
  return offsets;
}

// The one pass: tasks are (part, chunk of the bank, block of queries), each walks its chunk tile by tile.
template <typename T, typename A>
void run_forward(const Problem& p, int64_t k, bool with_direction, const MemoryOutputs<A>& out) {
  const Split split(p, k);
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  const int64_t total = split.chunks * p.parts * p.queries;  // partials are [chunk, part, query]
  const Tensor offsets = query_offsets(p, metric);
  const Tensor best = at::empty({total * k * static_cast<int64_t>(sizeof(MemoryCandidate<A>))}, p.x.options().dtype(at::kByte));
  const Tensor filled = at::zeros({k ? total : 0}, p.x.options().dtype(at::kLong));
  const Tensor rest_max = at::empty({total}, p.acc_options()), rest_sum = at::zeros({total}, p.x.options().dtype(at::kDouble));
  const Tensor rest_rows = with_direction ? at::zeros({total, p.dim}, p.acc_options()) : Tensor();
  const MemoryPartials<A> partials{split.chunks,
                                   p.parts * p.queries,
                                   k,
                                   reinterpret_cast<MemoryCandidate<A>*>(best.mutable_data_ptr<uint8_t>()),
                                   filled.mutable_data_ptr<int64_t>(),
                                   rest_max.mutable_data_ptr<A>(),
                                   rest_sum.mutable_data_ptr<double>(),
                                   with_direction ? rest_rows.mutable_data_ptr<A>() : nullptr};
  std::fill(partials.rest_max, partials.rest_max + total, -std::numeric_limits<A>::infinity());
  const A* x = p.x.const_data_ptr<A>();
  const T* bank = p.bank.const_data_ptr<T>();

  const int64_t tasks = p.queries ? p.parts * split.chunks * split.blocks : 0;
  const int64_t task_flops = 4 * split.block * std::min(split.chunk, p.rows) * std::max<int64_t>(1, p.dim);
  at::parallel_for(0, tasks, grain(task_flops, 1 << 20), [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    TileBuffer<T, A> tile;
    Tensor products = at::empty({split.block, split.width}, p.acc_options());
    A* product_data = products.mutable_data_ptr<A>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % split.blocks, chunk = task / split.blocks % split.chunks, part = task / split.blocks / split.chunks;
      const int64_t first_query = block * split.block, count = std::min(split.block, p.queries - first_query);
      const int64_t query = part * p.queries + first_query, partial = chunk * partials.queries + query;
      if (count <= 0) continue;
      const MemoryQueries<A> queries{count,
                                     k,
                                     offsets.const_data_ptr<A>() + query,
                                     p.exclude_data() ? p.exclude_data() + first_query : nullptr,
                                     p.targets_data() ? p.targets_data() + first_query : nullptr,
                                     partials.best + partial * k,
                                     partials.filled + (k ? partial : 0),
                                     partials.rest_max + partial,
                                     partials.rest_sum + partial,
                                     with_direction ? partials.rest_rows + partial * p.dim : nullptr};
      const T* part_bank = bank + part * p.bank.stride(0);
      const Tensor block_x = matrix(x + query * p.dim, count, p.dim, p.dim);
      Tensor block_products = matrix(product_data, count, split.width, split.width);
      Tensor block_rows = with_direction ? matrix(queries.rest_rows, count, p.dim, p.dim) : Tensor();
      const int64_t last = std::min((chunk + 1) * split.chunk, p.rows);
      for (int64_t first = chunk * split.chunk; first < last; first += split.width) {
        const int64_t rows = std::min(split.width, last - first);
        tile.load(p, split, metric, part_bank + first * p.row_stride(), rows);
        at::mm_out(block_products, block_x, matrix(tile.rows, p.dim, split.width, 1, tile.row_stride));
        const MemoryTile<T, A> view{part_bank, p.row_stride(), p.dim, first, rows, split.width, tile.offset_data()};
        REID_CPU_CALL(memory_select, view, queries, metric, product_data);
        if (with_direction) at::addmm_out(block_rows, block_rows, block_products, matrix(tile.rows, split.width, p.dim, tile.row_stride));
      }
    }
  });

  at::parallel_for(0, p.parts * p.queries, grain(16 * p.dim * (k + split.chunks)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {  // within one part: its rows and the targets start anew
      const int64_t part = q / p.queries, first = part * p.queries, stop = std::min(end, first + p.queries);
      const MemoryPartials<A> of_part{partials.chunks,
                                      partials.queries,
                                      k,
                                      partials.best + first * k,
                                      partials.filled + (k ? first : 0),
                                      partials.rest_max + first,
                                      partials.rest_sum + first,
                                      with_direction ? partials.rest_rows + first * p.dim : nullptr};
      const MemoryOutputs<A> out_of_part{out.loss ? out.loss + first : nullptr, out.lse ? out.lse + first : nullptr,
                                         out.topk_logits ? out.topk_logits + first * k : nullptr, out.topk ? out.topk + first * k : nullptr,
                                         with_direction ? out.direction + first * p.dim : nullptr};
      REID_CPU_CALL(memory_finish, bank + part * p.bank.stride(0), p.row_stride(), p.dim, x + first * p.dim, p.targets_data(), metric, of_part,
                    q - first, stop - first, out_of_part);
      q = stop;
    }
  });
}

// Gradient of the bank, tile by tile: weights = d loss / d logit, grad rows = slope * (weights^T x - column sums * row).
template <typename T, typename A>
Tensor run_grad_bank(const Problem& p, const Tensor& grad_lse, const Tensor& lse, const MemoryPicks<A>& picks) {
  const Split split(p, 0);
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  const Tensor offsets = query_offsets(p, metric);
  Tensor grad = empty_output({p.parts, p.rows, p.dim}, p.bank.options());
  const int64_t tiles = ceil_div(p.rows, split.width);
  const A* x = p.x.const_data_ptr<A>();
  const T* bank = p.bank.const_data_ptr<T>();
  T* grad_data = grad.mutable_data_ptr<T>();
  at::parallel_for(0, p.parts * tiles, grain(4 * p.queries * split.width * p.dim, 1 << 20), [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    TileBuffer<T, A> tile;
    Tensor products = at::empty({split.block, split.width}, p.acc_options());
    Tensor sums = at::empty({split.width}, p.acc_options()), weighted = at::empty({split.width, p.dim}, p.acc_options());
    A* product_data = products.mutable_data_ptr<A>();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / tiles, first = task % tiles * split.width, rows = std::min(split.width, p.rows - first);
      const T* part_bank = bank + part * p.bank.stride(0);
      tile.load(p, split, metric, part_bank + first * p.row_stride(), rows);
      const MemoryTile<T, A> view{part_bank, p.row_stride(), p.dim, first, rows, split.width, tile.offset_data()};
      weighted.zero_();
      sums.zero_();
      for (int64_t q = 0; q < p.queries; q += split.block) {
        const int64_t count = std::min(split.block, p.queries - q), at = part * p.queries + q;
        const Tensor block_x = matrix(x + at * p.dim, count, p.dim, p.dim);
        Tensor block_products = matrix(product_data, count, split.width, split.width);
        at::mm_out(block_products, block_x, matrix(tile.rows, p.dim, split.width, 1, tile.row_stride));
        const MemoryPicks<A> block_picks{picks.rows ? picks.rows + at * picks.k : nullptr, picks.weights ? picks.weights + at * picks.k : nullptr,
                                         picks.k, picks.replace};
        REID_CPU_CALL(memory_weights, view, count, offsets.const_data_ptr<A>() + at, p.exclude_data() ? p.exclude_data() + q : nullptr,
                      grad_lse.const_data_ptr<A>() + at, lse.const_data_ptr<A>() + at, block_picks, metric, product_data,
                      sums.mutable_data_ptr<A>());
        at::addmm_out(weighted, weighted, matrix(product_data, split.width, count, 1, split.width), block_x);
      }
      REID_CPU_CALL(memory_grad_rows, view, weighted.const_data_ptr<A>(), sums.const_data_ptr<A>(), metric,
                    grad_data + (part * p.rows + first) * p.dim);
    }
  });
  return p.flat ? grad.squeeze(0) : grad;
}

template <typename T, typename A>
Tensor run_grad_x(const Problem& p, at::ScalarType dtype, const Tensor& grad_lse, const Tensor& direction, const MemoryPicks<A>& picks) {
  const MemoryMetric<A> metric{p.dot, static_cast<A>(p.scale)};
  Tensor grad = at::empty(p.shape({p.dim}), p.acc_options());
  const A *x = p.x.const_data_ptr<A>(), *g = grad_lse.const_data_ptr<A>(), *dir = direction.const_data_ptr<A>();
  const T* bank = p.bank.const_data_ptr<T>();
  A* out = grad.mutable_data_ptr<A>();
  at::parallel_for(0, p.parts * p.queries, grain(8 * p.dim * (1 + picks.k)), [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end;) {
      const int64_t part = q / p.queries, stop = std::min(end, (part + 1) * p.queries);
      REID_CPU_CALL(memory_grad_x, bank + part * p.bank.stride(0), p.row_stride(), p.dim, x, g, dir, picks, metric, q, stop, out);
      q = stop;
    }
  });
  return grad.to(dtype);
}

// ---- memory_match ------------------------------------------------------------------------------------------------------------------

// -> lse, topk_logits, topk_indices, direction (d lse / dx; empty where nobody asks)
std::tuple<Tensor, Tensor, Tensor, Tensor> memory_match_forward_cpu(const Tensor& x, const Tensor& bank, int64_t k, double scale,
                                                                    std::string_view metric, const OptionalTensor& exclude,
                                                                    bool with_direction) {
  const Problem p("memory_match", x, bank, scale, metric, exclude, std::nullopt);
  TORCH_CHECK_VALUE(k >= 1 && k <= p.rows, "memory_match: expected k from 1 to the usable rows (N=", p.rows, "), got k=", k);
  p.check_data(k);
  const Tensor lse = at::empty(p.shape(), p.acc_options()), logits = at::empty(p.shape({k}), p.acc_options());
  const Tensor rows = at::empty(p.shape({k}), p.x.options().dtype(at::kLong));
  const Tensor direction = at::empty(with_direction ? p.shape({p.dim}) : at::DimVector{0}, p.acc_options());
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryOutputs<acc_t> out{nullptr, lse.mutable_data_ptr<acc_t>(), logits.mutable_data_ptr<acc_t>(), rows.mutable_data_ptr<int64_t>(),
                                   with_direction ? direction.mutable_data_ptr<acc_t>() : nullptr};
    run_forward<scalar_t, acc_t>(p, k, with_direction, out);
  });
  return {lse, logits, rows, direction};
}

std::tuple<Tensor, Tensor> memory_match_backward_cpu(const Tensor& grad_lse, const Tensor& grad_logits, const Tensor& x, const Tensor& bank,
                                                     const Tensor& lse, const Tensor& indices, const Tensor& direction, double scale,
                                                     std::string_view metric, const OptionalTensor& exclude, std::array<bool, 2> needs) {
  const Problem p("memory_match", x, bank, scale, metric, exclude, std::nullopt);
  const Tensor g = grad_lse.to(p.acc).contiguous(), weights = grad_logits.to(p.acc).contiguous(), rows = indices.contiguous();
  TORCH_CHECK(g.sizes() == p.shape() && weights.sizes() == rows.sizes() && rows.sizes().slice(0, rows.dim() - 1) == p.shape(),
              "memory_match_backward: expected gradients of the forward's shapes");
  Tensor grad_x, grad_bank;
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_match_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryPicks<acc_t> picks{rows.const_data_ptr<int64_t>(), weights.const_data_ptr<acc_t>(), rows.size(-1), false};
    if (needs[0]) grad_x = run_grad_x<scalar_t, acc_t>(p, x.scalar_type(), g, direction, picks);
    if (needs[1]) grad_bank = run_grad_bank<scalar_t, acc_t>(p, g, lse, picks);
  });
  return {grad_x, grad_bank};
}

// ---- memory_loss -------------------------------------------------------------------------------------------------------------------

// -> loss, lse, direction (d loss / dx; empty where nobody asks)
std::tuple<Tensor, Tensor, Tensor> memory_loss_forward_cpu(const Tensor& x, const Tensor& bank, std::optional<int64_t> k,
                                                           const OptionalTensor& targets, double scale, std::string_view metric,
                                                           const OptionalTensor& exclude, bool with_direction) {
  const Problem p("memory_loss", x, bank, scale, metric, exclude, targets);
  TORCH_CHECK_VALUE(k.has_value() != targets.has_value(), "memory_loss: expected exactly one of k and targets, got ",
                    k.has_value() ? "both" : "neither");
  TORCH_CHECK_VALUE(!k || (*k >= 1 && *k <= p.rows), "memory_loss: expected k from 1 to the usable rows (N=", p.rows, "), got k=",
                    k.value_or(0));
  p.check_data(k.value_or(0));
  const Tensor loss = at::empty(p.shape(), p.acc_options()), lse = at::empty(p.shape(), p.acc_options());
  const Tensor direction = at::empty(with_direction ? p.shape({p.dim}) : at::DimVector{0}, p.acc_options());
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_loss", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryOutputs<acc_t> out{loss.mutable_data_ptr<acc_t>(), lse.mutable_data_ptr<acc_t>(), nullptr, nullptr,
                                   with_direction ? direction.mutable_data_ptr<acc_t>() : nullptr};
    run_forward<scalar_t, acc_t>(p, k.value_or(0), with_direction, out);
  });
  return {loss, lse, direction};
}

std::tuple<Tensor, Tensor> memory_loss_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& bank, const Tensor& loss,
                                                    const Tensor& lse, const Tensor& direction, const OptionalTensor& targets, double scale,
                                                    std::string_view metric, const OptionalTensor& exclude, std::array<bool, 2> needs) {
  Tensor grad_x, grad_bank;
  if (needs[0]) grad_x = grad.unsqueeze(-1).mul(direction).to(x.scalar_type());
  if (!needs[1]) return {grad_x, grad_bank};
  TORCH_CHECK(targets, "memory_loss_backward: the bank has a gradient only with targets");
  const Problem p("memory_loss", x, bank, scale, metric, exclude, targets);
  const Tensor g = grad.to(p.acc).contiguous();
  TORCH_CHECK(g.sizes() == p.shape() && lse.sizes() == p.shape(), "memory_loss_backward: expected gradients of the forward's shapes");
  // d loss / d logit of the target is p - 1 = -(1 - e^-loss)
  const Tensor weights = loss.neg().expm1().mul_(g), rows = p.targets.expand({p.parts, p.queries}).contiguous();
  REID_DISPATCH_FLOATS(bank.scalar_type(), "memory_loss_backward", [&] {
    using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const MemoryPicks<acc_t> picks{rows.const_data_ptr<int64_t>(), weights.const_data_ptr<acc_t>(), 1, true};
    grad_bank = run_grad_bank<scalar_t, acc_t>(p, g, lse, picks);
  });
  return {grad_x, grad_bank};
}

// ---- dispatch and autograd ---------------------------------------------------------------------------------------------------------

auto memory_match_forward(const Tensor& x, const Tensor& bank, int64_t k, double scale, std::string_view metric, const OptionalTensor& exclude,
                          bool with_direction) {
  static const auto op = find_op<decltype(memory_match_forward_cpu)>("reidfast::memory_match_forward");
  return op.call(x, bank, k, scale, metric, exclude, with_direction);
}

auto memory_loss_forward(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets, double scale,
                         std::string_view metric, const OptionalTensor& exclude, bool with_direction) {
  static const auto op = find_op<decltype(memory_loss_forward_cpu)>("reidfast::memory_loss_forward");
  return op.call(x, bank, k, targets, scale, metric, exclude, with_direction);
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

bool records(const Tensor& t) { return t.requires_grad() && at::GradMode::is_enabled(); }

struct MemoryMatch : torch::autograd::Function<MemoryMatch> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& bank, int64_t k, double scale, std::string_view metric,
                               const OptionalTensor& exclude, bool with_direction) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [lse, logits, rows, direction] = memory_match_forward(x, bank, k, scale, metric, exclude, with_direction);
    ctx->save_for_backward({x, bank, lse, rows, direction, exclude.value_or(Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["metric"] = std::string(metric);
    ctx->mark_non_differentiable({rows});
    return {lse, logits, rows};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(memory_match_backward_cpu)>("reidfast::memory_match_backward");
    const auto saved = ctx->get_saved_variables();
    const auto [grad_x, grad_bank] =
        op.call(grads[0], grads[1], saved[0], saved[1], saved[2], saved[3], saved[4], ctx->saved_data["scale"].toDouble(),
                ctx->saved_data["metric"].toStringRef(), optional(saved[5]), {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_x, grad_bank, Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

std::tuple<Tensor, Tensor, Tensor> memory_match_autograd(const Tensor& x, const Tensor& bank, int64_t k, double scale, std::string_view metric,
                                                         const OptionalTensor& exclude) {
  if (!records(x) && !records(bank)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [lse, logits, rows, direction] = memory_match_forward(x, bank, k, scale, metric, exclude, false);
    return {lse, logits, rows};
  }
  const auto out = MemoryMatch::apply(x, bank, k, scale, metric, exclude, records(x));
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor, Tensor> memory_match(const Tensor& x, const Tensor& bank, int64_t k, double scale, std::string_view metric,
                                                const OptionalTensor& exclude) {
  auto [lse, logits, rows, direction] = memory_match_forward(x, bank, k, scale, metric, exclude, false);
  return {lse, logits, rows};
}

struct MemoryLoss : torch::autograd::Function<MemoryLoss> {
  // With k nothing of the bank is needed later: it may be updated between forward and backward.
  static Variable forward(AutogradContext* ctx, const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets,
                          double scale, std::string_view metric, const OptionalTensor& exclude, bool with_direction, bool with_bank) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, lse, direction] = memory_loss_forward(x, bank, k, targets, scale, metric, exclude, with_direction);
    ctx->save_for_backward({x, with_bank ? bank : Tensor(), with_bank ? loss : Tensor(), lse, direction, targets.value_or(Tensor()),
                            exclude.value_or(Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["metric"] = std::string(metric);
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(memory_loss_backward_cpu)>("reidfast::memory_loss_backward");
    const auto saved = ctx->get_saved_variables();
    const bool with_bank = saved[1].defined();
    const auto [grad_x, grad_bank] =
        op.call(grads[0], saved[0], with_bank ? saved[1] : saved[0], with_bank ? saved[2] : saved[3], saved[3], saved[4], optional(saved[5]),
                ctx->saved_data["scale"].toDouble(), ctx->saved_data["metric"].toStringRef(), optional(saved[6]),
                {ctx->needs_input_grad(0), with_bank && ctx->needs_input_grad(1)});
    return {grad_x, grad_bank, Variable(), Variable(), Variable(), Variable(), Variable(), Variable(), Variable()};
  }
};

Tensor memory_loss_autograd(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets, double scale,
                            std::string_view metric, const OptionalTensor& exclude) {
  const bool with_bank = targets && records(bank);  // with k the bank is a constant of the loss
  if (!records(x) && !with_bank) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return std::get<0>(memory_loss_forward(x, bank, k, targets, scale, metric, exclude, false));
  }
  return MemoryLoss::apply(x, bank, k, targets, scale, metric, exclude, records(x), with_bank);
}

Tensor memory_loss(const Tensor& x, const Tensor& bank, std::optional<int64_t> k, const OptionalTensor& targets, double scale,
                   std::string_view metric, const OptionalTensor& exclude) {
  return std::get<0>(memory_loss_forward(x, bank, k, targets, scale, metric, exclude, false));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(reidfast, m) {
  m.def("memory_match(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude) -> (Tensor, Tensor, Tensor)");
  m.def("memory_match_forward(Tensor x, Tensor bank, int k, float scale, str metric, Tensor? exclude, bool with_direction)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("memory_match_backward(Tensor grad_lse, Tensor grad_logits, Tensor x, Tensor bank, Tensor lse, Tensor indices, Tensor direction,"
        " float scale, str metric, Tensor? exclude, bool[2] needs) -> (Tensor, Tensor)");
  m.def("memory_loss(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude) -> Tensor");
  m.def("memory_loss_forward(Tensor x, Tensor bank, int? k, Tensor? targets, float scale, str metric, Tensor? exclude,"
        " bool with_direction) -> (Tensor, Tensor, Tensor)");
  m.def("memory_loss_backward(Tensor grad, Tensor x, Tensor bank, Tensor loss, Tensor lse, Tensor direction, Tensor? targets, float scale,"
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
TORCH_LIBRARY_IMPL(reidfast, CUDA, m) {  // the forward and backward ops of this key are Triton's (reidfast/ops/triton/memory.py)
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
