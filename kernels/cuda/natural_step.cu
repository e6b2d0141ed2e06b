// One pass over memory: condition the denoised image on the measurement, move the mean, perturb it for the next look.
// An isotropic learned precision needs a sum over the whole item first: the pass leaves sums of chunks, and a second
// kernel adds them up, learns and perturbs. Blocks of pixels are conditioned in the same pass where a thread can hold
// them (blocks.h); else a kernel before this one leaves a table of their changes.
#include "kernels/cuda/blocks.h"
#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/runtime.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

constexpr int kQuadThreads = 64;  // a thread has up to 16 elements, so small images need small blocks

enum class Point { mean, drawn, pair };

// --- Scratch memory: per item the sums of its chunks and the curvature before the step; then the tables of changes ---

struct Scratch {
  std::int64_t chunks;  // per item
  double* sums;         // (items, chunks + 1)
  float* table;         // (items, planes, bands, columns)
  float* table_mirror;
};

struct Job {
  StepParams step;
  Blocks blocks;
  Scratch scratch;
};

bool in_blocks(const StepParams& p) { return p.correction == Correction::block_average; }
// Sums over the item are made by chunks, in which quads do not lie.
bool in_quads(const StepParams& p) {
  return in_blocks(p) && has_quads(p.blocks) && p.precision != Precision::isotropic;
}
std::int64_t table_size(const StepParams& p) {
  return in_blocks(p) && !in_quads(p) ? p.items * p.blocks.planes * p.blocks.bands() * p.blocks.columns() : 0;
}
std::int64_t sums_size(const StepParams& p) {
  return p.precision == Precision::isotropic ? p.items * (ceil_div(p.size, kChunk) + 1) : 0;
}

Job job_of(const StepParams& p) {
  double* sums = reinterpret_cast<double*>(p.scratch);
  float* table = reinterpret_cast<float*>(sums + sums_size(p));
  return {p, blocks_of(p.blocks), {ceil_div(p.size, kChunk), sums, table, table + table_size(p)}};
}

// --- One item --------------------------------------------------------------------------------------------------------

struct Item {
  std::int64_t index, base, seed;
  Look look;
  float to_previous, to_denoised, scale;
};

template <Precision kPrecision>
RMP_DEVICE Item item_at(const StepParams& p, std::int64_t index) {
  Item item{index, index * p.size, p.seeds[index], p.looks[index], 0.0f, 0.0f, 0.0f};
  float ratio = 1.0f;
  item.scale = item.look.next_std;
  if constexpr (kPrecision == Precision::isotropic) {
    ratio = precision_ratio(item.look.share, p.curvature[index]);
    item.scale *= root(precision_ratio(item.look.next_share, p.curvature[index]));
  }
  item.to_previous = ratio * item.look.to_previous;
  item.to_denoised = ratio * item.look.to_denoised;
  return item;
}

// --- Four elements ---------------------------------------------------------------------------------------------------

// What a step reads beside the denoised image.
struct Before {
  Four mean, previous, input, curvature;
};

template <Point kPoint, Precision kPrecision, class Span>
RMP_DEVICE Before load_before(const StepParams& p, std::int64_t here, Span span) {
  Before b{load(p.mean + here, span), load(p.previous + here, span), {}, {}};
  if constexpr (kPoint == Point::drawn || kPrecision != Precision::fixed) b.input = load(p.input + here, span);
  if constexpr (kPrecision == Precision::diagonal) b.curvature = load(p.curvature + here, span);
  return b;
}

// What became of this thread's elements.
struct Tally {
  bool fine = true;
  double sum = 0.0;
};

