"""What a personalisation learns: the numbers of a LoRA, of a whole network, or of a new word, on their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.lora import parts_of
from ornstein.interop.words import add_word, words_on
from ornstein.nets.lora import Lora, LoraLayer, adapted, base_hash, trainable
from ornstein.nets.switch import Switch
from ornstein.personalization.settings import TARGETS, TEXT_TARGETS, PersonalizeSettings
from ornstein.randomness import generator
from ornstein.text.prompting import check_ungated

__all__ = ["Learned", "begin", "lora_of", "switch_of"]

_SEPARATOR = "/"  # names of parameters hold no dots


class Learned(nn.Module):
    """The parameters that are trained, and no others: those of the base itself, which computes with them.

    The trainer averages and stores this alone: its copies hold copies of the numbers, and `shown` computes with them.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.numbers = nn.ParameterDict({k.replace(".", _SEPARATOR): p for k, p in parameters.items()})

    def named(self) -> dict[str, Tensor]:
        """The numbers by name."""
        return {name.replace(_SEPARATOR, "."): value.detach() for name, value in self.numbers.items()}

    @contextmanager
    def shown(self, other: Learned) -> Iterator[None]:
        """Within it the base computes with the numbers of a copy; afterwards with its own, bit for bit."""
        before = {name: value.clone() for name, value in self.named().items()}
        self.take(other.named())
        try:
            yield
        finally:
            self.take(before)

    @torch.no_grad()
    def take(self, numbers: Mapping[str, Tensor]) -> None:
        """Put these numbers in the place of its own."""
        for name, value in self.named().items():
            value.copy_(numbers[name])


def begin(d: Denoiser, settings: PersonalizeSettings) -> Learned:
    """Put what is to be learned on a base, and freeze all else.

    Raises:
        UserError: a base that takes no text, or layers that it does not have; a rank above the size of a layer; a base
            with a gate.
    """
    check_ungated(d)
    for parameter in d.parameters():
        parameter.requires_grad_(False)
    parts = parts_of(d)
    main = next(iter(parts))
    if settings.train_text and len(parts) == 1:
        raise UserError(f"{settings.base} has no text encoder of its own that could be trained: leave out --train-text")
    chosen = parts if settings.train_text else nn.ModuleDict({main: parts[main]})
    if settings.method == "textual-inversion":
        assert settings.word is not None
        initial = settings.initial or (settings.of_class.split() or ["a"])[-1]
        add_word(d, settings.word, initial=initial, count=settings.vectors)
        return Learned({f"{encoder}.{settings.word}": words.rows for encoder, words in words_on(d).items()})
    if settings.method == "dreambooth":
        return Learned({name: p.requires_grad_(True) for name, p in chosen.named_parameters()})
    layers = trainable(
        chosen,
        settings.targets or (*TARGETS, *TEXT_TARGETS),
        settings.rank,
        settings.alpha,
        generator(settings.seed, "lora"),
        settings.dora,
    )
    named = {name: dict(layer.named_parameters()) for name, layer in layers.items()}
    return Learned({f"{name}.{key}": p for name, own in named.items() for key, p in own.items()})


def lora_of(learned: Learned, d: Denoiser, alpha: float, facts: Mapping[str, str]) -> Lora:
    """The LoRA whose numbers `learned` holds, of its base."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, value in learned.named().items():
        layer, _, key = name.rpartition(".")
        grouped.setdefault(layer, {})[key] = value.cpu().clone()
    layers = {name: LoraLayer(g["down"], g["up"], alpha, g.get("magnitude")) for name, g in grouped.items()}
    return Lora(layers, base_hash(parts_of(d), layers), facts)


def switch_of(d: Denoiser, learned: Learned, settings: PersonalizeSettings) -> Switch:
    """What switches off all that is learned, made before the first step: the base is behind it."""
    if settings.method == "lora":
        return Switch(adapted(parts_of(d)).values())
    if settings.method == "dreambooth":
        return Switch(parameters=learned.numbers.values())
    return Switch()
