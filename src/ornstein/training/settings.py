"""The settings of a run: its data, its model and its training. It imports no torch: the options come from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ornstein.errors import UserError
from ornstein.settings import (
    again,
    check,
    extent_of,
    extent_text,
    field_of,
    precision_setting,
    read,
    read_file,
    setting,
    settings_of,
    size_setting,
    to_json,
)  # fmt: skip
from ornstein.training.config import POST_HOC, TrainConfig, check_ema, check_length
from ornstein.training.tracking import check_trackers

__all__ = [
    "AUTOENCODERS", "COMPRESS", "DIFFUSION", "DISTIL", "PREDICTIONS", "SCHEDULES", "SETTINGS", "DataSettings",
    "DistilSettings", "Settings", "resumed",
]  # fmt: skip

T = TypeVar("T", bound=Any)

SETTINGS = "train.json"
DISTIL = "distil.json"  # the settings of a distilled model, beside those of its teacher
COMPRESS = "compress.json"  # those of a compressed model

DIFFUSION = "diffusion"
# The keys of `ornstein.autoencoders.AUTOENCODERS`, which imports torch; a test compares them.
AUTOENCODERS = ("ae", "vae", "hvae", "vq", "kl")
_WITH_RATE = ("vae", "hvae", "kl")

# The keys of `ornstein.schedules.NAMED`, and the kinds of `ornstein.denoiser` that a network is trained to predict.
SCHEDULES = ("cosine", "cosine-zero", "linear", "ddpm", "ddpm-zero", "ddpm-cosine", "rectified", "edm", "ve")
PREDICTIONS = ("x0", "eps", "v", "flow", "edm")
# What the authors of a schedule predict with it; v for the others.
_PREDICTED = {"ddpm": "eps", "ddpm-cosine": "eps", "rectified": "flow", "edm": "edm", "ve": "edm"}

_CLIPS = "Clips"
_LATENTS = "Autoencoders and latent diffusion"

# On a CPU many small steps are worth more than few large ones (docs/training.md), but for images that are tiny.
_BATCH, _CPU_BATCH, _TINY = 128, 32, 16
_CLIP_BATCH = 16
_AUTOENCODER_BATCH = 32  # of images above 32 pixels a side: an autoencoder computes at full resolution throughout
_LEARNING_RATE = {"muon": 4e-3, "adamw": 1e-3}
_DISTIL_STEPS = 1500
_MUON_EMA = 0.02  # a shorter average than the trainer's own

NET_FAMILIES = ("unet", "dit")
_NET_SIZES = ("xs", "s", "m", "l")

# Settings that only some kinds of model have.
_MODELS = {
    "factor": AUTOENCODERS,
    "latent_channels": AUTOENCODERS,
    "layers": ("hvae",),
    "codes": ("vq",),
    "reconstruction": AUTOENCODERS,
    "kl": _WITH_RATE,
    "kl_warmup": _WITH_RATE,
    "free_bits": _WITH_RATE,
    "perceptual": AUTOENCODERS,
    "perceptual_weight": AUTOENCODERS,
    "adversarial": AUTOENCODERS,
}
_DIFFUSION_ONLY = (
    "noise", "data_noise", "centre", "given_frames", "init", "objective", "conditional", "latent", "schedule",
    "prediction", "time_sampling", "dropout", "captions", "text_encoder", "patch", "loss_space", "net_space", "flow_by",
)  # fmt: skip


@dataclass(frozen=True)
class DataSettings:
    """Which images or clips, and how they are read."""

    data: str = setting(
        help="Images or videos: a folder or archive (a sub-folder per class), a file, URLs of tar shards, or digits."
    )
    size: int | str | None = size_setting(None, by_data="their own if all agree, cut square")
    crop: Literal["centre", "random", "none"] = setting(
        "centre", "Part of each image with the aspect ratio of --size: the centre, any part, or all of it, stretched."
    )
    aspect: Literal["size", "buckets"] = setting(
        "size", "One size, or buckets: sizes of about the area of --size, by the aspect ratio of each image."
    )
    channels: int | None = setting(
        None, "3 for colour, 1 for grey, 4 or 2 with alpha, any number of an array.", minimum=1,
        by_data="3, or those of the array or bundled set",
    )  # fmt: skip
    stream: bool | None = setting(
        None, "Decode images as they are needed, not all at the start.", by_data="if they would fill over 2 GB"
    )
    captions: str | None = setting(
        None, "Learn captions: auto, txt or json beside the images, metadata.jsonl or .csv, or the name of a column."
    )
    held_out: float = setting(0.1, "Share of the data that is kept for the evaluation.", above=0, below=1)
    frames: int | None = setting(None, "Train on clips of so many frames.", minimum=1, panel=_CLIPS)
    stride: int = setting(1, "Take every STRIDE-th frame of a video.", minimum=1, panel=_CLIPS)


@dataclass(frozen=True)
class Settings(TrainConfig, DataSettings):
    """The settings of a run, stored in its directory as train.json: a resumption needs no options."""

    batch: int | None = again(TrainConfig, "batch", None, by_data="128 images, 32 on a CPU, 16 clips")  # pyright: ignore[reportIncompatibleVariableOverride]
    optimizer: Literal["muon", "adamw"] | None = again(  # pyright: ignore[reportIncompatibleVariableOverride]
        TrainConfig, "optimizer", None, by_data="muon for diffusion on images, else adamw"
    )
    learning_rate: float | None = again(  # pyright: ignore[reportIncompatibleVariableOverride]
        TrainConfig, "learning_rate", None, by_data=", ".join(f"{v:g} with {k}" for k, v in _LEARNING_RATE.items())
    )
    sample_every: int = again(TrainConfig, "sample_every", 1000)
    ema: float | str | None = again(  # pyright: ignore[reportIncompatibleVariableOverride]
        TrainConfig, "ema", None, by_data=f"{_MUON_EMA:g} with muon, else {field_of(TrainConfig, 'ema').default:g}"
    )
    net: str = setting(
        "auto",
        "Network and its size: a U-Net (xs to l) or a diffusion transformer; auto: a U-Net by data and device.",
        choices=("auto", *_NET_SIZES, *(f"{family}:{size}" for family in NET_FAMILIES for size in _NET_SIZES)),
    )
    patch: int | None = setting(
        None, "Side of the patches of a U-Net of images: 2 takes a third of the time at 32 pixels.", minimum=1,
        by_data="1 below 64 pixels, 2 below 128, else 4",
    )  # fmt: skip
    schedule: str = setting(
        "cosine", "Noise schedule.", choices=SCHEDULES, other="one with its numbers, rectified:3 or edm:0.002,80,7"
    )
    prediction: Literal["x0", "eps", "v", "flow", "edm"] | None = setting(
        None, "What the network predicts.",
        by_data="v; eps with ddpm, ddpm-cosine; flow with rectified; edm with edm, ve and --data-noise",
    )  # fmt: skip
    dropout: float = setting(
        0.0, "Share of features dropped inside the network while it trains.", minimum=0, below=1, panel="Optimizer"
    )
    conditional: bool | None = setting(None, "Learn the classes.", by_data="if there are 10 images per class")
    text_encoder: str | None = setting(
        None, "What reads the captions: own, trained along; or frozen, minilm, clip:FOLDER, t5:FOLDER, folder:FOLDER.",
        by_data="own",
    )  # fmt: skip
    model: str = setting("diffusion", "Kind of model.", choices=(DIFFUSION, *AUTOENCODERS), panel=_LATENTS)
    latent: str | None = setting(
        None, "Train on the latents of the autoencoder in this run; of clips, frame by frame.", panel=_LATENTS
    )
    factor: int | None = setting(
        None, "Image side over latent side: 2, 4, 8, ...", by_data="by the size", minimum=1, panel=_LATENTS
    )
    latent_channels: int | None = setting(
        None,
        "Channels of the latents, or their length for a vae.",
        by_data="4, 8 for a vq, 32 for a vae",
        minimum=1,
        panel=_LATENTS,
    )
    layers: int | None = setting(None, "Layers of latents of an hvae.", by_data="2", minimum=1, panel=_LATENTS)
    codes: int | None = setting(None, "Entries of the codebook of a vq.", by_data="512", minimum=2, panel=_LATENTS)
    reconstruction: Literal["nll", "l1", "l2"] | None = setting(
        None,
        "Reconstruction loss; nll: Gaussian of learned scale.",
        by_data="l1 for ae and vq, else nll",
        panel=_LATENTS,
    )
    kl: float | None = setting(
        None, "Weight of the rate; 1 is the bound.", by_data="1, 0.05 for a kl", minimum=0, panel=_LATENTS
    )
    kl_warmup: float | None = setting(
        None, "Share of the training over which --kl rises from 0.", by_data="0", minimum=0, maximum=1, panel=_LATENTS
    )
    free_bits: float | None = setting(
        None, "Nats per latent number without cost.", by_data="0.1 for an hvae, else 0", minimum=0, panel=_LATENTS
    )
    perceptual: str | None = setting(
        None, "Compare in features too.", choices=("random",), other="a TorchScript file", panel=_LATENTS
    )
    perceptual_weight: float | None = setting(
        None, "Weight of that comparison.", by_data="1", minimum=0, panel=_LATENTS
    )
    adversarial: float | None = setting(
        None, "Weight of a patch discriminator.", by_data="none", minimum=0, panel=_LATENTS
    )
    noise: str = setting(
        "white", "Noise of the process: white, ar1:0.9, a file of `fit-noise`, or warped:0.25, carried by the motion "
        "of each clip, with that share of white noise.", panel=_CLIPS,
    )  # fmt: skip
    flow_by: Literal["exact", "dis", "farneback", "homography"] | None = setting(
        None, "How the motion of clips is found, for --noise warped.", panel=_CLIPS,
        by_data="exact for a bundled set, else OpenCV's dis",
    )  # fmt: skip
    net_space: Literal["pixel", "whitened"] = setting(
        "pixel", "Coordinates that the network computes in: whitened, it sees R^-1 x and R times its output counts.",
        panel=_CLIPS,
    )  # fmt: skip
    data_noise: str | None = setting(
        None, "Covariance of the data over frames, written as for --noise: preconditions by it.", panel=_CLIPS
    )
    centre: bool = setting(
        False, "Shift the schedule so that logdet(C^-1 Sigma) = 0; needs --data-noise.", panel=_CLIPS
    )
    given_frames: bool = setting(False, "Learn to continue from given frames too.", panel=_CLIPS)
    init: str | None = setting(None, "A run of images that a model of clips starts from.", panel=_CLIPS)
    fingerprint: str | None = setting(None, "Identity of the data.", stored=True)
    fps: float | None = setting(None, "Frame rate of the clips, after --stride.", stored=True, above=0)

    def __post_init__(self) -> None:
        check(self)
        check_ema(self.ema)
        check_trackers(self.track)
        if self.data == "":
            raise UserError("data must be a path or a bundled set, not empty")
        if self.size is not None:  # one form for each size: 64, or "96x64"
            text = extent_text(extent_of(self.size))
            object.__setattr__(self, "size", int(text) if text.isdecimal() else text)

    @classmethod
    def stored(cls, path: Path) -> Settings:
        """The settings that a run stores. Raises UserError if the file is not valid."""
        # a run that is older than --stream has decoded all images at the start
        return read(cls, {"stream": False} | read_file(path), path)

    def validate(self) -> None:
        """Raise UserError for options that do nothing, or do not go together, for this kind of model and data."""
        check_length(self.steps, self.minutes)
        for name, models in _MODELS.items():
            if getattr(self, name) is not None and self.model not in models:
                raise UserError(f"{_option(name)} is for --model {', '.join(models)}, not {self.model}")
        if self.perceptual_weight is not None and self.perceptual is None:
            raise UserError("--perceptual-weight needs --perceptual: random, or a TorchScript file")
        if self.model != DIFFUSION:
            for name in _DIFFUSION_ONLY:
                if getattr(self, name) != field_of(Settings, name).default:
                    raise UserError(f"{_option(name)} is for diffusion models, not --model {self.model}")
            if self.ema == POST_HOC:
                raise UserError(f"--ema {POST_HOC} is for diffusion models, not --model {self.model}")
        if self.net.startswith("dit:") and (self.model != DIFFUSION or self.init is not None):
            raise UserError("--net dit:.. is for diffusion models from scratch, not for autoencoders or --init")
        if self.latent is not None and self.carried:
            raise UserError("--noise warped follows the motion of pixels: leave it out with --latent")
        if self.latent is not None and self.flip:
            raise UserError("--flip does nothing for latents, which are computed once: leave it out")
        self._validate_captions()
        if self.patch is not None and (
            self.net.startswith("dit:") or self.frames is not None or self.latent is not None
        ):
            raise UserError("--patch is for a U-Net of images in pixels: leave it out")
        self._validate_shape()
        if self.frames is None:
            self._validate_images()
        elif self.stream:
            raise UserError("--stream is for images: leave out --frames")
        if self.data_noise is not None and self.predicted != "edm":
            raise UserError("--data-noise preconditions the network, which is --prediction edm: leave out --prediction")
        self._validate_noise()
        if self.centre and self.schedule != "cosine":
            raise UserError(f"--centre shifts the cosine schedule: leave out --schedule {self.schedule}")
        if self.centre and self.data_noise is None:
            raise UserError("--centre needs the covariance of the data: give --data-noise FILE.json of `fit-noise` too")

    @property
    def carried(self) -> bool:
        """Whether the noise is carried by the motion of each clip."""
        return self.noise.partition(":")[0] == "warped"

    def _validate_noise(self) -> None:
        """Options of the noise beside a noise that they do nothing for."""
        for name in ("loss_space", "net_space"):
            if getattr(self, name) == "pixel":
                continue
            value = f"{_option(name)} {getattr(self, name)}"
            if self.noise == "white":
                raise UserError(f"{value} does nothing with white noise: give --noise too, or leave it out")
            if self.carried:
                raise UserError(f"{value} whitens by one R^-1, and warped noise has one of each clip: leave it out")
        if self.flow_by is not None and not self.carried:
            raise UserError("--flow-by finds the motion that noise follows: give --noise warped too, or leave it out")
        if self.carried and self.data_noise is not None:
            raise UserError("--data-noise preconditions by a covariance over frames: leave it out with --noise warped")

    @property
    def extent(self) -> tuple[int, int] | None:
        """(height, width) of --size; None if the data decide."""
        return None if self.size is None else extent_of(self.size)

    def _validate_captions(self) -> None:
        """Captions beside what they do not go with."""
        if self.captions is None:
            if self.text_encoder is not None:
                raise UserError("--text-encoder reads captions: give --captions too, auto for those beside the images")
            return
        if self.init is not None:
            raise UserError("--captions with --init: the model of images takes no text")
        if self.carried:
            raise UserError("--captions with --noise warped: noise is carried for models without text")
        if self.conditional:
            raise UserError("--captions takes the place of classes: leave out --conditional")

    def _validate_shape(self) -> None:
        """Sizes, crops and buckets that do not go together."""
        squares = self.extent is None or self.extent[0] == self.extent[1]
        if not squares and (self.model != DIFFUSION or self.latent is not None):
            raise UserError(f"--size {self.size} is for diffusion on pixels: autoencoders are square, give one side")
        if self.crop == "random":
            for other in ("frames", "latent"):
                if getattr(self, other) is not None:
                    why = "frames are cut" if other == "frames" else "latents are computed"
                    raise UserError(f"--crop random does nothing with --{other}: {why} once, at the start")
            if self.stream is False:
                raise UserError("--crop random cuts images as they are decoded: leave out --no-stream")
        if self.aspect == "buckets":
            self._validate_buckets(squares)

    def _validate_buckets(self, squares: bool) -> None:
        if self.frames is not None:
            raise UserError("--aspect buckets is for images: leave out --frames, or give clips one --size")
        if self.model != DIFFUSION or self.latent is not None:
            raise UserError("--aspect buckets is for diffusion on pixels: autoencoders are square")
        if self.size is None or not squares:
            raise UserError("--aspect buckets needs --size, the side of the square whose area all buckets have")
        if self.crop == "random":
            raise UserError("--crop random has nothing to cut with --aspect buckets: leave one of them out")
        if self.stream:
            raise UserError("--aspect buckets reads the size of every image at the start: leave out --stream")

    def _validate_images(self) -> None:
        for name in ("init", "given_frames", "data_noise", "centre", "stride"):
            if getattr(self, name) != field_of(Settings, name).default:
                raise UserError(f"{_option(name)} is for clips: give --frames too")
        if self.noise != "white" and not self.noise.endswith(".json"):
            raise UserError(f"noise {self.noise!r} is over the frames of clips: give --frames, or leave it out")

    @property
    def predicted(self) -> str:
        """What the network predicts: as given, else what goes with the schedule."""
        by_data = "edm" if self.data_noise is not None else _PREDICTED.get(self.schedule.partition(":")[0], "v")
        return self.prediction or by_data

    def _time_sampling(self) -> str | None:
        """The times that the authors of a schedule draw, with their prediction: steps (DDPM), log-normal (EDM)."""
        if self.objective is not None:
            return None
        name = self.schedule.partition(":")[0]
        if name in ("ddpm", "ddpm-cosine") and self.predicted == "eps":
            return "steps"
        return "log-normal" if name == "edm" and self.predicted == "edm" else None

    def settled(self, side: int, cpu: bool) -> Settings:
        """The settings with what the data and the device decide: batch, optimizer, learning rate, EMA.

        Args:
            side: of the images, in pixels; of rectangles that of a square of their area.
            cpu: whether the training is on a CPU.
        """
        measured = self.model == DIFFUSION and self.frames is None
        optimizer = self.optimizer or ("muon" if measured else "adamw")
        plain = field_of(TrainConfig, "ema").default
        return replace(
            self,
            batch=self._batch(side, cpu) if self.batch is None else self.batch,
            optimizer=optimizer,
            learning_rate=_LEARNING_RATE[optimizer] if self.learning_rate is None else self.learning_rate,
            time_sampling=self.time_sampling or self._time_sampling(),
            ema=(_MUON_EMA if optimizer == "muon" else plain) if self.ema is None else self.ema,
        )

    def _batch(self, side: int, cpu: bool) -> int:
        if self.model != DIFFUSION:
            return _AUTOENCODER_BATCH if side > 32 else _BATCH
        if self.frames is not None:
            return _CLIP_BATCH
        tiny = side <= _TINY or self.latent is not None
        return _CPU_BATCH if cpu and not tiny else _BATCH

    def preset(self, side: int, latent: bool, cpu: bool) -> str:
        """The network and its size, such as "s" or "dit:s", for images or latents of `side` numbers a side."""
        if self.net != "auto":
            return self.net
        small = side <= _TINY if self.model != DIFFUSION else not latent and (side <= _TINY or self.frames is not None)
        return "xs" if small else "s" if cpu else "m"

    def config(self) -> TrainConfig:
        """The trainer's settings; what is not `settled` yet is as for small images on a CPU."""
        known = None not in (self.batch, self.optimizer, self.learning_rate, self.ema)
        return settings_of(TrainConfig, self if known else self.settled(max(self.extent or (0,)), cpu=True))

    def shown(self) -> dict[str, object]:
        """The settings for people: those that were given or settled."""
        return {name: value for name, value in to_json(self).items() if value is not None and value is not False}


