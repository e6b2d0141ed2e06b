"""Networks saved by diffusers, against the library's own sampler steps."""

from __future__ import annotations

import pathlib
from typing import Any

import field
import pytest
import torch
from torch import Tensor

import rmp_fast as rmp
from rmp_fast.priors.discrete import DiscreteDenoiser

diffusers = field.diffusers()


def unet(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4,
    }  # fmt: skip
    return diffusers.UNet2DModel(**settings | changes)


class Same(torch.nn.Module):
    """N(z, t) = z."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SCHEDULERS = {
    "ddpm, noise, linear": ("DDPMScheduler", {"prediction_type": "epsilon", "beta_schedule": "linear"}),
    "ddpm, image, cosine": ("DDPMScheduler", {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"}),
    "ddpm, v, sigmoid": ("DDPMScheduler", {"prediction_type": "v_prediction", "beta_schedule": "sigmoid"}),
    "ddim, v, scaled": ("DDIMScheduler", {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}),
    "ddim, noise, 100 steps": ("DDIMScheduler", {"prediction_type": "epsilon", "num_train_timesteps": 100}),
    "ddim, v, to noise alone": ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
}


@pytest.mark.parametrize("case", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_denoiser_is_what_a_sampler_step_predicts(case: tuple[str, dict[str, Any]], tmp_path: pathlib.Path) -> None:
    kind, settings = case
    scheduler = getattr(diffusers, kind)(clip_sample=False, **settings)
    network = unet().eval()
    network.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    prior = rmp.priors.from_diffusers(tmp_path)
    steps = scheduler.config.num_train_timesteps
    if kind == "DDIMScheduler":
        scheduler.set_timesteps(steps)
    for t in (0, 1, steps // 3, steps // 2, steps - 2):
        z = images(2, 1, 8, 8, seed=t)
        with torch.no_grad():
            expected = scheduler.step(network(z, t).sample, t, z).pred_original_sample
        abar = scheduler.alphas_cumprod[t].double()
        s = float(((1 - abar) / abar).sqrt())
        actual = prior.denoise(z / float(abar.sqrt()), torch.full((2,), s))
        # log s is rounded to 5e-7 and a timestep is at least 5e-3 of it, so t is off by up to 1e-4; the noise that the
        # network finds changes by less than that, and counts s times. The rest is rounding of x, 1e-7 of up to 4 s.
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 + 1e-4 * s)


def test_timesteps_between_are_interpolated_in_log_s_and_held_at_the_ends() -> None:
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    denoiser = DiscreteDenoiser(Same(), abar)
    log_s = 0.5 * ((1 - abar) / abar).log()
    for t in (0, 17, 998):
        for part in (0.25, 0.5):
            s = ((1 - part) * log_s[t] + part * log_s[t + 1]).exp()
            assert float(denoiser.timestep(s[None].float())) == pytest.approx(t + part, abs=1e-3)
    low, high = denoiser.level_range
    assert (low, high) == pytest.approx((0.0100005, 157.4), rel=1e-3)
    assert denoiser.timestep(torch.tensor([low / 10, high * 10])).tolist() == [0, 999]
    # Beyond the ends the input and D are those of s itself: with n = N(z, t) = z, D = x - s x / sqrt(1 + s^2).
    x, s = images(1, 1, 4, 4), torch.tensor([1000.0])
    torch.testing.assert_close(denoiser(x, s), x - 1000 * x / (1 + 1000**2) ** 0.5)


def test_networks_that_look_timesteps_up_get_whole_ones() -> None:
    network = unet(time_embedding_type="learned", num_train_timesteps=1000)
    prior = rmp.priors.from_diffusers(network, diffusers.DDPMScheduler())
    assert prior.denoise(images(2, 1, 8, 8), torch.tensor([0.3, 2.0])).isfinite().all()
    assert torch.equal(prior.network.timestep(torch.tensor([0.3])) % 1, torch.zeros(1))


def test_a_saved_pipeline_is_recognised_and_runs_a_chain(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "ddpm-tiny"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(prediction_type="sample")).save_pretrained(folder)
    prior = rmp.priors.open(folder, data_variance=0.3)
    assert (prior.name, prior.data_variance, prior.channels) == ("ddpm-tiny", 0.3, (1,))
    y = images(3, 1, 9, 7)
    estimate = rmp.reconstruct(y, rmp.operators.Denoising(), prior, noise_std=0.1)
    assert estimate.mean.shape == y.shape
    assert estimate.ok.all()


def test_sizes_are_padded_items_kept_apart_and_grey_images_shown_in_colour() -> None:
    prior = rmp.priors.from_diffusers(unet(in_channels=3, out_channels=3), diffusers.DDPMScheduler())
    x, s = images(3, 3, 7, 5), torch.tensor([0.1, 1.0, 20.0])
    out = prior.denoise(x.transpose(2, 3).contiguous().transpose(2, 3), s)
    assert out.shape == x.shape
    assert out.is_contiguous()
    # float32 convolutions order their sums by the shape; D counts what that changes s times.
    for k in range(3):
        torch.testing.assert_close(
            prior.denoise(x[k : k + 1], s[k : k + 1])[0], out[k], rtol=1e-5, atol=1e-5 * (1 + s[k])
        )
    assert prior.denoise(x[:0], s[:0]).shape == (0, 3, 7, 5)
    assert prior.denoise(x[:, :1], s).shape == (3, 1, 7, 5)


def test_a_learned_variance_is_dropped_and_a_class_is_told() -> None:
    network = unet(out_channels=2, num_class_embeds=5).eval()
    scheduler = diffusers.DDPMScheduler(prediction_type="sample")
    z, t = images(2, 1, 8, 8), 300
    abar = scheduler.alphas_cumprod[t]
    x, s = z / abar.sqrt(), ((1 - abar) / abar).sqrt().expand(2)
    denoised = {}
    for label in (1, 3):
        with torch.no_grad():
            expected = network(z, t, torch.full((2,), label)).sample[:, :1]
        denoised[label] = rmp.priors.from_diffusers(network, scheduler, label=label).denoise(x, s)
        torch.testing.assert_close(denoised[label], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(denoised[1], denoised[3], atol=1e-3)


def test_gradients_reach_the_image_and_not_the_weights() -> None:
    prior = rmp.priors.from_diffusers(unet(), diffusers.DDPMScheduler())
    x = images(1, 1, 8, 8).requires_grad_()
    prior.denoise(x, torch.tensor([0.5])).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in prior.network.parameters())


def test_weights_that_do_not_fit_are_named(tmp_path: pathlib.Path) -> None:
    from safetensors.torch import load_file, save_file

    unet().save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.extra"] = state.pop("conv_in.bias")
    save_file(state, file)
    with pytest.raises(ValueError, match=r"got 1 missing \(conv_in.bias\); 1 unexpected \(conv_in.extra\)"):
        rmp.priors.from_diffusers(tmp_path)
    state["conv_in.bias"] = torch.zeros(5)
    del state["conv_in.extra"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"got 1 of another shape \(conv_in.bias .*5.*8"):
        rmp.priors.from_diffusers(tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="has no weights that can be read"):
        rmp.priors.from_diffusers(tmp_path)


REFUSED: list[tuple[type[Exception], str, Any, Any]] = [
    (ValueError, "must have discrete noise levels", unet, lambda: diffusers.FlowMatchEulerDiscreteScheduler()),
    (ValueError, "got EDMEulerScheduler; wrap networks of flow", unet, lambda: diffusers.EDMEulerScheduler()),
    (ValueError, "got ScoreSdeVeScheduler", unet, lambda: diffusers.ScoreSdeVeScheduler()),
    (ValueError, "`scheduler` must be given with a module", unet, lambda: None),
    (FileNotFoundError, "has no scheduler_config.json; give the scheduler", unet, lambda: "nowhere"),
    (
        ValueError,
        "`prediction` must be one of 'epsilon', 'sample', 'v_prediction', got 'flow_prediction'",
        unet,
        lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
    ),
    (
        ValueError,
        "`label` must be the index of one of the network's 5 classes, got None",
        lambda: unet(num_class_embeds=5),
        diffusers.DDPMScheduler,
    ),
    (
        ValueError,
        "must return 1 or 2 channels (a learned variance), got 3",
        lambda: unet(out_channels=3),
        diffusers.DDPMScheduler,
    ),
    (ValueError, "time_embedding_type 'fourier'", lambda: unet(time_embedding_type="fourier"), diffusers.DDPMScheduler),
    (ValueError, "must be a UNet2DModel with its `config`, got Same", Same, diffusers.DDPMScheduler),
    (TypeError, "must be a folder or a UNet2DModel, got int", lambda: 3, diffusers.DDPMScheduler),
    (FileNotFoundError, "`source` nowhere is no folder", lambda: "nowhere", diffusers.DDPMScheduler),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "source", "scheduler"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals(error: type[Exception], message: str, source: Any, scheduler: Any) -> None:
    with pytest.raises(error) as caught:
        rmp.priors.from_diffusers(source(), scheduler())
    assert message in str(caught.value)


def test_folders_of_other_networks_are_refused(tmp_path: pathlib.Path) -> None:
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must hold the config.json of a UNet2DModel, got AutoencoderKL"):
        rmp.priors.open(tmp_path)
