// Rows first, then columns. Both passes compute out[i] = sum_m weight[m] x[i + m] over an extended line: the image with
// its boundary continued. The adjoint convolves the image continued by zeros and folds what falls outside back to where
// the boundary took it from.
#include "kernels/cpu/launchers.h"
#include "kernels/cpu/parallel.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr std::int64_t kStrip = BlurParams::kStrip;
constexpr std::int64_t kRows = BlurParams::kStripRows;
constexpr std::int64_t kPair = 2 * kLanes;
static_assert(kStrip % kPair == 0, "a strip is made of pairs of vectors");

// Which of the n elements continues the line at i, however far outside.
RMP_INLINE std::int64_t source(std::int64_t i, std::int64_t n, Boundary boundary) {
  if (i >= 0 && i < n) return i;
  if (boundary == Boundary::replicate) return i < 0 ? 0 : n - 1;
  const std::int64_t period = boundary == Boundary::reflect ? 2 * n : n;
  const std::int64_t m = (i % period + period) % period;
  return m < n ? m : 2 * n - 1 - m;
}

// A circular adjoint is the circular convolution with the taps reversed.
RMP_INLINE bool folds(const BlurParams& p) { return p.adjoint && p.boundary != Boundary::circular; }

RMP_INLINE void make_weights(const BlurParams& p, const float* taps, std::int64_t count, float* weights) {
  for (std::int64_t m = 0; m < count; ++m) weights[m] = taps[p.adjoint ? m : count - 1 - m];
}

template <int kVectors>
RMP_INLINE void line_group(const float* x, const float* weights, std::int64_t count, float* out) {
  Float sum[kVectors] = {};
  for (std::int64_t m = 0; m < count; ++m) {
    const Float weight = spread<Float>(weights[m]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[v] = fused(weight, load(x + m + v * kLanes), sum[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sum[v]);
}

// out may be written up to the next whole vector.
RMP_INLINE void convolve_line(const float* x, const float* weights, std::int64_t count, float* out, std::int64_t width) {
  std::int64_t i = 0;
  // Eight sums in flight hide the latency of a multiply-add.
  for (; i + 8 * kLanes <= width; i += 8 * kLanes) line_group<8>(x + i, weights, count, out + i);
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) line_group<4>(x + i, weights, count, out + i);
  for (; i < width; i += kLanes) line_group<1>(x + i, weights, count, out + i);
}

void blur_rows(const BlurParams& p, std::int64_t first, std::int64_t last, float* scratch) {
  const std::int64_t width = p.width, radius = p.radius_horizontal, count = 2 * radius + 1;
  const bool fold = folds(p);
  const std::int64_t margin = fold ? 2 * radius : radius, blurred = fold ? width + 2 * radius : width;
  float* line = scratch;
  float* result = line + width + 4 * radius + kSlack;
  float* weights = result + width + 2 * radius + kSlack;
  make_weights(p, p.taps_horizontal, count, weights);
  for (std::int64_t i = 0; i < width + 4 * radius + kSlack; ++i) line[i] = 0.0f;
  for (std::int64_t row = first; row < last; ++row) {
    const float* x = p.x + row * width;
    float* out = p.out + row * width;
    over(width, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(line + margin + i, load(x + i, span), span); });
    if (!fold) {
      for (std::int64_t i = 1; i <= radius; ++i) {
        line[margin - i] = x[source(-i, width, p.boundary)];
        line[margin + width - 1 + i] = x[source(width - 1 + i, width, p.boundary)];
      }
    }
    convolve_line(line, weights, count, result, blurred);
    const float* inside = result + (fold ? radius : 0);
    over(width, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(out + i, load(inside + i, span), span); });
    if (fold) {
      for (std::int64_t i = 1; i <= radius; ++i) {
        out[source(-i, width, p.boundary)] += inside[-i];
        out[source(width - 1 + i, width, p.boundary)] += inside[width - 1 + i];
      }
    }
  }
}

