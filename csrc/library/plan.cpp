#include "csrc/library/plan.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "csrc/dispatch.h"
#include "csrc/library/checks.h"

namespace rmp {
namespace library {
namespace {

class Exclusive {
 public:
  explicit Exclusive(std::atomic_flag& flag) : flag_(flag) {
    if (flag_.test_and_set(std::memory_order_acquire)) throw Busy();
  }
  ~Exclusive() { flag_.clear(std::memory_order_release); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic_flag& flag_;
};

template <class T>
std::vector<T> copied(const T* from, std::int64_t count) {
  return std::vector<T>(from, from + count);
}

std::vector<double> checked_levels(const double* levels, std::int64_t count) {
  check_given("levels", levels);
  if (count < 2) refuse("level_count", "be at least 2", std::to_string(count));
  for (std::int64_t k = 0; k < count; ++k) {
    if (!std::isfinite(levels[k]) || levels[k] <= (k ? levels[k - 1] : 0.0)) {
      refuse("levels", "be positive, finite and strictly increasing",
             text(levels[k]) + " at " + std::to_string(k) + (k ? " after " + text(levels[k - 1]) : ""));
    }
  }
  return copied(levels, count);
}

std::vector<rmp_fast_look> checked_looks(const rmp_fast_look* looks, std::int64_t count) {
  check_count("look_count", count);
  for (std::int64_t i = 0; i < count; ++i) {
    const rmp_fast_look& look = looks[i];
    const double columns[] = {look.level, look.noise, look.weight, look.momentum, look.variance};
    for (const double value : columns) {
      if (!std::isfinite(value)) refuse("looks", "hold finite numbers", text(value) + " at " + std::to_string(i));
    }
    if (look.level <= 0 || look.variance <= 0 || look.noise < 0) {
      refuse("looks", "have level > 0, variance > 0 and noise >= 0",
             text(look.level) + ", " + text(look.variance) + ", " + text(look.noise) + " at " + std::to_string(i));
    }
  }
  return copied(looks, count);
}

}  // namespace

Plan::Plan(const rmp_fast_options& options) : options_(options) {
  check_count("batch", options.batch, 0);
  check_count("channels", options.channels);
  check_count("height", options.height);
  check_count("width", options.width);
  size_ = product("the shape", product("the shape", options.channels, options.height), options.width);
  product("the shape", size_, std::max<std::int64_t>(options.batch, 1));
  shape_ = {options.batch, options.channels, options.height, options.width};
  check_function("denoiser", options.denoiser);
  check_choice("noise", options.noise, RMP_FAST_NO_NOISE);
  check_choice("anchor", options.anchor, RMP_FAST_NEXT);
  check_choice("covariance", options.covariance, RMP_FAST_DIAGONAL);
  check_choice("start", options.start, RMP_FAST_START_SMOOTH);
  check_count("threads", options.threads, 0);
  copies_ = options.noise == RMP_FAST_ANTITHETIC ? 2 : 1;
  // Without a wish OpenMP may be told other numbers later, but none above the processors that there are.
  most_threads_ = options.threads ? options.threads : std::max(thread_count(), omp_get_num_procs());
  set_table();
  measurement_ = make_measurement(options.op, shape_, most_threads_);
  if (options.start == RMP_FAST_START_SMOOTH && measurement_->start_iterations() == 0) {
    refuse("start", "be RMP_FAST_START_ZERO for RMP_FAST_CORRECTION, which has no A, or `start` given to execute",
           "RMP_FAST_START_SMOOTH");
  }
  allocate();
  fill_noise(options.noise_std, options.noise_std_count);
  // What these point to belongs to the caller, and may be gone by now.
  options_.levels = options_.noise_std = nullptr;
  options_.looks = nullptr;
  options_.op.mask = nullptr;
}

void Plan::set_table() {
  const bool perturbed = options_.noise != RMP_FAST_NO_NOISE;
  if (options_.covariance != RMP_FAST_FIXED && !perturbed) {
    refuse("noise", "perturb the looks where `covariance` is learned", "RMP_FAST_NO_NOISE");
  }
  if (options_.looks) {
    if (options_.levels) refuse("levels", "be NULL where `looks` are given, which say all that levels say", "both");
    if (options_.noise == RMP_FAST_DRAWN) refuse("noise", "not be drawn where `looks` are given", "RMP_FAST_DRAWN");
    if (options_.covariance != RMP_FAST_FIXED) {
      refuse("covariance", "be RMP_FAST_FIXED where `looks` are given", std::to_string(options_.covariance));
    }
    table_ = table_of_looks(checked_looks(options_.looks, options_.look_count), perturbed);
    options_.inner_steps = 1;
    remembers_ = true;
    return;
  }
  const std::vector<double> levels = checked_levels(options_.levels, options_.level_count);
  check_positive("data_variance", options_.data_variance);
  check_count("inner_steps", options_.inner_steps);
  product("the looks", options_.inner_steps, options_.level_count);
  if (options_.step_size != 0) check_positive("step_size", options_.step_size);
  if (check_positive("precision_rate", options_.precision_rate) > 1) {
    refuse("precision_rate", "be at most 1", text(options_.precision_rate));
  }
  if (check_positive("relaxation", options_.relaxation) > 2) {
    refuse("relaxation", "be at most 2, where the chain stops converging", text(options_.relaxation));
  }
  table_ =
      table_of_levels(levels, step_sizes(options_.step_size, options_.relaxation, options_.inner_steps),
                      options_.precision_rate, perturbed, options_.anchor == RMP_FAST_NEXT, options_.data_variance);
}

void Plan::allocate() {
  const std::int64_t batch = shape_.batch, numel = batch * size_;
  for (Buffer<float>& mean : means_) mean = Buffer<float>(numel);
  inputs_ = Buffer<float>(copies_ * numel);
  denoised_ = Buffer<float>(copies_ * numel);
  looks_ = Buffer<Look>(product("the looks", looks() + 1, batch));
  levels_ = Buffer<float>(looks() * copies_ * batch);
  ratios_ = Buffer<float>(looks() * batch);
  seeds_ = Buffer<std::int64_t>(batch);
  ok_ = Buffer<std::uint8_t>(batch);
  for (std::int64_t i = 0; i < levels_.count(); ++i) {
    levels_[i] = static_cast<float>(table_.level[static_cast<std::size_t>(i / (copies_ * batch))]);
  }
  if (options_.start == RMP_FAST_START_SMOOTH) {
    smoother_ = ConjugateGradients(batch, size_);
    rows_ = Buffer<float>(product("threads", most_threads_, BiharmonicParams::scratch_size(shape_.width)));
    measured_ = Buffer<float>(product("the measurements", std::max<std::int64_t>(batch, 1), measurement_->size()));
  }
  params_.items = batch;
  params_.size = size_;
  params_.input = inputs_.data();
  params_.denoised = denoised_.data();
  if (copies_ == 2) {
    params_.input_mirror = inputs_.data() + numel;
    params_.denoised_mirror = denoised_.data() + numel;
  }
  params_.seeds = seeds_.data();
  params_.ok = ok_.data();
  params_.drawn = options_.noise == RMP_FAST_DRAWN;
  if (options_.covariance == RMP_FAST_LEARNED) {
    params_.precision = Precision::isotropic;
    curvature_ = Buffer<float>(batch);
    partial_ = Buffer<double>(batch * ceil_div(size_, kChunk));
    params_.partial = partial_.data();
  } else if (options_.covariance == RMP_FAST_DIAGONAL) {
    params_.precision = Precision::diagonal;
    curvature_ = Buffer<float>(numel);
  }
  params_.curvature = curvature_.data();
  measurement_->bind(params_);
}

void Plan::fill_noise(const double* noise_std, std::int64_t count) {
  check_given("noise_std", noise_std);
  const std::int64_t batch = shape_.batch;
  if (count != 1 && count != batch) {
    refuse("noise_std_count", "be 1 or batch = " + std::to_string(batch), std::to_string(count));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(noise_std[i]) || noise_std[i] < 0) {
      refuse("noise_std", "be finite and >= 0", text(noise_std[i]) + " at " + std::to_string(i));
    }
  }
  for (std::int64_t row = 0; row <= looks(); ++row) {
    const Row& from = table_.rows[static_cast<std::size_t>(row)];
    for (std::int64_t item = 0; item < batch; ++item) {
      double ratio = 0.0;
      if (row < looks()) {
        const double deviation = noise_std[count == 1 ? 0 : item];
        ratio = deviation * deviation / table_.variance[static_cast<std::size_t>(row)];
        ratios_[row * batch + item] = static_cast<float>(ratio);
      }
      Look& look = looks_[row * batch + item];
      look = {static_cast<float>(from[0]), static_cast<float>(from[1]), static_cast<float>(from[2]),
              static_cast<float>(ratio),   static_cast<float>(from[4]), static_cast<float>(from[5]),
              static_cast<float>(from[6]), static_cast<float>(from[7])};
    }
  }
}

std::int64_t Plan::buffer_bytes() const {
  std::size_t bytes = looks_.bytes() + seeds_.bytes() + ok_.bytes() + partial_.bytes();
  for (const Buffer<float>* buffer :
       {&means_[0], &means_[1], &inputs_, &denoised_, &curvature_, &levels_, &ratios_, &rows_, &measured_}) {
    bytes += buffer->bytes();
  }
  return static_cast<std::int64_t>(bytes) + smoother_.bytes() + measurement_->buffer_bytes();
}

void Plan::coefficients(float* rows, std::int64_t count) const {
  const std::int64_t expected = 8 * looks_.count();
  if (count != expected) refuse("count", "be (looks + 1) batch 8 = " + std::to_string(expected), std::to_string(count));
  if (!expected) return;
  check_given("rows", rows);
  std::memcpy(rows, looks_.data(), looks_.bytes());
}

void Plan::set_noise_std(const double* noise_std, std::int64_t count) {
  const Exclusive exclusive(busy_);
  fill_noise(noise_std, count);
}

// Execution.

void Plan::execute(const float* y, const std::int64_t* seeds, const float* start, float* out, std::uint8_t* ok,
                   void* stream) {
  const std::int64_t batch = shape_.batch;
  if (batch == 0) return;
  check_given("y", y);
  check_given("out", out);
  check_finite("y", y, measurement_->size());
  if (start) check_finite("start", start, shape_.size());
  const Exclusive exclusive(busy_);
  const int threads = options_.threads ? options_.threads : std::min(thread_count(), most_threads_);
  const Context on{&launchers({}), threads, stream};
  for (std::int64_t item = 0; item < batch; ++item) seeds_[item] = seeds ? seeds[item] : item;
  std::memset(ok_.data(), 1, ok_.bytes());
  if (curvature_.count()) std::memset(curvature_.data(), 0, curvature_.bytes());
  params_.measurement = y;
  params_.threads = threads;
  const float* reached = means_[0].data();
  const auto deliver = [&] {
    std::memcpy(out, reached, means_[0].bytes());
    if (ok) std::memcpy(ok, ok_.data(), ok_.bytes());
  };
  try {
    set_start(y, start, on);
    reached = run(y, on);
  } catch (...) {
    reached = params_.mean ? params_.mean : reached;
    deliver();
    throw;
  }
  deliver();
}

void Plan::check_finite(const char* name, const float* values, std::int64_t size) const {
  for (std::int64_t item = 0; item < shape_.batch; ++item) {
    int broken = 0;
    for (std::int64_t i = item * size; i < (item + 1) * size; ++i) broken |= values[i] - values[i] != 0.0f;
    if (broken) refuse(name, "be finite", "NaN or infinity in item " + std::to_string(item));
  }
}

void Plan::set_start(const float* y, const float* start, const Context& on) {
  params_.mean = nullptr;
  for (Buffer<float>& mean : means_) {
    if (start) {
      std::memcpy(mean.data(), start, mean.bytes());
    } else {
      std::memset(mean.data(), 0, mean.bytes());
    }
  }
  if (!start && options_.start == RMP_FAST_START_SMOOTH) smooth_start(y, on);
  measurement_->load(y, on);
}

// argmin ||A x - y||^2 + weight ||Laplacian x||^2, close to it: conjugate gradients from the measurement's guess.
void Plan::smooth_start(const float* y, const Context& on) {
  constexpr float kWeight = 0.02f;
  const auto hessian = [&](const float* v, float* out) {
    measurement_->apply(v, measured_.data(), on);
    measurement_->adjoint(measured_.data(), out, on);
    BiharmonicParams smooth{
        shape_.batch * shape_.channels, shape_.height, shape_.width, kWeight, v, out, out, rows_.data(), on.threads};
    on.run->biharmonic(smooth);
  };
  const auto &guess = means_[0], &residual = means_[1];
  measurement_->adjoint(y, residual.data(), on);
  if (measurement_->guess(y, guess.data(), on)) {
    hessian(guess.data(), inputs_.data());  // which hold nothing yet
    for (std::int64_t i = 0; i < residual.count(); ++i) residual[i] -= inputs_[i];
  }
  const float* solution = smoother_.solve(hessian, residual.data(), measurement_->start_iterations(), on);
  for (std::int64_t i = 0; i < guess.count(); ++i) guess[i] += solution[i];
  std::memcpy(means_[1].data(), guess.data(), guess.bytes());
}

// From the first mean, in both of means_, to the mean at level 0.
const float* Plan::run(const float* y, const Context& on) {
  // A level's first look starts from the level above; looks given one by one remember the mean before the last instead.
  const std::int64_t inner = options_.inner_steps;
  float *mean = means_[0].data(), *other = means_[1].data();
  params_.looks = looks_.data() + looks() * shape_.batch;
  params_.evaluation = 0;
  params_.mean = params_.next_mean = mean;
  on.run->perturb(params_);
  for (std::int64_t index = 0; index < looks(); ++index) {
    if (index % inner == 0) {
      look(index, y, remembers_ ? other : mean, mean, other, on);
      std::swap(mean, other);
    } else {
      look(index, y, other, mean, mean, on);
    }
    params_.mean = mean;
  }
  return mean;
}

void Plan::look(std::int64_t index, const float* y, const float* previous, const float* mean, float* next,
                const Context& on) {
  const std::int64_t batch = shape_.batch, pairs = copies_ * batch;
  call("denoiser", [&] {
    return options_.denoiser(options_.user, inputs_.data(), levels_.data() + index * pairs, denoised_.data(), pairs,
                             size_, on.stream);
  });
  for (std::int64_t half = 0; half < copies_; ++half) {
    measurement_->condition(y, ratios_.data() + index * batch, denoised_.data() + half * batch * size_, on);
  }
  params_.looks = looks_.data() + index * batch;
  params_.evaluation = static_cast<std::uint32_t>(index + 1);
  params_.previous = previous;
  params_.mean = mean;
  params_.next_mean = next;
  on.run->natural_step(params_);
}

}  // namespace library
}  // namespace rmp
