// What is wrong with an argument, in the words of the Python package: what was expected, what came.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace rmp {
namespace library {

struct Busy : std::runtime_error {
  Busy() : std::runtime_error("this plan is executing in another thread; make one plan per thread") {}
};

struct CallbackFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string text(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", value);
  return digits;
}

[[noreturn]] inline void refuse(const char* name, const std::string& expected, const std::string& got) {
  throw std::invalid_argument("`" + std::string(name) + "` must " + expected + ", got " + got);
}

inline void check_given(const char* name, const void* pointer) {
  if (!pointer) refuse(name, "be given", "NULL");
}
template <class Function>
void check_function(const char* name, Function* function) {
  if (!function) refuse(name, "be given", "NULL");
}
inline double check_positive(const char* name, double value) {
  if (!std::isfinite(value) || value <= 0) refuse(name, "be a finite number > 0", text(value));
  return value;
}
inline std::int64_t check_count(const char* name, std::int64_t value, std::int64_t least = 1) {
  if (value < least) refuse(name, "be at least " + std::to_string(least), std::to_string(value));
  return value;
}
// One of 0 ... last.
inline std::int32_t check_choice(const char* name, std::int32_t value, std::int32_t last) {
  if (value < 0 || value > last) refuse(name, "be one of 0 ... " + std::to_string(last), std::to_string(value));
  return value;
}
inline std::int64_t product(const char* name, std::int64_t a, std::int64_t b) {
  // Half of the range, so that twice as many (pairs) can be counted too, and a quarter of it for their bytes.
  constexpr std::int64_t kMost = INT64_MAX / 64;
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || result > kMost) {
    refuse(name, "be small enough to be counted", std::to_string(a) + " x " + std::to_string(b));
  }
  return result;
}

// Runs a callback; what it throws or returns but 0 is its failure, not ours.
template <class Call>
void call(const char* name, const Call& callback) {
  int code = 0;
  try {
    code = callback();
  } catch (const std::exception& error) {
    throw CallbackFailed("`" + std::string(name) + "` threw an exception: " + error.what());
  } catch (...) {
    throw CallbackFailed("`" + std::string(name) + "` threw an exception of unknown type");
  }
  if (code) throw CallbackFailed("`" + std::string(name) + "` returned " + std::to_string(code));
}

}  // namespace library
}  // namespace rmp
