// SPDX-License-Identifier: Apache-2.0
// Copyright (c) 2026 the reidfast authors
#include "csrc/cpu/cyclic_negatives.h"

#include "csrc/cpu/lanes.h"

namespace reidfast::cpu::REID_ISA {

template <typename A>
void cyclic_candidates(const A* anchors, int64_t lda, const A* centres, int64_t ldc, int64_t dim, int64_t num_centres,
                       const int64_t* own, int64_t count, int64_t begin, int64_t end, A* row, int64_t* chosen) {
  for (int64_t a = begin; a < end; ++a) {
    int64_t* best = chosen + a * count;  // ascending; `row` holds the distance of every centre seen
    int64_t filled = 0;
    for (int64_t v = 0; v < num_centres; ++v) {
      if (v == own[a]) continue;
      row[v] = nan_to_inf(sq_distance(anchors + a * lda, centres + v * ldc, dim));
      if (filled == count && !(row[v] < row[best[count - 1]])) continue;
      int64_t at = filled < count ? filled++ : count - 1;
      for (; at > 0 && row[v] < row[best[at - 1]]; --at) best[at] = best[at - 1];
      best[at] = v;
    }
  }
}

template <typename A>
void cyclic_accept(const A* centres, int64_t ldc, int64_t dim, int64_t num_centres, const int64_t* own,
                   const int64_t* chosen, int64_t num_anchors, int64_t count, int64_t r, int64_t begin, int64_t end,
                   A* row, bool* accepted) {
  for (int64_t v = begin; v < end; ++v) {
    bool have_row = false;
    for (int64_t e = 0; e < num_anchors * count; ++e) {
      if (chosen[e] != v) continue;
      if (!have_row)
        for (int64_t w = 0; w < num_centres; ++w)
          row[w] = nan_to_inf(sq_distance(centres + v * ldc, centres + w * ldc, dim));
      have_row = true;
      const int64_t u = own[e / count];
      const A to_own = row[u];
      int64_t before = 0;
#pragma omp simd reduction(+ : before)
      for (int64_t w = 0; w < num_centres; ++w) before += row[w] < to_own || (row[w] == to_own && w < u);
      // v itself counts first, whatever its place by distance and index
      before += !nearer(row[v], v, to_own, u);
      accepted[e] = before >= r;
    }
  }
}

#define INSTANTIATE(A)                                                                                                \
  template void cyclic_candidates<A>(const A*, int64_t, const A*, int64_t, int64_t, int64_t, const int64_t*, int64_t, \
                                     int64_t, int64_t, A*, int64_t*);                                                 \
  template void cyclic_accept<A>(const A*, int64_t, int64_t, int64_t, const int64_t*, const int64_t*, int64_t,        \
                                 int64_t, int64_t, int64_t, int64_t, A*, bool*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace reidfast::cpu::REID_ISA
