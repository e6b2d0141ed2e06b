"""One call in parts: the same estimates whatever the parts, whoever asked for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast import memory, operators, reconstruction
from rmp_fast.tiling import Tiled

SHAPE = (5, 2, 8, 6)
NOISE = torch.tensor([0.05, 0.1, 0.2, 0.1, 0.3])
FEW = {"schedule": rmp.schedules.log(2, 0.1, 5.0)}


def smooth(x: Tensor, s: Tensor) -> Tensor:
    return torch.tanh(x + x.roll(1, -1)) / (1 + s[:, None, None, None])


PRIOR = rmp.priors.from_denoiser(smooth, 0.4)


def random(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def mri_masks() -> Tensor:
    return torch.stack([operators.cartesian_mask((8, 6), 2, seed=seed) for seed in range(5)])


def maps(batch: int) -> Tensor:
    parts = [torch.randn((batch, 3, 8, 6), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    return torch.complex(*parts)


OPERATORS = {
    "shared mask": lambda: operators.Inpainting(random((8, 6)) > 0),
    "mask per item": lambda: operators.Inpainting(random((5, 1, 8, 6)) > 0),
    "blocks": lambda: operators.SuperResolution(2),
    "mri, mask per item": lambda: operators.MRI(mri_masks()),
    "mri, maps per item": lambda: operators.MRI(mri_masks()[0], maps(5)),
    "mri, maps shared, iterations given": lambda: operators.MRI(mri_masks(), maps(1), iterations=7),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("size", [1, 2, 5, 9, "auto"])
def test_parts_give_what_the_whole_batch_gives(name: str, size: int | str) -> None:
    op = OPERATORS[name]()
    y = op.A(random(SHAPE))
    seeds = torch.tensor([9, 8, 7, 2**40, -1])
    whole = rmp.Plan(op, PRIOR, SHAPE, NOISE, **FEW).execute(y, seeds)
    parts = rmp.reconstruct(y, op, PRIOR, noise_std=NOISE, seeds=seeds, batch_size=size, **FEW)
    # our kernels agree to the bit; Fourier transforms and matrix products may round by the batch
    assert torch.allclose(parts.mean, whole.mean, rtol=0, atol=0 if name in ("shared mask", "blocks") else 1e-5)
    assert torch.equal(parts.ok, whole.ok)
    assert parts.stats["evaluations"] == whole.stats["evaluations"]


def test_the_default_seeds_are_those_of_the_whole_batch() -> None:
    op = operators.Denoising()
    y = random(SHAPE)
    whole = rmp.Plan(op, PRIOR, SHAPE, 0.1, **FEW).execute(y).mean
    assert torch.equal(rmp.reconstruct(y, op, PRIOR, noise_std=0.1, batch_size=2, **FEW).mean, whole)


def test_variances_are_joined_and_times_added() -> None:
    op, y = operators.Denoising(), random(SHAPE)
    whole = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, spread_looks=2, **FEW)
    parts = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, spread_looks=2, batch_size=3, **FEW)
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-5, atol=1e-7)
    assert parts.stats["seconds"] > parts.stats["network_seconds"] > 0
    assert parts.stats["buffer_bytes"] < whole.stats["buffer_bytes"]


def test_parts_share_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: made.append(call) or call)
    op, y = operators.Denoising(), random(SHAPE)
    parts = rmp.reconstruct(y, op, PRIOR, noise_std=0.1, batch_size=2, compile=True, channels_last=True, **FEW)
    assert len(made) == 1
    assert parts.stats["compiled"] == 1
    assert torch.equal(parts.mean, rmp.reconstruct(y, op, PRIOR, noise_std=0.1, **FEW).mean)


def test_an_empty_batch_gives_an_empty_estimate() -> None:
    empty = torch.zeros(0, 2, 8, 6)
    for size in (None, 3, "auto"):
        assert rmp.reconstruct(empty, operators.Denoising(), PRIOR, noise_std=0.1, batch_size=size).mean.shape[0] == 0


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
]


def greedy(error: BaseException, most: int) -> rmp.priors.Prior:
    """A denoiser that has no memory for more than ``most`` numbers at a time."""

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        if x.numel() > most:
            raise error
        return smooth(x, s)

    return rmp.priors.from_denoiser(denoise, 0.4)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_the_batch_goes_on_in_halves(error: BaseException) -> None:
    op = OPERATORS["mask per item"]()
    y = op.A(random(SHAPE))
    whole = rmp.Plan(op, PRIOR, SHAPE, NOISE, **FEW).execute(y).mean
    parts = rmp.reconstruct(y, op, greedy(error, 2 * 2 * 8 * 6), noise_std=NOISE, **FEW)
    assert torch.equal(parts.mean, whole)


def test_out_of_memory_one_image_goes_on_in_smaller_and_smaller_tiles() -> None:
    seen = []

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        if x.numel() > 256 * 256:
            raise MemoryError
        return x / (1 + s[:, None, None, None])

    op, y = operators.Denoising(), random((1, 1, 700, 600))
    found = rmp.reconstruct(y, op, rmp.priors.from_denoiser(denoise, 0.4), noise_std=0.1, **FEW).mean
    assert seen[1:4] == [(700, 600), (320, 320), (256, 256)]  # the first one measured memory
    pointwise = rmp.priors.from_denoiser(lambda x, s: x / (1 + s[:, None, None, None]), 0.4)
    expected = rmp.Plan(op, pointwise, (1, 1, 700, 600), 0.1, **FEW).execute(y).mean
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)  # the blend rounds


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    sizes = []

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        if x.shape[0] > 2:
            raise MemoryError
        return smooth(x, s)

    prior, y = rmp.priors.from_denoiser(denoise, 0.4), random((11, 2, 8, 6))
    looks = {"schedule": rmp.schedules.log(1, 0.1, 5.0), "inner_steps": 1}
    found = rmp.reconstruct(y, operators.Denoising(), prior, noise_std=0.1, batch_size=10, **looks).mean
    assert sizes == [10, 5, 2, 2, 2, 2, 2, 1]
    assert torch.equal(found, rmp.Plan(operators.Denoising(), PRIOR, y.shape, 0.1, **looks).execute(y).mean)


@pytest.mark.parametrize("tile", [None, "auto"])
def test_what_does_not_fit_at_all_is_an_error(tile: str | None) -> None:
    with pytest.raises(MemoryError):
        rmp.reconstruct(
            random((2, 1, 8, 6)), operators.Denoising(), greedy(MemoryError(), 4), noise_std=0.1, tile=tile, **FEW
        )


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        rmp.reconstruct(
            random(SHAPE), operators.Denoising(), greedy(RuntimeError("broken"), 4), noise_std=0.1, batch_size=2, **FEW
        )


def keeps(images: int) -> rmp.priors.Prior:
    def denoise(x: Tensor, s: Tensor) -> Tensor:
        kept = [x * i for i in range(images)]
        return kept[0] + x

    return rmp.priors.from_denoiser(denoise, 0.4)


def test_memory_is_what_the_network_holds_at_one_time() -> None:
    device = torch.device("cpu")
    few, many = (memory.bytes_per_pixel(keeps(n), 3, device, gradients=False) for n in (2, 12))
    assert many - few == 10 * 3 * 4  # ten float32 images of three channels more

    def forgets(x: Tensor, s: Tensor) -> Tensor:
        for _ in range(12):
            x = x * 2
        return x

    assert memory.bytes_per_pixel(rmp.priors.from_denoiser(forgets, 1.0), 3, device, gradients=False) < few
    saved = memory.bytes_per_pixel(rmp.priors.from_denoiser(lambda x, s: x.exp().exp(), 1.0), 3, device, True)
    assert saved >= memory.bytes_per_pixel(rmp.priors.from_denoiser(lambda x, s: x.exp().exp(), 1.0), 3, device, False)


@pytest.mark.parametrize(("images", "side"), [(4000, None), (999, 448), (10, 256)])
def test_tiles_are_chosen_where_memory_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, images: int, side: int | None
) -> None:
    prior, shape, device = keeps(20), (1, 1, 1024, 1000), torch.device("cpu")
    each = memory.bytes_per_pixel(prior, 1, device, gradients=False)
    room = {4000: 2.1 * each * 1024 * 1000, 999: 2 * each * 500**2, 10: 2 * each * 100**2}[images]
    monkeypatch.setattr(memory, "available", lambda device: int(room))
    assert reconstruction.automatic_tile(prior, shape, device) == side


def test_an_image_that_does_not_fit_is_restored_in_tiles_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        sizes.add((x.shape[0], *x.shape[-2:]))
        return x / (1 + s[:, None, None, None])

    prior = rmp.priors.from_denoiser(denoise, 0.4)
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    rmp.reconstruct(random((2, 1, 600, 520)), operators.Denoising(), prior, noise_std=0.1, **FEW)
    sizes.discard((1, 128, 128))  # the measurement
    assert max(max(height, width) for _, height, width in sizes) <= 256
    assert {batch for batch, *_ in sizes} == {1}  # the tile of one image has all the memory


def test_this_machine_has_memory() -> None:
    # what is free is less than what there is, and enough to have come here
    import os

    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**24 < memory.available(torch.device("cpu")) <= total


@pytest.mark.parametrize(
    ("cost", "room", "size"),
    [
        (lambda n: 1.0, 1e9, 16),  # a batch costs what an item does: all, in doublings below 20
        (lambda n: float(n), 1e9, 1),  # nothing gained
        (lambda n: 1.0 + n, 1e9, 16),
        (lambda n: 1.0 if n <= 4 else n / 4, 1e9, 4),
        (lambda n: 1.0, 6.0, 4),  # memory for six
    ],
)
def test_batches_grow_while_an_item_gets_faster(
    monkeypatch: pytest.MonkeyPatch, cost: Callable[[int], float], room: float, size: int
) -> None:
    now, calls = [0.0], []

    def denoise(x: Tensor, s: Tensor) -> Tensor:
        now[0] += cost(x.shape[0])
        calls.append(x.shape[0])
        return x * 1

    prior = rmp.priors.from_denoiser(denoise, 0.4)
    monkeypatch.setattr(memory.time, "perf_counter", lambda: now[0])
    arguments = (prior, (1, 4, 4), 20, room, 1.0, torch.device("cpu"), False)
    assert memory.fastest_batch(*arguments) == size
    counted = len(calls)
    assert memory.fastest_batch(*arguments) == size
    assert len(calls) == counted  # measured once


def test_measuring_batches_ends_where_memory_does() -> None:
    prior = greedy(MemoryError(), 4 * 16)
    size = memory.fastest_batch(prior, (1, 4, 4), 20, 1e9, 1.0, torch.device("cpu"), gradients=False)
    assert size in (1, 2, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"batch_size": 1.5}, TypeError, "`batch_size` must be an integer, got float"),
        ({"batch_size": "atuo"}, ValueError, "`batch_size` must be one of 'auto', got 'atuo'; did you mean 'auto'"),
        ({"tile": "all"}, ValueError, "`tile` must be one of 'auto', got 'all'"),
        ({"tile": 65}, ValueError, "`tile` must be at least 128, got 65"),
        ({"tile": 300}, ValueError, "`tile` must be a multiple of 64 pixels, got 300"),
        ({"tile": True}, TypeError, "`tile` must be an integer, got bool"),
        ({"tile": None, "overlap": 64}, ValueError, "`overlap` is that of tiles: give `tile` too"),
        ({"overlap": 60}, ValueError, "`overlap` must be a multiple of 64 pixels, got 60"),
        ({"noise_std": None}, ValueError, "`noise_std` must be given"),
        ({"noise_std": torch.ones(4)}, ValueError, r"`noise_std` must be a number or have shape \(B,\) = \(5,\)"),
        ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, r"`seeds` must have shape \(B,\) = \(5,\)"),
        ({"seeds": torch.zeros(2, dtype=torch.int64), "batch_size": "auto"}, ValueError, "`seeds` must have shape"),
        ({"shape": (4, *SHAPE[1:])}, ValueError, r"`y` must have shape \(4, 2, 8, 6\), got \(5, 2, 8, 6\)"),
        ({"sede": 1}, TypeError, "sede"),
        ({"device": "cpu"}, ValueError, "`device` is that of `y`"),
    ],
)
def test_refusals(options: dict[str, object], error: type[Exception], message: str) -> None:
    called = []
    prior = rmp.priors.from_denoiser(lambda x, s: called.append(1) or x, 1.0)
    with pytest.raises(error, match=message):
        rmp.reconstruct(random(SHAPE), operators.Denoising(), prior, **{"noise_std": 0.1, **options})
    assert not called


def test_a_network_for_one_size_is_shown_no_other() -> None:
    seen = []

    def fixed(x: Tensor, s: Tensor) -> Tensor:
        seen.append(tuple(x.shape[-2:]))
        if x.shape[-2:] != (512, 512):
            raise RuntimeError("this network takes 512x512 alone")
        return x / (1 + s.reshape(-1, 1, 1, 1) ** 2)

    y, schedule = torch.zeros(1, 1, 512, 512), rmp.schedules.log(1, 0.1, 1.0)
    prior = rmp.priors.from_denoiser(fixed, 1.0)
    assert rmp.reconstruct(y, operators.Denoising(), prior, noise_std=0.1, schedule=schedule).ok.all()
    assert (512, 512) in seen


def test_what_is_no_operator_or_prior_is_named() -> None:
    prior = rmp.priors.from_denoiser(lambda x, s: x, 1.0)
    with pytest.raises(TypeError, match="`op` must be an rmp_fast operator, got ABCMeta"):
        rmp.reconstruct(random(SHAPE), operators.Denoising, prior, noise_std=0.1)
    with pytest.raises(TypeError, match="`prior` must be an rmp_fast prior, got Denoising"):
        rmp.reconstruct(random(SHAPE), operators.Denoising(), operators.Denoising(), noise_std=0.1)


def test_a_part_that_is_not_finite_is_refused_before_the_others_run() -> None:
    called = []
    prior = rmp.priors.from_denoiser(lambda x, s: called.append(1) or x, 1.0)
    y = random(SHAPE)
    y[3, 0, 2, 1] = torch.nan
    with pytest.raises(ValueError, match="`y` must be finite, got NaN or infinity in item 3"):
        rmp.reconstruct(y, operators.Denoising(), prior, noise_std=0.1, batch_size=1)
    assert not called


def test_closed_form_priors_and_signals_have_no_tiles() -> None:
    prior = rmp.priors.Gaussian(torch.zeros(4), torch.ones(4))
    y = random((3, 4))
    op = operators.Denoising()
    expected = rmp.reconstruct(y, op, prior, noise_std=0.1, tile=None, guidance="exact").mean
    for size in (2, "auto"):
        found = rmp.reconstruct(y, op, prior, noise_std=0.1, batch_size=size, guidance="exact").mean
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert reconstruction.automatic_tile(prior, (3, 4), torch.device("cpu")) is None
    already = Tiled(PRIOR, 256)
    assert reconstruction.automatic_tile(already, (1, 1, 4096, 4096), torch.device("cpu")) is None
