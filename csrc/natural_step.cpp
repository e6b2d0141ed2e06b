#include "csrc/natural_step.h"

#include <omp.h>

#include <algorithm>
#include <stdexcept>

#include "csrc/dispatch.h"

namespace py = pybind11;

namespace rmp {

NaturalStep::NaturalStep(const Buffers& buffers, bool drawn, const std::string& correction, std::int64_t factor,
                         bool antithetic, std::uint32_t stream, const std::optional<std::string>& path)
    : antithetic_(antithetic),
      // Threads may be set higher later, but not above the processors that there are.
      most_threads_(std::max(thread_count(), omp_get_num_procs())) {
  views_.reserve(11);
  TensorView& mean = keep(buffers.mean, "mean").with_dtype(DType::float32);
  const Target target = resolve(mean.device(), path, 0);
  launchers_ = target.run;
  params_.queue = target.queue;
  shape_ = mean.shape();
  if (shape_.empty()) throw py::value_error("`mean` must have shape (B, ...), got ()");
  const std::int64_t items = shape_[0];
  params_.items = items;
  params_.size = mean.item_size();
  params_.mean = mean.data<float>();
  params_.previous = image(buffers.previous, "previous");
  params_.next_mean = image(buffers.next_mean, "next_mean");
  params_.input = image(buffers.input, "input");
  if (!buffers.input_mirror.is_none()) params_.input_mirror = image(buffers.input_mirror, "input_mirror");
  if (antithetic && buffers.input_mirror.is_none()) {
    throw py::value_error("`input_mirror` must be given when `antithetic` is set");
  }
  if (antithetic && drawn) {
    throw py::value_error("`drawn` and `antithetic` exclude each other: the average of a pair is the mean");
  }
  if (params_.input_mirror && params_.input_mirror == params_.input) {
    throw py::value_error("`input_mirror` must be another tensor than `input`");
  }

  TensorView& looks = keep(buffers.looks, "looks").with_dtype(DType::float32);
  if (looks.shape().size() != 3 || looks.shape()[1] != items || looks.shape()[2] != 8) {
    throw py::value_error("`looks` must have shape (L, B, 8) = (L, " + std::to_string(items) + ", 8), got " +
                          shape_text(looks.shape()));
  }
  looks_ = looks.shape()[0];
  table_ = looks.data<Look>();
  params_.seeds =
      keep(buffers.seeds, "seeds").with_dtype(DType::int64).with_shape({items}, "(B,)").data<std::int64_t>();
  params_.ok =
      keep(buffers.ok, "ok").with_dtype(DType::uint8, DType::boolean).with_shape({items}, "(B,)").data<std::uint8_t>();
  if (!buffers.curvature.is_none()) set_precision(keep(buffers.curvature, "curvature").with_dtype(DType::float32));
  params_.drawn = drawn;
  params_.stream = stream;
  set_correction(buffers, correction, factor);
  if (device().cuda) bind_device();
}

TensorView& NaturalStep::keep(const py::object& tensor, const char* name) {
  TensorView& view = views_.emplace_back(tensor, name);
  view.check_device(device());
  return view;
}

// What only the CPU can tell from the table, and what only a device needs.
void NaturalStep::bind_device() {
  if (params_.input && (params_.input == params_.mean || params_.input == params_.next_mean)) {
    throw py::value_error("`input` must be another tensor than `mean` and `next_mean` on a CUDA device");
  }
  if (params_.size >= std::int64_t{1} << 31) {
    throw py::value_error("`mean` must have less than 2^31 elements per item on a CUDA device, got " +
                          shape_text(shape_));
  }
  device_scratch_ = step_scratch(params_, device());
  params_.scratch = static_cast<float*>(device_scratch_.get());
}

float* NaturalStep::image(const py::object& tensor, const char* name) {
  return keep(tensor, name).with_dtype(DType::float32).with_shape(shape_, "(B, ...)").data<float>();
}

void NaturalStep::set_precision(const TensorView& curvature) {
  params_.curvature = curvature.data<float>();
  if (curvature.shape() == Shape{params_.items}) {
    params_.precision = Precision::isotropic;
    partial_.reset(new double[static_cast<std::size_t>(params_.items * ceil_div(params_.size, kChunk))]);
    params_.partial = partial_.get();
    return;
  }
  if (curvature.shape() != shape_) {
    throw py::value_error("`curvature` must have shape (B,) or (B, ...) = " + shape_text(shape_) + ", got " +
                          shape_text(curvature.shape()));
  }
  params_.precision = Precision::diagonal;
}

void NaturalStep::set_correction(const Buffers& buffers, const std::string& correction, std::int64_t factor) {
  if (correction == "none") {
    params_.correction = Correction::none;
    return;
  }
  if (correction != "mask" && correction != "block_average" && correction != "gradient") {
    throw py::value_error("`correction` must be one of 'none', 'mask', 'block_average', 'gradient', got '" +
                          correction + "'");
  }
  if (buffers.y.is_none()) throw py::value_error("`y` must be given when `correction` is '" + correction + "'");
  if (correction == "gradient") {
    params_.correction = Correction::gradient;
    Shape expected = shape_;
    if (antithetic_) expected[0] *= 2;
    params_.measurement = keep(buffers.y, "y")
                              .with_dtype(DType::float32)
                              .with_shape(expected, antithetic_ ? "(2 B, ...)" : "(B, ...)")
                              .data<float>();
    if (antithetic_) params_.gradient_mirror = params_.measurement + params_.items * params_.size;
    return;
  }
  if (correction == "mask") {
    params_.measurement = image(buffers.y, "y");
    params_.correction = Correction::identity;
    if (buffers.mask.is_none()) return;
    params_.correction = Correction::mask;
    const TensorView& mask = keep(buffers.mask, "mask").with_dtype(DType::uint8, DType::boolean);
    const std::int64_t items = mask.shape().empty() ? 0 : mask.shape()[0];
    if ((items != 1 && items != params_.items) || mask.item_size() != params_.size) {
      throw py::value_error("`mask` must have shape (1 or B, ...) = (1 or " + std::to_string(params_.items) +
                            ", ...) with " + std::to_string(params_.size) + " elements per item, got " +
                            shape_text(mask.shape()));
    }
    params_.mask = mask.data<std::uint8_t>();
    params_.mask_stride = items == 1 ? 0 : params_.size;
    return;
  }
  if (shape_.size() != 4) {
    throw py::value_error("`mean` must have shape (B, C, H, W) when `correction` is 'block_average', got " +
                          shape_text(shape_));
  }
  if (factor < 1) throw py::value_error("`factor` must be at least 1, got " + std::to_string(factor));
  params_.correction = Correction::block_average;
  BlockShape& blocks = params_.blocks;
  // At least 1 for images without pixels, at most the image: a larger factor could not be added to.
  blocks = {shape_[1], shape_[2], shape_[3], std::max<std::int64_t>(1, std::min(factor, shape_[2])),
            std::max<std::int64_t>(1, std::min(factor, shape_[3]))};
  const Shape expected = {shape_[0], shape_[1], blocks.bands(), blocks.columns()};
  params_.measurement = keep(buffers.y, "y")
                            .with_dtype(DType::float32)
                            .with_shape(expected, "(B, C, ceil(H / factor), ceil(W / factor))")
                            .data<float>();
  scratch_.reset(new float[static_cast<std::size_t>(2 * most_threads_ * blocks.scratch())]);
  params_.scratch = scratch_.get();
}

void NaturalStep::select_look(std::int64_t look) {
  if (look < 0 || look >= looks_) {
    throw py::value_error("`look` must be in [0, " + std::to_string(looks_) + "), got " + std::to_string(look));
  }
  params_.looks = table_ + look * params_.items;
  if (device().cuda || (params_.input != params_.next_mean && params_.input != params_.mean)) return;
  for (std::int64_t item = 0; item < params_.items; ++item) {
    if (params_.looks[item].next_std != 0.0f) {
      throw py::value_error("`input` must be another tensor than `mean` and `next_mean` where a look is perturbed");
    }
  }
}

void NaturalStep::run(void (*launcher)(const StepParams&), StepParams params, std::uintptr_t cuda_stream) {
  params.threads = std::min(thread_count(), most_threads_);
  params.queue.stream = reinterpret_cast<void*>(cuda_stream);
  const py::gil_scoped_release release;
  launcher(params);
}

void NaturalStep::step(std::int64_t look, std::uintptr_t denoised, std::uintptr_t denoised_mirror,
                       std::optional<std::uint32_t> evaluation, std::uintptr_t cuda_stream) {
  const bool empty = params_.items == 0 || params_.size == 0;
  if (!empty && !denoised) throw py::value_error("`denoised` must be the address of a tensor, got 0");
  if (!empty && antithetic_ != (denoised_mirror != 0)) {
    throw py::value_error(antithetic_ ? "`denoised_mirror` must be given to an antithetic step"
                                      : "`denoised_mirror` must not be given: this step is not antithetic");
  }
  if (busy_.test_and_set())
    throw std::runtime_error("this step is executing in another thread; make one plan per thread");
  try {
    select_look(look);
    params_.evaluation = evaluation ? *evaluation : static_cast<std::uint32_t>(look + 1);
    params_.denoised = reinterpret_cast<const float*>(denoised);
    params_.denoised_mirror = reinterpret_cast<const float*>(denoised_mirror);
    if (!empty) run(launchers_->natural_step, params_, cuda_stream);
  } catch (...) {
    busy_.clear();
    throw;
  }
  busy_.clear();
}

void NaturalStep::perturb(std::int64_t look, std::uint32_t evaluation, std::uintptr_t cuda_stream) {
  if (busy_.test_and_set())
    throw std::runtime_error("this step is executing in another thread; make one plan per thread");
  try {
    select_look(look);
    params_.evaluation = evaluation;
    StepParams params = params_;
    params.next_mean = const_cast<float*>(params.mean);  // read only: nothing moves the mean here
    if (params_.items && params_.size) run(launchers_->perturb, params, cuda_stream);
  } catch (...) {
    busy_.clear();
    throw;
  }
  busy_.clear();
}

}  // namespace rmp
