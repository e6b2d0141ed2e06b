// Conjugate gradients for a batch of symmetric positive semi-definite systems (Saad, Iterative Methods for Sparse
// Linear Systems, 2nd ed., algorithm 6.18), as python/rmp_fast/operators/conjugate_gradients.py has them: every item on
// its own, a fixed number of steps.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <cstring>

#include "csrc/library/measurement.h"
#include "csrc/library/memory.h"

namespace rmp {
namespace library {

class ConjugateGradients {
 public:
  ConjugateGradients() = default;
  ConjugateGradients(std::int64_t items, std::int64_t size)
      : solution_(items * size),
        residual_(items * size),
        direction_(items * size),
        image_(items * size),
        squares_(items),
        product_(items),
        least_(items) {
    params_.items = items, params_.size = size;
    sums_ = Buffer<double>(2 * items * params_.chunks());
  }

  std::int64_t bytes() const {
    return static_cast<std::int64_t>(4 * solution_.bytes() + 3 * product_.bytes() + sums_.bytes());
  }

  // gram(v, out) writes G v. Returns the solution of G z = rhs, (items, size), which stays until the next call.
  template <class Gram>
  const float* solve(const Gram& gram, const float* rhs, std::int64_t iterations, const Context& on) {
    std::memset(solution_.data(), 0, solution_.bytes());
    std::memset(direction_.data(), 0, direction_.bytes());
    std::memset(image_.data(), 0, image_.bytes());
    std::memset(product_.data(), 0, product_.bytes());
    std::memset(least_.data(), 0, least_.bytes());
    std::memcpy(residual_.data(), rhs, residual_.bytes());
    ConjugateParams params = params_;
    params.direction = direction_.data(), params.image = image_.data(), params.solution = solution_.data();
    params.towards = params.residual = residual_.data();
    params.squares = squares_.data(), params.product = product_.data(), params.least = least_.data();
    params.sums = sums_.data(), params.threads = on.threads;
    // The first step has no direction yet, and leaves the squares of the residual.
    for (std::int64_t step = 0; step <= iterations; ++step) {
      if (step) gram(direction_.data(), image_.data());
      on.run->conjugate_step(params);
      if (step == iterations) break;
      on.run->conjugate_turn(params);
      if (step) continue;
      // Below it the residual of a singular system is rounding outside the range, which further steps would blow up.
      const double relative = 8.0 * FLT_EPSILON;
      std::transform(squares_.data(), squares_.data() + params.items, least_.data(),
                     [&](double square) { return relative * relative * square; });
    }
    return solution_.data();
  }

 private:
  ConjugateParams params_{};
  Buffer<float> solution_, residual_, direction_, image_;
  Buffer<double> squares_, product_, least_, sums_;
};

}  // namespace library
}  // namespace rmp
