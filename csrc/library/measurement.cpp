#include "csrc/library/measurement.h"

#include <algorithm>
#include <cstring>

#include "csrc/library/checks.h"
#include "csrc/library/conjugate_gradients.h"
#include "csrc/library/filling.h"
#include "csrc/library/memory.h"

namespace rmp {
namespace library {
namespace {

std::int64_t image_count(const ImageShape& shape) { return shape.batch * shape.size(); }

class Identity : public Measurement {
 public:
  explicit Identity(const ImageShape& shape) : Measurement(shape, shape.size()) {}

  void bind(StepParams& params) const override { params.correction = Correction::identity; }
  void apply(const float* x, float* y, const Context&) override { copy(x, y); }
  void adjoint(const float* y, float* x, const Context&) override { copy(y, x); }

 private:
  void copy(const float* from, float* to) const {
    std::memcpy(to, from, static_cast<std::size_t>(image_count(shape_)) * sizeof(float));
  }
};

class Mask : public Measurement {
 public:
  Mask(const ImageShape& shape, const std::uint8_t* mask, std::int64_t items)
      : Measurement(shape, shape.size()),
        mask_(items * shape.size()),
        stride_(items == 1 ? 0 : shape.size()),
        pyramid_(shape.height, shape.width) {
    for (std::int64_t i = 0; i < mask_.count(); ++i) mask_.data()[i] = mask[i] != 0;
  }

  std::int64_t buffer_bytes() const override { return mask_.count() + pyramid_.bytes(); }
  std::int64_t start_iterations() const override { return 15; }
  bool guess(const float* y, float* x, const Context& on) override {
    adjoint(y, x, on);
    const std::int64_t plane = shape_.height * shape_.width;
    for (std::int64_t item = 0; item < shape_.batch; ++item) {
      const std::uint8_t* mask = mask_.data() + item * stride_;
      for (std::int64_t channel = 0; channel < shape_.channels; ++channel, mask += plane, x += plane) {
        pyramid_.fill(mask, x);
      }
    }
    return true;
  }
  void bind(StepParams& params) const override {
    params.correction = Correction::mask;
    params.mask = mask_.data();
    params.mask_stride = stride_;
  }
  void apply(const float* x, float* y, const Context& on) override {
    MaskParams params{};
    params.items = shape_.batch, params.size = shape_.size();
    params.x = x, params.out = y;
    params.mask = mask_.data(), params.mask_stride = stride_;
    params.threads = on.threads;
    on.run->mask(params);
  }
  void adjoint(const float* y, float* x, const Context& on) override { apply(y, x, on); }

 private:
  Buffer<std::uint8_t> mask_;
  std::int64_t stride_;
  Pyramid pyramid_;
};

BlockShape blocks_of(const ImageShape& shape, std::int64_t factor) {
  return {shape.channels, shape.height, shape.width, std::min(factor, shape.height), std::min(factor, shape.width)};
}

class BlockAverage : public Measurement {
 public:
  BlockAverage(const ImageShape& shape, std::int64_t factor, int most_threads)
      : Measurement(shape, shape.channels * blocks_of(shape, factor).bands() * blocks_of(shape, factor).columns()),
        blocks_(blocks_of(shape, factor)),
        scratch_(product("threads", 2 * most_threads, blocks_.scratch())) {}

  std::int64_t buffer_bytes() const override { return static_cast<std::int64_t>(scratch_.bytes()); }
  void bind(StepParams& params) const override {
    params.correction = Correction::block_average;
    params.blocks = blocks_;
    params.scratch = scratch_.data();
  }
  void apply(const float* x, float* y, const Context& on) override { on.run->block_average(between(x, y, on)); }
  void adjoint(const float* y, float* x, const Context& on) override {
    on.run->block_average_adjoint(between(y, x, on));
  }

 private:
  BlockAverageParams between(const float* from, float* to, const Context& on) const {
    BlockAverageParams params{};
    params.blocks = blocks_;
    params.blocks.planes *= shape_.batch;
    params.x = from, params.out = to;
    params.scratch = scratch_.data();
    params.threads = on.threads;
    return params;
  }

