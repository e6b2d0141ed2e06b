// What only C++ can ask of librmp_fast: threads, exceptions out of callbacks, allocations, exact buffers under the
// sanitizers. What it computes is compared with Python's numbers in test_library.py.
#include <fcntl.h>
#include <rmp_fast.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

static std::atomic<std::int64_t> allocations{0};
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" void* __libc_malloc(std::size_t);
extern "C" void* malloc(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
#endif

namespace {

#define CHECK(condition)                                                                           \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      std::fprintf(stderr, "%s:%d: %s is false; last error: %s\n", __FILE__, __LINE__, #condition, \
                   rmp_fast_last_error());                                                         \
      std::exit(1);                                                                                \
    }                                                                                              \
  } while (false)

bool said(const char* words) { return std::strstr(rmp_fast_last_error(), words) != nullptr; }

// x / (1 + s^2): what a standard normal prior answers.
int shrink(void*, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t numel, void*) {
  for (std::int64_t item = 0; item < batch; ++item) {
    for (std::int64_t i = item * numel; i < (item + 1) * numel; ++i) out[i] = x[i] / (1.0f + s[item] * s[item]);
  }
  return 0;
}

int halve(void*, const float* from, float* to, std::int64_t batch, std::int64_t from_numel, std::int64_t to_numel,
          void*) {
  for (std::int64_t i = 0; i < batch; ++i) {
    for (std::int64_t j = 0; j < to_numel; ++j)
      to[i * to_numel + j] = j < from_numel ? from[i * from_numel + j] / 2 : 0;
  }
  return 0;
}

int keep(void*, const float*, const float*, float*, std::int64_t, std::int64_t, std::int64_t, void*) { return 0; }

using Plan = std::unique_ptr<rmp_fast_plan, decltype(&rmp_fast_plan_destroy)>;

struct Problem {
  rmp_fast_options options;
  std::vector<double> levels = std::vector<double>(4);
  std::vector<std::uint8_t> mask;
  double noise_std = 0.1;

  Problem(std::int64_t batch, std::int64_t channels, std::int64_t height, std::int64_t width) {
    CHECK(rmp_fast_options_init(&options, sizeof options) == RMP_FAST_OK);
    CHECK(rmp_fast_log_levels(3, 0.05, 10.0, levels.data()) == RMP_FAST_OK);
    options.batch = batch, options.channels = channels, options.height = height, options.width = width;
    options.levels = levels.data(), options.level_count = 4;
    options.noise_std = &noise_std, options.noise_std_count = 1;
    options.data_variance = 1.0;
    options.denoiser = shrink;
    mask.resize(static_cast<std::size_t>(channels * height * width));
    for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 != 0;
    options.op.mask = mask.data(), options.op.mask_items = 1;
    options.op.factor = 3;
    options.op.blur_std = 0.8;
    options.op.measurement_numel = std::max<std::int64_t>(1, channels * height * width / 2);
    options.op.iterations = 3;
    options.op.apply = options.op.adjoint = halve;
    options.op.correct = keep;
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  Plan plan() const {
    rmp_fast_plan* made = nullptr;
    CHECK(rmp_fast_plan_create(&options, &made) == RMP_FAST_OK);
    return Plan(made, rmp_fast_plan_destroy);
  }
  std::size_t images() const {
    return static_cast<std::size_t>(options.batch * options.channels * options.height * options.width);
  }
};

// Memory of exactly that many numbers, on the heap, where AddressSanitizer sees a step too far.
std::vector<float> measurement(const rmp_fast_plan* plan, std::int64_t batch) {
  std::vector<float> y(static_cast<std::size_t>(batch * rmp_fast_plan_measurement_numel(plan)));
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::sin(static_cast<float>(i));
  return y;
}

std::vector<float> executed(const Problem& problem, rmp_fast_status expected = RMP_FAST_OK) {
  const Plan plan = problem.plan();
  const std::vector<float> y = measurement(plan.get(), problem.options.batch);
  std::vector<float> out(problem.images());
  std::vector<std::uint8_t> ok(static_cast<std::size_t>(problem.options.batch), 7);
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, out.data(), ok.data(), nullptr) == expected);
  if (expected == RMP_FAST_OK) {
    for (const std::uint8_t fine : ok) CHECK(fine == 1);
    for (const float value : out) CHECK(std::isfinite(value));
  }
  return out;
}

constexpr std::int32_t kKinds = RMP_FAST_CORRECTION + 1;

void every_operator_and_mode_stays_in_its_memory() {
  const std::int64_t shapes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {3, 1, 1, 37}, {1, 2, 19, 4}};
  for (const auto& shape : shapes) {
    for (std::int32_t kind = 0; kind < kKinds; ++kind) {
      for (std::int32_t noise = 0; noise <= RMP_FAST_NO_NOISE; ++noise) {
        for (std::int32_t covariance = 0; covariance <= RMP_FAST_DIAGONAL; ++covariance) {
          if (noise == RMP_FAST_NO_NOISE && covariance != RMP_FAST_FIXED) continue;
          Problem problem(shape[0], shape[1], shape[2], shape[3]);
          problem.options.op.kind = kind;
          problem.options.noise = noise;
          problem.options.covariance = covariance;
          problem.options.op.boundary = noise % 2;
          if (kind != RMP_FAST_CORRECTION) problem.options.start = covariance == 0;
          executed(problem);
        }
      }
    }
  }
}

