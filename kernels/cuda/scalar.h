// The vocabulary of ../formulas.h for one thread of a GPU: plain numbers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#define RMP_DEVICE __device__ __forceinline__
#define RMP_SCALAR __host__ __device__ __forceinline__

namespace rmp {
namespace RMP_PATH {
namespace {

RMP_SCALAR float fused(float a, float b, float c) { return fmaf(a, b, c); }
RMP_SCALAR double fused(double a, double b, double c) { return fma(a, b, c); }
RMP_SCALAR float root(float v) { return sqrtf(v); }
RMP_SCALAR double root(double v) { return sqrt(v); }
RMP_SCALAR double widened(float v) { return static_cast<double>(v); }
RMP_SCALAR float select(bool where, float yes, float no) { return where ? yes : no; }
RMP_SCALAR std::int32_t minimum(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
RMP_SCALAR std::int32_t plus_modulo(std::int32_t a, std::uint32_t b) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + b);
}
RMP_SCALAR std::int32_t shift_right(std::int32_t v, int count) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(v) >> count);
}
RMP_SCALAR std::int32_t bits(float v) {
  std::int32_t word;
  memcpy(&word, &v, sizeof v);
  return word;
}
RMP_SCALAR float from_bits(std::int32_t word) {
  float v;
  memcpy(&v, &word, sizeof v);
  return v;
}
RMP_SCALAR float to_float(std::int32_t v) { return static_cast<float>(v); }
RMP_SCALAR bool is_finite(float v) { return (bits(v) & 0x7FFFFFFF) < 0x7F800000; }
RMP_SCALAR void multiply_wide(std::uint32_t a, std::uint32_t factor, std::uint32_t& high, std::uint32_t& low) {
  const std::uint64_t product = static_cast<std::uint64_t>(a) * factor;
  high = static_cast<std::uint32_t>(product >> 32);
  low = static_cast<std::uint32_t>(product);
}
template <class T>
RMP_SCALAR T spread(float value) {
  return value;
}
template <class T>
RMP_SCALAR T spread(std::uint32_t value) {
  return value;
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp
