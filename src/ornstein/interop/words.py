"""New words of text encoders, with embeddings of their own: textual inversion (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.interop.pipeline import Pipeline
from ornstein.store import load_tensors
from ornstein.text import TextDenoiser, TextEncoder
from ornstein.text.words import Words, add_to

__all__ = ["EMBEDS", "OF_RUN", "add_word", "known_words", "merge_words", "read_words", "words_on"]

EMBEDS = "learned_embeds.safetensors"
"""The file of a word for diffusers; that of the second encoder is learned_embeds_2.safetensors."""

OF_RUN = "text_encoder"
"""The name of the text encoder of a run."""


def add_word(
    d: Denoiser, word: str, rows: Mapping[str, Tensor] | None = None, initial: str = "", count: int = 1
) -> None:
    """Give the text encoders of a model a word. Their tables and other words stay as they are.

    Args:
        word: one word of the prompts.
        rows: its embeddings (count, D) by the name of the encoder; None: those of `initial` at the start.
        initial: a known word.
        count: how many tokens the word becomes: itself, word_1, word_2, ...

    Raises:
        UserError: a model that takes no text, or whose prompts cannot hold several tokens for a word; rows of another
            width.
    """
    if not word or any(c.isspace() for c in word):
        raise UserError(f"a placeholder is one word without spaces, not {word!r}")
    count = count if rows is None else max(len(each) for each in rows.values())
    if isinstance(d, TextDenoiser):
        if rows is not None and OF_RUN not in rows:
            raise UserError(f"the embeddings of {word} are of another base: this one has its text encoder in the run")
        d.add_word(word, None if rows is None else rows[OF_RUN], initial, count)
        return
    if not isinstance(d, Pipeline) or not d.takes_text:
        raise UserError("a new word needs a model with a text encoder")
    if count > 1 and not hasattr(d.pipe, "maybe_convert_prompt"):
        raise UserError(f"a {type(d.pipe).__name__} takes one embedding a word: give --vectors 1")
    for name, encoder, tokenizer in d.encoders:
        if rows is not None and name not in rows:
            continue
        add_to(encoder, tokenizer, word, initial, count, None if rows is None else rows[name])
    d.forget_text()


def words_on(d: Denoiser) -> dict[str, Words]:
    """The last word that was added to each text encoder, by the encoder's name."""
    if isinstance(d, TextDenoiser):
        return {} if d.encoder.new is None else {OF_RUN: d.encoder.new}
    encoders = d.encoders if isinstance(d, Pipeline) else []
    tables = {name: encoder.get_input_embeddings() for name, encoder, _ in encoders}
    return {name: table for name, table in tables.items() if isinstance(table, Words)}


def merge_words(d: Denoiser) -> None:
    """Write the words on a model into the tables of its text encoders, which grow by them."""
    if isinstance(d, TextDenoiser):
        if isinstance(d.encoder, TextEncoder):  # a frozen one keeps its table
            d.encoder.merge_word()
        return
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
