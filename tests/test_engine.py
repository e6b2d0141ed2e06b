"""How networks are run: compiled, in bfloat16, in another layout; always the same estimate, the prior untouched."""

import copy
import pathlib
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import rmp_fast as rmp
from rmp_fast import engine, graph
from rmp_fast.priors import NetworkPrior
from rmp_fast.priors.unet import DenoiserUNet, UNetConfig
from rmp_fast.tiling import Tiled

SHAPE = (2, 1, 10, 9)
MASK = torch.rand((10, 9), generator=torch.Generator().manual_seed(1)) < 0.5
OP = rmp.operators.Inpainting(MASK)


def prior(channels: int = 1) -> NetworkPrior:
    """A small network with weights that matter: those that training starts from are zero."""
    network = DenoiserUNet(UNetConfig(channels, (8, 12), blocks=1, embedding=16))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return NetworkPrior(network, channels, 0.3, "small")


def measured(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return OP.A(torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1)


def plan(of: rmp.priors.Prior, shape: tuple[int, ...] = SHAPE, **options: object) -> rmp.Plan:
    settings = {"schedule": rmp.schedules.log(3, 0.05, 5.0), **options}
    return rmp.Plan(OP, of, shape, 0.05, **settings)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # The same float32 products, added in another order in each of six looks through ten layers: 60 roundings of 6e-8,
    # which a chain of contraction about 1 adds up.
    assert torch.isfinite(expected).all()
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("options", [{}, {"noise": "antithetic", "spread_looks": 1}, {"guidance": "dps"}], ids=str)
def test_a_compiled_network_gives_the_eager_estimate_and_its_weights_stay_as_they_were(options: dict) -> None:
    p = prior()
    before = copy.deepcopy(p.network.state_dict())
    expected = plan(p, **options).execute(measured())
    compiled = plan(p, compile=True, **options)
    found = compiled.execute(measured())
    assert found.stats["compiled"] == 1
    assert found.stats["compile_seconds"] > 0
    assert_same(found.mean, expected.mean)
    if expected.variance is not None:
        assert_same(found.variance, expected.variance)
    for name, weight in p.network.state_dict().items():
        assert torch.equal(weight, before[name])
    assert all(w.grad is None and not w.requires_grad for w in p.network.parameters())


@pytest.mark.parametrize("guidance", ["gaussian", "dps"])
def test_tiles_are_compiled(guidance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the compiler itself is seen above; here, what is compiled and when it is called
    called = []

    def compiler(call: Callable[..., torch.Tensor], **_: object) -> Callable[..., torch.Tensor]:
        def compiled(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            called.append(tuple(x.shape))
            return call(x, s)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    op, shape = rmp.operators.Denoising(), (1, 1, 200, 120)
    options = {"schedule": rmp.schedules.log(1, 0.05, 5.0), "guidance": guidance}
    y = torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    tiled = rmp.Plan(op, Tiled(prior(), 128, 64), shape, 0.05, compile=True, **options)
    assert called == [(1, 1, 72, 120), (1, 1, 128, 120)]
    found = tiled.execute(y)
    assert found.stats["compiled"] == 1
    assert set(called[2:]) == {(1, 1, 72, 120), (1, 1, 128, 120)}
    eager = rmp.Plan(op, Tiled(prior(), 128, 64), shape, 0.05, **options).execute(y)
    assert_same(found.mean, eager.mean)


@pytest.mark.parametrize(
    ("options", "size", "tile"),
    [
        ({}, (10, 9), None),
        ({"noise": "antithetic", "spread_looks": 1}, (10, 9), None),
        ({"guidance": "dps"}, (10, 9), None),
        ({}, (200, 9), 128),  # whose tiles are contiguous where they lie
        ({}, (130, 140), 128),
        ({"guidance": "dps"}, (130, 140), 128),
    ],
    ids=str,
)
def test_an_execution_compiles_nothing(
    options: dict, size: tuple[int, int], tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, compiler = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiler(call, backend=counter, dynamic=False))
    shape, settings = (1, 1, *size), {"schedule": rmp.schedules.log(1, 0.05, 5.0), **options}
    p = Tiled(prior(), tile, 64) if tile else prior()
    made = rmp.Plan(rmp.operators.Denoising(), p, shape, 0.05, compile=True, **settings)
    compilations = counter.frame_count
    assert compilations > 0
    found = made.execute(torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    assert found.stats["compiled"] == 1
    assert counter.frame_count == compilations


def test_every_plan_has_compilations_of_its_own() -> None:
    # torch gives up, silently, when one code object has been compiled for more than eight shapes
    counter = CompileCounter()
    for size in range(1, 13):
        call = torch.compile(engine._fresh(lambda x, s: x * s), backend=counter, dynamic=False)
        x = torch.ones(size)
        assert torch.equal(call(x, 2 * x), 2 * x)
    assert counter.frame_count == 12


def test_without_a_compiler_the_network_runs_eagerly_and_the_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    p = prior()
    # Not monkeypatch, which takes some of these settings away when it puts them back.
    without = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with without, pytest.warns(RuntimeWarning, match=r"'small' is not compiled and runs eagerly: .*[Cc]ompiler"):
        fallen_back = plan(p, compile=True)
    estimate = fallen_back.execute(measured())
    assert estimate.stats["compiled"] == 0
    assert torch.equal(estimate.mean, plan(p).execute(measured()).mean)


def test_a_network_that_is_compiled_wrongly_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda x, s: call(x, s) * 1.001)
    p = prior()
    with pytest.warns(RuntimeWarning, match=r"compiled, it differs from itself by 1\.0e-03 of its size"):
        fallen_back = plan(p, compile=True)
    assert torch.equal(fallen_back.execute(measured()).mean, plan(p).execute(measured()).mean)


def test_an_empty_batch_compiles_nothing() -> None:
    estimate = plan(prior(), (0, 1, 10, 9), compile=True).execute(torch.zeros(0, 1, 10, 9))
    assert estimate.mean.shape == (0, 1, 10, 9)
    assert estimate.stats["compiled"] == 0


@pytest.fixture
def native_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without the instructions compute the same, slowly."""
    monkeypatch.setattr(engine, "_without_bfloat16", lambda device: None)


@pytest.mark.usefixtures("native_bfloat16")
def test_bfloat16_is_kept_where_the_estimate_is_close() -> None:
    p = prior()
    lowered = plan(p, precision="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (lowered.execute(measured()) for _ in range(2))
    expected = plan(p).execute(measured()).mean
    assert first.mean.dtype == torch.float32
    assert first.stats["bfloat16"] == second.stats["bfloat16"] == 1
    assert first.stats["guard_seconds"] > 0
    assert second.stats["guard_seconds"] == 0
    assert torch.equal(first.mean, second.mean)
    mse = (first.mean - expected).square().mean(dim=(1, 2, 3))
    assert (mse > 0).all()  # it did run in bfloat16
    assert (-10 * (mse / 4).log10() > engine.LEAST_PSNR).all()


@pytest.mark.usefixtures("native_bfloat16")
def test_bfloat16_is_given_up_where_one_item_is_far() -> None:
    def sensitive(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        error = torch.zeros(x.shape[0])
        error[-1] = 0.5 if torch.is_autocast_enabled("cpu") else 0.0
        return 0.5 * x + error[:, None, None, None]

    p = rmp.priors.from_denoiser(sensitive, 0.3, "sensitive")
    lowered = plan(p, precision="bfloat16")
    with pytest.warns(RuntimeWarning, match=r"'bfloat16' of 'sensitive': an estimate has \d+\.\d dB .* less than 45"):
        first = lowered.execute(measured())
    second = lowered.execute(measured())
    expected = plan(p).execute(measured()).mean
    for estimate in (first, second):
        assert torch.equal(estimate.mean, expected)
        assert estimate.stats["bfloat16"] == 0


@pytest.mark.usefixtures("native_bfloat16")
def test_bfloat16_that_is_not_finite_is_given_up() -> None:
    def overflows(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return x * (float("nan") if torch.is_autocast_enabled("cpu") else 0.5)

    p = rmp.priors.from_denoiser(overflows, 0.3, "overflows")
    with pytest.warns(RuntimeWarning, match="goes back to float32"):
        estimate = plan(p, precision="bfloat16").execute(measured())
    assert estimate.ok.all()
    assert torch.equal(estimate.mean, plan(p).execute(measured()).mean)


def test_without_bfloat16_instructions_float32_is_used_and_the_warning_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    p = prior()
    with pytest.warns(RuntimeWarning, match="not used, the network runs in float32: this processor has no bfloat16"):
        estimate = plan(p, precision="bfloat16").execute(measured())
    assert estimate.stats["bfloat16"] == 0
    assert torch.equal(estimate.mean, plan(p).execute(measured()).mean)


@pytest.mark.parametrize("channels_last", [None, True, False])
def test_the_layout_changes_no_estimate_and_not_the_prior(channels_last: bool | None) -> None:
    p = prior()
    strides = {name: w.stride() for name, w in p.network.named_parameters()}
    made = plan(p, channels_last=channels_last)
    assert_same(made.execute(measured()).mean, plan(p, backend="torch").execute(measured()).mean)
    assert {name: w.stride() for name, w in p.network.named_parameters()} == strides
    layout = torch.contiguous_format if channels_last is False else torch.channels_last
    network = made.network.prior.network
    assert all(w.is_contiguous(memory_format=layout) for w in network.parameters() if w.ndim == 4)
    # only what is laid out anew is copied
    pairs = zip(p.network.parameters(), network.parameters(), strict=True)
    assert all((a is b) == a.is_contiguous(memory_format=layout) for a, b in pairs if a.ndim == 4)
    assert all(a is b for a, b in zip(p.network.parameters(), network.parameters(), strict=True) if a.ndim != 4)


@pytest.mark.parametrize("inference", [False, True])
def test_plans_share_the_weights_that_were_laid_out_anew_until_they_change(inference: bool) -> None:
    p = prior()
    with torch.inference_mode(inference):
        first, second = (plan(p, guidance="dps").network.prior.network for _ in range(2))
    assert first is not p.network
    assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with torch.no_grad():
        for weight in p.network.parameters():
            weight.mul_(0.5)
    again = plan(p, guidance="dps")
    for weight, copied in zip(p.network.parameters(), again.network.prior.network.parameters(), strict=True):
        assert torch.equal(weight, copied)
    assert_same(again.execute(measured()).mean, plan(p, guidance="dps", backend="torch").execute(measured()).mean)


def test_networks_that_cannot_be_copied_keep_their_layout() -> None:
    p = prior()
    p.network.lock = threading.Lock()
    kept = plan(p)
    assert kept.network.prior is p
    assert kept.execute(measured()).ok.all()
    with pytest.raises(ValueError, match="`channels_last` True needs a copy of the network of 'small', which cannot"):
        plan(p, channels_last=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_network_derives_from_others_are_no_obstacle() -> None:
    p = prior()
    convolution = next(m for m in p.network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3))
    expected = plan(p).execute(measured()).mean
    torch.nn.utils.weight_norm(convolution)
    made = plan(p, channels_last=True)
    assert made.network.prior is not p
    assert_same(made.execute(measured()).mean, expected)


@pytest.mark.usefixtures("native_bfloat16")
def test_bfloat16_is_judged_before_a_graph_may_hold_it() -> None:
    lowered = plan(prior(), precision="bfloat16")
    lowered.device = torch.device("cuda")
    assert "its first execution in bfloat16, which float32 judges" in str(graph.refusal(lowered))
    lowered.device = torch.device("cpu")
    lowered.execute(measured())
    lowered.device = torch.device("cuda")
    assert graph.refusal(lowered) is None


@pytest.mark.parametrize("tile", [None, 128])
def test_the_network_of_another_plan_runs_as_it_does_there(tile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: made.append(call) or call)
    p = prior() if tile is None else Tiled(prior(), tile)
    first = plan(p, compile=True)
    second = plan(first.network, noise="antithetic")
    assert len(made) == 1
    assert second.network is first.network
    assert second.execute(measured()).stats["compiled"] == 1
    for options, named in (
        ({"compile": True}, "`compile`"),
        ({"precision": "bfloat16"}, "`precision` 'bfloat16'"),
        ({"channels_last": False}, "`channels_last`"),
    ):
        with pytest.raises(ValueError, match="does not go with the `network`") as refused:
            plan(first.network, **options)
        assert str(refused.value) == (
            f"{named} does not go with the `network` of another plan, which runs as that plan has it; give that plan's "
            "`prior`, or leave it out"
        )
        plan(first.prior, **options)


MIXTURE = rmp.priors.Gaussian(torch.zeros(4), torch.ones(4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: plan(prior(), precision="float16"), ValueError, "`precision` must be one of 'float32', 'bfloat16'"),
        (lambda: plan(prior(), compile="yes"), TypeError, "`compile` must be True or False, got str"),
        (lambda: plan(prior(), compile=None), TypeError, "`compile` must be True or False, got NoneType"),
        (lambda: plan(prior(), channels_last=1), TypeError, "`channels_last` must be True or False, got int"),
        (lambda: plan(prior(), compile=True, backend="reference"), ValueError, "`compile` does not go with `backend`"),
        (
            lambda: rmp.Plan(rmp.operators.Denoising(), MIXTURE, (2, 4), 0.1, compile=True),
            ValueError,
            "`compile` is for priors made of a network; 'gaussian' is computed in float64",
        ),
        (
            lambda: rmp.Plan(rmp.operators.Denoising(), MIXTURE, (2, 4), 0.1, precision="bfloat16"),
            ValueError,
            "`precision` 'bfloat16' is for priors made of a network",
        ),
    ],
)
def test_plans_refuse(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
