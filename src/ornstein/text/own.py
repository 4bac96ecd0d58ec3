"""A small transformer over the tokens of a text, trained along with the network that it conditions."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.errors import UserError
from ornstein.nets.recorded import Recorded
from ornstein.text.bpe import BPE
from ornstein.text.words import Words, new_rows, word_pattern

__all__ = ["LENGTH", "TextEncoder", "padded"]

LENGTH = 77
"""Tokens of a text that are read, its start and end included."""


class TextEncoder(Recorded):
    """Tokens (B, L) -> their states (B, L, width), by a transformer without a causal mask.

    Args:
        merges: those of its byte-pair encoding, "left right" each.
        width: D of the states.
        layers: of the transformer.
        heads: of its attention.
        length: tokens of a text that are read; longer texts are cut.
        words: how many tokens each word has that was learned later, by textual inversion.
    """

    kind = "own"

    def __init__(
        self,
        merges: Sequence[str],
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        length: int = LENGTH,
        words: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        pairs = [merge.split() for merge in merges]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError("a merge is two symbols with a space between")
        self.bpe = BPE([(left, right) for left, right in pairs])
        self.width, self.length = width, length
        self.words = dict(words or {})
        self.tokens: nn.Module = nn.Embedding(len(self.bpe) + sum(self.words.values()), width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self._table, std=0.5)
        nn.init.normal_(self.places.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    @classmethod
    def over(cls, texts: Sequence[str], bpe: BPE, **settings: Any) -> TextEncoder:
        """An encoder whose vocabulary is what the texts use of a byte-pair encoding."""
        return cls([" ".join(pair) for pair in bpe.restricted(texts).merges], **settings)

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Tokens int64 (B, L), -1 where a shorter text has none, all -1 for an empty one; and the texts cut short."""
        rows = [self._numbers(text) for text in texts]
        cut = [text for text, row in zip(texts, rows, strict=True) if len(row) > self.length]
        rows = [row if len(row) <= self.length else [*row[: self.length - 1], self.bpe.end] for row in rows]
        return padded([row if len(row) > 2 else [] for row in rows]), cut

    def _numbers(self, text: str) -> list[int]:
        """The tokens of a text: of learned words those that they have, after the vocabulary; else of the encoding."""
        row, at = [self.bpe.start], 0
        pattern = re.compile("|".join(word_pattern(word).pattern for word in self.words) or "(?!)", re.IGNORECASE)
        for found in pattern.finditer(text):
            row += self.bpe.encode(text[at : found.start()])[1:-1]
            row += self._own[found.group().lower()]
            at = found.end()
        return [*row, *self.bpe.encode(text[at:])[1:]]

    @property
    def _own(self) -> dict[str, range]:
        """The tokens of each learned word."""
        starts = itertools.accumulate(self.words.values(), initial=len(self.bpe))
        return {
            word.lower(): range(start, start + count)
            for (word, count), start in zip(self.words.items(), starts, strict=False)
        }

    @property
    def _table(self) -> Tensor:
        """The embeddings of the tokens, without a new word."""
        return self.tokens.weight  # pyright: ignore[reportReturnType]

    @property
    def new(self) -> Words | None:
        """The word that was added last, if it is not a part of the table yet."""
        return self.tokens if isinstance(self.tokens, Words) else None

    def add_word(self, word: str, given: Tensor | None, initial: str, count: int) -> None:
        """Add a word of `count` tokens, with embeddings as given or the mean of those of `initial`.

        Raises:
            UserError: it has the word already, or the embeddings are of another width.
        """
        self.merge_word()
        if word.lower() in self._own:
            raise UserError(f"the base has learned the word {word} already: choose another placeholder")
        table = self._table
        rows = new_rows(table, self.bpe.encode(initial)[1:-1], count, given, word)
        self.tokens = Words(self.tokens, range(len(table), len(table) + count), rows)
        self.words[word] = count
        self.config["words"] = dict(self.words)

    def merge_word(self) -> None:
        """Write a new word into the table, which grows by it."""
        words = self.new
        if words is not None:
            self.tokens = nn.Embedding.from_pretrained(torch.cat([words.weight, words.rows]).detach())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, L, width) and which of them there are, (B, L) bool, of tokens (B, L) with -1 for none."""
        there = tokens >= 0
        h = self.tokens(tokens.clamp(min=0)) + self.places.weight[: tokens.shape[1]]
        empty = ~there.any(1, keepdim=True)  # softmax over nothing is not a number; these states are masked anyway
        return self.layers(h, src_key_padding_mask=~(there | empty)), there

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States and mask of texts, as `forward`. Warns of texts that are cut."""
        tokens, cut = self.tokenized(texts)
        for text in cut:
            warnings.warn(f"a prompt is cut to {self.length} tokens: {text[:40]!r}...", UserWarning, stacklevel=3)
        with torch.no_grad():
            return self(tokens.to(self._table.device))

    def with_gradients(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """As `encode`, for an encoder that is being trained."""
        return self(self.tokenized(texts)[0].to(device))

    def to_config(self) -> dict[str, Any]:
        """What `open_encoder` reads, but for the weights."""
        config = {name: value for name, value in self.config.items() if value or name != "words"}
        return {"kind": self.kind, **config}


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of numbers as one tensor int64 (B, L), L >= 1, with -1 at their ends."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], dtype=torch.long)
