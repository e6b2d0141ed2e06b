#include "kernels/cpu/blocks.h"
#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// each(begin, rows, averages, row, blocks) for every band of blocks: where it begins in the image and in the averages,
// its rows, and scratch for one row of pixels and one of blocks.
template <class Each>
RMP_INLINE void over_bands(const BlockAverageParams& p, const Each& each) {
  const BlockShape& s = p.blocks;
  const std::int64_t bands = s.bands();
  in_parallel(s.planes * bands, s.planes * s.height * s.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                float* row = p.scratch + thread * s.scratch();
                float* blocks = row + 2 * s.width + kSlack;
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / bands, band = unit % bands;
                  const std::int64_t begin = (plane * s.height + band * s.factor_rows) * s.width;
                  each(begin, band_rows(s, band), unit * s.columns(), row, blocks);
                }
              });
}

}  // namespace

void block_average(const BlockAverageParams& p) {
  const BlockShape& s = p.blocks;
  over_bands(
      p, [&](std::int64_t begin, std::int64_t rows, std::int64_t averages, float* row, float* sums) RMP_INLINE_LAMBDA {
        block_sums(s, p.x + begin, rows, row, sums);
        float* out = p.out + averages;
        const auto average = [&](std::int64_t j, auto span) RMP_INLINE_LAMBDA {
          const float n = static_cast<float>(rows * block_columns(s, j));
          store(out + j, load(sums + j, span) * spread<Float>(1.0f / n), span);
        };
        over(s.columns() - 1, average);  // whole blocks all
        average(s.columns() - 1, Part{1});
      });
}

void block_average_adjoint(const BlockAverageParams& p) {
  const BlockShape& s = p.blocks;
  over_bands(p, [&](std::int64_t begin, std::int64_t rows, std::int64_t averages, float* row,
                    float* values) RMP_INLINE_LAMBDA {
    for (std::int64_t j = 0; j < s.columns(); ++j) {
      values[j] = p.x[averages + j] * (1.0f / static_cast<float>(rows * block_columns(s, j)));
    }
    repeat_columns(s, values, row);
    float* out = p.out + begin;
    for (std::int64_t r = 0; r < rows; ++r, out += s.width) {
      over(s.width, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(out + i, load(row + i), span); });
    }
  });
}

}  // namespace RMP_PATH
}  // namespace rmp
