// Lines along one axis are blurred in strips: kStrip of them side by side, so that one vector holds one sample of many
// lines, and few enough that a strip stays in the first-level cache. Columns lie like that in memory; rows are
// transposed on their way in and out. A strip is continued beyond its ends as the boundary says and convolved, out[i] =
// sum_m weight[m] x[i + m]. The adjoint continues it by zeros, makes the longer result and folds its ends back to where
// the boundary took them from.
#include <type_traits>

#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr std::int64_t kStrip = 2 * kLanes;
constexpr int kGroup = 4;
constexpr bool kPairs = kLanes == 16;  // fewer registers do not hold the samples of symmetric weights
template <int kValue>
using Turn = std::integral_constant<int, kValue>;
static_assert(kStrip <= BlurParams::kWidestStrip, "scratch memory is measured by the widest strip");

struct Axis {
  std::int64_t length, radius;
  const float* taps;
  Boundary boundary;
  bool adjoint;

  std::int64_t count() const { return 2 * radius + 1; }
  // A circular adjoint is the circular convolution with the taps reversed.
  bool folds() const { return adjoint && boundary != Boundary::circular; }
  // Samples before the first one, and how many are made.
  std::int64_t margin() const { return folds() ? 2 * radius : radius; }
  std::int64_t made() const { return folds() ? length + 2 * radius : length; }
};

// Which of the n samples continues the line at i, however far outside.
RMP_INLINE std::int64_t source(std::int64_t i, std::int64_t n, Boundary boundary) {
  if (i >= 0 && i < n) return i;
  if (boundary == Boundary::replicate) return i < 0 ? 0 : n - 1;
  const std::int64_t period = boundary == Boundary::reflect ? 2 * n : n;
  const std::int64_t m = (i % period + period) % period;
  return m < n ? m : 2 * n - 1 - m;
}

RMP_INLINE float* row(float* strip, std::int64_t i) { return strip + i * kStrip; }
RMP_INLINE void clear_row(float* to) {
  for (std::int64_t lane = 0; lane < kStrip; lane += kLanes) store(to + lane, Float{});
}
RMP_INLINE void copy_row(const float* from, float* to) {
  for (std::int64_t lane = 0; lane < kStrip; lane += kLanes) store(to + lane, load(from + lane));
}
RMP_INLINE void add_row(const float* from, float* to) {
  for (std::int64_t lane = 0; lane < kStrip; lane += kLanes) store(to + lane, load(to + lane) + load(from + lane));
}

// --- Convolution -----------------------------------------------------------------------------------------------------

// kCount neighbouring results for a pair of vectors: every loaded sample serves kCount sums. count >= kCount.
template <int kCount>
RMP_INLINE void convolve_group(const float* x, const float* weights, std::int64_t count, float* out) {
  Float sum[kCount][2] = {};
  const auto add = [&](std::int64_t i, int r) RMP_INLINE_LAMBDA {
    const Float weight = spread<Float>(weights[i - r]);
    sum[r][0] = fused(weight, load(x + i * kStrip), sum[r][0]);
    sum[r][1] = fused(weight, load(x + i * kStrip + kLanes), sum[r][1]);
  };
  // The sums start and end one after the other; unrolled, so that they stay in registers.
#pragma GCC unroll 4
  for (int i = 0; i < kCount - 1; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r <= i; ++r) add(i, r);
  }
  for (std::int64_t i = kCount - 1; i < count; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) add(i, r);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kCount - 1; ++i) {
#pragma GCC unroll 4
    for (int r = i + 1; r < kCount; ++r) add(count + i, r);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    store(out + r * kStrip, sum[r][0]);
    store(out + r * kStrip + kLanes, sum[r][1]);
  }
}

