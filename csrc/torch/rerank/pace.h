// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

#include "csrc/torch/op.h"

namespace reidfast {

// Cuts a long loop over independent items into slices of about a tenth of a second, and looks for Ctrl-C between them.
// How a loop is cut changes no result. Use it on the calling thread; a slice runs in parallel.
class Pace {
 public:
  // Slices of `least` items, in the beginning, to `most`.
  explicit Pace(int64_t least, int64_t most = std::numeric_limits<int64_t>::max())
      : least_(std::max<int64_t>(1, std::min(least, most))), most_(most), step_(least_), checked_(Clock::now()) {}

  // Calls slice(first, last) for all of [begin, end), in ascending order.
  template <typename Slice>
  void run(int64_t begin, int64_t end, const Slice& slice) {
    while (begin < end) {
      const int64_t last = end - begin > step_ ? begin + step_ : end;
      const auto start = Clock::now();
      slice(begin, last);
      const auto stop = Clock::now();
      if (stop - start < kShort && last - begin == step_) step_ = step_ > most_ / 2 ? most_ : 2 * step_;
      if (stop - start > kLong) step_ = std::max(least_, step_ / 2);
      if (stop - checked_ > kShort) {
        check_interrupt();
        checked_ = stop;
      }
      begin = last;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kShort{50}, kLong{200};

  int64_t least_, most_, step_;
  Clock::time_point checked_;
};

// parallel_for, in slices.
template <typename Fn>
void paced_for(int64_t begin, int64_t end, int64_t grain_size, const Fn& fn) {
  Pace(grain_size * num_threads()).run(begin, end, [&](int64_t first, int64_t last) {
    parallel_for(first, last, grain_size, fn);
  });
}

}  // namespace reidfast