@dataclass(frozen=True)
class DistilSettings:
    """The settings of a distillation, stored in the student's run directory as distil.json."""

    to: int = setting(4, "Steps that the student takes, 1 to 10.")
    method: Literal["trajectories", "consistency", "meanflow"] = setting(
        "trajectories",
        "What it learns from: whole trajectories of the teacher, followed beforehand and without data; or the training "
        "images, noised, each with a short step of the teacher and the student's own prediction after it "
        "(consistency), or with the teacher's velocity and the derivative of the student's prediction (meanflow).",
    )
    match: Literal["data", "none"] | None = setting(
        None,
        "With consistency or meanflow: bring the samples as a set near the training images too.",
        by_data="data, for images of pixels and guidance 1",
    )
    guidance: float = setting(1.0, "Scale of the teacher's guidance, which the student has built in.")
    trajectories: int = setting(10_000, "Trajectories of the teacher to learn from, by that method.", minimum=1)
    steps: int | None = again(TrainConfig, "steps", None, by_data=f"{_DISTIL_STEPS} without --minutes")
    minutes: float | None = again(TrainConfig, "minutes", None)
    batch: int = again(TrainConfig, "batch", 128)
    learning_rate: float = again(TrainConfig, "learning_rate", 1e-3)
    precision: str = precision_setting()
    seed: int = again(TrainConfig, "seed", 0)
    checkpoint_every: int = again(TrainConfig, "checkpoint_every", 500)
    teacher: str = setting("", stored=True)

    def __post_init__(self) -> None:
        check(self)
        check_length(self.steps, self.minutes)
        if self.match is not None and self.method == "trajectories":
            raise UserError("--match is of --method consistency and meanflow: leave it out")

    def config(self) -> TrainConfig:
        """The trainer's settings."""
        steps = _DISTIL_STEPS if self.steps is None and self.minutes is None else self.steps
        return settings_of(TrainConfig, self, steps=steps, condition_dropout=0.0)  # some trajectories have no class


def resumed(stored: T, given: Mapping[str, object]) -> T:
    """The stored settings with what a resumption is given; steps replace minutes and the reverse."""
    other = {"steps": "minutes", "minutes": "steps"}
    dropped = {other[name]: None for name in given if name in other and other[name] not in given}
    return replace(stored, **(dropped | dict(given)))  # pyright: ignore[reportArgumentType]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