// The same for weights that read the same from both ends: samples at equal distance are added before they are
// multiplied, which spares every other multiplication where additions have units of their own. At distance m result r
// takes x[r - m] and x[r + m]; of these eight samples six were there at m - 1 already, so that in a ring of four each
// the newest replaces the oldest.
RMP_INLINE void convolve_symmetric(const float* x, const float* weights, std::int64_t radius, float* out) {
  static_assert(kGroup == 4, "the rings turn once in four distances");
  const float *centre = x + radius * kStrip, *weight = weights + radius;
  Float sum[kGroup][2], before[kGroup][2], after[kGroup][2];
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      before[r][v] = after[r][v] = load(centre + r * kStrip + v * kLanes);
      sum[r][v] = spread<Float>(weight[0]) * before[r][v];
    }
  }
  const auto add = [&](std::int64_t m, auto turn) RMP_INLINE_LAMBDA {
    constexpr int kTurn = decltype(turn)::value;
    const Float each = spread<Float>(weight[m]);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      before[(kGroup - kTurn) % kGroup][v] = load(centre - m * kStrip + v * kLanes);
      after[(kGroup - 1 + kTurn) % kGroup][v] = load(centre + (kGroup - 1 + m) * kStrip + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        const Float both = before[(r + kGroup - kTurn) % kGroup][v] + after[(r + kTurn) % kGroup][v];
        sum[r][v] = fused(each, both, sum[r][v]);
      }
    }
  };
  std::int64_t m = 1;
  for (; m + 3 <= radius; m += 4) {
    add(m, Turn<1>{});
    add(m + 1, Turn<2>{});
    add(m + 2, Turn<3>{});
    add(m + 3, Turn<0>{});
  }
  if (m <= radius) add(m, Turn<1>{});
  if (m + 1 <= radius) add(m + 1, Turn<2>{});
  if (m + 2 <= radius) add(m + 2, Turn<3>{});
#pragma GCC unroll 4
  for (int r = 0; r < kGroup; ++r) {
    store(out + r * kStrip, sum[r][0]);
    store(out + r * kStrip + kLanes, sum[r][1]);
  }
}

bool is_symmetric(const float* weights, std::int64_t count) {
  for (std::int64_t m = 0; m < count / 2; ++m) {
    if (weights[m] != weights[count - 1 - m]) return false;
  }
  return true;
}

void convolve(const float* x, const float* weights, std::int64_t count, bool symmetric, std::int64_t samples,
              float* out) {
  std::int64_t i = 0;
  if (kPairs && symmetric) {
    for (; i + kGroup <= samples; i += kGroup) convolve_symmetric(x + i * kStrip, weights, count / 2, out + i * kStrip);
  } else if (count >= kGroup) {
    for (; i + kGroup <= samples; i += kGroup) convolve_group<kGroup>(x + i * kStrip, weights, count, out + i * kStrip);
  }
  for (; i < samples; ++i) convolve_group<1>(x + i * kStrip, weights, count, out + i * kStrip);
}

// --- One strip -------------------------------------------------------------------------------------------------------

struct Strip {
  float* weights;
  float* samples;  // continued
  float* result;
  bool symmetric;  // the weights read the same from both ends

  Strip(const Axis& axis, float* scratch)
      : weights(scratch), samples(weights + axis.count()), result(row(samples, axis.length + 4 * axis.radius)) {
    for (std::int64_t m = 0; m < axis.count(); ++m) weights[m] = axis.taps[axis.adjoint ? m : axis.count() - 1 - m];
    symmetric = is_symmetric(weights, axis.count());
  }
  float* inside(const Axis& axis) const { return row(samples, axis.margin()); }

  // Blurs the lines inside; returns the first of their results.
  const float* blur(const Axis& axis) const {
    const std::int64_t n = axis.length, margin = axis.margin();
    float* first = inside(axis);
    for (std::int64_t i = 1; i <= margin; ++i) {
      const std::int64_t ends[] = {-i, n - 1 + i};
      for (const std::int64_t at : ends) {
        if (axis.folds()) {
          clear_row(row(first, at));
        } else {
          copy_row(row(first, source(at, n, axis.boundary)), row(first, at));
        }
      }
    }
    convolve(samples, weights, axis.count(), symmetric, axis.made(), result);
    if (!axis.folds()) return result;
    float* kept = row(result, axis.radius);
    for (std::int64_t i = 1; i <= axis.radius; ++i) {
      const std::int64_t ends[] = {-i, n - 1 + i};
      for (const std::int64_t at : ends) add_row(row(kept, at), row(kept, source(at, n, axis.boundary)));
    }
    return kept;
  }
};

// --- Rows ------------------------------------------------------------------------------------------------------------

