// Runs the formulas once with numbers that count what is done to them, and prints the counts as JSON. Constants are
// free, and so are the keys of Philox, which an item makes once.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define RMP_PATH counted

namespace rmp {
namespace RMP_PATH {
namespace {

struct Counts {
  int floating = 0, integer = 0, special = 0;
} counts;

struct Real {
  float v;
};
struct Whole {
  std::int32_t v;
};
struct Word {
  std::uint32_t v;
};
struct Truth {
  bool v;
};

Real floating(float v) { return ++counts.floating, Real{v}; }
Real special(float v) { return ++counts.special, Real{v}; }
Whole integer(std::int32_t v) { return ++counts.integer, Whole{v}; }
Truth compared(bool v) { return ++counts.integer, Truth{v}; }

Real operator+(Real a, Real b) { return floating(a.v + b.v); }
Real operator-(Real a, Real b) { return floating(a.v - b.v); }
Real operator*(Real a, Real b) { return floating(a.v * b.v); }
Real operator*(Real a, float b) { return floating(a.v * b); }
Real operator/(Real a, Real b) { return special(a.v / b.v); }
Truth operator>(Real a, Real b) { return compared(a.v > b.v); }
Truth operator<(Real a, Real b) { return compared(a.v < b.v); }
Whole operator-(Whole a, std::int32_t b) { return integer(a.v - b); }
Whole operator&(Whole a, std::int32_t b) { return integer(a.v & b); }
Whole operator|(Whole a, std::int32_t b) { return integer(a.v | b); }
Whole operator^(Whole a, Whole b) { return integer(a.v ^ b.v); }
Truth operator<(Whole a, std::int32_t b) { return compared(a.v < b); }
Word operator^(Word a, Word b) { return ++counts.integer, Word{a.v ^ b.v}; }

Real fused(Real a, Real b, Real c) { return floating(std::fma(a.v, b.v, c.v)); }
Real widened(Real a) { return special(a.v); }
Real root(Real a) { return special(std::sqrt(a.v)); }
Real select(Truth where, Real yes, Real no) { return ++counts.integer, where.v ? yes : no; }
Whole minimum(Whole a, std::int32_t b) { return integer(a.v < b ? a.v : b); }
Whole plus_modulo(Whole a, std::uint32_t b) {
  return integer(static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) + b));
}
Whole shift_right(Whole a, int count) {
  return integer(static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v) >> count));
}
Real to_float(Whole a) { return special(static_cast<float>(a.v)); }
Whole bits(Real a) {
  Whole word;
  std::memcpy(&word.v, &a.v, sizeof word.v);
  return word;
}
Real from_bits(Whole a) {
  Real value;
  std::memcpy(&value.v, &a.v, sizeof value.v);
  return value;
}
// One instruction makes both halves.
void multiply_wide(Word a, std::uint32_t factor, Word& high, Word& low) {
  const std::uint64_t product = static_cast<std::uint64_t>(a.v) * factor;
  ++counts.integer;
  high = {static_cast<std::uint32_t>(product >> 32)};
  low = {static_cast<std::uint32_t>(product)};
}
template <class T>
T spread(float value) {
  return {value};
}
template <class T>
T spread(std::uint32_t value) {
  return {value};
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp

#include "kernels/formulas.h"

namespace rmp {
namespace RMP_PATH {
namespace {

const char* separator = "{";

template <class Run>
void count(const char* name, const Run& run) {
  counts = {};
  run();
  std::printf("%s\"%s\": {\"floating\": %d, \"integer\": %d, \"special\": %d}", separator, name, counts.floating,
              counts.integer, counts.special);
  separator = ", ";
}

}  // namespace
}  // namespace RMP_PATH
}  // namespace rmp

int main() {
  using namespace rmp::counted;
  const Real a{0.3f}, b{0.7f}, c{0.2f};
  count("fused", [&] { fused(a, b, c); });
  count("add", [&] { static_cast<void>(a + b); });
  count("root", [&] { root(a); });
  count("divide", [&] { static_cast<void>(a / b); });
  count("stepped", [&] { stepped(a, b, a, c, b, c); });
  count("conditioned", [&] { conditioned(a, b, c); });
  count("spectral_change", [&] { spectral_change(a, b, c, a); });
  count("plus_product", [&] { plus_product(a, b, c); });
  count("plus_square", [&] { plus_square(a, b); });
  count("precision_ratio", [&] { precision_ratio(a, b); });
  count("learned", [&] { learned(a, b, c); });
  const auto keys = philox_keys<Word>(1, 2);
  Word w0{3}, w1{4}, w2{5}, w3{6};
  count("philox", [&] { philox(keys, w0, w1, w2, w3); });
  Real z0, z1;
  count("box_muller", [&] { box_muller(Whole{123456789}, Whole{-987654321}, z0, z1); });
  std::puts("}");
}
