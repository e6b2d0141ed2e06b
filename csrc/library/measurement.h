// How a measurement enters the chain, for one operator and shape.
#pragma once

#include <cstdint>
#include <memory>

#include "csrc/include/rmp_fast.h"
#include "kernels/launchers.h"

namespace rmp {
namespace library {

struct ImageShape {
  std::int64_t batch, channels, height, width;

  std::int64_t size() const { return channels * height * width; }
};

// Who computes, and what callbacks are handed.
struct Context {
  const Launchers* run;
  int threads;
  void* stream;
};

class Measurement {
 public:
  Measurement(const ImageShape& shape, std::int64_t size) : shape_(shape), size_(size) {}
  virtual ~Measurement() = default;

  // Numbers of y per item.
  std::int64_t size() const { return size_; }
  virtual std::int64_t buffer_bytes() const { return 0; }

  // Conjugate gradients of a smooth start; 0: it has no A and adjoint of its own.
  virtual std::int64_t start_iterations() const { return 20; }
  // Writes an image that explains y roughly, where they begin; false: there is none, and they begin at 0.
  virtual bool guess(const float* y, float* x, const Context& on) {
    static_cast<void>(y), static_cast<void>(x), static_cast<void>(on);
    return false;
  }

  // What the step corrects by itself, all but its `measurement`.
  virtual void bind(StepParams&) const {}
  // Takes the measurement of the next chain, (batch, size()); it stays where it is until the chain has ended.
  virtual void load(const float*, const Context&) {}
  // (batch, N) denoised images to conditionally denoised ones, where the step leaves that to us; ratio (batch) is q.
  virtual void condition(const float* y, const float* ratio, float* denoised, const Context& on) {
    static_cast<void>(y), static_cast<void>(ratio), static_cast<void>(denoised), static_cast<void>(on);
  }

  virtual void apply(const float* x, float* y, const Context& on) = 0;
  virtual void adjoint(const float* y, float* x, const Context& on) = 0;

 protected:
  ImageShape shape_;

 private:
  std::int64_t size_;
};

// `most_threads` bounds those of any later Context. Raises std::invalid_argument for what does not fit.
std::unique_ptr<Measurement> make_measurement(const rmp_fast_operator& op, const ImageShape& shape, int most_threads);
// RMP_FAST_GAUSSIAN_BLUR
std::unique_ptr<Measurement> make_blur(const rmp_fast_operator& op, const ImageShape& shape, int most_threads);

}  // namespace library
}  // namespace rmp
