// The posterior mean of a signal that a Gaussian mixture knows, half of whose numbers were seen through noise: the
// denoiser is a function of this program. Prints the estimate, one number a line.
#include <rmp_fast.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

namespace {

constexpr std::int64_t kNumbers = 16, kComponents = 3;

// Components of equal weight, N(mean, variance I).
struct Mixture {
  double mean[kComponents][kNumbers];
  double variance[kComponents] = {0.02, 0.05, 0.1};

  Mixture() {
    for (std::int64_t k = 0; k < kComponents; ++k) {
      for (std::int64_t i = 0; i < kNumbers; ++i) mean[k][i] = std::sin(0.7 * (k + 1) * i + k);
    }
  }
};

// D(x, s) = sum_k p(k | x) (mean_k + variance_k / (variance_k + s^2) (x - mean_k))
int denoise(void* user, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t numel, void*) {
  const Mixture& mixture = *static_cast<const Mixture*>(user);
  for (std::int64_t item = 0; item < batch; ++item, x += numel, out += numel) {
    double log_weight[kComponents], most = -std::numeric_limits<double>::infinity();
    for (std::int64_t k = 0; k < kComponents; ++k) {
      const double total = mixture.variance[k] + static_cast<double>(s[item]) * s[item];
      double distance = 0.0;
      for (std::int64_t i = 0; i < numel; ++i) distance += (x[i] - mixture.mean[k][i]) * (x[i] - mixture.mean[k][i]);
      log_weight[k] = -0.5 * (distance / total + static_cast<double>(numel) * std::log(total));
      most = std::fmax(most, log_weight[k]);
    }
    double weights = 0.0;
    for (double& weight : log_weight) weights += weight = std::exp(weight - most);
    for (std::int64_t i = 0; i < numel; ++i) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < kComponents; ++k) {
        const double gain = mixture.variance[k] / (mixture.variance[k] + static_cast<double>(s[item]) * s[item]);
        sum += log_weight[k] * (mixture.mean[k][i] + gain * (x[i] - mixture.mean[k][i]));
      }
      out[i] = static_cast<float>(sum / weights);
    }
  }
  return 0;
}

int fail() {
  std::fprintf(stderr, "mixture: %s\n", rmp_fast_last_error());
  return 1;
}

}  // namespace

int main() {
  Mixture mixture;
  double levels[21];
  if (rmp_fast_log_levels(20, 0.05, 20.0, levels)) return fail();
  std::vector<std::uint8_t> seen(kNumbers);
  std::vector<float> y(kNumbers), estimate(kNumbers);
  for (std::int64_t i = 0; i < kNumbers; i += 2) {
    seen[i] = 1;
    y[i] = static_cast<float>(mixture.mean[1][i] + 0.1 * std::cos(5.0 * i));
  }
  const double noise_std = 0.1;

  rmp_fast_options options;
  if (rmp_fast_options_init(&options, sizeof options)) return fail();
  options.batch = options.channels = options.height = 1, options.width = kNumbers;
  options.levels = levels, options.level_count = 21;
  options.noise_std = &noise_std, options.noise_std_count = 1;
  options.data_variance = 0.5;
  options.op.kind = RMP_FAST_MASK;
  options.op.mask = seen.data(), options.op.mask_items = 1;
  options.denoiser = denoise, options.user = &mixture;

  rmp_fast_plan* plan = nullptr;
  if (rmp_fast_plan_create(&options, &plan)) return fail();
  const std::int64_t seed = 7;
  std::uint8_t ok = 0;
  const rmp_fast_status status = rmp_fast_plan_execute(plan, y.data(), &seed, nullptr, estimate.data(), &ok, nullptr);
  rmp_fast_plan_destroy(plan);
  if (status) return fail();
  for (const float value : estimate) std::printf("%.9g\n", value);
  return ok ? 0 : 2;
}