// Calls blocks(r, x) for each 4 rows x kLanes columns and single(r, x) for what is left over.
template <class Blocks, class Single>
RMP_INLINE void over_rows(std::int64_t rows, std::int64_t width, const Blocks& blocks, const Single& single) {
  for (std::int64_t r = 0; r < rows; r += 4) {
    std::int64_t x = 0;
    for (; r + 4 <= rows && x + kLanes <= width; x += kLanes) blocks(r, x);
    for (; x < width; ++x) {
      for (std::int64_t k = r; k < smaller(r + 4, rows); ++k) single(k, x);
    }
  }
}

void blur_rows(const BlurParams& p, std::int64_t first, std::int64_t last, float* scratch) {
  const Axis axis{p.width, p.radius_horizontal, p.taps_horizontal, p.boundary, p.adjoint};
  const Strip strip(axis, scratch);
  const std::int64_t all = p.planes * p.height, width = p.width;
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t top = unit * kStrip, rows = smaller(kStrip, all - top);
    const float* x = p.x + top * width;
    float* out = p.out + top * width;
    float* inside = strip.inside(axis);
    if (rows < kStrip) {
      for (std::int64_t i = 0; i < width * kStrip; ++i) inside[i] = 0.0f;
    }
    over_rows(
        rows, width,
        [&](std::int64_t r, std::int64_t i) RMP_INLINE_LAMBDA {
          Float v[4];
          for (int k = 0; k < 4; ++k) v[k] = load(x + (r + k) * width + i);
          transpose_quarters(v[0], v[1], v[2], v[3]);
          for (int k = 0; k < 4; ++k) store_quarters(row(inside, i + k) + r, 4 * kStrip, v[k]);
        },
        [&](std::int64_t r, std::int64_t i) RMP_INLINE_LAMBDA { row(inside, i)[r] = x[r * width + i]; });
    const float* blurred = strip.blur(axis);
    over_rows(
        rows, width,
        [&](std::int64_t r, std::int64_t i) RMP_INLINE_LAMBDA {
          Float v[4];
          for (int k = 0; k < 4; ++k) v[k] = load_quarters(blurred + (i + k) * kStrip + r, 4 * kStrip);
          transpose_quarters(v[0], v[1], v[2], v[3]);
          for (int k = 0; k < 4; ++k) store(out + (r + k) * width + i, v[k]);
        },
        [&](std::int64_t r, std::int64_t i) RMP_INLINE_LAMBDA { out[r * width + i] = blurred[i * kStrip + r]; });
  }
}

// --- Columns, of what the rows left in `out`
// ---------------------------------------------------------------------------

void blur_columns(const BlurParams& p, std::int64_t first, std::int64_t last, float* scratch) {
  const Axis axis{p.height, p.radius_vertical, p.taps_vertical, p.boundary, p.adjoint};
  const Strip strip(axis, scratch);
  const std::int64_t strips = ceil_div(p.width, kStrip);
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t left = unit % strips * kStrip, columns = smaller(kStrip, p.width - left);
    float* plane = p.out + unit / strips * p.height * p.width + left;
    float* inside = strip.inside(axis);
    for (std::int64_t i = 0; i < p.height; ++i) {
      for (std::int64_t lane = columns; lane < kStrip; ++lane) row(inside, i)[lane] = 0.0f;
      over(columns, [&](std::int64_t lane, auto span) RMP_INLINE_LAMBDA {
        store(row(inside, i) + lane, load(plane + i * p.width + lane, span), span);
      });
    }
    const float* blurred = strip.blur(axis);
    for (std::int64_t i = 0; i < p.height; ++i) {
      over(columns, [&](std::int64_t lane, auto span) RMP_INLINE_LAMBDA {
        store(plane + i * p.width + lane, load(blurred + i * kStrip + lane), span);
      });
    }
  }
}

}  // namespace

void separable_blur(const BlurParams& p) {
  const std::int64_t elements = p.planes * p.height * p.width, each = p.scratch_size();
  in_parallel(
      ceil_div(p.planes * p.height, kStrip), elements * (2 * p.radius_horizontal + 1), p.threads,
      [&](std::int64_t first, std::int64_t last, int thread) { blur_rows(p, first, last, p.scratch + thread * each); });
  in_parallel(p.planes * ceil_div(p.width, kStrip), elements * (2 * p.radius_vertical + 1), p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) {
                blur_columns(p, first, last, p.scratch + thread * each);
              });
}

}  // namespace RMP_PATH
}  // namespace rmp
