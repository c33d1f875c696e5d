// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
//
// The one routine that makes distances between feature rows on the CPU. Ranking, search and re-ranking all take their
// distances from here, so that a pair has the same bits in each of them:
//
//   - rows are packed into panels of tiles of fixed height, padded with zeros, cut along D into chunks of kChunk;
//   - a tile is [query tile rows x tile_columns]; its product is summed chunk by chunk by a library of torch's
//     (product.h), every call with the same shape, every call within a parallel region, hence on one thread;
//   - squared norms are summed in double, row by row.
// Which tile a row falls into, where in it, which shard of the gallery and how many threads changes nothing.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/cpu/distance_tile.h"
#include "csrc/torch/op.h"
#include "csrc/torch/product.h"

namespace reidfast {

constexpr int64_t kChunk = 512;        // columns of D per product
constexpr int64_t kTileColumns = 512;  // gallery rows per tile, where the product allows: see tile_columns
constexpr int64_t kTileRows = 128;     // query rows per tile; 32 where there are no more queries than that

inline int64_t tile_rows_for(int64_t queries) { return queries <= 32 ? 32 : kTileRows; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Features [n, D] of any float dtype and strides, or those of its rows that `index` lists.
struct Rows {
  Tensor x;
  const int64_t* index = nullptr;
  int64_t n = 0;

  explicit Rows(const Tensor& features) : x(features), n(features.size(0)) {}
  Rows(const Tensor& features, const int64_t* rows, int64_t count) : x(features), index(rows), n(count) {}
  // The index outlives this view; an undefined index means all rows.
  Rows(const Tensor& features, const std::optional<Tensor>& rows) : x(features), n(features.size(0)) {
    if (rows) index = rows->const_data_ptr<int64_t>(), n = rows->numel();
  }
  int64_t row(int64_t i) const { return index ? index[i] : i; }
};

// Parallel over tasks 0 .. n-1. Always a parallel region where there is more than one thread, so that products inside
// `fn` run on one thread each and their bits do not depend on how many there are.
template <typename Fn>
void for_each_task(int64_t n, const Fn& fn) {
  parallel_for(0, std::max<int64_t>(n, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < std::min(end, n); ++i) fn(i);
  });
}

// Gallery rows per tile for T: kTileColumns, unless the library then sums some columns of a tile in another order than
// the rest, as kernels whose width does not divide the tile do for the remainder. Asked once, by a product whose
// results must all be one number: MKL's float64 kernels need it.
template <typename T>
int64_t tile_columns() {
  static const int64_t chosen = [] {
    for (const int64_t width : {kTileColumns, int64_t{576}, int64_t{480}, int64_t{768}, int64_t{672}}) {
      std::atomic<bool> alike{true};
      for_each_task(1, [&](int64_t) {
        for (const int64_t height : {int64_t{32}, kTileRows}) {
          for (const int64_t k : {int64_t{37}, kChunk}) {
            const Options options = cpu_options(dtype_of<T>());
            const Tensor a = empty({height, k}, options), b = empty({width, k}, options);
            for (const Tensor* x : {&a, &b}) {
              T* values = x->template mutable_data_ptr<T>();
              for (int64_t i = 0; i < x->numel(); ++i)
                values[i] = static_cast<T>(std::sin(0.7 * static_cast<double>(i % k) + 1.0));
            }
            const Tensor c = empty({height, width}, options);
            product_into(c, a, b, /*accumulate=*/false);
            const T* values = c.template const_data_ptr<T>();
            for (int64_t i = 0; i < height * width; ++i)
              if (values[i] != values[0]) alike = false;
          }
        }
      });
      if (alike) return width;
    }
    return kTileColumns;
  }();
  return chosen;
}

// What stopped a run: a row of NaN or inf, or of values too large for the type of the distances.
struct BadRow {
  static constexpr int64_t kNone = 0, kNotFinite = 1, kTooLarge = 2;
  int64_t kind = kNone;
  int64_t row = -1;  // in the features handed in
  explicit operator bool() const { return kind != kNone; }
};

// Packed rows: [tile][chunk of D][row of tile][<= kChunk], rows past the end zero.
template <typename T>
class Panel {
 public:
  Panel(int64_t rows, int64_t tile_rows, int64_t dim)
      : tile_rows_(tile_rows),
        dim_(dim),
        data_(empty({round_up(rows, tile_rows) * std::max<int64_t>(dim, 1)}, cpu_options(dtype_of<T>()))),
        square_(round_up(rows, tile_rows)) {}

