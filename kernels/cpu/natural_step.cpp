// One pass over an item in tiles that stay in the first-level cache: condition the denoised image on the measurement,
// move the mean, perturb it for the next look. An isotropic learned precision needs a sum over the whole item before it
// can perturb, so there the perturbation is a second pass.
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/normals.h"
#include "kernels/cpu/parallel.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr std::int64_t kTile = 1024;
constexpr std::int64_t kLine = 16;  // floats of one line of a cache
static_assert(kChunk % kTile == 0 && kTile % kNormals == 0, "tiles begin at whole groups of normals");

// The corrections of block averages, made band by band as the tiles of an item come along.
class BandCorrections {
 public:
  RMP_INLINE BandCorrections(const BlockShape& shape, float* scratch)
      : shape_(shape), row_(scratch), sums_(scratch + 2 * shape.width + kSlack) {}

  // out[i] = denoised[begin + i] + the correction of its block.
  RMP_INLINE void add(const float* denoised, const float* measurement, float noise_ratio, std::int64_t item,
                      std::int64_t begin, std::int64_t count, float* out) {
    std::int64_t row = begin / shape_.width, column = begin % shape_.width;
    while (count > 0) {
      const std::int64_t plane = row / shape_.height, line = row % shape_.height;
      const std::int64_t band = plane * shape_.bands() + line / shape_.factor_rows;
      if (item != item_ || band != band_) make(denoised, measurement, noise_ratio, item, band);
      const std::int64_t run = smaller(count, shape_.width - column);
      over(run, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        store(out + i, load(denoised + begin + i, span) + load(row_ + column + i, span), span);
      });
      begin += run, out += run, count -= run;
      column = 0, ++row;
    }
  }

 private:
  void make(const float* denoised, const float* measurement, float noise_ratio, std::int64_t item, std::int64_t band) {
    item_ = item, band_ = band;
    const std::int64_t plane = band / shape_.bands(), in_plane = band % shape_.bands();
    const std::int64_t rows = band_rows(shape_, in_plane), columns = shape_.columns();
    const std::int64_t first_row = plane * shape_.height + in_plane * shape_.factor_rows;
    block_sums(shape_, denoised + first_row * shape_.width, rows, row_, sums_);
    const float* y = measurement + band * columns;
    const auto correct = [&](std::int64_t j, auto span) RMP_INLINE_LAMBDA {
      const float n = static_cast<float>(rows * block_columns(shape_, j));
      const Float share = spread<Float>(1.0f / n), gain = spread<Float>(1.0f / (1.0f + n * noise_ratio));
      store(sums_ + j, (load(y + j, span) - load(sums_ + j, span) * share) * gain, span);
    };
    over(columns - 1, correct);  // whole blocks all
    correct(columns - 1, Part{1});
    repeat_columns(shape_, sums_, row_);
  }

  const BlockShape& shape_;
  float* row_;
  float* sums_;
  std::int64_t item_ = -1, band_ = -1;
};

// The conditioned tile: `denoised` itself, or written to `tile`.
RMP_NOINLINE const float* condition(const StepParams& p, const float* denoised, BandCorrections& bands,
                                    std::int64_t item, std::int64_t begin, std::int64_t count, float* tile) {
  const float* d = denoised + item * p.size;
  const float noise_ratio = p.looks[item].noise_ratio;
  const Float gain = spread<Float>(1.0f / (1.0f + noise_ratio));
  switch (p.correction) {
    case Correction::none:
      break;
    case Correction::identity: {
      const float* y = p.measurement + item * p.size + begin;
      over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        store(tile + i, conditioned(load(d + begin + i, span), load(y + i, span), gain), span);
      });
      return tile;
    }
    case Correction::mask: {
      const float* y = p.measurement + item * p.size + begin;
      const std::uint8_t* seen = p.mask + item * p.mask_stride + begin;
      over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        const Float x = load(d + begin + i, span);
        store(tile + i, select(load_mask(seen + i, span), conditioned(x, load(y + i, span), gain), x), span);
      });
      return tile;
    }
    case Correction::block_average:
      bands.add(d, p.measurement + item * p.blocks.planes * p.blocks.bands() * p.blocks.columns(), noise_ratio, item,
                begin, count, tile);
      return tile;
    case Correction::gradient: {
      const float* g = (denoised == p.denoised ? p.measurement : p.gradient_mirror) + item * p.size + begin;
      const Float weight = spread<Float>(noise_ratio);
      over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
        store(tile + i, fused(weight, load(g + i, span), load(d + begin + i, span)), span);
      });
      return tile;
    }
  }
  return d + begin;
}

enum class Point { mean, drawn, pair };

