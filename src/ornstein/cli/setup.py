"""What `train` is asked for, and the data and the untrained model that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ornstein import checkpoint, schedules
from ornstein import noise as noises
from ornstein.autoencoders.latent import LatentSpace
from ornstein.cli.command import progress
from ornstein.data import Clips, ImageSet, StreamedSet, open_clips, open_images, open_streamed, same_data
from ornstein.data.images import MEMORY_BUDGET
from ornstein.denoiser import Denoiser, SampleSpec
from ornstein.errors import UserError
from ornstein.nets import UNet, VideoUNet
from ornstein.process import Process
from ornstein.store import read_json
from ornstein.training import TrainConfig

# With fewer images a class than this the class is left out, unless it is asked for: a name is not a kind.
_IMAGES_PER_CLASS = 10

# On a CPU many small steps are worth more than few large ones (docs/training.md), but for images that are tiny.
_BATCH, _CPU_BATCH, _TINY = 128, 32, 16
_CLIP_BATCH = 16
_AUTOENCODER_BATCH = 32  # of images above 32 pixels a side: all of it is done at full resolution
_LEARNING_RATE = {"muon": 4e-3, "adamw": 1e-3}
_EMA = 0.02  # with Muon, a shorter average than the trainer's own


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; kept in its folder, so that a resumption needs no options."""

    data: str
    size: int | None = None
    channels: int | None = None
    stream: bool | None = None
    model: str = "diffusion"
    latent: str | None = None
    factor: int | None = None
    latent_channels: int | None = None
    layers: int | None = None
    codes: int | None = None
    reconstruction: str | None = None
    kl: float | None = None
    kl_warmup: float | None = None
    free_bits: float | None = None
    perceptual: str | None = None
    perceptual_weight: float | None = None
    adversarial: float | None = None
    frames: int | None = None
    stride: int = 1
    net: str = "auto"
    init: str | None = None
    given_frames: bool = False
    noise: str = "white"
    data_noise: str | None = None
    centre: bool = False
    conditional: bool | None = None
    held_out: float = 0.1
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    accumulate: int = 1
    optimizer: str | None = None
    learning_rate: float | None = None
    precision: str = "auto"
    objective: str | None = None
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 1000
    track: str | None = None
    fingerprint: str | None = None

    @classmethod
    def stored(cls, path: Path) -> Settings:
        """Those that a run keeps. Raises UserError where they are not of this version."""
        # a run of before there was a choice has decoded all at the start
        found: dict[str, Any] = {"stream": False} | read_json(path)
        try:
            return cls(**found)
        except TypeError as error:
            raise UserError(f"{path} is not of this version: {error}") from error

    def config(self) -> TrainConfig:
        """The trainer's settings. Those that depend on the data are guesses until they are `settled`."""
        names = {f.name for f in fields(TrainConfig)} & {f.name for f in fields(self)}
        settled = self if None not in (self.batch, self.optimizer, self.learning_rate) else self.settled(self.size or 0)
        given = {name: getattr(settled, name) for name in names}
        return TrainConfig(**given, ema=_EMA) if given["optimizer"] == "muon" else TrainConfig(**given)

    def settled(self, side: int) -> Settings:
        """With batch, optimizer and learning rate for data of `side` pixels, where they were left open."""
        measured = self.model == "diffusion" and self.frames is None
        optimizer = self.optimizer or ("muon" if measured else "adamw")
        return replace(
            self,
            batch=self._batch(side) if self.batch is None else self.batch,
            optimizer=optimizer,
            learning_rate=_LEARNING_RATE.get(optimizer, 1e-3) if self.learning_rate is None else self.learning_rate,
        )

    def _batch(self, side: int) -> int:
        if self.frames is not None:
            return _CLIP_BATCH
        if self.model != "diffusion":
            return _AUTOENCODER_BATCH if side > 32 else _BATCH
        tiny = side <= _TINY or self.latent is not None
        return _BATCH if tiny or torch.cuda.is_available() else _CPU_BATCH


class Split(NamedTuple):
    """Data to train on, data held out, the fingerprint of the whole, and whether they are decoded as needed."""

    train: ImageSet | StreamedSet | Clips
    held_out: ImageSet | Clips
    fingerprint: str
    stream: bool