// Moves the mean; returns the new one. `curvature` of a diagonal precision is updated.
template <Point kPoint, Precision kPrecision>
RMP_DEVICE Four advance(const Item& item, const Before& b, const Four& plus, const Four& minus, Four& curvature,
                        Tally& tally) {
  const Look& look = item.look;
  const bool learns = look.rate != 0.0f && look.std != 0.0f;
  Four next;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float mean = b.mean.v[i], up = plus.v[i];
    float target = up, half_difference = 0.0f;
    if constexpr (kPoint == Point::pair) {
      target = (up + minus.v[i]) * 0.5f;
      half_difference = (up - minus.v[i]) * 0.5f;
    }
    float to_previous = item.to_previous, to_denoised = item.to_denoised, ratio = 1.0f;
    if constexpr (kPrecision == Precision::diagonal) {
      ratio = precision_ratio(look.share, b.curvature.v[i]);
      to_previous = ratio * look.to_previous;
      to_denoised = ratio * look.to_denoised;
    }
    const float point = kPoint == Point::drawn ? b.input.v[i] : mean;
    const float moved = stepped(mean, b.previous.v[i], point, target, to_previous, to_denoised);
    const bool fine = is_finite(moved);
    tally.fine &= fine;
    next.v[i] = fine ? moved : mean;
    if constexpr (kPrecision != Precision::fixed) {
      const float product = (b.input.v[i] - mean) * (kPoint == Point::pair ? half_difference : target - mean);
      if constexpr (kPrecision == Precision::diagonal) {
        const float seen = product / (ratio * (look.std * look.std));
        const float updated = learned(b.curvature.v[i], seen, look.rate);
        curvature.v[i] = learns && is_finite(updated) ? updated : b.curvature.v[i];
      } else {
        tally.sum += static_cast<double>(product);
      }
    }
  }
  return next;
}

// input = mean + scale e, and its mirror image; the scale is per element where the precision is diagonal.
template <Precision kPrecision, class Span>
RMP_DEVICE void perturb(const StepParams& p, const Item& item, std::int64_t at, const Four& mean, const Four& curvature,
                        Span span) {
  const std::int64_t here = item.base + at;
  if (item.scale == 0.0f) {
    store(p.input + here, mean, span);
    if (p.input_mirror) store(p.input_mirror + here, mean, span);
    return;
  }
  const Four e = normals_at(item.seed, p.evaluation, p.stream, at);
  Four up, down;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float scale = item.scale;
    if constexpr (kPrecision == Precision::diagonal) {
      scale *= root(precision_ratio(item.look.next_share, curvature.v[i]));
    }
    up.v[i] = fused(scale, e.v[i], mean.v[i]);
    down.v[i] = fused(-scale, e.v[i], mean.v[i]);
  }
  store(p.input + here, up, span);
  if (p.input_mirror) store(p.input_mirror + here, down, span);
}

template <Point kPoint, Precision kPrecision, class Span>
RMP_DEVICE void finish(const StepParams& p, const Item& item, std::int64_t at, const Before& b, const Four& plus,
                       const Four& minus, Span span, Tally& tally) {
  Four curvature{};
  const Four next = advance<kPoint, kPrecision>(item, b, plus, minus, curvature, tally);
  store(p.next_mean + item.base + at, next, span);
  if constexpr (kPrecision == Precision::diagonal) store(p.curvature + item.base + at, curvature, span);
  if constexpr (kPrecision != Precision::isotropic) perturb<kPrecision>(p, item, at, next, curvature, span);
}

RMP_DEVICE bool whole_groups(const StepParams& p, const Item& item) {
  const std::int64_t base = item.base;
  const bool pixels = p.correction != Correction::none && p.correction != Correction::block_average;
  return all_aligned(p.mean + base, p.previous + base, p.next_mean + base, p.input + base, behind(p.input_mirror, base),
                     p.denoised + base, behind(p.denoised_mirror, base),
                     behind(p.precision == Precision::diagonal ? p.curvature : nullptr, base),
                     behind(pixels ? p.measurement : nullptr, base), behind(p.gradient_mirror, base),
                     behind(p.mask, item.index * p.mask_stride));
}

// --- Groups of four ----------------------------------------------------------------------------------------------

// What conditions four elements of the denoised image and of its mirror image.
struct Evidence {
  Four plus, minus;
  unsigned seen;
};

// The changes of the blocks in which four elements lie.
RMP_DEVICE Four changes_at(const Job& job, const float* table, std::int64_t at) {
  const Blocks& s = job.blocks;
  Four change{};
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned element = static_cast<unsigned>(at) + i, row = element / s.width, plane = row / s.height;
    const unsigned band = (row - plane * s.height) / s.factor_rows,
                   column = (element - row * s.width) / s.factor_columns;
    if (element < job.step.size)
      change.v[i] = table[(static_cast<std::int64_t>(plane) * s.bands + band) * s.columns + column];
  }
  return change;
}

