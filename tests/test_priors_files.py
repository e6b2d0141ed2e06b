"""Weights files: guided-diffusion's against deepinv's network of the same names, training files, and refusals."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import field
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rmp_fast as rmp
from rmp_fast.priors import files
from rmp_fast.priors.guided import GuidedConfig, GuidedUNet, infer_config
from rmp_fast.priors.network import _FOLDER

SMALL = GuidedConfig(
    channels=1, out_channels=2, width=32, mult=(1, 2, 2), blocks=1, attention=(4,), head_channels=32
)  # fmt: skip


def randomised(network: nn.Module) -> nn.Module:
    """Fresh networks end in zeros; these do not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.5 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return network.eval()


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided_file(folder: pathlib.Path, config: GuidedConfig = SMALL) -> pathlib.Path:
    path = folder / "tiny.pt"
    torch.save(randomised(GuidedUNet(config)).state_dict(), path)
    return path


def test_the_ffhq_architecture_loads_and_denoises_as_deepinv_has_it(tmp_path: pathlib.Path) -> None:
    theirs = randomised(field.deepinv().models.DiffUNet(pretrained=None))
    torch.save(theirs.state_dict(), tmp_path / "ffhq.pt")
    prior = rmp.priors.open(tmp_path / "ffhq.pt")
    config = prior.network.network.config
    assert (config.width, config.mult, config.blocks, config.attention) == (128, (1, 1, 2, 2, 4, 4), 1, (16,))
    assert (config.updown, config.scale_shift, config.channels, config.out_channels) == (True, True, 3, 6)
    z, t = images(1, 3, 32, 32), torch.tensor([700.5])
    with torch.no_grad():
        expected = theirs.forward_diffusion(z, t)
        # Attention is summed in another order; float32 through some hundred layers.
        torch.testing.assert_close(prior.network.network(z, t), expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
        # deepinv takes the nearest timestep and clamps, so levels of its table, and images from inside the range.
        level = theirs.sqrt_1m_alphas_cumprod[[250]] / theirs.sqrt_alphas_cumprod[[250]]
        wrapped = rmp.priors.from_deepinv(theirs)
        x = 0.3 * images(1, 3, 32, 32) + level[:, None, None, None] * images(1, 3, 32, 32, seed=2)
        ours, other = prior.denoise(x, level).clamp(-1, 1), wrapped.denoise(x, level)
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3)
    assert (ours.abs() < 1).float().mean() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"updown": False, "scale_shift": False},
        {"mult": (0.5, 1, 2, 2), "width": 64, "blocks": 2, "attention": (2, 8), "head_channels": 16, "out_channels": 1},
        {"mult": (1,), "attention": (1,), "channels": 3, "out_channels": 6, "blocks": 3},
        {"classes": 4, "new_order": True, "head_channels": None, "heads": 2},
    ],
    ids=lambda changes: ",".join(changes) or "small",
)
def test_the_architecture_is_read_off_the_weights(changes: dict[str, Any], tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(SMALL, **changes)
    unseen = {name: getattr(config, name) for name in ("head_channels", "heads", "new_order")}
    state = randomised(GuidedUNet(config)).state_dict()
    assert infer_config(state, **unseen) == config
    path = guided_file(tmp_path, config)
    label = 2 if config.classes else None
    prior = rmp.priors.from_guided_diffusion(path, label=label, betas="cosine", **unseen)
    x, s = images(2, config.channels, 9, 6), torch.tensor([0.1, 3.0])
    out = prior.denoise(x, s)
    assert out.shape == x.shape
    torch.testing.assert_close(prior.denoise(x[1:], s[1:]), out[1:], rtol=1e-4, atol=1e-4)


def test_blocks_agree_with_deepinv() -> None:
    theirs = field.deepinv().models.diffunet
    from rmp_fast.priors import guided

    x, embedding = images(2, 32, 8, 8), images(2, 20, seed=2)
    for resize, scale_shift in ((None, False), (2.0, True), (0.5, False)):
        mine = randomised(guided._ResBlock(32, 64, 20, scale_shift, resize))
        other = theirs.ResBlock(
            32, 20, 0.0, out_channels=64, use_scale_shift_norm=scale_shift, up=resize == 2.0, down=resize == 0.5
        )
        other.load_state_dict(mine.state_dict())
        torch.testing.assert_close(mine(x, embedding), other.eval()(x, embedding))
    for new_order in (False, True):
        config = GuidedConfig(1, 1, 32, (1,), 1, (1,), head_channels=8, new_order=new_order)
        attention = randomised(guided._Attention(32, config))
        other = theirs.AttentionBlock(32, num_head_channels=8, use_new_attention_order=new_order)
        other.load_state_dict(attention.state_dict())
        torch.testing.assert_close(attention(x), other.eval()(x), rtol=1e-4, atol=1e-5)
    for mine, other in (
        (guided._Upsample(32), theirs.Upsample(32, True)),
        (guided._Downsample(32), theirs.Downsample(32, True)),
    ):
        other.load_state_dict(randomised(mine).state_dict())
        torch.testing.assert_close(mine(x), other(x))


def test_cosine_betas_end_at_their_cap_and_linear_ones_scale_with_the_steps(tmp_path: pathlib.Path) -> None:
    path = guided_file(tmp_path)
    low, high = rmp.priors.from_guided_diffusion(path, betas="linear", head_channels=32).network.level_range
    assert (low, high) == pytest.approx((0.0100005, 157.4), rel=1e-3)
    fewer = rmp.priors.from_guided_diffusion(path, timesteps=250, head_channels=32).network.level_range
    assert fewer[0] == pytest.approx(0.02, rel=1e-2)
    given = rmp.priors.from_guided_diffusion(path, betas=torch.tensor([0.5, 0.5]), head_channels=32)
    assert given.network.level_range == pytest.approx((1, 3**0.5))


def test_files_of_parallel_training_and_half_precision(tmp_path: pathlib.Path) -> None:
    state = torch.load(guided_file(tmp_path), weights_only=True)
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in state.items()}}, tmp_path / "wrapped.pth")
    plain = rmp.priors.open(tmp_path / "tiny.pt", head_channels=32)
    wrapped = rmp.priors.open(tmp_path / "wrapped.pth", head_channels=32)
    x, s = images(1, 1, 8, 8), torch.tensor([0.5])
    assert all(p.dtype == torch.float32 for p in wrapped.network.parameters())
    # Weights rounded to 2^-11 of their size, through some ten layers.
    torch.testing.assert_close(wrapped.denoise(x, s), plain.denoise(x, s), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_guided_diffusion_are_read_once(
    suffix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = guided_file(tmp_path)
    if suffix == ".safetensors":
        save_file(torch.load(path, weights_only=True), path := path.with_suffix(suffix))
    expected = rmp.priors.from_guided_diffusion(path, head_channels=32)
    read = []
    for owner, name in ((torch, "load"), (files, "load_file")):
        reader = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda file, reader=reader, **options: read.append(file) or reader(file, **options)
        )
    opened = rmp.priors.open(path, head_channels=32)
    assert read == [path]
    x, s = images(1, 1, 8, 8), torch.tensor([0.5])
    assert torch.equal(opened.denoise(x, s), expected.denoise(x, s))
    assert opened.name == expected.name == path.name


def test_training_files_are_opened_by_path(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes((_FOLDER / "fashion.safetensors").read_bytes())
    prior, bundled = rmp.priors.open(path), rmp.priors.open("fashion")
    x, s = images(2, 1, 32, 32), torch.tensor([0.2, 2.0])
    assert torch.equal(prior.denoise(x, s), bundled.denoise(x, s))
    assert prior.data_variance == bundled.data_variance


def test_keys_that_do_not_fit_are_named_and_long_lists_cut(tmp_path: pathlib.Path) -> None:
    path = guided_file(tmp_path)
    state = torch.load(path, weights_only=True)
    del state["time_embed.2.bias"]
    state["surplus"] = torch.zeros(1)
    state["out.0.weight"] = torch.zeros(64)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"of .*tiny.pt must be those of the network, got 1 missing") as caught:
        rmp.priors.open(path, head_channels=32)
    assert str(caught.value).endswith(
        "got 1 missing (time_embed.2.bias); 1 unexpected (surplus); 1 of another shape "
        "(out.0.weight (64,) instead of (32,))"
    )
    for name in list(state):
        if name.startswith("middle_block.2"):
            del state[name]
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"11 missing \((middle_block\.2\.[a-z_0-9.]+, ){4}middle[a-z_0-9.]+ and 6 more\)"
    ):
        rmp.priors.open(path, head_channels=32)


