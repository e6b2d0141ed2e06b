#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {

const Launchers launchers = {natural_step,   perturb,  mask,          block_average, block_average_adjoint,
                             separable_blur, spectral, clip_gradient, normals,       philox};

}  // namespace RMP_PATH
}  // namespace rmp