// Moves the mean over one tile; returns this tile's share of the curvature sum.
template <Point kPoint, Precision kPrecision>
double advance(const StepParams& p, std::int64_t item, float ratio, std::int64_t begin, std::int64_t count,
               const float* plus, const float* minus) {
  constexpr bool kLearned = kPrecision != Precision::fixed, kDiagonal = kPrecision == Precision::diagonal;
  const Look& look = p.looks[item];
  const Float share = spread<Float>(look.share), rate = spread<Float>(look.rate);
  const Float variance = spread<Float>(look.std * look.std);
  const bool learns = look.rate != 0.0f && look.std != 0.0f;
  Float to_previous = spread<Float>(ratio * look.to_previous), to_denoised = spread<Float>(ratio * look.to_denoised);
  const std::int64_t at = item * p.size + begin;
  Int broken{};
  Double sum{};
  over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
    const Float mean = load(p.mean + at + i, span), up = load(plus + i, span);
    Float target = up, half_difference{};
    if constexpr (kPoint == Point::pair) {
      const Float down = load(minus + i, span);
      target = (up + down) * 0.5f;
      half_difference = (up - down) * 0.5f;
    }
    Float input{};
    if constexpr (kPoint == Point::drawn || kLearned) input = load(p.input + at + i, span);
    const Float point = kPoint == Point::drawn ? input : mean;
    Float curvature{}, element_ratio{};
    if constexpr (kDiagonal) {
      curvature = load(p.curvature + at + i, span);
      element_ratio = precision_ratio(share, curvature);
      to_previous = element_ratio * look.to_previous;
      to_denoised = element_ratio * look.to_denoised;
    }
    const Float next = stepped(mean, load(p.previous + at + i, span), point, target, to_previous, to_denoised);
    const Int fine = is_finite(next);
    broken |= ~fine;
    store(p.next_mean + at + i, select(fine, next, mean), span);
    if constexpr (kLearned) {
      const Float product = (input - mean) * (kPoint == Point::pair ? half_difference : target - mean);
      if constexpr (kDiagonal) {
        const Float next_curvature = learned(curvature, product / (element_ratio * variance), rate);
        if (learns) store(p.curvature + at + i, select(is_finite(next_curvature), next_curvature, curvature), span);
      } else {
        sum += widened(product);
      }
    }
  });
  if (any(broken)) __atomic_store_n(p.ok + item, std::uint8_t{0}, __ATOMIC_RELAXED);
  return kPrecision == Precision::isotropic ? total(sum) : 0.0;
}

// input = next_mean + scale e, and its mirror image; the scale is per element where the precision is diagonal. Normals
// leave memory idle, so meanwhile fetch(i) asks for what the next tile needs in place of this one's element i.
template <bool kDiagonal, class Fetch>
RMP_INLINE void perturb_tile(const StepParams& p, const NormalStream& normals, std::int64_t item, float scale,
                             std::int64_t begin, std::int64_t count, const Fetch& fetch) {
  const std::int64_t at = item * p.size + begin;
  const float* mean = p.next_mean + at;
  float* input = p.input + at;
  if (scale == 0.0f) {
    float* mirror = p.input_mirror ? p.input_mirror + at : nullptr;
    if (input == mean && !mirror) return;
    over(count, [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
      const Float value = load(mean + i, span);
      store(input + i, value, span);
      if (mirror) store(mirror + i, value, span);
    });
    return;
  }
  const Float up = spread<Float>(scale), share = spread<Float>(p.looks[item].next_share);
  const auto scaled = [&](std::int64_t i, auto span) RMP_INLINE_LAMBDA {
    if constexpr (kDiagonal) return up * root(precision_ratio(share, load(p.curvature + at + i, span)));
    return up;
  };
  if (p.input_mirror) {
    float* mirror = p.input_mirror + at;
    over_normals(normals, begin, count, [&](std::int64_t i, auto span, Float e) RMP_INLINE_LAMBDA {
      fetch(i);
      const Float value = load(mean + i, span), width = scaled(i, span);
      store(input + i, fused(width, e, value), span);
      store(mirror + i, fused(Float{} - width, e, value), span);
    });
  } else {
    over_normals(normals, begin, count, [&](std::int64_t i, auto span, Float e) RMP_INLINE_LAMBDA {
      fetch(i);
      store(input + i, fused(scaled(i, span), e, load(mean + i, span)), span);
    });
  }
}

RMP_INLINE float next_scale(const StepParams& p, std::int64_t item) {
  const Look& look = p.looks[item];
  if (p.precision != Precision::isotropic || look.next_std == 0.0f) return look.next_std;
  return __builtin_sqrtf(precision_ratio(look.next_share, p.curvature[item])) * look.next_std;
}

// each(item, chunk, begin, end, normals, scale) over a range of chunks, in order; the keys are made once per item.
template <class Each>
RMP_INLINE void over_chunks(const StepParams& p, std::int64_t first, std::int64_t last, const Each& each) {
  const std::int64_t chunks = ceil_div(p.size, kChunk);
  std::int64_t unit = first;
  while (unit < last) {
    const std::int64_t item = unit / chunks, end = smaller(last, (item + 1) * chunks);
    const NormalStream normals(p.seeds[item], p.evaluation, p.stream);
    for (; unit < end; ++unit) {
      const std::int64_t chunk = unit - item * chunks;
      each(item, unit, chunk * kChunk, smaller(p.size, (chunk + 1) * kChunk), normals);
    }
  }
}

