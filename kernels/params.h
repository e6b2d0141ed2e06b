// What every backend is told, as plain data. Sizes and strides are 64-bit element counts; an "item" is one image or
// signal of a batch, N numbers that lie together.
#pragma once

#include <cstdint>

namespace rmp {

// Coefficients of one evaluation ("look") for one item: a row of a (looks, items, 8) float32 table.
// s1, s2: step sizes; b^2 = s_{k+1}^2 - s_k^2; v_fixed = b^2 s_k^2 / s_{k+1}^2.
struct Look {
  float to_previous;  // s1 v_fixed / b^2, towards the mean of the level above
  float to_denoised;  // s1 v_fixed / s_k^2, towards the conditionally denoised image
  float next_std;     // sqrt(v_fixed) of the next look's perturbation; 0: unperturbed
  float noise_ratio;  // q = sy^2 / r2; for gradients the weight c of d_y = D + c g
  float share;        // v_fixed / s_k^2 of this look (this and the rest: learned precision only)
  float next_share;   // the same of the next look
  float std;          // sqrt(v_fixed) of this look's perturbation
  float rate;         // s2
};

enum class Correction : std::int32_t { none, identity, mask, block_average, gradient };
enum class Precision : std::int32_t { fixed, isotropic, diagonal };  // fixed, or learned per item or per element
enum class Boundary : std::int32_t { circular, reflect, replicate };

// Sums over an item are taken over chunks of this many elements, so that they depend on neither threads nor batch.
constexpr std::int64_t kChunk = 4096;

// Work smaller than this many elements is finished before a second thread has woken up.
constexpr std::int64_t kSmallWork = 32768;

// Slack behind every row in scratch memory: whole vectors may be read and written there.
constexpr std::int64_t kSlack = 256;

// Where a CUDA kernel runs. The CPU has `threads` instead.
struct Queue {
  void* stream;  // a cudaStream_t
  int device;
  int processors;  // multiprocessors of that device
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Blocks of factor x factor pixels cut from the top left of every plane; the last ones are smaller.
struct BlockShape {
  std::int64_t planes;  // of one item
  std::int64_t height, width;
  std::int64_t factor_rows, factor_columns;  // the factor, at most height and width

  constexpr std::int64_t bands() const { return ceil_div(height, factor_rows); }
  constexpr std::int64_t columns() const { return ceil_div(width, factor_columns); }
  // Two rows, one of them widened to whole blocks, and the blocks of one band.
  constexpr std::int64_t scratch() const { return 3 * width + 2 * kSlack; }
};

struct StepParams {
  std::int64_t items;  // B
  std::int64_t size;   // N

  const float* previous;         // (B, N)
  const float* mean;             // (B, N)
  float* next_mean;              // (B, N), may be `mean`
  float* input;                  // (B, N)
  float* input_mirror;           // (B, N) or null
  const float* denoised;         // (B, N)
  const float* denoised_mirror;  // (B, N) or null: not antithetic
  const Look* looks;             // (B)
  const std::int64_t* seeds;     // (B)
  std::uint8_t* ok;              // (B)
  Precision precision;
  float* curvature;  // null, (B) or (B, N) as the precision is fixed, isotropic or diagonal
  double* partial;   // (B, ceil(N / kChunk)), isotropic precision only

  Correction correction;
  bool drawn;
  const float* measurement;      // (B, N), for block averages (B, planes, bands, columns), for gradients g
  const float* gradient_mirror;  // (B, N), the gradients of `denoised_mirror`
  const std::uint8_t* mask;      // (B or 1, N)
  std::int64_t mask_stride;      // N or 0
  BlockShape blocks;

  std::uint32_t evaluation;
  std::uint32_t stream;

  float* scratch;  // (threads, 2, blocks.scratch()), for block averages only
  int threads;
  Queue queue;
};

struct MaskParams {
  std::int64_t items, size;
  const float* x;            // (items, size)
  const std::uint8_t* mask;  // (items or 1, size)
  std::int64_t mask_stride;  // size or 0
  float* out;                // (items, size)
  int threads;
  Queue queue;
};

struct BlockAverageParams {
  BlockShape blocks;  // planes: those of the whole batch
  const float* x;     // (planes, height, width); adjoint: (planes, bands, columns)
  float* out;         // the other one
  float* scratch;     // (threads, blocks.scratch())
  int threads;
  Queue queue;
};

struct BlurParams {
  std::int64_t planes, height, width;
  const float* taps_vertical;  // (2 * radius_vertical + 1)
  const float* taps_horizontal;
  std::int64_t radius_vertical, radius_horizontal;
  Boundary boundary;
  bool adjoint;
  const float* x;  // (planes, height, width)
  float* out;      // (planes, height, width), may be x
  float* scratch;  // (threads, scratch_size())
  int threads;
  Queue queue;

