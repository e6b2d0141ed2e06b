// The table of looks: what every evaluation of the network does to the mean (`Look` in kernels/params.h), in float64
// and without the noise ratio, which depends on the item. The formulas are those of python/rmp_fast/table.py.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "csrc/include/rmp_fast.h"

namespace rmp {
namespace library {

using Row = std::array<double, 8>;  // the columns of Look, in their order

struct Table {
  std::vector<Row> rows;         // one per look, in order of execution; the last one perturbs the start
  std::vector<double> level;     // that the denoiser is told, per look
  std::vector<double> variance;  // r2 of x0 given the denoised image, per look
};

// `levels` ascend; `step_sizes` s1 of the inner iterations; `rate` s2 of a learned precision; `next` anchors the first
// look of a step at s_{k+1}.
Table table_of_levels(const std::vector<double>& levels, const std::vector<double>& step_sizes, double rate,
                      bool perturbed, bool next, double data_variance);
Table table_of_looks(const std::vector<rmp_fast_look>& looks, bool perturbed);

std::vector<double> step_sizes(double step_size, double relaxation, std::int64_t inner_steps);

}  // namespace library
}  // namespace rmp
