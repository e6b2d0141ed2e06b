#include "kernels/cpu/blocks.h"
#include "kernels/cpu/launchers.h"
#include "kernels/cpu/parallel.h"

namespace rmp {
namespace RMP_PATH {

void block_average(const BlockAverageParams& p) {
  const BlockShape& s = p.blocks;
  const std::int64_t bands = s.bands(), columns = s.columns();
  in_parallel(s.planes * bands, s.planes * s.height * s.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                float* row = p.scratch + thread * s.scratch();
                float* sums = row + 2 * s.width + kSlack;
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / bands, band = unit % bands, rows = band_rows(s, band);
                  block_sums(s, p.x + (plane * s.height + band * s.factor_rows) * s.width, rows, row, sums);
                  float* out = p.out + unit * columns;
                  const auto average = [&](std::int64_t j, auto span) RMP_INLINE_LAMBDA {
                    const float n = static_cast<float>(rows * block_columns(s, j));
                    store(out + j, load(sums + j, span) * spread<Float>(1.0f / n), span);
                  };
                  over(columns - 1, average);  // whole blocks all
                  average(columns - 1, Part{1});
                }
              });
}

void block_average_adjoint(const BlockAverageParams& p) {
  const BlockShape& s = p.blocks;
  const std::int64_t bands = s.bands(), columns = s.columns();
  in_parallel(s.planes * bands, s.planes * s.height * s.width, p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                float* row = p.scratch + thread * s.scratch();
                float* values = row + 2 * s.width + kSlack;
                for (std::int64_t unit = first; unit < last; ++unit) {
                  const std::int64_t plane = unit / bands, band = unit % bands, rows = band_rows(s, band);
                  for (std::int64_t j = 0; j < columns; ++j) {
                    values[j] = p.x[unit * columns + j] * (1.0f / static_cast<float>(rows * block_columns(s, j)));
                  }
                  repeat_columns(s, values, row);
                  float* out = p.out + (plane * s.height + band * s.factor_rows) * s.width;
                  for (std::int64_t r = 0; r < rows; ++r, out += s.width) {
                    over(s.width,
                         [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(out + i, load(row + i), span); });
                  }
                }
              });
}

}  // namespace RMP_PATH
}  // namespace rmp