RMP_INLINE void over_items(const StepParams& p, void (*run)(const StepParams&, std::int64_t, std::int64_t, int)) {
  in_parallel(p.items * ceil_div(p.size, kChunk), p.items * p.size, p.threads,
              [&](std::int64_t first, std::int64_t last, int thread) { run(p, first, last, thread); });
}

template <Point kPoint, Precision kPrecision>
void step_chunks(const StepParams& p, std::int64_t first, std::int64_t last, int thread) {
  constexpr bool kIsotropic = kPrecision == Precision::isotropic;
  alignas(64) float plus_tile[kTile], minus_tile[kTile];
  const std::int64_t room = p.blocks.scratch();
  float* scratch = p.scratch + 2 * thread * room;
  BandCorrections plus_bands(p.blocks, scratch), minus_bands(p.blocks, scratch + room);
  over_chunks(p, first, last,
              [&](std::int64_t item, std::int64_t unit, std::int64_t begin, std::int64_t end,
                  const NormalStream& normals) RMP_INLINE_LAMBDA {
                const float ratio = kIsotropic ? precision_ratio(p.looks[item].share, p.curvature[item]) : 1.0f;
                const float scale = kIsotropic ? 0.0f : next_scale(p, item);
                double sum = 0.0;
                for (std::int64_t at = begin; at < end; at += kTile) {
                  const std::int64_t count = smaller(kTile, end - at);
                  const float* plus = condition(p, p.denoised, plus_bands, item, at, count, plus_tile);
                  const float* minus = nullptr;
                  if constexpr (kPoint == Point::pair) {
                    minus = condition(p, p.denoised_mirror, minus_bands, item, at, count, minus_tile);
                  }
                  sum += advance<kPoint, kPrecision>(p, item, ratio, at, count, plus, minus);
                  if constexpr (!kIsotropic) {
                    const bool pixels = p.correction != Correction::none && p.correction != Correction::block_average;
                    // Never behind the item: its last tile asks for itself.
                    const std::int64_t next = item * p.size + at + smaller(kTile, p.size - at - count);
                    const auto fetch = [&](std::int64_t i) RMP_INLINE_LAMBDA {
                      if (kLanes < kLine && i % kLine != 0) return;
                      prefetch(p.previous + next + i, p.mean + next + i, p.next_mean + next + i, p.input + next + i,
                               p.denoised + next + i);
                      if constexpr (kPoint == Point::pair) prefetch(p.denoised_mirror + next + i);
                      if constexpr (kPrecision == Precision::diagonal) prefetch(p.curvature + next + i);
                      if (pixels) prefetch(p.measurement + next + i);
                    };
                    perturb_tile<kPrecision == Precision::diagonal>(p, normals, item, scale, at, count, fetch);
                  }
                }
                if constexpr (kIsotropic) p.partial[unit] = sum;
              });
}

template <bool kDiagonal>
void perturb_chunks(const StepParams& p, std::int64_t first, std::int64_t last, int) {
  over_chunks(p, first, last,
              [&](std::int64_t item, std::int64_t, std::int64_t begin, std::int64_t end,
                  const NormalStream& normals) RMP_INLINE_LAMBDA {
                perturb_tile<kDiagonal>(p, normals, item, next_scale(p, item), begin, end - begin, [](std::int64_t) {});
              });
}

// j <- (1 - rate) j + rate * sum / (ratio std^2 N). A look that left the finite range teaches nothing.
void learn(const StepParams& p, std::int64_t item) {
  const Look& look = p.looks[item];
  if (look.rate == 0.0f || look.std == 0.0f) return;
  const std::int64_t chunks = ceil_div(p.size, kChunk);
  double sum = 0.0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += p.partial[item * chunks + chunk];
  const double ratio = precision_ratio(look.share, p.curvature[item]), std = look.std;
  const double seen = sum / (ratio * std * std * static_cast<double>(p.size));
  const float next = learned(p.curvature[item], static_cast<float>(seen), look.rate);
  if (next - next == 0.0f) p.curvature[item] = next;
}

template <Point kPoint>
void step(const StepParams& p) {
  switch (p.precision) {
    case Precision::fixed:
      over_items(p, step_chunks<kPoint, Precision::fixed>);
      return;
    case Precision::diagonal:
      over_items(p, step_chunks<kPoint, Precision::diagonal>);
      return;
    case Precision::isotropic:
      over_items(p, step_chunks<kPoint, Precision::isotropic>);
      for (std::int64_t item = 0; item < p.items; ++item) learn(p, item);
      over_items(p, perturb_chunks<false>);
  }
}

}  // namespace

void natural_step(const StepParams& p) {
  if (p.denoised_mirror) {
    step<Point::pair>(p);
  } else if (p.drawn) {
    step<Point::drawn>(p);
  } else {
    step<Point::mean>(p);
  }
}

void perturb(const StepParams& p) {
  over_items(p, p.precision == Precision::diagonal ? perturb_chunks<true> : perturb_chunks<false>);
}

}  // namespace RMP_PATH
}  // namespace rmp