template <Point kPoint, class Span>
RMP_DEVICE Evidence load_evidence(const Job& job, const Item& item, std::int64_t at, Span span) {
  const StepParams& p = job.step;
  const std::int64_t here = item.base + at;
  Evidence e{{}, {}, 0xF};
  switch (p.correction) {
    case Correction::none:
      break;
    case Correction::mask:
      e.seen = load_mask(p.mask + item.index * p.mask_stride + at, span);
      [[fallthrough]];
    case Correction::identity:
      e.plus = e.minus = load(p.measurement + here, span);
      break;
    case Correction::gradient:
      e.plus = load(p.measurement + here, span);
      if constexpr (kPoint == Point::pair) e.minus = load(p.gradient_mirror + here, span);
      break;
    case Correction::block_average: {
      const std::int64_t first = item.index * job.blocks.count();
      e.plus = changes_at(job, job.scratch.table + first, at);
      if constexpr (kPoint == Point::pair) e.minus = changes_at(job, job.scratch.table_mirror + first, at);
      break;
    }
  }
  return e;
}

RMP_DEVICE void condition(Correction correction, const Look& look, const Four& evidence, unsigned seen, Four& d) {
  if (correction == Correction::none) return;
  const float gain = 1.0f / (1.0f + look.noise_ratio);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float denoised = d.v[i], value = evidence.v[i];
    if (correction == Correction::gradient) {
      d.v[i] = fused(look.noise_ratio, value, denoised);
    } else if (correction == Correction::block_average) {
      d.v[i] = denoised + value;
    } else {
      d.v[i] = seen >> i & 1 ? conditioned(denoised, value, gain) : denoised;
    }
  }
}

// Fewer blocks at once where a thread holds more numbers.
template <Point kPoint, Precision kPrecision>
constexpr int kStepResident = kPoint == Point::pair || kPrecision == Precision::diagonal ? 3 : 4;

template <Point kPoint, Precision kPrecision>
__global__ void __launch_bounds__(kThreads, kStepResident<kPoint, kPrecision>)
    step_kernel(const __grid_constant__ Job job) {
  const StepParams& p = job.step;
  for (std::int64_t index = blockIdx.y; index < p.items; index += gridDim.y) {
    const Item item = item_at<kPrecision>(p, index);
    const bool whole = whole_groups(p, item);
    Tally tally;
    const auto group = [&](std::int64_t at, auto span) {
      // All is asked for before the first of it is used.
      const std::int64_t here = item.base + at;
      Four plus = load(p.denoised + here, span), minus{};
      if constexpr (kPoint == Point::pair) minus = load(p.denoised_mirror + here, span);
      const Before before = load_before<kPoint, kPrecision>(p, here, span);
      const Evidence evidence = load_evidence<kPoint>(job, item, at, span);
      condition(p.correction, item.look, evidence.plus, evidence.seen, plus);
      if constexpr (kPoint == Point::pair) {
        condition(p.correction, item.look, evidence.minus, evidence.seen, minus);
      }
      finish<kPoint, kPrecision>(p, item, at, before, plus, minus, span, tally);
    };
    if constexpr (kPrecision == Precision::isotropic) {
      const std::int64_t chunks = job.scratch.chunks;
      double* sums = job.scratch.sums + index * (chunks + 1);
      for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
        const std::int64_t end = (chunk + 1) * kChunk;
        tally.sum = 0.0;
        over_groups(chunk * kChunk, end < p.size ? end : p.size, 0, 1, whole, group);
        const double sum = block_sum<kThreads>(tally.sum);
        if (threadIdx.x == 0) sums[chunk] = sum;
      }
      // The next kernel overwrites it while some of its threads still need it.
      if (blockIdx.x == 0 && threadIdx.x == 0) sums[chunks] = p.curvature[index];
    } else {
      over_groups(p.size, whole, group);
    }
    if (!tally.fine) store_flag(p.ok + index, 0);
  }
}

// --- Quads -------------------------------------------------------------------------------------------------------