def open_data(settings: Settings) -> Split:
    """The images or clips to train on and those held out, by the run's seed.

    Raises UserError where the data are not those of the run's fingerprint: what it held out would be others.
    """
    if not 0 < settings.held_out < 1:
        raise UserError(f"--held-out is a share between 0 and 1, not {settings.held_out}")
    with progress("files", transient=True) as bar:
        task = bar.add_task("reading", total=None, note="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        opened: ImageSet | StreamedSet | Clips | None
        if settings.frames is None:
            opened = _streamed(settings)
            if opened is None:
                opened = open_images(settings.data, settings.size, settings.channels, progress=advance)
        else:
            if settings.stream:
                raise UserError("--stream is for images: leave out --frames")
            opened = open_clips(
                settings.data,
                settings.frames,
                settings.size,
                settings.channels,
                stride=settings.stride,
                progress=advance,
            )
    if settings.conditional and not opened.classes:
        if isinstance(opened, ImageSet | StreamedSet):
            opened.require_labels()
        raise UserError(f"{settings.data} has no classes: put the videos of each in a folder named after it")
    if not same_data(opened, settings.fingerprint):
        raise UserError(
            f"{settings.data} has changed since this run began: put the files back as they were, or train another run"
        )
    stream = isinstance(opened, StreamedSet)
    return Split(*opened.split(settings.held_out, settings.seed), opened.fingerprint, stream)


def _streamed(settings: Settings) -> StreamedSet | None:
    """The images to be decoded as needed: where that is asked for, or they would fill more than they may in memory."""
    if settings.stream is False:
        return None
    above = 0 if settings.stream else MEMORY_BUDGET
    found = open_streamed(settings.data, settings.size, settings.channels, above=above)
    if settings.stream and found is None:
        raise UserError(f"{settings.data} holds arrays, which are not decoded: leave out --stream")
    return found


def new_denoiser(
    settings: Settings, data: ImageSet | StreamedSet | Clips, space: LatentSpace | None = None
) -> Denoiser:
    """The untrained model that fits the data: cosine schedule, v-prediction, the noise that was asked for.

    With `space` it is a model of the data's latents. With `data_noise` the prediction is preconditioned mode by mode
    instead; with `centre` the schedule is shifted too.
    """
    shape = tuple(data.shape) if space is None else space.latent_shape
    channels, size = shape[0], shape[-1]
    conditional = settings.conditional
    if conditional is None:
        conditional = 1 < len(data.classes) <= len(data) / _IMAGES_PER_CLASS
    classes = data.classes if conditional else []
    preset = settings.net
    if preset == "auto":
        small = space is None and (size <= 16 or settings.frames)
        preset = "xs" if small else "m" if torch.cuda.is_available() else "s"
    torch.manual_seed(settings.seed)
    learned = settings.objective == "hybrid"
    net: nn.Module
    if settings.frames is None:
        if settings.init is not None or settings.given_frames:
            raise UserError("--init and --given-frames are for clips: give --frames too")
        if settings.data_noise is not None or settings.centre:
            raise UserError("--data-noise and --centre are for clips: give --frames too")
        if settings.noise != "white" and not settings.noise.endswith(".json"):
            raise UserError(f"noise {settings.noise!r} is over the frames of clips: give --frames, or leave it out")
        net = UNet.preset(
            preset,
            channels=channels,
            size=size,
            classes=len(classes),
            patch=None if space is None else 1,  # a latent is a patch already
            learned_variance=learned,
        )
    elif settings.init is not None:
        net = _from_image(Path(settings.init), shape, len(classes), settings.given_frames)
    else:
        net = VideoUNet.preset(
            preset,
            channels=channels,
            size=size,
            frames=settings.frames,
            classes=len(classes),
            conditioning=settings.given_frames,
            learned_variance=learned,
        )
    noise, about = noises.parse(settings.noise, shape[1]), SampleSpec(shape, tuple(classes))
    if settings.data_noise is None:
        if settings.centre:
            raise UserError("--centre needs the covariance of the data: give --data-noise FILE.json of `fit-noise` too")
        denoiser = Denoiser(net, Process(schedules.Cosine(), noise), "v", data=about, space=space)
    else:
        covariance = noises.parse(settings.data_noise, shape[1])
        schedule = _centred(noise, covariance, shape) if settings.centre else schedules.Cosine()
        denoiser = Denoiser(net, Process(schedule, noise), "edm", data=about, data_covariance=covariance)
    return denoiser.to("cuda") if torch.cuda.is_available() else denoiser


def _centred(noise: noises.Covariance, data: noises.Covariance, shape: tuple[int, ...]) -> schedules.Schedule:
    """The cosine schedule with logdet(C^-1 Sigma) = 0, and the log-SNR at its end where it was."""
    shift = -noises.log_snr_shift(noise, data, shape)
    plain = schedules.Cosine()
    return schedules.Shifted(schedules.Cosine(float(plain.log_snr(1.0)) - shift), shift)


def _from_image(run: Path, shape: tuple[int, ...], classes: int, given_frames: bool) -> VideoUNet:
    """The video net around the image model in `run`."""
    image = checkpoint.load(run).net
    if not isinstance(image, UNet):
        raise UserError(f"{run} is no image model: --init takes a run of images")
    own = (image.config["channels"], image.config["size"], image.config["classes"])
    if own != (shape[0], shape[-1], classes):
        raise UserError(
            f"{run} has {own[0]} channels, {own[1]} pixels a side and {own[2]} classes; "
            f"the clips have {shape[0]}, {shape[-1]} and {classes}"
        )
    return VideoUNet.from_image(image, shape[1], conditioning=given_frames)
