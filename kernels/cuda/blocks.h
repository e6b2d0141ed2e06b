// Blocks of pixels. Where they are 2 x 2 or 4 x 4 and rows are whole groups of four, a thread holds four columns of a
// band of blocks, a "quad", and so whole blocks; elsewhere there is a kernel of its own for the averages.
#pragma once

#include "kernels/cuda/groups.h"

namespace rmp {
namespace RMP_PATH {

// table <- the change of every block, (items, planes, bands, columns), of images `denoised`.
void block_corrections(const StepParams& p, const float* denoised, float* table);

namespace {

// A property of the shape alone, since it decides in which order is summed. A factor of 1 is the identity.
inline bool has_quads(const BlockShape& s) {
  return s.factor_rows == s.factor_columns && (s.factor_rows == 2 || s.factor_rows == 4) && s.width % 4 == 0;
}
inline std::int64_t quads_per_plane(const BlockShape& s) { return s.bands() * (s.width / 4); }

// BlockShape with what follows from it, in the 32 bits that a plane needs; divided on the host.
struct Blocks {
  unsigned height, width, factor_rows, factor_columns, bands, columns;
  std::int64_t planes;

  RMP_DEVICE unsigned band_rows(unsigned band) const {
    const unsigned left = height - band * factor_rows;
    return left < factor_rows ? left : factor_rows;
  }
  RMP_DEVICE unsigned block_columns(unsigned column) const {
    const unsigned left = width - column * factor_columns;
    return left < factor_columns ? left : factor_columns;
  }
  RMP_DEVICE std::int64_t count() const { return planes * bands * columns; }
  RMP_DEVICE unsigned quads_per_plane() const { return bands * (width / 4); }
};

inline Blocks blocks_of(const BlockShape& s) {
  const auto narrow = [](std::int64_t n) { return static_cast<unsigned>(n); };
  if (s.factor_rows == 0) return {};  // there are none
  return {narrow(s.height),    narrow(s.width), narrow(s.factor_rows), narrow(s.factor_columns), narrow(s.bands()),
          narrow(s.columns()), s.planes};
}

// The change of a block of n pixels that sum to `sum`.
RMP_DEVICE float block_change(float sum, float n, float measured, float noise_ratio) {
  return (measured - sum * (1.0f / n)) * (1.0f / (1.0f + n * noise_ratio));
}

template <int kFactor>
struct Quad {
  std::int64_t plane, first;  // `first`: of its elements, in the item
  std::int64_t block;         // the first of its blocks, in the item
  int rows;

  RMP_DEVICE Quad(const Blocks& s, std::int64_t index) {
    const unsigned across = s.width / 4, each = s.quads_per_plane();
    plane = index / each;
    const unsigned in_plane = static_cast<unsigned>(index - plane * each), band = in_plane / across;
    const unsigned column = in_plane - band * across;
    rows = static_cast<int>(s.band_rows(band));
    first = (plane * s.height + band * kFactor) * s.width + 4 * column;
    block = (plane * s.bands + band) * s.columns + column * (4 / kFactor);
  }
};

// The rows of a quad from x on; rows that are not there are 0.
template <int kFactor, class Span>
RMP_DEVICE void load_rows(const float* x, unsigned width, int rows, Span span, Four (&d)[kFactor]) {
#pragma unroll
  for (int r = 0; r < kFactor; ++r) d[r] = r < rows ? load(x + static_cast<std::int64_t>(r) * width, span) : Four{};
}

// The sums of the blocks of a quad.
template <int kFactor>
RMP_DEVICE void block_sums(const Four (&d)[kFactor], float (&sums)[4 / kFactor]) {
#pragma unroll
  for (int j = 0; j < 4 / kFactor; ++j) {
    sums[j] = 0.0f;
#pragma unroll
    for (int c = 0; c < kFactor; ++c) {
      float column = d[0].v[j * kFactor + c];
#pragma unroll
      for (int r = 1; r < kFactor; ++r) column += d[r].v[j * kFactor + c];
      sums[j] += column;
    }
  }
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