template <Point kPoint, Precision kPrecision, int kFactor, class Span>
RMP_DEVICE void step_quad(const Job& job, const Item& item, std::int64_t index, Span span, Tally& tally) {
  const StepParams& p = job.step;
  const Blocks& s = job.blocks;
  const Quad<kFactor> quad(s, index);
  const float* y = p.measurement + item.index * s.count() + quad.block;
  const float n = static_cast<float>(quad.rows * kFactor);
  const std::int64_t width = s.width;
  Four plus[kFactor], minus[kPoint == Point::pair ? kFactor : 1] = {};
  float sums[4 / kFactor];
  const auto condition = [&](Four(&d)[kFactor]) {
    block_sums(d, sums);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float change = block_change(sums[i / kFactor], n, y[i / kFactor], item.look.noise_ratio);
#pragma unroll
      for (int r = 0; r < kFactor; ++r) d[r].v[i] += change;
    }
  };
  // All is asked for before the first of it is used.
  load_rows(p.denoised + item.base + quad.first, s.width, quad.rows, span, plus);
  if constexpr (kPoint == Point::pair) {
    load_rows(p.denoised_mirror + item.base + quad.first, s.width, quad.rows, span, minus);
  }
  Before before[kFactor] = {};
#pragma unroll
  for (int r = 0; r < kFactor; ++r) {
    if (r < quad.rows) before[r] = load_before<kPoint, kPrecision>(p, item.base + quad.first + r * width, span);
  }
  condition(plus);
  if constexpr (kPoint == Point::pair) condition(minus);
#pragma unroll
  for (int r = 0; r < kFactor; ++r) {
    if (r >= quad.rows) continue;
    const Four& mirror = minus[kPoint == Point::pair ? r : 0];
    finish<kPoint, kPrecision>(p, item, quad.first + r * width, before[r], plus[r], mirror, span, tally);
  }
}

// Bounds registers to 128, or 200 where a thread holds more numbers.
template <Point kPoint, Precision kPrecision, int kFactor>
constexpr int kQuadResident = kFactor == 4 && (kPoint == Point::drawn || kPrecision == Precision::diagonal) ? 5 : 8;

template <Point kPoint, Precision kPrecision, int kFactor>
__global__ void __launch_bounds__(kQuadThreads, kQuadResident<kPoint, kPrecision, kFactor>)
    quad_step_kernel(const __grid_constant__ Job job) {
  const StepParams& p = job.step;
  const std::int64_t count = job.blocks.planes * job.blocks.quads_per_plane();
  for (std::int64_t index = blockIdx.y; index < p.items; index += gridDim.y) {
    const Item item = item_at<kPrecision>(p, index);
    const bool whole = whole_groups(p, item);
    Tally tally;
    for (std::int64_t quad = blockIdx.x * kQuadThreads + threadIdx.x; quad < count; quad += gridDim.x * kQuadThreads) {
      if (whole) {
        step_quad<kPoint, kPrecision, kFactor>(job, item, quad, Whole{}, tally);
      } else {
        step_quad<kPoint, kPrecision, kFactor>(job, item, quad, Part{4}, tally);
      }
    }
    if (!tally.fine) store_flag(p.ok + index, 0);
  }
}

// --- The next look's perturbation ------------------------------------------------------------------------------------

// j <- (1 - rate) j + rate * sum / (ratio std^2 N), by every warp for itself. A look that left the finite range teaches
// nothing.
RMP_DEVICE float learned_curvature(const Job& job, const Item& item) {
  const Look& look = item.look;
  const std::int64_t chunks = job.scratch.chunks;
  const double* sums = job.scratch.sums + item.index * (chunks + 1);
  const float before = static_cast<float>(sums[chunks]);
  if (look.rate == 0.0f || look.std == 0.0f) return before;
  double sum = 0.0;
  for (std::int64_t chunk = threadIdx.x % kWarp; chunk < chunks; chunk += kWarp) sum += sums[chunk];
  const float ratio = precision_ratio(look.share, before), size = static_cast<float>(job.step.size);
  const float seen = static_cast<float>(warp_sum(sum)) / (ratio * look.std * look.std * size);
  const float next = learned(before, seen, look.rate);
  return is_finite(next) ? next : before;
}