def test_training_files_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    source = _FOLDER / "fashion.safetensors"
    state, path = load_file(source), tmp_path / "mine.safetensors"
    metadata = rmp.priors.metadata("fashion")
    state["more"] = torch.zeros(2)
    save_file(state, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"got 1 unexpected \(more\)"):
        rmp.priors.open(path)
    save_file(state, path, metadata={"config": "{}"})
    with pytest.raises(ValueError, match="must have the metadata `config` and `data_variance` of python -m rmp_fast"):
        rmp.priors.open(path)
    save_file(state, path)
    with pytest.raises(
        ValueError, match="weights of rmp_fast's training, guided-diffusion or a folder of diffusers, got"
    ):
        rmp.priors.open(path)


class Payload:
    """What a pickle could run."""

    ran = False

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return setattr, (Payload, "ran", True)


def written(folder: pathlib.Path, name: str, content: object) -> pathlib.Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("code.pt", {"network": Payload()}, ValueError, "holds more than weights, or is damaged, and is not loaded"),
        ("broken.pt", b"PK\x03\x04 nothing", ValueError, "cannot be read as a torch file"),
        ("short.pt", b"", ValueError, "cannot be read as a torch file"),
        ("broken.safetensors", b"\xff" * 40, ValueError, "cannot be read as safetensors"),
        ("network.onnx", b"1", ValueError, ".safetensors, .pt, .pth, .ckpt, .bin, got 'network.onnx'"),
        ("list.pt", [torch.zeros(1)], ValueError, "must hold a dictionary of weights"),
        ("other.pt", {"conv.weight": torch.zeros(1)}, ValueError, "got 1 weights that begin with conv.weight"),
    ],
)  # fmt: skip
def test_files_that_are_refused(
    name: str, content: object, error: type[Exception], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        rmp.priors.open(written(tmp_path, name, content))
    assert not Payload.ran


def test_options_and_paths_that_are_refused(tmp_path: pathlib.Path) -> None:
    path = guided_file(tmp_path)

    def small(**options: Any) -> object:
        return rmp.priors.open(path, head_channels=32, **options)

    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (FileNotFoundError, "does not exist, and no bundled prior is called that", lambda: rmp.priors.open("nowhere")),
        (FileNotFoundError, "`path` nowhere is no file", lambda: rmp.priors.from_guided_diffusion("nowhere")),
        (TypeError, "`path` must be a file name, got int", lambda: rmp.priors.from_safetensors(3)),
        (ValueError, "it has no configuration of that kind", lambda: rmp.priors.open(tmp_path)),
        (ValueError, "the bundled prior 'photo' takes no options, got", lambda: rmp.priors.open("photo", label=3)),
        (ValueError, "`depth` is no option of the network; those are", lambda: rmp.priors.open(path, depth=3)),
        (ValueError, "over 64 channels cannot have heads of 48", lambda: rmp.priors.open(path, head_channels=48)),
        (ValueError, "`head_channels` must be at least 1, got 0", lambda: rmp.priors.open(path, head_channels=0)),
        (ValueError, "this one has no classes, got 3", lambda: small(label=3)),
        (TypeError, "`label` must be the index of a class, got str", lambda: rmp.priors.open(path, label="cat")),
        (ValueError, "`betas` must be one of 'linear', 'cosine', got 'cos'", lambda: small(betas="cos")),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error) as caught:
            call()
        assert message in str(caught.value)


def test_upsamplers_are_refused(tmp_path: pathlib.Path) -> None:
    path = guided_file(tmp_path, dataclasses.replace(SMALL, channels=6, out_channels=3))
    with pytest.raises(ValueError, match="got 3; upsamplers and classifiers are no priors"):
        rmp.priors.open(path, head_channels=32)
