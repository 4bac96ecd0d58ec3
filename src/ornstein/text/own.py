"""A small transformer over the tokens of a text, trained along with the network that it conditions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.nets.recorded import Recorded
from ornstein.text.bpe import BPE

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
    """

    kind = "own"

    def __init__(
        self, merges: Sequence[str], width: int = 128, layers: int = 2, heads: int = 4, length: int = LENGTH
    ) -> None:
        super().__init__()
        pairs = [merge.split() for merge in merges]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError("a merge is two symbols with a space between")
        self.bpe = BPE([(left, right) for left, right in pairs])
        self.width, self.length = width, length
        self.tokens = nn.Embedding(len(self.bpe), width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.places.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    @classmethod
    def over(cls, texts: Sequence[str], bpe: BPE, **settings: Any) -> TextEncoder:
        """An encoder whose vocabulary is what the texts use of a byte-pair encoding."""
        return cls([" ".join(pair) for pair in bpe.restricted(texts).merges], **settings)

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Tokens int64 (B, L), -1 where a shorter text has none, all -1 for an empty one; and the texts cut short."""
        rows = [self.bpe.encode(text) for text in texts]
        cut = [text for text, row in zip(texts, rows, strict=True) if len(row) > self.length]
        rows = [row if len(row) <= self.length else [*row[: self.length - 1], self.bpe.end] for row in rows]
        return padded([row if len(row) > 2 else [] for row in rows]), cut

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
            return self(tokens.to(self.tokens.weight.device))

    def to_config(self) -> dict[str, Any]:
        """What `open_encoder` reads, but for the weights."""
        return {"kind": self.kind, **self.config}


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of numbers as one tensor int64 (B, L), L >= 1, with -1 at their ends."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], dtype=torch.long)