void threads_change_no_bit() {
  if (kSanitized) return;  // OpenMP's runtime is not instrumented, and the answer is the same
  for (std::int32_t kind = 0; kind < kKinds; ++kind) {
    Problem problem(2, 3, 96, 101);
    problem.options.op.kind = kind;
    problem.options.covariance = RMP_FAST_LEARNED;
    problem.options.threads = 1;
    const std::vector<float> alone = executed(problem);
    problem.options.threads = 3;
    CHECK(executed(problem) == alone);
  }
}

void plans_run_side_by_side() {
  std::vector<std::vector<float>> alone;
  const auto solved = [](std::int32_t kind) {
    Problem problem(2, 1, 9, 11);
    problem.options.op.kind = kind;
    return executed(problem);
  };
  for (std::int32_t kind = 0; kind < kKinds; ++kind) alone.push_back(solved(kind));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int round = 0; round < 3 * kKinds; ++round) {
        const int kind = (thread + round) % kKinds;
        wrong += solved(kind) != alone[static_cast<std::size_t>(kind)];
        // Its own message, whatever the others are told.
        const double low = 2.0 + thread;
        double level = 0.0;
        wrong += rmp_fast_log_levels(1, low, 1.0, &level) != RMP_FAST_INVALID_ARGUMENT;
        wrong += !said(("got " + std::to_string(2 + thread)).c_str());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool inside = false, open = false;
};

int wait_inside(void* user, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t numel,
                void* stream) {
  Gate& gate = *static_cast<Gate*>(user);
  std::unique_lock<std::mutex> lock(gate.mutex);
  gate.inside = true;
  gate.changed.notify_all();
  gate.changed.wait(lock, [&] { return gate.open; });
  return shrink(nullptr, x, s, out, batch, numel, stream);
}

void one_plan_refuses_a_second_thread() {
  Gate gate;
  Problem problem(1, 1, 4, 4);
  problem.options.denoiser = wait_inside;
  problem.options.user = &gate;
  const Plan plan = problem.plan();
  const std::vector<float> y = measurement(plan.get(), 1);
  std::vector<float> first(16), second(16);
  rmp_fast_status status = RMP_FAST_INTERNAL_ERROR;
  std::thread other(
      [&] { status = rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, first.data(), nullptr, nullptr); });
  {
    std::unique_lock<std::mutex> lock(gate.mutex);
    gate.changed.wait(lock, [&] { return gate.inside; });
  }
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, second.data(), nullptr, nullptr) ==
        RMP_FAST_BUSY);
  CHECK(said("executing in another thread"));
  CHECK(rmp_fast_plan_set_noise_std(plan.get(), &problem.noise_std, 1) == RMP_FAST_BUSY);
  {
    const std::lock_guard<std::mutex> lock(gate.mutex);
    gate.open = true;
  }
  gate.changed.notify_all();
  other.join();
  CHECK(status == RMP_FAST_OK);
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, second.data(), nullptr, nullptr) == RMP_FAST_OK);
  CHECK(first == second);
}

int throw_error(void*, const float*, const float*, float*, std::int64_t, std::int64_t, void*) {
  throw std::runtime_error("the network is on fire");
}
int throw_number(void*, const float*, const float*, float*, std::int64_t, std::int64_t, void*) { throw 3; }
int refuse_map(void*, const float*, float*, std::int64_t, std::int64_t, std::int64_t, void*) { return 11; }

// Fails at the call that `user` counts down to.
int fail_later(void* user, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t numel,
               void* stream) {
  return --*static_cast<int*>(user) == 0 ? 42 : shrink(nullptr, x, s, out, batch, numel, stream);
}

void failing_callbacks_end_the_execution_only() {
  Problem problem(1, 1, 4, 4);
  problem.options.denoiser = throw_error;
  executed(problem, RMP_FAST_CALLBACK_FAILED);
  CHECK(said("`denoiser` threw an exception: the network is on fire"));
  problem.options.denoiser = throw_number;
  executed(problem, RMP_FAST_CALLBACK_FAILED);
  CHECK(said("`denoiser` threw an exception of unknown type"));

  problem.options.denoiser = shrink;
  problem.options.op.kind = RMP_FAST_LINEAR;
  problem.options.op.adjoint = refuse_map;
  executed(problem, RMP_FAST_CALLBACK_FAILED);
  CHECK(said("`adjoint` returned 11"));
  problem.options.op.apply = refuse_map;
  executed(problem, RMP_FAST_CALLBACK_FAILED);
  CHECK(said("`apply` returned 11"));

  problem.options.op.kind = RMP_FAST_IDENTITY;
  int calls = 4;
  problem.options.denoiser = fail_later;
  problem.options.user = &calls;
  const Plan plan = problem.plan();
  const std::vector<float> y = measurement(plan.get(), 1);
  std::vector<float> stopped(16), full(16), again(16);
  CHECK(rmp_fast_plan_looks(plan.get()) == 6);
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, stopped.data(), nullptr, nullptr) ==
        RMP_FAST_CALLBACK_FAILED);
  CHECK(said("`denoiser` returned 42"));
  CHECK(std::any_of(stopped.begin(), stopped.end(), [](float value) { return value != 0.0f; }));
  calls = 0;
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, full.data(), nullptr, nullptr) == RMP_FAST_OK);
  CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, again.data(), nullptr, nullptr) == RMP_FAST_OK);
  CHECK(full == again && full != stopped);
}

