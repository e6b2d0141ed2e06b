"""The formulas of kernels/formulas.h, stated once more for Triton; the derivations are there."""

import triton
import triton.language as tl


@triton.jit
def stepped(mean, previous, point, denoised, to_previous, to_denoised):
    """The natural-gradient step; the weights are to_previous and to_denoised, times the precision ratio."""
    return tl.fma(to_previous, previous - point, tl.fma(to_denoised, denoised - point, mean))


@triton.jit
def conditioned(denoised, measured, gain):
    """d + (y - d) / (1 + q), gain = 1 / (1 + q)."""
    return tl.fma(gain, measured - denoised, denoised)


@triton.jit
def spectral_change(coefficient, energy, data, noise_ratio):
    """(b - h2 c) / (h2 + q), the change of one spectral coefficient."""
    return tl.fma(-energy, coefficient, data) / tl.maximum(energy + noise_ratio, 1e-30)


@triton.jit
def gradient_scale(length, most, norm):
    """min(1, most / (length / norm)) / norm, where lengths and norms of 0 divide nothing."""
    norm = tl.where(norm == 0.0, 1.0, norm)
    length /= norm
    share = most / tl.where(length > 0.0, length, 1.0)
    scale = tl.where((length > 0.0) & ((share >= 1.0) == 0), share, 1.0) / norm
    largest = 3.4028234663852886e38  # float32
    return tl.where(scale > largest, largest, scale).to(tl.float32)


@triton.jit
def precision_ratio(share, curvature):
    """v / v_fixed = 1 / (1 - share * curvature), kept inside [1/4, 4]."""
    return 1.0 / tl.minimum(tl.maximum(1.0 - share * curvature, 0.25), 4.0)


@triton.jit
def learned(curvature, seen, rate):
    """j <- (1 - rate) j + rate seen, or j where that is not finite."""
    new = tl.fma(rate, seen - curvature, curvature)
    return tl.where(is_finite(new), new, curvature)


@triton.jit
def is_finite(x):
    """Whether x is neither NaN nor infinite."""
    return tl.abs(x) <= 3.4028234663852886e38  # the largest float32


@triton.jit
def normal_radius(word):
    """sqrt(-2 ln u) of a word's uniform number."""
    u = ((word & 0xFFFFFF00) | 0x80).to(tl.int32, bitcast=True)
    value = u.to(tl.float32)
    raw = value.to(tl.uint32, bitcast=True)
    fraction = ((raw & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(u < 0, value * 2.3283064365386963e-10, fraction)
    e = tl.minimum((raw >> 23).to(tl.int32, bitcast=True) - 158, 0).to(tl.float32)
    z = f * f
    p01 = tl.fma(f, -0.66726422309875488, 0.99999046325683594)
    p23 = tl.fma(f, -0.52737915515899658, 0.48736554384231567)
    p45 = tl.fma(f, -2.4173991680145264, -0.36189264059066772)
    p67 = tl.fma(f, -2.8290777206420898, -3.2791438102722168)
    p = tl.fma(z * z, tl.fma(z, p67, p45), tl.fma(z, p23, p01))
    return tl.sqrt_rn(tl.fma(z, p, tl.fma(f, -2.0, e * -1.38629436111989062)))


@triton.jit
def cosine_sine(word, scale):
    """``scale`` cos(2 pi u) and ``scale`` sin(2 pi u) of a word's uniform number u."""
    u = (word & 0xFFFFFF00) | 0x80
    half = (u + 0x40000000) & 0x80000000
    x = (u ^ half).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    z = x * x
    s = tl.fma(z, 2.6000539037340786e-6, -1.9806614727713168e-4)
    s = tl.fma(s, z, 8.3330171182751656e-3)
    s = tl.fma(s, z, -0.16666656732559204)
    c = tl.fma(z, -2.607710030133603e-7, 2.4761886379565112e-5)
    c = tl.fma(c, z, -1.38884037733078e-3)
    c = tl.fma(c, z, 0.04166664183139801)
    c = tl.fma(c, z, -0.5)
    signed_scale = (scale.to(tl.uint32, bitcast=True) ^ half).to(tl.float32, bitcast=True)
    return tl.fma(c, z, 1.0) * signed_scale, tl.fma(s * z, x, x) * signed_scale


@triton.jit
def box_muller(word0, word1):
    """Two words of Philox to two independent standard normals."""
    return cosine_sine(word1, normal_radius(word0))


@triton.jit
def group_normals(seed, groups, evaluation, stream):
    """The normals of elements 4 g, ..., 4 g + 3 for every group g of an item: (..., G) to (..., 4 G)."""
    counter = groups.to(tl.uint32)
    c1, c2 = evaluation.to(tl.uint32, bitcast=True), stream.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox(seed, counter, c1, c2, counter * 0)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
