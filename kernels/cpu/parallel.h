// Threads: those of the OpenMP runtime that torch uses too.
#pragma once

#include <omp.h>

#include "kernels/cpu/simd.h"
#include "kernels/params.h"

namespace rmp {
namespace RMP_PATH {
namespace {

// run(first, last, thread) over consecutive ranges of `units`, which hold `elements` numbers together.
template <class Run>
RMP_INLINE void in_parallel(std::int64_t units, std::int64_t elements, int threads, const Run& run) {
  const std::int64_t count = elements < kSmallWork ? 1 : smaller(threads, units);
  if (count <= 1) {
    run(std::int64_t{0}, units, 0);
    return;
  }
#pragma omp parallel num_threads(static_cast<int>(count))
  {
    const std::int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
    run(units * thread / team, units * (thread + 1) / team, static_cast<int>(thread));
  }
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
