// The entry points of one path. Defined once per path (launchers.cpp), in the namespace of that path.
#pragma once

#include "kernels/params.h"

namespace rmp {

struct Launchers {
  void (*natural_step)(const StepParams&);
  void (*perturb)(const StepParams&);
  void (*mask)(const MaskParams&);
  void (*block_average)(const BlockAverageParams&);
  void (*block_average_adjoint)(const BlockAverageParams&);
  void (*separable_blur)(const BlurParams&);
  void (*spectral)(const SpectralParams&);
  void (*clip_gradient)(const ClipParams&);
  void (*normals)(const NormalsParams&);
  // Null on a GPU, where matrices transform as fast, and conjugate gradients are torch's.
  void (*cosine_fold)(const CosineParams&);
  void (*cosine_unfold)(const CosineParams&);
  void (*cosine_turn)(const CosineParams&);
  void (*cosine_turn_back)(const CosineParams&);
  void (*conjugate_step)(const ConjugateParams&);
  void (*conjugate_turn)(const ConjugateParams&);
  void (*biharmonic)(const BiharmonicParams&);
  // Philox4x32-10 of one counter, in place: the words that `normals` is made of.
  void (*philox)(std::uint32_t counter[4], const std::uint32_t key[2]);
};

#if defined(RMP_PATH)
namespace RMP_PATH {
void natural_step(const StepParams&);
void perturb(const StepParams&);
void mask(const MaskParams&);
void block_average(const BlockAverageParams&);
void block_average_adjoint(const BlockAverageParams&);
void separable_blur(const BlurParams&);
void spectral(const SpectralParams&);
void clip_gradient(const ClipParams&);
void normals(const NormalsParams&);
void cosine_fold(const CosineParams&);
void cosine_unfold(const CosineParams&);
void cosine_turn(const CosineParams&);
void cosine_turn_back(const CosineParams&);
void conjugate_step(const ConjugateParams&);
void conjugate_turn(const ConjugateParams&);
void biharmonic(const BiharmonicParams&);
void philox(std::uint32_t counter[4], const std::uint32_t key[2]);
extern const Launchers launchers;
}  // namespace RMP_PATH
#endif

}  // namespace rmp
