// The boundary: C on one side, exceptions on the other.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "csrc/include/rmp_fast.h"
#include "csrc/library/checks.h"
#include "csrc/library/plan.h"

struct rmp_fast_plan : rmp::library::Plan {
  using Plan::Plan;
};

namespace {

using namespace rmp::library;

thread_local char last_error[512] = "";

rmp_fast_status failed(rmp_fast_status status, const char* message) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

template <class Body>
rmp_fast_status guarded(const Body& body) noexcept {
  try {
    body();
    return RMP_FAST_OK;
  } catch (const std::invalid_argument& error) {
    return failed(RMP_FAST_INVALID_ARGUMENT, error.what());
  } catch (const Busy& error) {
    return failed(RMP_FAST_BUSY, error.what());
  } catch (const CallbackFailed& error) {
    return failed(RMP_FAST_CALLBACK_FAILED, error.what());
  } catch (const std::bad_alloc&) {
    return failed(RMP_FAST_OUT_OF_MEMORY, "there is not enough memory for the plan's buffers; make the batch smaller");
  } catch (const std::exception& error) {
    return failed(RMP_FAST_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(RMP_FAST_INTERNAL_ERROR, "an exception of unknown type");
  }
}

rmp_fast_options defaults() {
  rmp_fast_options options{};
  options.size = sizeof options;
  options.channels = 1;
  options.op.iterations = 50;
  options.inner_steps = 2;
  options.relaxation = 1.4;
  options.precision_rate = 0.3;
  return options;
}

// Programs may be older than the library, and know fewer fields; not the other way round.
void check_size(std::size_t size) {
  constexpr std::size_t kFirst = offsetof(rmp_fast_options, threads) + sizeof(rmp_fast_options::threads);
  if (size < kFirst || size > sizeof(rmp_fast_options)) {
    refuse("size", "be that of the rmp_fast_options of this library, " + std::to_string(sizeof(rmp_fast_options)),
           std::to_string(size) + "; call rmp_fast_options_init, and build with the header of the library");
  }
}

}  // namespace

extern "C" {

rmp_fast_status rmp_fast_options_init(rmp_fast_options* options, size_t size) {
  return guarded([&] {
    check_given("options", options);
    check_size(size);
    rmp_fast_options all = defaults();
    all.size = size;
    std::memcpy(static_cast<void*>(options), &all, size);
  });
}

rmp_fast_status rmp_fast_log_levels(int64_t steps, double low, double high, double* levels) {
  return guarded([&] {
    check_count("steps", steps);
    check_positive("low", low);
    check_positive("high", high);
    check_given("levels", levels);
    if (low >= high) refuse("low", "be below `high` = " + text(high), text(low));
    for (int64_t k = 0; k <= steps; ++k) {
      levels[k] = low * std::pow(high / low, static_cast<double>(k) / static_cast<double>(steps));
    }
  });
}

rmp_fast_status rmp_fast_plan_create(const rmp_fast_options* options, rmp_fast_plan** plan) {
  if (plan) *plan = nullptr;
  return guarded([&] {
    check_given("options", options);
    check_given("plan", plan);
    check_size(options->size);
    rmp_fast_options all = defaults();
    std::memcpy(static_cast<void*>(&all), options, options->size);
    *plan = new rmp_fast_plan(all);
  });
}

void rmp_fast_plan_destroy(rmp_fast_plan* plan) { delete plan; }

rmp_fast_status rmp_fast_plan_set_noise_std(rmp_fast_plan* plan, const double* noise_std, int64_t count) {
  return guarded([&] {
    check_given("plan", plan);
    plan->set_noise_std(noise_std, count);
  });
}

rmp_fast_status rmp_fast_plan_execute(rmp_fast_plan* plan, const float* y, const int64_t* seeds, const float* start,
                                      float* out, uint8_t* ok, void* stream) {
  return guarded([&] {
    check_given("plan", plan);
    plan->execute(y, seeds, start, out, ok, stream);
  });
}

int64_t rmp_fast_plan_looks(const rmp_fast_plan* plan) { return plan ? plan->looks() : 0; }
int64_t rmp_fast_plan_measurement_numel(const rmp_fast_plan* plan) { return plan ? plan->measurement_numel() : 0; }
int64_t rmp_fast_plan_buffer_bytes(const rmp_fast_plan* plan) { return plan ? plan->buffer_bytes() : 0; }

rmp_fast_status rmp_fast_plan_coefficients(const rmp_fast_plan* plan, float* rows, int64_t count) {
  return guarded([&] {
    check_given("plan", plan);
    plan->coefficients(rows, count);
  });
}

const char* rmp_fast_last_error(void) { return last_error; }

const char* rmp_fast_version(void) { return RMP_FAST_VERSION; }

}  // extern "C"