template <Precision kPrecision, bool kLearns>
__global__ void __launch_bounds__(kThreads, kResident) perturb_kernel(const __grid_constant__ Job job) {
  const StepParams& p = job.step;
  for (std::int64_t index = blockIdx.y; index < p.items; index += gridDim.y) {
    Item item = item_at<kLearns ? Precision::fixed : kPrecision>(p, index);
    if constexpr (kLearns) {
      const float curvature = learned_curvature(job, item);
      if (blockIdx.x == 0 && threadIdx.x == 0) p.curvature[index] = curvature;
      item.scale *= root(precision_ratio(item.look.next_share, curvature));
    }
    over_groups(p.size, whole_groups(p, item), [&](std::int64_t at, auto span) {
      const std::int64_t here = item.base + at;
      Four curvature{};
      if constexpr (kPrecision == Precision::diagonal) curvature = load(p.curvature + here, span);
      perturb<kPrecision>(p, item, at, load(p.next_mean + here, span), curvature, span);
    });
  }
}

// --- Which of them -----------------------------------------------------------------------------------------------

using Kernel = void (*)(Job);

template <Point kPoint, Precision kPrecision>
Kernel kernel_for(const StepParams& p) {
  if constexpr (kPrecision != Precision::isotropic) {
    if (in_quads(p)) {
      return p.blocks.factor_rows == 2 ? quad_step_kernel<kPoint, kPrecision, 2>
                                       : quad_step_kernel<kPoint, kPrecision, 4>;
    }
  }
  return step_kernel<kPoint, kPrecision>;
}

template <Point kPoint>
Kernel kernel_for(const StepParams& p) {
  switch (p.precision) {
    case Precision::fixed:
      return kernel_for<kPoint, Precision::fixed>(p);
    case Precision::isotropic:
      return kernel_for<kPoint, Precision::isotropic>(p);
    case Precision::diagonal:
      break;
  }
  return kernel_for<kPoint, Precision::diagonal>(p);
}

void launch_perturb(const char* name, Kernel kernel, const Job& job) {
  const StepParams& p = job.step;
  launch(name, kernel, grid_of(ceil_div(p.size, 4 * kThreads), p.items, p.queue), kThreads, 0, p.queue, job);
}

}  // namespace

std::size_t step_scratch_bytes(const StepParams& p) {
  const std::int64_t tables = table_size(p) * (p.input_mirror ? 2 : 1);
  return static_cast<std::size_t>(sums_size(p)) * sizeof(double) + static_cast<std::size_t>(tables) * sizeof(float);
}

void natural_step(const StepParams& p) {
  const Job job = job_of(p);
  if (in_blocks(p) && !in_quads(p)) {
    block_corrections(p, p.denoised, job.scratch.table);
    if (p.denoised_mirror) block_corrections(p, p.denoised_mirror, job.scratch.table_mirror);
  }
  const Kernel kernel = p.denoised_mirror ? kernel_for<Point::pair>(p)
                        : p.drawn         ? kernel_for<Point::drawn>(p)
                                          : kernel_for<Point::mean>(p);
  if (in_quads(p)) {
    const std::int64_t tiles = ceil_div(p.blocks.planes * quads_per_plane(p.blocks), kQuadThreads);
    launch("natural_step", kernel, grid_of(tiles, p.items, p.queue), kQuadThreads, 0, p.queue, job);
    return;
  }
  const bool learns = p.precision == Precision::isotropic;
  const std::int64_t tiles = learns ? job.scratch.chunks : ceil_div(p.size, 4 * kThreads);
  const std::size_t sums = learns ? kThreads / kWarp * sizeof(double) : 0;
  launch("natural_step", kernel, grid_of(tiles, p.items, p.queue), kThreads, sums, p.queue, job);
  if (learns) launch_perturb("natural_step: perturbation", perturb_kernel<Precision::isotropic, true>, job);
}

void perturb(const StepParams& p) {
  launch_perturb("perturb",
                 p.precision == Precision::fixed       ? perturb_kernel<Precision::fixed, false>
                 : p.precision == Precision::isotropic ? perturb_kernel<Precision::isotropic, false>
                                                       : perturb_kernel<Precision::diagonal, false>,
                 job_of(p));
}

}  // namespace RMP_PATH
}  // namespace rmp
