"""A new word of a text encoder: rows of an embedding table of its own, and its place in texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import UserError

__all__ = ["Words", "add_to", "names_of", "new_rows", "word_pattern"]


def word_pattern(word: str) -> re.Pattern[str]:
    """What finds `word` in a text as a word of its own, in any case."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


class Words(nn.Module):
    """An embedding table in which some tokens have rows of their own, `rows` (n, D); the table stays as it is."""

    def __init__(self, table: nn.Module, tokens: Sequence[int], rows: Tensor) -> None:
        super().__init__()
        self.table, self.tokens = table, tuple(tokens)
        self.rows = nn.Parameter(rows)

    @property
    def weight(self) -> Tensor:
        """The table without the rows; some encoders ask for its dtype."""
        return self.table.weight  # pyright: ignore[reportReturnType]

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.full_like(ids, -1)
        for i, token in enumerate(self.tokens):
            place = place.masked_fill(ids == token, i)
        known = self.table(ids.masked_fill(place >= 0, 0))
        new = F.embedding(place.clamp(min=0), self.rows).to(known.dtype)
        return torch.where((place >= 0)[..., None], new, known)


def names_of(word: str, count: int) -> list[str]:
    """The tokens of a word: itself, word_1, word_2, ..."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def new_rows(table: Tensor, first: Sequence[int], count: int, given: Tensor | None, word: str) -> Tensor:
    """The embeddings (count, D) that a word starts from: as given, else the mean of those of tokens `first`, else zero.

    Raises:
        UserError: given ones of another width.
    """
    if given is None:
        mean = table.detach()[list(first)].mean(0) if first else table.new_zeros(table.shape[1])
        return mean.expand(count, -1).clone()
    if given.shape != (count, table.shape[1]):
        raise UserError(
            f"the embeddings of {word} are {tuple(given.shape)}, and this model takes {(count, table.shape[1])}: of "
            "another base"
        )
    return given.to(table)


def add_to(encoder: Any, tokenizer: Any, word: str, initial: str, count: int, given: Tensor | None) -> Words:
    """Give a text model of transformers and its tokenizer a word of `count` tokens; the rest of its table stays."""
    first = tokenizer(initial, add_special_tokens=False).input_ids if given is None else []  # before the word is there
    tokenizer.add_tokens(names_of(word, count))
    table = encoder.get_input_embeddings()
    rows = new_rows(table.weight, first, count, given, word)
    words = Words(table, tokenizer.convert_tokens_to_ids(names_of(word, count)), rows)
    encoder.set_input_embeddings(words)
    return words
