"""New words of text encoders, with embeddings of their own: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.pipeline import Pipeline
from ornstein.store import load_tensors

__all__ = ["EMBEDS", "Words", "add_word", "known_words", "merge_words", "read_words", "words_on"]

EMBEDS = "learned_embeds.safetensors"
"""The file of a word for diffusers; that of the second encoder is learned_embeds_2.safetensors."""


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


def add_word(
    d: Denoiser, word: str, rows: Mapping[str, Tensor] | None = None, initial: str = "", count: int = 1
) -> None:
    """Give the text encoders of a pipeline a word. Their tables and other words stay as they are.

    Args:
        word: one word of the prompts.
        rows: its embeddings (count, D) by the name of the encoder; None: those of `initial` at the start.
        initial: a known word.
        count: how many tokens the word becomes: itself, word_1, word_2, ...

    Raises:
        UserError: a model that is no pipeline of text, or whose prompts cannot hold several tokens for a word; rows of
            another width.
    """
    if not isinstance(d, Pipeline) or not d.takes_text:
        raise UserError("a new word needs a pipeline with text encoders")
    if not word or any(c.isspace() for c in word):
        raise UserError(f"a placeholder is one word without spaces, not {word!r}")
    count = count if rows is None else max(len(each) for each in rows.values())
    if count > 1 and not hasattr(d.pipe, "maybe_convert_prompt"):
        raise UserError(f"a {type(d.pipe).__name__} takes one embedding a word: give --vectors 1")
    for name, encoder, tokenizer in d.encoders:
        if rows is not None and name not in rows:
            continue
        names = [word, *(f"{word}_{i}" for i in range(1, count))]
        first = None
        if rows is None:  # before the word is there
            first = tokenizer(initial, add_special_tokens=False).input_ids
        tokenizer.add_tokens(names)
        table = encoder.get_input_embeddings()
        width = table.weight.shape[1]
        if rows is not None:
            own = rows[name].to(table.weight)
        else:
            own = (
                table.weight.detach()[first].mean(0).expand(count, -1).clone()
                if first
                else table.weight.new_zeros(count, width)
            )
        if own.shape != (count, width):
            raise UserError(
                f"the embeddings of {word} are {tuple(own.shape)}, and {name} takes {(count, width)}: of another base"
            )
        encoder.set_input_embeddings(Words(table, tokenizer.convert_tokens_to_ids(names), own))
    d.forget_text()


def words_on(d: Denoiser) -> dict[str, Words]:
    """The last word that was added to each text encoder, by the encoder's name."""
    encoders = d.encoders if isinstance(d, Pipeline) else []
    tables = {name: encoder.get_input_embeddings() for name, encoder, _ in encoders}
    return {name: table for name, table in tables.items() if isinstance(table, Words)}


def merge_words(d: Denoiser) -> None:
    """Write the words on a pipeline into the tables of its text encoders, which grow by them."""
    encoders = {name: encoder for name, encoder, _ in d.encoders} if isinstance(d, Pipeline) else {}
    for name, words in words_on(d).items():
        old = words.weight
        table = nn.Embedding(max(len(old), max(words.tokens) + 1), old.shape[1]).to(old)
        with torch.no_grad():
            table.weight.zero_()
            table.weight[: len(old)] = old
            table.weight[list(words.tokens)] = words.rows.to(old)
        encoders[name].set_input_embeddings(table)
        encoders[name].config.vocab_size = len(table.weight)


def known_words(d: Denoiser, word: str) -> list[str]:
    """The text encoders of a model for which `word` is one token already."""
    if not isinstance(d, Pipeline):
        encoder: Any = getattr(d, "encoder", None)
        if encoder is None:
            return []
        bpe = getattr(encoder, "bpe", None)
        counts = [len(bpe.encode(t)) if bpe else encoder.count([t])[0] for t in (word, "")]
        return ["the run"] if counts[0] - counts[1] == 1 else []
    found = []
    for name, _, tokenizer in d.encoders:
        tokens = tokenizer.tokenize(word)
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token:
            found.append(name)
    return found


def read_words(folder: Path, encoders: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The words in the learned_embeds files of a folder: embeddings (n, D) by word and encoder.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    words: dict[str, dict[str, Tensor]] = {}
    for i, encoder in enumerate(encoders):
        file = folder / (EMBEDS if i == 0 else EMBEDS.replace(".", f"_{i + 1}."))
        if file.is_file():
            for word, rows in load_tensors(file)[0].items():
                words.setdefault(word, {})[encoder] = rows if rows.ndim == 2 else rows[None]
    if not words:
        raise UserError(f"{folder} has no {EMBEDS}")
    return words
