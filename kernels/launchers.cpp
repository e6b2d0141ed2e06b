#include "kernels/launchers.h"

namespace rmp {
namespace RMP_PATH {

const Launchers launchers = {natural_step,   perturb,       mask,          block_average,    block_average_adjoint,
                             separable_blur, spectral,      clip_gradient, normals,
#if defined(RMP_LANES)  // of a CPU
                             cosine_fold,    cosine_unfold, cosine_turn,   cosine_turn_back, conjugate_step,
                             conjugate_turn, biharmonic,
#else
                             nullptr,        nullptr,  nullptr,       nullptr,       nullptr,
                             nullptr,        nullptr,
#endif
                             philox};

}  // namespace RMP_PATH
}  // namespace rmp
