// The measurement kernels as functions of tensors. All write `out` and return nothing. On a CUDA device they are queued
// on `cuda_stream`, a raw pointer.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace rmp {

using PathName = std::optional<std::string>;

void mask(const pybind11::object& x, const pybind11::object& mask, const pybind11::object& out, const PathName& path,
          std::uintptr_t cuda_stream);
void block_average(const pybind11::object& x, std::int64_t factor, const pybind11::object& out, const PathName& path,
                   std::uintptr_t cuda_stream);
void block_average_adjoint(const pybind11::object& y, std::int64_t factor, const pybind11::object& out,
                           const PathName& path, std::uintptr_t cuda_stream);
void separable_blur(const pybind11::object& x, const pybind11::object& taps_v, const pybind11::object& taps_h,
                    const std::string& boundary, bool adjoint, const pybind11::object& out,
                    const pybind11::object& scratch, const PathName& path, std::uintptr_t cuda_stream);
void spectral(const pybind11::object& c, const pybind11::object& energy, const pybind11::object& data,
              const pybind11::object& noise_ratio, const pybind11::object& out, bool update, const PathName& path,
              std::uintptr_t cuda_stream);
void cosine_fold(const pybind11::object& x, const pybind11::object& out, const PathName& path);
void cosine_unfold(const pybind11::object& spectrum, const pybind11::object& out, const PathName& path);
void cosine_turn(const pybind11::object& spectrum, const pybind11::object& turns_v, const pybind11::object& turns_h,
                 const pybind11::object& out, const PathName& path);
void cosine_turn_back(const pybind11::object& coefficients, const pybind11::object& turns_v,
                      const pybind11::object& turns_h, const PathName& path);
void conjugate_step(const pybind11::object& direction, const pybind11::object& image, const pybind11::object& solution,
                    const pybind11::object& residual, const pybind11::object& squares, const pybind11::object& product,
                    const pybind11::object& least, const PathName& path);
void conjugate_turn(const pybind11::object& direction, const pybind11::object& towards,
                    const pybind11::object& residual, const pybind11::object& squares, const pybind11::object& product,
                    const PathName& path);
void biharmonic(const pybind11::object& x, float weight, const pybind11::object& plus, const pybind11::object& out,
                const PathName& path);
void clip_gradient(const pybind11::object& gradient, const pybind11::object& direction, const pybind11::object& limit,
                   const pybind11::object& weight, const pybind11::object& residual, const pybind11::object& out,
                   const pybind11::object& scratch, const PathName& path, std::uintptr_t cuda_stream);
void normals(const pybind11::object& seeds, std::uint32_t evaluation, std::uint32_t stream, const pybind11::object& out,
             const PathName& path, std::uintptr_t cuda_stream);
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key,
                                    const PathName& path);

}  // namespace rmp
