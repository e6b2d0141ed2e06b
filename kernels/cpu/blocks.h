// Bands of blocks: the rows that one row of block averages was made from.
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/params.h"

namespace rmp {
namespace RMP_PATH {
namespace {

RMP_INLINE std::int64_t band_rows(const BlockShape& s, std::int64_t band) {
  return smaller(s.factor_rows, s.height - band * s.factor_rows);
}
RMP_INLINE std::int64_t block_columns(const BlockShape& s, std::int64_t column) {
  return smaller(s.factor_columns, s.width - column * s.factor_columns);
}

// row[0 .. width) <- the sums of `rows` rows from x on, then sums[j] <- the sum of block j.
// Room behind them: one block and kSlack.
RMP_INLINE void block_sums(const BlockShape& s, const float* x, std::int64_t rows, float* row, float* sums) {
  // Row after row, as they lie in memory: side by side, rows end before the processor sees where they lead.
  over(s.width, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(row + i, load(x + i, span), span); });
  for (std::int64_t r = 1; r < rows; ++r) {
    over(s.width, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
      store(row + i, load(row + i, span) + load(x + r * s.width + i, span), span);
    });
  }
  const std::int64_t columns = s.columns(), factor = s.factor_columns;
  if (factor & (factor - 1)) {
    for (std::int64_t j = 0; j < columns; ++j) {
      float sum = 0.0f;
      for (std::int64_t i = 0; i < block_columns(s, j); ++i) sum += row[j * factor + i];
      sums[j] = sum;
    }
    return;
  }
  for (std::int64_t i = s.width; i < columns * factor + 2 * kLanes; ++i) row[i] = 0.0f;
  for (std::int64_t width = factor; width > 1; width /= 2) {
    for (std::int64_t i = 0; i < columns * (width / 2); i += kLanes) {
      store(row + i, neighbour_sums(load(row + 2 * i), load(row + 2 * i + kLanes)));
    }
  }
  over(columns, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(sums + i, load(row + i, span), span); });
}

// row <- every value of the blocks repeated over its columns. Whole vectors are stored, each over the tail of the last.
RMP_INLINE void repeat_columns(const BlockShape& s, const float* values, float* row) {
  const std::int64_t columns = s.columns(), factor = s.factor_columns;
  if (factor == 2) {
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const Float value = load(values + j);
      store(row + 2 * j, twice_low(value));
      store(row + 2 * j + kLanes, twice_high(value));
    }
    return;
  }
  for (std::int64_t j = 0; j < columns; ++j) {
    const Float value = spread<Float>(values[j]);
    for (std::int64_t i = 0; i < factor; i += kLanes) store(row + j * factor + i, value);
  }
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
