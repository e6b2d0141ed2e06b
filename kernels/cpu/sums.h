// Sums over one chunk of an item.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/formulas.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// The sum of a[i] b[i]. Four sums take turns, because each addition waits for the one before it.
RMP_INLINE double sum_of_products(const float* a, const float* b, std::int64_t count) {
  Double sums[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int turn = 0; turn < 4; ++turn) {
      const std::int64_t at = i + turn * kLanes;
      sums[turn] = plus_product(sums[turn], load(a + at), load(b + at));
    }
  }
  over(count - i, [&](std::int64_t rest, auto span) RMP_INLINE_LAMBDA {
    sums[0] = plus_product(sums[0], load(a + i + rest, span), load(b + i + rest, span));
  });
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
