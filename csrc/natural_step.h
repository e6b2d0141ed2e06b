// The natural step of one plan: views of the plan's buffers, checked once, and the launcher resolved once.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/tensor_view.h"
#include "kernels/launchers.h"

namespace rmp {

class NaturalStep {
 public:
  struct Buffers {
    pybind11::object previous, mean, next_mean, input, input_mirror, looks, seeds, ok, curvature, y, mask;
  };

  NaturalStep(const Buffers& buffers, bool drawn, const std::string& correction, std::int64_t factor, bool antithetic,
              std::uint32_t stream, const std::optional<std::string>& path);

  // The addresses are those of contiguous float32 tensors (B, ...) of the mean's shape.
  void step(std::int64_t look, std::uintptr_t denoised, std::uintptr_t denoised_mirror,
            std::optional<std::uint32_t> evaluation, std::uintptr_t cuda_stream);
  void perturb(std::int64_t look, std::uint32_t evaluation, std::uintptr_t cuda_stream);

 private:
  TensorView& keep(const pybind11::object& tensor, const char* name);
  float* image(const pybind11::object& tensor, const char* name);
  void set_precision(const TensorView& curvature);
  void set_correction(const Buffers& buffers, const std::string& correction, std::int64_t factor);
  void bind_device();
  void select_look(std::int64_t look);
  const Device& device() const { return views_.front().device(); }
  void run(void (*launcher)(const StepParams&), StepParams params, std::uintptr_t cuda_stream);

  StepParams params_{};
  const Launchers* launchers_ = nullptr;
  bool antithetic_;
  Shape shape_;
  std::int64_t looks_ = 0;
  const Look* table_ = nullptr;
  std::vector<TensorView> views_;
  std::unique_ptr<double[]> partial_;
  std::unique_ptr<float[]> scratch_;
  std::shared_ptr<void> device_scratch_;
  int most_threads_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace rmp
