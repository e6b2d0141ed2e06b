#include "kernels/cuda/groups.h"
#include "kernels/cuda/launch.h"
#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {
namespace {

template <class Span>
RMP_DEVICE void change(const SpectralParams& p, std::int64_t at, const Four& energy, float noise_ratio, Span span) {
  const Four c = load(p.coefficients + at, span), data = load(p.data + at, span);
  Four out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float delta = spectral_change(c.v[i], energy.v[i], data.v[i], noise_ratio);
    out.v[i] = p.update ? delta : c.v[i] + delta;
  }
  store(p.out + at, out, span);
}

// A thread takes four coefficients; if they are complex, these are eight numbers.
RMP_DEVICE void change_pairs(const SpectralParams& p, std::int64_t at, const Four& energy, float noise_ratio, Whole) {
  change(p, at, {{energy.v[0], energy.v[0], energy.v[1], energy.v[1]}}, noise_ratio, Whole{});
  change(p, at + 4, {{energy.v[2], energy.v[2], energy.v[3], energy.v[3]}}, noise_ratio, Whole{});
}
RMP_DEVICE void change_pairs(const SpectralParams& p, std::int64_t at, const Four& energy, float noise_ratio,
                             Part part) {
  const int numbers = 2 * part.count;
  change(p, at, {{energy.v[0], energy.v[0], energy.v[1], energy.v[1]}}, noise_ratio, Part{numbers < 4 ? numbers : 4});
  change(p, at + 4, {{energy.v[2], energy.v[2], energy.v[3], energy.v[3]}}, noise_ratio, Part{numbers - 4});
}

template <bool kComplex>
__global__ void __launch_bounds__(kThreads, kResident) spectral_kernel(const __grid_constant__ SpectralParams p) {
  constexpr std::int64_t kParts = kComplex ? 2 : 1;
  for (std::int64_t item = blockIdx.y; item < p.items; item += gridDim.y) {
    const std::int64_t base = item * p.size * kParts;
    const float* energies = p.energy + item * p.energy_stride;
    const float noise_ratio = p.noise_ratio[item];
    const bool whole = all_aligned(p.coefficients + base, energies, p.data + base, p.out + base);
    over_groups(p.size, whole, [&](std::int64_t at, auto span) {
      const Four energy = load(energies + at, span);
      if constexpr (kComplex) {
        change_pairs(p, base + 2 * at, energy, noise_ratio, span);
      } else {
        change(p, base + at, energy, noise_ratio, span);
      }
    });
  }
}

}  // namespace

void spectral(const SpectralParams& p) {
  launch("spectral", p.complex ? spectral_kernel<true> : spectral_kernel<false>,
         grid_of(ceil_div(p.size, 4 * kThreads), p.items, p.queue), kThreads, 0, p.queue, p);
}

}  // namespace RMP_PATH
}  // namespace rmp