// Rows i, ..., i + kCount - 1 of a pair of vector columns: every loaded row serves kCount sums.
template <int kCount>
RMP_INLINE void column_group(const float* x, const float* weights, std::int64_t count, float* out) {
  Float sum[kCount][2] = {};
  const auto add = [&](std::int64_t row, int r) RMP_INLINE_LAMBDA {
    const Float weight = spread<Float>(weights[row - r]);
    sum[r][0] = fused(weight, load(x + row * kStrip), sum[r][0]);
    sum[r][1] = fused(weight, load(x + row * kStrip + kLanes), sum[r][1]);
  };
  const std::int64_t inner = larger(count, kCount - 1);
  for (std::int64_t row = 0; row < kCount - 1; ++row) {
    for (int r = 0; r <= row; ++r) {
      if (row - r < count) add(row, r);
    }
  }
  for (std::int64_t row = kCount - 1; row < inner; ++row) {
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) add(row, r);
  }
  for (std::int64_t row = inner; row < count + kCount - 1; ++row) {
    for (int r = 0; r < kCount; ++r) {
      if (row - r < count) add(row, r);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    store(out + r * kStrip, sum[r][0]);
    store(out + r * kStrip + kLanes, sum[r][1]);
  }
}

// `rows` rows (at most kRows) of a strip.
RMP_INLINE void convolve_strip(const float* x, const float* weights, std::int64_t count, float* out, std::int64_t rows,
                               std::int64_t columns) {
  for (std::int64_t i = 0; i < columns; i += kPair) {
    if (rows == kRows) {
      column_group<kRows>(x + i, weights, count, out + i);
    } else {
      for (std::int64_t r = 0; r < rows; ++r) column_group<1>(x + r * kStrip + i, weights, count, out + r * kStrip + i);
    }
  }
}

void blur_columns(const BlurParams& p, std::int64_t first, std::int64_t last, float* scratch) {
  const std::int64_t height = p.height, radius = p.radius_vertical, count = 2 * radius + 1;
  const std::int64_t strips = ceil_div(p.width, kStrip);
  const bool fold = folds(p);
  const std::int64_t margin = fold ? 2 * radius : radius, above = fold ? radius : 0;
  float* strip = scratch;
  float* result = strip + (height + 4 * radius) * kStrip;
  float* weights = result + kRows * kStrip;
  make_weights(p, p.taps_vertical, count, weights);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t left = unit % strips * kStrip, columns = smaller(kStrip, p.width - left);
    float* plane = p.out + unit / strips * height * p.width + left;
    for (std::int64_t row = -margin; row < height + margin; ++row) {
      float* to = strip + (row + margin) * kStrip;
      const bool zero = fold && (row < 0 || row >= height);
      const float* from = zero ? nullptr : plane + source(row, height, p.boundary) * p.width;
      for (std::int64_t i = 0; i < kStrip; i += kLanes) store(to + i, Float{});
      if (zero) continue;
      over(columns, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA { store(to + i, load(from + i, span), span); });
    }
    const auto rows = [&](std::int64_t begin, std::int64_t end, bool add) RMP_INLINE_LAMBDA {
      for (std::int64_t row = begin; row < end; row += kRows) {
        const std::int64_t group = smaller(kRows, end - row);
        convolve_strip(strip + (row + above) * kStrip, weights, count, result, group, columns);
        for (std::int64_t r = 0; r < group; ++r) {
          float* to = plane + source(row + r, height, p.boundary) * p.width;
          const float* from = result + r * kStrip;
          over(columns, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
            const Float value = load(from + i, span);
            store(to + i, add ? load(to + i, span) + value : value, span);
          });
        }
      }
    };
    rows(0, height, false);
    if (fold) {
      rows(-radius, 0, true);
      rows(height, height + radius, true);
    }
  }
}

}  // namespace

void separable_blur(const BlurParams& p) {
  const std::int64_t rows = p.planes * p.height, strips = p.planes * ceil_div(p.width, kStrip);
  const std::int64_t elements = rows * p.width, each = p.scratch_size();
  in_parallel(rows, elements * (2 * p.radius_horizontal + 1), p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                blur_rows(p, first, last, p.scratch + thread * each);
              });
  in_parallel(strips, elements * (2 * p.radius_vertical + 1), p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                blur_columns(p, first, last, p.scratch + thread * each);
              });
}

}  // namespace RMP_PATH
}  // namespace rmp
