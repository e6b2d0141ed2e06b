"""Priors from the networks of other libraries."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice
from .._optional import optional
from .discrete import DiscreteDenoiser
from .files import describe_misfit, diffusers_class, file_metadata, fit, read_state
from .guided import GuidedUNet, infer_config, is_guided
from .network import BUNDLED, DATA_VARIANCE, NetworkPrior, from_safetensors, load

__all__ = ["BETAS", "from_deepinv", "from_diffusers", "from_edm", "from_guided_diffusion", "open_prior"]

#: Noise schedules of guided-diffusion: ``linear`` of its models of 128x128 and more, ``cosine`` of those of 64x64.
BETAS = ("linear", "cosine")

# What deepinv saves beside the weights of this architecture.
_TABLES = ("sqrt_alphas_cumprod", "sqrt_1m_alphas_cumprod")


def from_diffusers(
    source: str | pathlib.Path | nn.Module,
    scheduler: Any = None,
    *,
    data_variance: float = DATA_VARIANCE,
    label: int | None = None,
    name: str | None = None,
) -> NetworkPrior:
    """A prior from an unconditional or class-conditional ``UNet2DModel`` of diffusers, for images on [-1, 1].

    Any schedule of betas and any of the predictions ``epsilon``, ``v_prediction`` and ``sample``, as the scheduler has
    them; see :class:`~rmp_fast.priors.discrete.DiscreteDenoiser` for the equations and for noise levels beyond the
    trained ones. Sizes that the network cannot halve often enough are padded. Nothing is downloaded.

    Args:
        source: a folder with ``unet`` and ``scheduler`` (a saved pipeline) or with a ``UNet2DModel``; or the module.
        scheduler: the scheduler it was trained with, one that has ``alphas_cumprod`` (DDPM, DDIM, PNDM, DPM-Solver,
            UniPC, Euler …), or the folder of one; default: the one in ``source``.
        data_variance: p, variance per element of clean images on [-1, 1].
        label: class index of every image, for a class-conditional network.
        name: what messages and reports call it; default: the name of the folder.

    Raises:
        ImportError: a folder, and diffusers is not installed.
        FileNotFoundError: there is no such folder, or no scheduler.
        TypeError: ``source`` is neither.
        ValueError: another kind of network, a scheduler without discrete noise levels (flow matching, EDM, VE), another
            prediction, or weights that do not fit, with the first that are missing, unexpected or of another shape.
    """
    if isinstance(source, str | pathlib.Path):
        folder = pathlib.Path(source)
        if not folder.is_dir():
            raise FileNotFoundError(f"`source` {folder} is no folder")
        if diffusers_class(folder, "model_index.json") is not None:
            unet, beside = folder / "unet", folder / "scheduler"
        else:
            unet, beside = folder, folder
        network = _load_unet(unet)
        found = beside if scheduler is None else scheduler
        name = folder.name if name is None else name
    elif isinstance(source, nn.Module):
        network, found = source, scheduler
    else:
        raise TypeError(f"`source` must be a folder or a UNet2DModel, got {type(source).__name__}")
    config = _configuration(network)
    if config.get("time_embedding_type", "positional") == "fourier":
        raise ValueError("`source` must be conditioned on timesteps, got noise levels (time_embedding_type 'fourier')")
    channels, outputs = config.get("in_channels"), config.get("out_channels")
    if not isinstance(channels, int) or config.get("cross_attention_dim") is not None:
        raise ValueError(f"`source` must be a UNet2DModel of images, got {type(network).__name__}")
    if outputs not in (channels, 2 * channels):
        raise ValueError(
            f"`source` must return {channels} or {2 * channels} channels (a learned variance), got {outputs}"
        )
    classes = config.get("num_class_embeds")
    _check_label(label, classes if isinstance(classes, int) else 0)
    abar, prediction = _process(found)
    denoiser = DiscreteDenoiser(
        network, abar, prediction, label=label, whole=config.get("time_embedding_type") == "learned",
        multiple=2 ** (len(config.get("block_out_channels", (0,))) - 1),
    )  # fmt: skip
    return NetworkPrior(denoiser, channels, data_variance, "diffusers" if name is None else name)


def _load_unet(folder: pathlib.Path) -> nn.Module:
    kind = diffusers_class(folder, "config.json")
    if kind != "UNet2DModel":
        raise ValueError(f"`source` {folder} must hold the config.json of a UNet2DModel, got {kind or 'none'}")
    diffusers = optional("diffusers", "diffusers", "rmp_fast.priors.from_diffusers")
    network: nn.Module
    try:
        network, report = diffusers.UNet2DModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except OSError as cause:
        raise ValueError(f"`source` {folder} has no weights that can be read: {cause}") from cause
    differing = [" ".join(map(str, entry)) for entry in report["mismatched_keys"]]
    if report["missing_keys"] or report["unexpected_keys"] or differing:
        raise ValueError(describe_misfit(folder, report["missing_keys"], report["unexpected_keys"], differing))
    return network


def _configuration(network: nn.Module) -> dict[str, Any]:
    config = getattr(network, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"`source` must be a UNet2DModel with its `config`, got {type(network).__name__}")
    return dict(config)


def _process(scheduler: Any) -> tuple[Tensor, str]:
    """abar (T,) and the prediction of a scheduler or of the folder of one."""
    if scheduler is None:
        raise ValueError("`scheduler` must be given with a module: the noise levels and the prediction are in it")
    if isinstance(scheduler, str | pathlib.Path):
        folder = pathlib.Path(scheduler)
        kind = diffusers_class(folder, "scheduler_config.json")
        if kind is None:
            raise FileNotFoundError(f"`scheduler` {folder} has no scheduler_config.json; give the scheduler")
        diffusers = optional("diffusers", "diffusers", "rmp_fast.priors.from_diffusers")
        made = getattr(diffusers, kind, None) if kind.endswith("Scheduler") else None
        if made is None:
            raise ValueError(f"`scheduler` {folder} must be one of diffusers, got {kind!r}")
        scheduler = made.from_config(json.loads((folder / "scheduler_config.json").read_text()))
    abar, config = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "config", {})
    if not isinstance(abar, Tensor) or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            "`scheduler` must have discrete noise levels (`alphas_cumprod`), such as DDPMScheduler or DDIMScheduler, "
            f"got {type(scheduler).__name__}; wrap networks of flow matching, EDM and VE with from_edm or from_denoiser"
        )
    return abar, config.get("prediction_type", "epsilon")


def from_guided_diffusion(
    path: str | pathlib.Path,
    *,
    betas: str | Tensor = "linear",
    timesteps: int = 1000,
    prediction: str = "epsilon",
    label: int | None = None,
    data_variance: float = DATA_VARIANCE,
    name: str | None = None,
    state: Mapping[str, Tensor] | None = None,
    **arch: Any,
) -> NetworkPrior:
    """A prior from weights of guided-diffusion: OpenAI's ImageNet and LSUN files, the FFHQ and ImageNet files of DPS.

    The network is read off the weights (:func:`~rmp_fast.priors.guided.infer_config`), which are read with
    ``weights_only=True``; a learned variance is dropped. Images are on [-1, 1], sides that the network cannot halve
    often enough are padded, noise levels beyond the trained ones are as
    :class:`~rmp_fast.priors.discrete.DiscreteDenoiser` has them. deepinv's ``DiffUNet`` has these weights too.

    Args:
        path: the ``.pt`` or ``.safetensors`` file.
        betas: one of :data:`BETAS`, or a tensor (T,).
        timesteps: T of a named schedule.
        prediction: what the network predicts, ``"epsilon"`` in all published files.
        label: class index of every image, for a class-conditional network.
        data_variance: p, variance per element of clean images on [-1, 1].
        name: what messages and reports call it; default: the name of the file.
        state: the file's weights by name where they are in memory already; default: they are read.
        **arch: fields of :class:`~rmp_fast.priors.guided.GuidedConfig`. Weights do not show the attention heads:
            ``head_channels=64`` is assumed; OpenAI's 64x64 ImageNet model needs ``new_order=True``, older ones
            ``head_channels=None, heads=4``.

    Raises:
        FileNotFoundError: no file.
        TypeError, ValueError: a file that holds more than weights or those of another network, with the first that are
            missing, unexpected or of another shape; a class-conditional network without ``label``.
    """
    held = read_state(path) if state is None else state
    state = {key: value for key, value in held.items() if key not in _TABLES}
    try:
        config = infer_config(state, **arch)
    except ValueError as cause:
        raise ValueError(f"{cause}: {path}") from cause
    if config.out_channels not in (config.channels, 2 * config.channels):
        raise ValueError(
            f"{path} must return {config.channels} or {2 * config.channels} channels (a learned variance), "
            f"got {config.out_channels}; upsamplers and classifiers are no priors"
        )
    _check_label(label, config.classes)
    network = GuidedUNet(config)
    fit(network, state, path)
    denoiser = DiscreteDenoiser(
        network, (1 - _betas(betas, timesteps)).cumprod(0), prediction, label=label, multiple=config.multiple
    )
    return NetworkPrior(denoiser, config.channels, data_variance, pathlib.Path(path).name if name is None else name)


def _betas(betas: str | Tensor, timesteps: int) -> Tensor:
    """(T,) in float64, as Dhariwal and Nichol have them."""
    if isinstance(betas, Tensor):
        return betas.detach().double().cpu()
    if check_choice("betas", betas, BETAS) == "linear":
        return torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64)
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    abar = ((time + 0.008) / 1.008 * (torch.pi / 2)).cos().square()
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def _check_label(label: int | None, classes: int) -> None:
    if label is not None and (isinstance(label, bool) or not isinstance(label, int)):
        raise TypeError(f"`label` must be the index of a class, got {type(label).__name__}")
    if classes and (label is None or not 0 <= label < classes):
        raise ValueError(f"`label` must be the index of one of the network's {classes} classes, got {label}")
    if not classes and label is not None:
        raise ValueError(f"`label` is for class-conditional networks only, and this one has no classes, got {label}")


class _EDM(nn.Module):
    def __init__(self, network: nn.Module, label: int | None, classes: int) -> None:
        super().__init__()
        self.network, self.label, self.classes = network, label, classes

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        labels = None
        if self.label is not None:
            labels = torch.zeros(x.shape[0], self.classes, device=x.device)
            labels[:, self.label] = 1
        out: Tensor = self.network(x, s) if labels is None else self.network(x, s, labels)
        return out


def from_edm(
    module: nn.Module,
    *,
    label: int | None = None,
    channels: int | None = None,
    data_variance: float | None = None,
    name: str = "edm",
) -> NetworkPrior:
    """A prior from a denoiser D(x, sigma) with the calling convention of NVlabs' EDM, for images on [-1, 1].

    ``module(x, sigma, class_labels)`` takes images (B, C, H, W), standard deviations (B,), and with ``label`` one-hot
    classes (B, ``module.label_dim``). Noise levels and sizes go to the module as they are (Karras et al. 2022, arXiv
    2206.00364). Its published files are pickles of code: load them with their own program.

    Args:
        module: the denoiser.
        label: class index of every image; None: the module is called without classes.
        channels: of the images; default: ``module.img_channels``, else any.
        data_variance: p, variance per element of clean images; default: ``module.sigma_data`` squared, else 0.25.
        name: what messages and reports call it.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: a label that the module has no class for.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
    classes = int(getattr(module, "label_dim", 0) or 0)
    if label is not None:
        _check_label(label, classes)
    if channels is None:
        channels = getattr(module, "img_channels", None)
    if data_variance is None:
        known = getattr(module, "sigma_data", None)
        data_variance = DATA_VARIANCE if known is None else float(known) ** 2
    return NetworkPrior(_EDM(module, label, classes), channels, data_variance, name)


