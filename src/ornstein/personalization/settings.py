"""The settings of `ornstein personalize`. It imports no torch: the options of the command come from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import again, check, device_setting, setting, settings_of, size_setting, to_json
from ornstein.training.config import TrainConfig, check_ema, check_length
from ornstein.training.settings import DataSettings
from ornstein.training.tracking import check_trackers

__all__ = ["SETTINGS", "TARGETS", "TEXT_TARGETS", "Personalize", "PersonalizeSettings"]

SETTINGS = "personalize.json"

TARGETS = ("to_k", "to_q", "to_v", "to_out.0", "qkv", "out", "reading.q", "reading.kv")
"""Layers of the network that a LoRA adapts: those of attention, of diffusers and of Ornstein."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2")
"""Layers of the text encoders, with `train_text`."""

_STEPS = 400
_RATE = {"lora": 1e-4, "dreambooth": 5e-6, "textual-inversion": 5e-3}
_PRIOR, _TEXT, _METHOD, _MASKS = "Prior preservation", "Prompts", "Method", "Masks"


@dataclass(frozen=True)
class PersonalizeSettings(TrainConfig):
    """The settings of a personalisation, stored in its run directory as personalize.json."""

    base: str = setting("", "A run that takes text, or the folder of a pipeline.")
    images: str = setting(
        "", "Pictures of the person, thing or style: a folder or an archive.", names=("-i", "--images")
    )
    prompt: str = setting("", 'The prompt of the pictures, "a photo of sks dog".', names=("-p", "--prompt"))
    method: Literal["lora", "dreambooth", "textual-inversion"] = setting(
        "lora", "Train a LoRA, all weights of the network, or the embedding of a new word.", panel=_METHOD
    )
    rank: int = setting(4, "Rank of the LoRA.", minimum=1, panel=_METHOD)
    alpha: float = setting(4.0, "Its strength: the change of a weight is alpha/rank times its factors.", panel=_METHOD)
    dora: bool = setting(False, "Learn the norm of each row of the weights too (DoRA).", panel=_METHOD)
    targets: tuple[str, ...] | None = setting(
        None, "Ends of the names of the layers that are adapted.", by_data=",".join(TARGETS), panel=_METHOD
    )
    train_text: bool = setting(
        False, f"Adapt the text encoders too: {', '.join(TEXT_TARGETS)}; all of them with dreambooth.", panel=_METHOD
    )
    vectors: int = setting(1, "Embeddings of the new word of textual inversion.", minimum=1, panel=_METHOD)
    initial: str | None = setting(
        None, "The word whose embedding the new one starts from.", by_data="the words of the class", panel=_METHOD
    )
    placeholder: str | None = setting(
        None, "The word for what is new.", by_data="sks, or a word in <> of the prompt", panel=_TEXT
    )
    class_prompt: str | None = setting(
        None, "The prompt of the class, which should stay as it is.", by_data="--prompt without the placeholder",
        panel=_TEXT,
    )  # fmt: skip
    captions: str | None = again(
        DataSettings, "captions", None, panel=_TEXT,
        help="Each picture has its own prompts: auto, txt or json beside it, metadata.jsonl or .csv, or a column; "
        "--prompt for those without.",
    )  # fmt: skip
    prior: Literal["none", "gated", "images", "frozen", "distilled"] = setting(
        "none",
        "Keep the class: gated, what is learned acts on prompts with the placeholder alone, and for all others the "
        "model is the base; or by pictures that the base makes of it, by the base's own predictions at your pictures, "
        "or, distilled, by its predictions at the pictures that it makes.",
        panel=_PRIOR,
    )
    prior_weight: float = setting(1.0, "Weight of the loss that keeps the class.", above=0, panel=_PRIOR)
    class_images: int = setting(100, "Pictures of the class, made once and kept.", minimum=1, panel=_PRIOR)
    class_folder: Path | None = setting(
        None, "Folder of the pictures of the class; those that are missing are made.", by_data="OUT/class", panel=_PRIOR
    )
    masks: Path | None = setting(
        None, "Folder of masks, NAME.png of each picture: white counts, black does not.", panel=_MASKS
    )
    outside: float = setting(0.0, "Weight of what is black in the masks.", minimum=0, maximum=1, panel=_MASKS)
    size: int | str | None = size_setting(None, by_data="that of the base")
    crop: Literal["centre", "none"] = setting("centre", "The centre of each picture, or all of it, stretched.")
    aspect: Literal["size", "buckets"] = setting(
        "size", "One size, or buckets: sizes of about the same area, by the aspect ratio of each picture."
    )
    held_out: float | None = setting(
        None, "Share of the pictures that is held out.", by_data="0.2 of 5 or more pictures, else 0", minimum=0, below=1
    )
    held_out_images: Path | None = setting(None, "Other pictures of the same, to hold out in place of a share.")
    patience: int = setting(
        5, "Stop when the held-out loss has not fallen at so many checkpoints, and keep the best; 0 goes on.", minimum=0
    )
    previews: int = setting(4, "Pictures a prompt in previews and report.", minimum=1)
    preview_prompts: tuple[str, ...] = setting((), "More prompts for previews and report.")
    guidance: float = setting(5.0, "Guidance scale of previews, report and pictures of the class.")
    steps: int | None = again(TrainConfig, "steps", None, by_data=f"{_STEPS} without --minutes")
    batch: int = again(
        TrainConfig, "batch", 1, help="Pictures a step, over all processes; as many of the class are added to them."
    )
    learning_rate: float | None = again(  # pyright: ignore[reportIncompatibleVariableOverride]
        TrainConfig, "learning_rate", None, by_data=", ".join(f"{v:g} for {k}" for k, v in _RATE.items())
    )
    time_sampling: str | None = again(
        TrainConfig, "time_sampling", None, by_data="the steps of a chain; logit-normal for straight paths"
    )
    warmup: int = again(TrainConfig, "warmup", 10)
    ema: float | str = again(TrainConfig, "ema", 0.0)
    checkpoint_every: int = again(
        TrainConfig, "checkpoint_every", 50, help="Steps between checkpoints, each with the loss on fixed noise."
    )
    sample_every: int = again(TrainConfig, "sample_every", 100)
    condition_dropout: float = again(
        TrainConfig, "condition_dropout", 0.0, help="Share of pictures that are trained with the empty prompt."
    )

    def __post_init__(self) -> None:
        check(self)
        check_ema(self.ema)
        check_trackers(self.track)
        check_length(self.steps, self.minutes)
        if self.ema == "post-hoc":
            raise UserError("--ema post-hoc is for runs from scratch: give a width, or a decay rate")
        if self.aspect == "buckets" and self.pictured:
            raise UserError(f"--prior {self.prior} has pictures of one size: take --prior frozen with --aspect buckets")

    def validate(self) -> None:
        """Raise UserError for options that are missing, or do nothing with this method."""
        for name in ("base", "images", "prompt"):
            if not getattr(self, name):
                raise UserError(f"give {'BASE' if name == 'base' else '--' + name}")
        plain = PersonalizeSettings()
        of_method = {
            "rank": ("lora",), "alpha": ("lora",), "dora": ("lora",), "targets": ("lora",),
            "train_text": ("lora", "dreambooth"), "vectors": ("textual-inversion",), "initial": ("textual-inversion",),
            "prior": ("lora", "dreambooth"),
        }  # fmt: skip
        for name, methods in of_method.items():
            if getattr(self, name) != getattr(plain, name) and self.method not in methods:
                raise UserError(f"--{name.replace('_', '-')} is for --method {' and '.join(methods)}")
        for name in ("class_images", "class_folder"):
            if getattr(self, name) != getattr(plain, name) and not self.pictured:
                raise UserError(f"--{name.replace('_', '-')} needs --prior images or distilled")
        weighed = self.prior not in ("none", "gated")
        if self.prior_weight != plain.prior_weight and not weighed:
            raise UserError("--prior-weight needs --prior images, frozen or distilled")
        if self.prior == "gated":
            if self.word is None or self.word not in self.prompt:
                raise UserError("--prior gated needs a placeholder in --prompt: the word that opens the gate")
            for name in ("train_text", "condition_dropout"):
                if getattr(self, name):
                    raise UserError(f"--{name.replace('_', '-')} goes through the gate: leave out --prior gated")
        if self.outside and self.masks is None:
            raise UserError("--outside needs --masks")

    @property
    def word(self) -> str | None:
        """The placeholder: as given, else a word in <>, else sks; None if the prompt has none of these."""
        if self.placeholder is not None:
            return self.placeholder
        words = self.prompt.replace(",", " ").split()
        return next((w for w in words if w.startswith("<") and w.endswith(">")), "sks" if "sks" in words else None)

    @property
    def pictured(self) -> bool:
        """Whether the class is kept by pictures of it."""
        return self.prior in ("images", "distilled")

    @property
    def of_class(self) -> str:
        """The prompt of the class."""
        return self.class_of(self.prompt)

    def class_of(self, prompt: str) -> str:
        """The prompt of the class that a prompt of what is new stands for: without the placeholder."""
        if self.class_prompt is not None:
            return self.class_prompt
        return prompt if self.word is None else " ".join(prompt.replace(self.word, " ").split())

    def config(self) -> TrainConfig:
        """The trainer's settings: its batch holds the pictures of the class too."""
        steps = _STEPS if self.steps is None and self.minutes is None else self.steps
        rate = _RATE[self.method] if self.learning_rate is None else self.learning_rate
        batch = 2 * self.batch if self.pictured else self.batch
        return settings_of(
            TrainConfig, self, steps=steps, batch=batch, learning_rate=rate, flip=False, recompute=False
        )  # flipped and recomputed by the task itself

    def shown(self) -> dict[str, object]:
        """The settings for people: those that are not their defaults, and the first three."""
        plain = to_json(PersonalizeSettings())
        return {name: value for name, value in to_json(self).items() if value != plain[name]}


@dataclass(frozen=True)
class Personalize(PersonalizeSettings):
    """Teach a model of text a person, thing or style from a few pictures: a LoRA, DreamBooth or textual inversion.

    The run directory is opened by `ornstein sample RUN --prompt ...`, and its LoRA by diffusers
    (pytorch_lora_weights.safetensors) and by ComfyUI and kohya's scripts (lora_kohya.safetensors).

    Example: ornstein personalize sd-folder --images dog/ --prompt "a photo of sks dog" --out runs/dog
    """

    base: str = setting("", "A run that takes text, or the folder of a pipeline.", argument=True)
    out: Path = setting(Path(), "The run directory to write.", names=("-o", "--out"))
    resume: bool = setting(False, "Continue the run in --out with its stored settings.")
    report: bool = setting(True, "Write a report at the end.")
    device: str = device_setting()