// Leaves the finite range in item 1 from the second call on.
int break_item(void* user, const float* x, const float* s, float* out, std::int64_t batch, std::int64_t numel,
               void* stream) {
  shrink(nullptr, x, s, out, batch, numel, stream);
  if (++*static_cast<int*>(user) > 1) std::fill_n(out + numel, numel, std::numeric_limits<float>::infinity());
  return 0;
}

void a_broken_item_harms_no_other() {
  for (const std::int32_t kind : {RMP_FAST_MASK, RMP_FAST_GAUSSIAN_BLUR, RMP_FAST_LINEAR}) {
    Problem problem(3, 1, 4, 4);
    problem.options.op.kind = kind;
    const std::vector<float> whole = executed(problem);
    int calls = 0;
    problem.options.denoiser = break_item;
    problem.options.user = &calls;
    const Plan plan = problem.plan();
    const std::vector<float> y = measurement(plan.get(), 3);
    std::vector<float> out(48);
    std::vector<std::uint8_t> ok(3);
    CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, out.data(), ok.data(), nullptr) == RMP_FAST_OK);
    CHECK(ok == (std::vector<std::uint8_t>{1, 0, 1}));
    CHECK(std::all_of(out.begin(), out.end(), [](float value) { return std::isfinite(value); }));
    CHECK(std::equal(out.begin(), out.begin() + 16, whole.begin()));
    CHECK(std::equal(out.begin() + 32, out.end(), whole.begin() + 32));
  }
}

void too_much_memory_is_an_error() {
  Problem problem(1, 1, 1, 1);
  problem.options.height = std::int64_t{1} << 30, problem.options.width = std::int64_t{1} << 24;
  problem.options.op.kind = RMP_FAST_IDENTITY;
  rmp_fast_plan* plan = nullptr;
  CHECK(rmp_fast_plan_create(&problem.options, &plan) == RMP_FAST_OUT_OF_MEMORY && !plan);
  CHECK(said("not enough memory"));
}

std::int64_t resident_pages() {
  char text[128] = "";
  const int file = open("/proc/self/statm", O_RDONLY);
  CHECK(file >= 0 && read(file, text, sizeof text - 1) > 0);
  close(file);
  return std::strtoll(std::strchr(text, ' '), nullptr, 10);
}

void executing_allocates_nothing() {
  for (std::int32_t kind = 0; kind < kKinds; ++kind) {
    Problem problem(2, 1, 8, 9);
    problem.options.op.kind = kind;
    problem.options.start = kind != RMP_FAST_CORRECTION;
    const Plan plan = problem.plan();
    const std::vector<float> y = measurement(plan.get(), 2);
    std::vector<float> out(problem.images());
    const auto execute = [&] {
      CHECK(rmp_fast_plan_execute(plan.get(), y.data(), nullptr, nullptr, out.data(), nullptr, nullptr) == RMP_FAST_OK);
    };
    execute();
    const std::int64_t before = allocations, pages = resident_pages();
    if (!kSanitized) CHECK(before > 0);
    const std::int64_t executions = kSanitized ? 10 : kind == RMP_FAST_MASK ? 10000 : 100;
    for (std::int64_t i = 0; i < executions; ++i) execute();
    CHECK(allocations == before);
    CHECK(kSanitized || resident_pages() - pages <= pages / 100);
  }
}

}  // namespace

int main() {
  const std::pair<const char*, void (*)()> checks[] = {
      {"every operator and mode stays in its memory", every_operator_and_mode_stays_in_its_memory},
      {"threads change no bit", threads_change_no_bit},
      {"plans run side by side", plans_run_side_by_side},
      {"one plan refuses a second thread", one_plan_refuses_a_second_thread},
      {"failing callbacks end the execution only", failing_callbacks_end_the_execution_only},
      {"a broken item harms no other", a_broken_item_harms_no_other},
      {"too much memory is an error", too_much_memory_is_an_error},
      {"executing allocates nothing", executing_allocates_nothing},
  };
  for (const auto& [name, check] : checks) {
    std::printf("%s\n", name);
    std::fflush(stdout);
    check();
  }
  return 0;
}
