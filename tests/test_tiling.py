"""The network in tiles: no seam, the same estimate, exact data consistency."""

import itertools
from collections.abc import Callable

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rmp_fast as rmp
from rmp_fast.tiling import GRID, Tiled

SIZES = [(1, 1), (128, 130), (129, 300), (331, 128), (449, 321)]


def local(x: Tensor, s: Tensor) -> Tensor:
    """Sees 8 pixels around, less than the quarter of an overlap that has no weight; bends at the image's edge."""
    mean = F.avg_pool2d(F.pad(x, (8, 8, 8, 8), mode="replicate"), 17, stride=1)
    return torch.tanh(x - 0.5 * mean) / (1 + s[:, None, None, None])


def pooling(x: Tensor, s: Tensor) -> Tensor:
    """Replaces cells of 16x16 by their mean: right only if tiles begin where cells do."""
    coarse = F.avg_pool2d(x, 16, ceil_mode=True, count_include_pad=False)
    return F.interpolate(coarse, scale_factor=16)[..., : x.shape[-2], : x.shape[-1]].contiguous()


def image(size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.rand((batch, 2, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("denoiser", [local, pooling])
@pytest.mark.parametrize("overlap", [64, None])
def test_tiles_make_the_whole_image_where_the_network_sees_no_further_than_they_overlap(
    denoiser: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], overlap: int | None
) -> None:
    prior = rmp.priors.from_denoiser(denoiser, 0.3)
    x, s = image(size), torch.tensor([0.3, 2.0])
    tiled = Tiled(prior, 128 if overlap else 256, overlap).denoise(x, s)
    # the weights, and the sum of at most four tiles, round
    assert torch.allclose(tiled, prior.denoise(x, s), rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.integers(2, 8), st.integers(1, 4))
def test_an_axis_is_covered_by_tiles_on_the_grid(size: int, tile: int, overlap: int) -> None:
    overlap = min(overlap, tile // 2)
    tiled = Tiled(rmp.priors.from_denoiser(lambda x, s: x, 1.0), tile * GRID, overlap * GRID)
    spans = tiled._spans(size)
    assert spans[0].begin == 0
    assert spans[-1].end == size
    for a, b in itertools.pairwise(spans):
        assert b.begin % GRID == 0
        assert a.end - b.begin >= overlap * GRID
        assert b.begin > a.begin
    assert all(span.end - span.begin <= tile * GRID for span in spans)
    total = torch.zeros(size, dtype=torch.float64)
    for span, weight in zip(spans, tiled._weights(spans, total), strict=True):
        assert (weight >= 0).all()
        total[span.begin : span.end] += weight
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_strided_input_is_taken_and_nothing_of_the_callers_changes() -> None:
    prior = rmp.priors.from_denoiser(local, 0.3)
    x = image((160, 150)).transpose(-1, -2)
    before = x.clone()
    out = Tiled(prior, 128, 64).denoise(x, torch.ones(2))
    assert torch.allclose(out, local(x, torch.ones(2)), rtol=0, atol=1e-6)
    assert torch.equal(x, before)


def test_gradients_are_those_of_the_whole_image() -> None:
    prior = rmp.priors.from_denoiser(local, 0.3)
    s = torch.tensor([0.3, 2.0])
    x, u = image((150, 200)).requires_grad_(), image((150, 200))
    tiled = torch.autograd.grad(Tiled(prior, 128, 64).denoise(x, s), x, u)[0]
    whole = torch.autograd.grad(prior.denoise(x, s), x, u)[0]
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-5)  # sums of 289 float32 terms


OPERATORS = {
    "mask": lambda: rmp.operators.Inpainting(torch.rand((192, 200), generator=torch.Generator().manual_seed(1)) < 0.5),
    "blocks": lambda: rmp.operators.SuperResolution(4),
    "blur across seams": lambda: rmp.operators.GaussianBlur(3.0),
    "Fourier, nothing local": lambda: rmp.operators.Blur(rmp.operators.motion_kernel(41, 30.0)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("guidance", ["gaussian", "dps"])
def test_a_chain_in_tiles_is_the_chain_of_the_whole_image(name: str, guidance: str) -> None:
    op = OPERATORS[name]()
    prior = rmp.priors.from_denoiser(local, 0.3)
    truth = image((192, 200))
    y = op.A(truth)
    options = {"schedule": rmp.schedules.log(2, 0.1, 5.0), "guidance": guidance}
    whole = rmp.Plan(op, prior, tuple(truth.shape), 0.1, **options).execute(y).mean
    tiled = rmp.Plan(op, Tiled(prior, 128, 64), tuple(truth.shape), 0.1, **options).execute(y).mean
    # rounding of the blend, 1e-7, in each of four looks of contraction about 1
    assert float((tiled - whole).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("name", ["mask", "blocks"])
def test_exact_measurements_are_met_exactly_across_seams(name: str) -> None:
    # Here the network's tiles do not fit together at all: everyone sees another image.
    def arbitrary(x: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(x - x.mean(dim=(-1, -2), keepdim=True))

    op, truth = OPERATORS[name](), image((192, 200))
    y = op.A(truth)
    prior = Tiled(rmp.priors.from_denoiser(arbitrary, 0.3), 128, 64)
    settings = {"schedule": rmp.schedules.log(2, 0.1, 5.0), "step_size": 1.0, "noise": "none", "anchor": "next"}
    mean = rmp.Plan(op, prior, tuple(truth.shape), 0.0, **settings).execute(y).mean
    # With exact y every look is consistent with it, and the mean keeps what is left of its start at zero in y's
    # directions: w = s_k^2 / s_{k+1}^2 per level, (0.1 / 5)^2 after all.
    left = (0.1 / 5.0) ** 2
    assert torch.allclose(op.A(mean), (1 - left) * y, rtol=0, atol=2e-6)


def test_a_photograph_in_tiles_is_as_good_as_whole() -> None:
    photo = torch.from_numpy(skimage.data.astronaut()[:192, 96:352].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    op = rmp.operators.Inpainting(rmp.operators.random_mask((192, 256), 0.7, 0))
    y = op.A(photo + 0.04 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)))
    prior = rmp.priors.load("photo")
    options = {"noise_std": 0.04, **rmp.presets.for_task("inpaint_random", prior, evaluations=20)}
    whole, tiled = (
        rmp.reconstruct(y, op, prior, tile=tile, overlap=overlap, **options).mean
        for tile, overlap in ((None, None), (128, 64))
    )
    before, after = (float(10 * torch.log10(4 / (mean - photo).square().mean())) for mean in (whole, tiled))
    assert before > 24
    assert abs(after - before) < 0.05
    # what tiles change is far below the error of the estimate
    assert float((tiled - whole).square().mean()) < 0.01 * float((whole - photo).square().mean())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((100, None), "`tile` must be at least 128, got 100"),
        ((200, None), "`tile` must be a multiple of 64 pixels, got 200"),
        ((256, 100), "`overlap` must be a multiple of 64 pixels, got 100"),
        ((256, 192), "`overlap` must be at most half a tile, 128 pixels, got 192"),
        ((256, 0), "`overlap` must be at least 1, got 0"),
    ],
)
def test_tiles_refuse(sizes: tuple[int, int | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiled(rmp.priors.from_denoiser(local, 1.0), *sizes)


def test_signals_and_wrong_channels_are_refused_by_the_plan() -> None:
    op = rmp.operators.Denoising()
    with pytest.raises(ValueError, match=r"`tile` is for images \(B, C, H, W\)"):
        rmp.Plan(op, Tiled(rmp.priors.from_denoiser(local, 1.0), 128), (2, 300), 0.1)
    with pytest.raises(ValueError, match="C = 1 or 3 for the prior 'photo'"):
        rmp.Plan(op, Tiled(rmp.priors.load("photo"), 128), (1, 2, 256, 256), 0.1)