  static constexpr std::int64_t kWidestStrip = 32;  // lines that are blurred side by side

  // The weights, a strip continued at both ends, and its result.
  static constexpr std::int64_t scratch_size(std::int64_t length, std::int64_t radius) {
    return (2 * length + 6 * radius) * kWidestStrip + 2 * radius + 1;
  }
  constexpr std::int64_t scratch_size() const {
    const std::int64_t rows = scratch_size(width, radius_horizontal), columns = scratch_size(height, radius_vertical);
    return rows > columns ? rows : columns;
  }
};

struct SpectralParams {
  std::int64_t items, size;  // size: coefficients per item, each one number or a (real, imaginary) pair
  bool complex;
  bool update;                 // write the change alone
  const float* coefficients;   // (items, size)
  const float* energy;         // (items or 1, size), real
  std::int64_t energy_stride;  // size or 0
  const float* data;           // (items, size)
  const float* noise_ratio;    // (items)
  float* out;                  // (items, size), may be `coefficients`
  int threads;
  Queue queue;
};

// Steps of a cosine transform, as cpu/cosine.cpp has them. Images, coefficients and Hartley numbers are (planes,
// height, width), spectra (planes, height, width / 2 + 1) complex numbers as pairs.
struct CosineParams {
  std::int64_t planes, height, width;
  const float* turns_vertical;    // (height / 2 + 1) pairs
  const float* turns_horizontal;  // (width / 2 + 1)
  const float* x;                 // not `out`; null where that is changed in place
  float* out;
  int threads;
};

// Sums of squares of an item, or of one chunk of it.
struct Squares {
  double gradient, direction, residual;
};

struct ClipParams {
  std::int64_t items, size;
  std::int64_t residual_size;  // numbers of one measurement
  const float* gradient;       // (items, size)
  const float* direction;      // (items, size), or null as limit and weight: lengths have no limit
  const float* limit;          // (items)
  const float* weight;         // (items)
  const float* residual;       // (items, residual_size) or null
  float* out;                  // (items, size), may be `gradient`
  Squares* squares;            // (items, chunks())
  int threads;
  Queue queue;

  // Of one item, where sums are needed of all that is given.
  constexpr std::int64_t chunks() const {
    const std::int64_t images = direction ? size : 0, measurements = residual ? residual_size : 0;
    return ceil_div(images > measurements ? images : measurements, kChunk);
  }
};

// Beside what the matrix does, on a CPU alone. Item by item: squares = |residual|^2, product = <residual, towards>.
struct ConjugateParams {
  std::int64_t items, size;
  float* direction;      // (items, size)
  const float* image;    // (items, size), the matrix times that; of a step
  const float* towards;  // (items, size), the preconditioned residual, without preconditioner `residual`; of a turn
  float* solution;       // (items, size)
  float* residual;       // (items, size)
  double* squares;       // (items)
  double* product;       // (items)
  const double* least;   // (items): with no more squares an item stays where it is
  double* sums;          // (2, items, chunks())
  int threads;

  constexpr std::int64_t chunks() const { return ceil_div(size, kChunk); }
};

struct BiharmonicParams {
  std::int64_t planes, height, width;
  float weight;
  const float* x;     // (planes, height, width)
  const float* plus;  // (planes, height, width)
  float* out;         // (planes, height, width), may be `plus`, not `x`
  float* scratch;     // (threads, scratch_size(width))
  int threads;

  // Three rows of an image and three of differences.
  static constexpr std::int64_t scratch_size(std::int64_t width) { return 6 * (width + kSlack); }
};

struct NormalsParams {
  std::int64_t items, size;
  const std::int64_t* seeds;  // (items)
  std::uint32_t evaluation, stream;
  float* out;  // (items, size)
  int threads;
  Queue queue;
};

}  // namespace rmp