class _UnitRange(nn.Module):
    """D on [-1, 1] from a denoiser on [0, 1]: D(x, s) = 2 f((x + 1) / 2, s / 2) - 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Those that iterate go on from where their last call ended, on whatever image that was.
        self._iterative: list[Any] = [m for m in network.modules() if isinstance(getattr(m, "restart", None), bool)]

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        for module in self._iterative:
            module.restart = True
        out: Tensor = 2 * self.network((x + 1) / 2, s / 2) - 1
        return out


def from_deepinv(
    denoiser: nn.Module,
    *,
    channels: int | None = None,
    data_variance: float = DATA_VARIANCE,
    name: str | None = None,
) -> NetworkPrior:
    """A prior from any denoiser of deepinv, ``denoiser(x, sigma)`` for images and sigma (B,) on [0, 1].

    On [-1, 1], D(x, s) = 2 denoiser((x + 1) / 2, s / 2) - 1. Noise levels go to the denoiser as they are; many were
    trained for sigma up to 0.2 (s up to 0.4) alone and are no prior above, where a chain starts: let its schedule begin
    there, ``schedule=schedules.log(10, 0.02, 0.4)``. Denoisers that iterate, such as ``TVDenoiser``, start every call
    afresh; they stop when a whole batch has converged, so items depend on each other by as much as convergence allows.

    Args:
        denoiser: the denoiser, or any other module called like that.
        channels: of the images; default: any that the denoiser takes.
        data_variance: p, variance per element of clean images on [-1, 1].
        name: what messages and reports call it; default: the name of its class.

    Raises:
        TypeError: ``denoiser`` is no module.
    """
    if not isinstance(denoiser, nn.Module):
        raise TypeError(f"`denoiser` must be a torch.nn.Module, got {type(denoiser).__name__}")
    return NetworkPrior(_UnitRange(denoiser), channels, data_variance, name or type(denoiser).__name__)


def open_prior(path: str | pathlib.Path, **options: Any) -> NetworkPrior:
    """A prior from its name or path, whatever it is.

    A bundled name; a ``.safetensors`` file of ``python -m rmp_fast.training``; weights of guided-diffusion; a folder
    that diffusers saved.

    Args:
        path: the name, file or folder.
        **options: of :func:`from_guided_diffusion` or :func:`from_diffusers`, where it is one of theirs.

    Raises:
        FileNotFoundError: there is nothing.
        ImportError: a folder of diffusers, which is not installed.
        ValueError: nothing that is known, or something damaged; options for a kind that has none.
    """
    if isinstance(path, str) and path in BUNDLED:
        _no_options(options, f"the bundled prior {path!r}")
        return load(path)
    where = pathlib.Path(path)
    if where.is_dir():
        for config in ("model_index.json", "config.json"):
            if diffusers_class(where, config) is not None:
                return from_diffusers(where, **options)
        raise ValueError(f"`path` {where} must be a folder that diffusers saved; it has no configuration of that kind")
    if not where.exists():
        raise FileNotFoundError(f"`path` {where} does not exist, and no bundled prior is called that")
    if where.suffix == ".safetensors" and "config" in file_metadata(where):
        _no_options(options, f"the weights {where}")
        return from_safetensors(where)
    state = read_state(where)
    if is_guided(state):
        return from_guided_diffusion(where, state=state, **options)
    raise ValueError(
        f"`path` {where} must hold weights of rmp_fast's training, guided-diffusion or a folder of diffusers, got "
        f"{len(state)} weights that begin with {', '.join(sorted(state)[:3])}; for another network use from_edm, "
        "from_deepinv or from_denoiser"
    )


def _no_options(options: dict[str, Any], what: str) -> None:
    if options:
        raise ValueError(f"{what} takes no options, got {', '.join(sorted(options))}")