  // Packs rows [begin, begin + n) of `rows`, behind the first `after` that are there. Returns the first that cannot be
  // used.
  BadRow pack(const Rows& rows, int64_t begin, int64_t n, Metric metric, int64_t after = 0) {
    n_ = after + n;
    tiles_ = round_up(n_, tile_rows_) / tile_rows_;
    T* data = data_.template mutable_data_ptr<T>();
    std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
    REID_DISPATCH_FLOATS(rows.x.scalar_type(), "distance_tile", [&] {
      const scalar_t* x = rows.x.const_data_ptr<scalar_t>();
      pack_rows(x, rows, begin, after, data, metric, bad);
    });
    BadRow result;
    if (bad.load() == std::numeric_limits<int64_t>::max()) return result;
    result.row = rows.row(begin + bad.load());
    bool finite = true;
    REID_DISPATCH_FLOATS(rows.x.scalar_type(), "distance_tile", [&] {
      const scalar_t* x = rows.x.const_data_ptr<scalar_t>() + result.row * rows.x.stride(0);
      REID_CPU_CALL(row_is_finite, x, rows.x.stride(1), dim_, &finite);
    });
    result.kind = finite ? BadRow::kTooLarge : BadRow::kNotFinite;
    return result;
  }

  int64_t rows() const { return n_; }
  int64_t tiles() const { return tiles_; }
  int64_t tile_rows() const { return tile_rows_; }
  int64_t dim() const { return dim_; }
  const double* square() const { return square_.data(); }
  // [tile_rows, width] of chunk `k0`, as a tensor without storage of its own.
  Tensor chunk(int64_t tile, int64_t k0, int64_t width) const {
    T* data = const_cast<T*>(data_.template const_data_ptr<T>()) + tile * tile_rows_ * dim_ + tile_rows_ * k0;
    return from_blob(data, tile_rows_, width);
  }

 private:
  template <typename S>
  void pack_rows(const S* x, const Rows& rows, int64_t begin, int64_t after, T* data, Metric metric,
                 std::atomic<int64_t>& bad) {
    const int64_t step = rows.x.stride(1), row_step = rows.x.stride(0);
    parallel_for(after, tiles_ * tile_rows_, grain(dim_ * sizeof(T)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const S* source = i < n_ ? x + rows.row(begin + i - after) * row_step : nullptr;
        double sq = 0.0, scale = 1.0;
        if (source) {
          REID_CPU_CALL(row_square_sum, source, step, dim_, &sq);
          if (!usable(source, step, metric, sq, scale)) {
            int64_t seen = bad.load();
            while (i - after < seen && !bad.compare_exchange_weak(seen, i - after)) {
            }
          }
        }
        square_[i] = sq;
        T* tile = data + i / tile_rows_ * tile_rows_ * dim_;
        for (int64_t k0 = 0; k0 < dim_; k0 += kChunk) {
          const int64_t width = std::min(kChunk, dim_ - k0);
          T* y = tile + tile_rows_ * k0 + i % tile_rows_ * width;
          if (source) {
            REID_CPU_CALL(pack_row, source + k0 * step, step, width, scale, y);
          } else {
            std::fill_n(y, width, T(0));
          }
        }
      }
    });
  }

  // Whether distances of this row are finite; sets `scale` to what the row is multiplied with.
  template <typename S>
  bool usable(const S* x, int64_t step, Metric metric, double sq, double& scale) const {
    if (metric != Metric::kCosine) return sq <= static_cast<double>(std::numeric_limits<T>::max()) / 8;
    constexpr double kSmall = 1e-280;
    if (sq >= kSmall && sq <= std::numeric_limits<double>::max()) {
      scale = 1.0 / std::sqrt(sq);
      return true;
    }
    // Squares that leave the range of double: zero rows keep scale 1 (distance 1 to everything), others are taken
    // relative to their largest element.
    double largest = 0.0;
    for (int64_t d = 0; d < dim_; ++d) {
      const double v = std::abs(static_cast<double>(x[d * step]));
      if (!(v <= std::numeric_limits<double>::max())) return false;
      largest = std::max(largest, v);
    }
    if (largest == 0.0) return true;
    double relative = 0.0;
    for (int64_t d = 0; d < dim_; ++d) {
      const double v = static_cast<double>(x[d * step]) / largest;
      relative += v * v;
    }
    scale = 1.0 / largest / std::sqrt(relative);
    return std::isfinite(scale);
  }