  BlockShape blocks_;
  Buffer<float> scratch_;
};

class Linear : public Measurement {
 public:
  Linear(const ImageShape& shape, const rmp_fast_operator& op)
      : Measurement(shape, op.measurement_numel),
        op_(op),
        measured_(product("measurement_numel", shape.batch, op.measurement_numel)),
        image_(image_count(shape)),
        gradients_(shape.batch, op.measurement_numel) {}

  std::int64_t buffer_bytes() const override {
    return static_cast<std::int64_t>(measured_.bytes() + image_.bytes()) + gradients_.bytes();
  }
  void condition(const float* y, const float* ratio, float* denoised, const Context& on) override {
    apply(denoised, measured_.data(), on);
    for (std::int64_t i = 0; i < measured_.count(); ++i) measured_[i] = y[i] - measured_[i];
    const auto gram = [&](const float* v, float* out) {
      adjoint(v, image_.data(), on);
      apply(image_.data(), out, on);
      for (std::int64_t item = 0; item < shape_.batch; ++item) {
        for (std::int64_t i = item * size(); i < (item + 1) * size(); ++i) out[i] += ratio[item] * v[i];
      }
    };
    adjoint(gradients_.solve(gram, measured_.data(), op_.iterations, on), image_.data(), on);
    for (std::int64_t i = 0; i < image_.count(); ++i) denoised[i] += image_[i];
  }
  void apply(const float* x, float* y, const Context& on) override {
    call("apply", [&] { return op_.apply(op_.user, x, y, shape_.batch, shape_.size(), size(), on.stream); });
  }
  void adjoint(const float* y, float* x, const Context& on) override {
    call("adjoint", [&] { return op_.adjoint(op_.user, y, x, shape_.batch, size(), shape_.size(), on.stream); });
  }

 private:
  rmp_fast_operator op_;
  Buffer<float> measured_, image_;
  ConjugateGradients gradients_;
};

class Corrected : public Measurement {
 public:
  Corrected(const ImageShape& shape, const rmp_fast_operator& op) : Measurement(shape, op.measurement_numel), op_(op) {}

  std::int64_t start_iterations() const override { return 0; }
  void condition(const float* y, const float* ratio, float* denoised, const Context& on) override {
    call("correct",
         [&] { return op_.correct(op_.user, y, ratio, denoised, shape_.batch, shape_.size(), size(), on.stream); });
  }
  void apply(const float*, float*, const Context&) override { refuse_map(); }
  void adjoint(const float*, float*, const Context&) override { refuse_map(); }

 private:
  [[noreturn]] static void refuse_map() { throw std::logic_error("a correction has neither A nor its adjoint"); }

  rmp_fast_operator op_;
};

}  // namespace

std::unique_ptr<Measurement> make_measurement(const rmp_fast_operator& op, const ImageShape& shape, int most_threads) {
  switch (op.kind) {
    case RMP_FAST_IDENTITY:
      return std::make_unique<Identity>(shape);
    case RMP_FAST_MASK:
      check_given("op.mask", op.mask);
      if (op.mask_items != 1 && op.mask_items != shape.batch) {
        refuse("op.mask_items", "be 1 or batch = " + std::to_string(shape.batch), std::to_string(op.mask_items));
      }
      return std::make_unique<Mask>(shape, op.mask, op.mask_items);
    case RMP_FAST_BLOCK_AVERAGE:
      return std::make_unique<BlockAverage>(shape, check_count("op.factor", op.factor), most_threads);
    case RMP_FAST_GAUSSIAN_BLUR:
      return make_blur(op, shape, most_threads);
    case RMP_FAST_LINEAR:
      check_function("op.apply", op.apply);
      check_function("op.adjoint", op.adjoint);
      check_count("op.measurement_numel", op.measurement_numel);
      check_count("op.iterations", op.iterations);
      return std::make_unique<Linear>(shape, op);
    case RMP_FAST_CORRECTION:
      check_function("op.correct", op.correct);
      check_count("op.measurement_numel", op.measurement_numel);
      return std::make_unique<Corrected>(shape, op);
    default:
      refuse("op.kind", "be one of 0 ... " + std::to_string(RMP_FAST_CORRECTION), std::to_string(op.kind));
  }
}

}  // namespace library
}  // namespace rmp
