#include "csrc/library/table.h"

#include <cmath>

namespace rmp {
namespace library {
namespace {

enum Column { to_previous, to_denoised, next_std, noise_ratio, share, next_share, std_, rate_ };

}  // namespace

Table table_of_levels(const std::vector<double>& levels, const std::vector<double>& step_sizes, double rate,
                      bool perturbed, bool next, double data_variance) {
  const std::size_t inner = step_sizes.size(), steps = levels.size() - 1;
  Table table;
  table.rows.assign(steps * inner + 1, Row{});
  for (std::size_t step = 0; step < steps; ++step) {
    const double below = levels[steps - 1 - step], above = levels[steps - step];  // s_k and s_{k+1}
    const double w = below / above, unseen = 1 - w * w;                           // v / s_k^2 = 1 - w^2
    const double deviation = std::sqrt(above * above - below * below) * below / above;
    for (std::size_t i = 0; i < inner; ++i) {
      const std::size_t look = step * inner + i;
      Row& row = table.rows[look];
      row[to_previous] = step_sizes[i] * (1 - unseen);
      row[to_denoised] = step_sizes[i] * unseen;
      row[share] = unseen;
      row[std_] = perturbed ? deviation : 0.0;
      row[rate_] = rate;
      // The look before, or for the first one the start, perturbs what this one sees.
      Row& before = table.rows[look ? look - 1 : steps * inner];
      before[next_std] = row[std_];
      if (look) before[next_share] = row[share];
      const double level = next && i == 0 ? above : below, squared = level * level;
      table.level.push_back(level);
      table.variance.push_back(squared * data_variance / (squared + data_variance));
    }
  }
  return table;
}

Table table_of_looks(const std::vector<rmp_fast_look>& looks, bool perturbed) {
  Table table;
  table.rows.assign(looks.size() + 1, Row{});
  for (std::size_t i = 0; i < looks.size(); ++i) {
    table.rows[i][to_previous] = -looks[i].momentum;  // away from the mean before, which is given as `previous`
    table.rows[i][to_denoised] = looks[i].weight;
    table.rows[i ? i - 1 : looks.size()][next_std] = perturbed ? looks[i].noise : 0.0;
    table.level.push_back(looks[i].level);
    table.variance.push_back(looks[i].variance);
  }
  return table;
}

std::vector<double> step_sizes(double step_size, double relaxation, std::int64_t inner_steps) {
  std::vector<double> sizes(static_cast<std::size_t>(inner_steps), step_size);
  if (step_size == 0) {
    for (std::size_t j = 0; j < sizes.size(); ++j) sizes[j] = relaxation * 2 / (2 + static_cast<double>(j));
  }
  return sizes;
}

}  // namespace library
}  // namespace rmp
