// Conjugate gradients for a batch of symmetric positive semi-definite systems (Saad, Iterative Methods for Sparse
// Linear Systems, 2nd ed., algorithm 6.18), as python/rmp_fast/operators/conjugate_gradients.py has them: every item on
// its own, a fixed number of steps.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "csrc/library/memory.h"

namespace rmp {
namespace library {

class ConjugateGradients {
 public:
  ConjugateGradients() = default;
  ConjugateGradients(std::int64_t items, std::int64_t size)
      : items_(items),
        size_(size),
        solution_(items * size),
        residual_(items * size),
        direction_(items * size),
        image_(items * size),
        product_(items),
        reached_(items) {}

  std::int64_t bytes() const { return static_cast<std::int64_t>(4 * solution_.bytes() + 2 * product_.bytes()); }

  // gram(v, out) writes G v. Returns the solution of G z = rhs, (items, size), which stays until the next call.
  template <class Gram>
  const float* solve(const Gram& gram, const float* rhs, std::int64_t iterations) {
    std::memset(solution_.data(), 0, solution_.bytes());
    std::memcpy(residual_.data(), rhs, residual_.bytes());
    std::memcpy(direction_.data(), rhs, direction_.bytes());
    for (std::int64_t item = 0; item < items_; ++item) {
      product_[item] = dot(residual_, residual_, item);
      // Below it the residual of a singular system is rounding outside the range, which further steps would blow up.
      reached_[item] = (8.0 * FLT_EPSILON) * (8.0 * FLT_EPSILON) * product_[item];
    }
    for (std::int64_t iteration = 0; iteration < iterations; ++iteration) {
      gram(direction_.data(), image_.data());
      for (std::int64_t item = 0; item < items_; ++item) advance(item);
    }
    return solution_.data();
  }

 private:
  double dot(const Buffer<float>& a, const Buffer<float>& b, std::int64_t item) const {
    double sum = 0.0;
    const float *x = a.data() + item * size_, *y = b.data() + item * size_;
    for (std::int64_t i = 0; i < size_; ++i) sum += static_cast<double>(x[i]) * y[i];
    return sum;
  }

  void advance(std::int64_t item) {
    const double curvature = dot(direction_, image_, item);
    const bool moves = curvature > 0 && product_[item] > reached_[item];
    const float step = moves ? static_cast<float>(product_[item] / curvature) : 0.0f;
    float* const solution = solution_.data() + item * size_;
    float* const residual = residual_.data() + item * size_;
    float* const direction = direction_.data() + item * size_;
    const float* const image = image_.data() + item * size_;
    for (std::int64_t i = 0; i < size_; ++i) {
      solution[i] += step * direction[i];
      residual[i] -= step * image[i];
    }
    const double before = product_[item];
    product_[item] = dot(residual_, residual_, item);
    const float turn = before > 0 ? static_cast<float>(product_[item] / before) : 0.0f;
    for (std::int64_t i = 0; i < size_; ++i) direction[i] = residual[i] + turn * direction[i];
  }

  std::int64_t items_ = 0, size_ = 0;
  Buffer<float> solution_, residual_, direction_, image_;
  Buffer<double> product_, reached_;
};

}  // namespace library
}  // namespace rmp