  int64_t tile_rows_, dim_, n_ = 0, tiles_ = 0;
  Tensor data_;
  std::vector<double> square_;
};

// One tile of distances: out [query tile rows, gallery tile rows] with row stride ld. Call it from inside
// for_each_task.
template <typename T>
void distance_tile(const Panel<T>& query, int64_t query_tile, const Panel<T>& gallery, int64_t gallery_tile,
                   Metric metric, T* out, int64_t ld) {
  const Tensor c = from_blob(out, {query.tile_rows(), gallery.tile_rows()}, {ld, 1});
  Tensor sum = query.dim() > 0 ? Tensor() : c.zero_();
  for (int64_t k0 = 0; k0 < query.dim(); k0 += kChunk) {
    const int64_t width = std::min(kChunk, query.dim() - k0);
    sum = product(c, query.chunk(query_tile, k0, width), gallery.chunk(gallery_tile, k0, width), sum);
  }
  const T* products = sum.template const_data_ptr<T>();
  const int64_t row0 = query_tile * query.tile_rows(), column0 = gallery_tile * gallery.tile_rows();
  const int64_t rows = std::min(query.tile_rows(), query.rows() - row0);
  const int64_t columns = std::min(gallery.tile_rows(), gallery.rows() - column0);
  for (int64_t r = 0; r < rows; ++r)
    REID_CPU_CALL(products_to_distances, products + r * sum.stride(0), columns, metric, query.square()[row0 + r],
                  gallery.square() + column0, out + r * ld);
}

// How much of the queries and of the gallery is packed at a time. It bounds the memory beside the features and changes
// no result. Rounded up to whole tiles.
struct BlockSize {
  int64_t queries = 4096;
  int64_t gallery = 1024;
};

// Where a run stopped, if it did: `side` 0 query, 1 gallery.
struct BadInput {
  int64_t side = 0;
  BadRow bad;
  explicit operator bool() const { return static_cast<bool>(bad); }
  Tensor tensor() const {
    Tensor t = empty({3}, cpu_options(kLong));
    int64_t* p = t.mutable_data_ptr<int64_t>();
    p[0] = side, p[1] = bad.kind, p[2] = bad.row;
    return t;
  }
};

// Calls fn(const T* or T* block, ld, q0, queries, g0, columns) for blocks of distances, galleries in ascending order
// for every query. The block is the callee's to overwrite; fn itself parallelises over the rows of the block. A user
// may interrupt between two blocks.
template <typename T, typename Fn>
BadInput for_each_block(const Rows& query, const Rows& gallery, Metric metric, BlockSize size, const Fn& fn) {
  const int64_t dim = query.x.size(1), height = tile_rows_for(query.n);
  const int64_t queries = round_up(std::min(std::max<int64_t>(size.queries, 1), query.n), height);
  const int64_t width = tile_columns<T>();
  const int64_t columns = round_up(std::min(std::max<int64_t>(size.gallery, 1), gallery.n), width);
  BadInput stop;
  if (query.n == 0 || gallery.n == 0) return stop;
  Panel<T> query_panel(queries, height, dim), gallery_panel(columns, width, dim);
  const Tensor buffer = empty({queries * columns}, cpu_options(dtype_of<T>()));
  T* block = buffer.template mutable_data_ptr<T>();
  for (int64_t q0 = 0; q0 < query.n; q0 += queries) {
    const int64_t nq = std::min(queries, query.n - q0);
    if ((stop.bad = query_panel.pack(query, q0, nq, metric))) return stop;
    for (int64_t g0 = 0; g0 < gallery.n; g0 += columns) {
      check_interrupt();
      const int64_t ng = std::min(columns, gallery.n - g0);
      stop.side = 1;
      if ((stop.bad = gallery_panel.pack(gallery, g0, ng, metric))) return stop;
      stop.side = 0;
      const int64_t across = gallery_panel.tiles();
      for_each_task(query_panel.tiles() * across, [&](int64_t task) {
        const int64_t t = task / across, u = task % across;
        distance_tile(query_panel, t, gallery_panel, u, metric, block + t * height * columns + u * width, columns);
      });
      fn(block, columns, q0, nq, g0, ng);
    }
  }
  return stop;
}

}  // namespace reidfast
