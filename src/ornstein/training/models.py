"""The untrained model that the settings of a run and its data describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ornstein import checkpoint, schedules
from ornstein import noise as noises
from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import BucketSet, Clips, ImageSet, StreamedSet
from ornstein.denoiser import Data, Denoiser
from ornstein.devices import choose_device
from ornstein.errors import UserError
from ornstein.nets import DiT, UNet, VideoUNet
from ornstein.nets.recorded import Recorded
from ornstein.nets.video import HELD
from ornstein.process import Process
from ornstein.text import FrozenEncoder, TextDenoiser, TextEncoder
from ornstein.training.diffusion import prediction_of, schedule_of
from ornstein.training.loss_space import check_inverse
from ornstein.training.settings import Settings

__all__ = ["learns_classes", "new_autoencoder", "new_denoiser"]

# With fewer images per class than this the classes are not learned, unless --conditional asks for them.
_IMAGES_PER_CLASS = 10

# An autoencoder that a diffusion model will work on keeps nearly everything; one that samples by itself is a bound.
_KL = {"kl": 0.05}
_RECONSTRUCTION = {"ae": "l1", "vq": "l1"}
_FREE_BITS = {"hvae": 0.1}  # without free bits the layers above the first stay unused

# Settings and the arguments that they become: of the autoencoder, and of its loss.
_SHAPE = {"factor": "factor", "latent_channels": "latent_channels", "layers": "layers", "codes": "codes"}
_LOSS = {
    "reconstruction": "reconstruction",
    "kl": "kl_weight",
    "kl_warmup": "warmup",
    "free_bits": "free_bits",
    "perceptual": "perceptual",
    "perceptual_weight": "perceptual_weight",
    "adversarial": "adversarial_weight",
}


def new_denoiser(
    settings: Settings,
    data: ImageSet | StreamedSet | BucketSet | Clips,
    space: LatentSpace | None = None,
    device: torch.device | None = None,
    encoder: TextEncoder | FrozenEncoder | None = None,
    examples: tuple[str, ...] = (),
) -> Denoiser:
    """An untrained denoiser for the data, with schedule, prediction and noise of the settings.

    With `data_noise` the prediction is preconditioned mode by mode; with `centre` the schedule is shifted too.

    Args:
        settings: those of the run.
        data: what it will be trained on; gives the shape and the classes.
        space: the latent space, for a model of the data's latents.
        device: where to put it; by default a GPU if there is one.
        encoder: of the captions, for a model that takes text; with some of them as examples.

    Raises:
        UserError: the settings do not fit the data.
    """
    device = choose_device() if device is None else device
    shape = tuple(data.shape) if space is None else space.latent_shape
    classes = data.classes if learns_classes(settings, data) else []
    preset = settings.preset(max(shape[-2:]), space is not None, device.type == "cpu")
    with _seeded(settings.seed):
        net = _network(
            settings, preset, shape, len(classes), space is not None, 0 if encoder is None else encoder.width
        )
    noise, spec = noises.parse(settings.noise, shape[1]), Data(shape, tuple(classes), sizes=getattr(data, "sizes", ()))
    if settings.dropout:
        _drop(net, settings.dropout)
    covariance = None if settings.data_noise is None else noises.parse(settings.data_noise, shape[1])
    schedule = schedule_of(settings)
    if settings.centre and covariance is not None:
        schedule = _centred(noise, covariance, shape)
    std = 1.0 if space is not None else 0.5  # of the data, for --prediction edm: latents are normalised
    whitened = settings.net_space == "whitened"
    if whitened:
        check_inverse(noise, "--net-space whitened")
    make: Any = Denoiser if encoder is None else partial(TextDenoiser, encoder=encoder, examples=examples)
    return make(
        net, Process(schedule, noise), prediction_of(settings), std, spec, data_covariance=covariance, space=space,
        whitened=whitened,
    ).to(device)  # fmt: skip


def _drop(net: nn.Module, share: float) -> None:
    """Set the dropout of a network, and of its configuration."""
    layers = [module for module in net.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise UserError(f"--dropout does nothing here: {type(net).__name__} has no dropout")
    for layer in layers:
        layer.p = share
    if isinstance(net, Recorded):
        net.config["dropout"] = share


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it the initial weights follow from `seed`; the caller's random state is left alone."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        yield


def learns_classes(settings: Settings, data: ImageSet | StreamedSet | BucketSet | Clips) -> bool:
    """Whether a model of these data is conditional on their classes."""
    if settings.captions is not None:
        return False
    if settings.conditional is not None:
        return settings.conditional
    return 1 < len(data.classes) <= len(data) / _IMAGES_PER_CLASS


def _network(
    settings: Settings, preset: str, shape: tuple[int, ...], classes: int, latent: bool, text_width: int
) -> nn.Module:
    if settings.init is not None:
        return _from_image(settings, shape, classes)
    family, _, name = preset.rpartition(":")
    about: dict[str, Any] = {
        "channels": shape[0],
        "size": _side(shape),
        "classes": classes,
        "learned_variance": settings.objective == "hybrid",
        "text_width": text_width,
    }
    if settings.frames is not None:
        about |= {"frames": settings.frames, "conditioning": settings.given_frames and HELD}
    if family == "dit":
        return DiT.preset(name, **about)
    if settings.frames is not None:
        return VideoUNet.preset(name, **about)
    return UNet.preset(name, **about, patch=1 if latent else settings.patch)  # a latent is a patch already


def _side(shape: tuple[int, ...]) -> int | list[int]:
    """The `size` of a network: the side of a square, or [H, W]."""
    return shape[-1] if shape[-1] == shape[-2] else list(shape[-2:])


def _centred(noise: noises.Covariance, data: noises.Covariance, shape: tuple[int, ...]) -> schedules.Schedule:
    """The cosine schedule shifted so that logdet(C^-1 Sigma) = 0, with the same log-SNR at its end."""
    shift = -noises.log_snr_shift(noise, data, shape)
    plain = schedules.Cosine()
    return schedules.Shifted(schedules.Cosine(float(plain.log_snr(1.0)) - shift), shift)


def _from_image(settings: Settings, shape: tuple[int, ...], classes: int) -> VideoUNet:
    """The video net around the image model of --init."""
    run = Path(settings.init or "")
    model = checkpoint.load(run)
    image = model.net
    if not isinstance(image, UNet):
        raise UserError(f"{run} is no image model: --init takes a run of images")
    coder = None if model.space is None else Path(model.space.to_config()["autoencoder"])
    if coder != (None if settings.latent is None else Path(settings.latent).resolve()):
        raise UserError(
            f"{run} is a model of {'pixels' if coder is None else f'latents of {coder}'}: --latent says another"
        )
    of_image = (image.config["channels"], image.config["size"], image.config["classes"])
    if of_image != (shape[0], _side(shape), classes):
        raise UserError(
            f"{run} has {of_image[0]} channels, {of_image[1]} pixels a side and {of_image[2]} classes; "
            f"the clips have {shape[0]}, {_side(shape)} and {classes}"
        )
    theirs, ours = (model.process.schedule, model.prediction), (schedule_of(settings), prediction_of(settings))
    if settings.data_noise is None and theirs != ours:
        raise UserError(
            f"{run} predicts {model.prediction} under {model.process.schedule}: give the same --prediction and "
            "--schedule, since the clips start from its network"
        )
    return VideoUNet.from_image(image, shape[1], conditioning=settings.given_frames and HELD)


def new_autoencoder(
    settings: Settings, data: ImageSet | StreamedSet, device: torch.device | None = None
) -> AutoencoderLoss:
    """An untrained autoencoder for the images, inside its loss.

    Raises:
        UserError: a setting is out of range.
    """
    device = choose_device() if device is None else device
    channels, size, _ = data.shape
    kind = settings.model
    preset = settings.preset(size, False, device.type == "cpu").rpartition(":")[2]
    defaults: dict[str, Any] = {
        "reconstruction": _RECONSTRUCTION.get(kind, "nll"),
        "kl_weight": _KL.get(kind, 1.0),
        "free_bits": _FREE_BITS.get(kind, 0.0),
    }
    try:
        with _seeded(settings.seed):
            model = AUTOENCODERS[kind].preset(preset, channels=channels, size=size, **_arguments(settings, _SHAPE))
            return AutoencoderLoss(model, **(defaults | _arguments(settings, _LOSS))).to(device)
    except ValueError as error:
        raise UserError(str(error)) from error


def _arguments(settings: Settings, names: dict[str, str]) -> dict[str, Any]:
    values = {argument: getattr(settings, name) for name, argument in names.items()}
    return {argument: value for argument, value in values.items() if value is not None}
