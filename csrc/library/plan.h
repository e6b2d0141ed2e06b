// A plan of the C interface: everything derived and allocated, and the chain itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/library/conjugate_gradients.h"
#include "csrc/library/measurement.h"
#include "csrc/library/memory.h"
#include "csrc/library/table.h"

namespace rmp {
namespace library {

class Plan {
 public:
  // Raises std::invalid_argument for what does not fit, std::bad_alloc.
  explicit Plan(const rmp_fast_options& options);

  // Both raise Busy while the plan executes in another thread.
  void set_noise_std(const double* noise_std, std::int64_t count);
  void execute(const float* y, const std::int64_t* seeds, const float* start, float* out, std::uint8_t* ok,
               void* stream);

  std::int64_t looks() const { return static_cast<std::int64_t>(table_.level.size()); }
  std::int64_t measurement_numel() const { return measurement_->size(); }
  std::int64_t buffer_bytes() const;
  void coefficients(float* rows, std::int64_t count) const;

 private:
  void set_table();
  void allocate();
  void fill_noise(const double* noise_std, std::int64_t count);
  void check_finite(const char* name, const float* values, std::int64_t size) const;
  void set_start(const float* y, const float* start, const Context& on);
  void smooth_start(const float* y, const Context& on);
  const float* run(const float* y, const Context& on);
  void look(std::int64_t index, const float* y, const float* previous, const float* mean, float* next,
            const Context& on);

  rmp_fast_options options_;
  ImageShape shape_;
  std::int64_t size_;    // N
  std::int64_t copies_;  // 2 for antithetic pairs
  int most_threads_;
  bool remembers_ = false;  // the mean before the last look, as looks given one by one do
  Table table_;
  std::unique_ptr<Measurement> measurement_;
  StepParams params_{};

  Buffer<float> means_[2], inputs_, denoised_, curvature_, levels_, ratios_;
  Buffer<Look> looks_;
  Buffer<std::int64_t> seeds_;
  Buffer<std::uint8_t> ok_;
  Buffer<double> partial_;
  ConjugateGradients smoother_;
  Buffer<float> rows_, measured_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace library
}  // namespace rmp
