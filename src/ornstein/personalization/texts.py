"""The prompts of a personalisation: what is asked of them, and their conditions for the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.pipeline import Pipeline
from ornstein.interop.words import known_words
from ornstein.personalization.settings import PersonalizeSettings

__all__ = ["Texts", "check_words"]


def check_words(d: Denoiser, settings: PersonalizeSettings) -> list[str]:
    """What is doubtful about the placeholder and its prompts, a line each.

    Raises:
        UserError: a base that takes no text; textual inversion without a placeholder in the prompt.
    """
    if not getattr(d, "takes_text", False):
        raise UserError(
            f"{settings.base} takes no text: a prompt cannot name what is new; give a model of text as BASE"
        )
    word, lines = settings.word, []
    if word is None or word not in settings.prompt:
        missing = f"--prompt {settings.prompt!r} does not hold the placeholder {word or 'sks'}"
        if settings.method == "textual-inversion":
            raise UserError(f"{missing}, the word that textual inversion learns")
        lines.append(f"{missing}: the whole prompt will mean what is new, and the class with it")
    known = [] if word is None else known_words(d, word)
    if known:
        lines.append(
            f"the placeholder {word} is a word of the tokenizer of {', '.join(known)} already: what the model knows of "
            "it mixes with what is new; a word that it does not know, such as <new>, starts afresh"
        )
    return lines


class Texts:
    """The conditions of prompts for a base: computed once, or with gradients at every step if text is trained.

    Args:
        d: the base.
        trained: whether the text encoders, or a word of theirs, are trained.
    """

    def __init__(self, d: Denoiser, trained: bool) -> None:
        self.d, self.trained = d, trained
        self._kept: dict[tuple[str | None, tuple[int, ...]], dict[str, Tensor]] = {}

    def of(self, prompts: Sequence[str | None], shape: Sequence[int]) -> dict[str, Tensor]:
        """The conditions of prompts for samples of `shape`, one row each; None is no prompt."""
        if self.trained and torch.is_grad_enabled():
            rows = self._with_gradients(list(prompts), tuple(shape))
        else:
            rows = [self._once(prompt, tuple(shape)) for prompt in prompts]
        return {name: torch.cat(_as_long([row[name] for row in rows])) for name in rows[0]}

    def keep(self, prompts: Sequence[str | None], shape: Sequence[int]) -> None:
        """Compute the conditions of prompts as they are now, and use them from now on where no gradient is needed."""
        for prompt in prompts:
            self._kept[prompt, tuple(shape)] = self._of(prompt, tuple(shape))

    def _once(self, prompt: str | None, shape: tuple[int, ...]) -> dict[str, Tensor]:
        kept = self._kept.get((prompt, shape))
        if kept is None:
            kept = self._of(prompt, shape)
            if not self.trained:
                self._kept[prompt, shape] = kept
        return kept

    def _of(self, prompt: str | None, shape: tuple[int, ...]) -> dict[str, Tensor]:
        model: Any = self._sized(shape)
        cond = model.encode(["a" if prompt is None else prompt])
        negative = cond.pop("negative", None)
        if prompt is not None:
            return cond
        # a model that says nothing of no prompt takes masked text for it
        return negative or {name: torch.zeros_like(value) for name, value in cond.items()}

    def _with_gradients(self, prompts: list[str | None], shape: tuple[int, ...]) -> list[dict[str, Tensor]]:
        texts = list(dict.fromkeys(p for p in prompts if p is not None))
        rows: dict[str | None, dict[str, Tensor]] = {}
        if texts:
            cond = _with_gradients(self._sized(shape), texts)
            rows = {text: {k: v[i : i + 1] for k, v in cond.items()} for i, text in enumerate(texts)}
        if None in prompts:
            rows[None] = self._once(None, shape)
        return [rows[prompt] for prompt in prompts]

    def _sized(self, shape: tuple[int, ...]) -> Any:
        d: Any = self.d
        if not isinstance(d, Pipeline) or tuple(d.data.shape) == shape:  # pyright: ignore[reportOptionalMemberAccess]
            return d
        factor = d.shape[-1] // d.data.shape[-1]  # pyright: ignore
        return d.sized(shape[-2] * factor, shape[-1] * factor)


def _with_gradients(model: Any, texts: list[str]) -> dict[str, Tensor]:
    """The conditions of texts, one row each, with gradients to the text encoder."""
    if isinstance(model, Pipeline):
        return model.encode_trained(texts)
    text, mask = model.encoder.with_gradients(texts, next(model.net.parameters()).device)
    return {"text": text, "text_mask": mask}


def _as_long(rows: list[Tensor]) -> list[Tensor]:
    """Tensors (1, L, ...) with zeros at the end of the shorter ones, which their masks leave out."""
    if rows[0].ndim < 2:
        return rows
    longest = max(row.shape[1] for row in rows)
    return [torch.cat([x, x.new_zeros(1, longest - x.shape[1], *x.shape[2:])], 1) for x in rows]
