"""Byte-pair encoding as CLIP does it, from the file of merges in the wheel of open_clip_torch."""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from ornstein.errors import UserError

__all__ = ["BPE", "clip_merges", "learned_merges"]

_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # of the file's 262,145, those that CLIP uses
_END = "</w>"
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


def _letters() -> list[str]:
    """A printable letter for each byte, in the order of the vocabulary, with the byte it stands for as its place."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


_LETTERS = _letters()
_LETTER_OF = dict(
    zip([*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173], _LETTERS, strict=True)
)


class BPE:
    """Texts as numbers of tokens.

    A text is lower-cased and divided into words, a word into the letters of its bytes, and the pairs of letters are
    merged in the order of `merges`. The vocabulary is 256 letters, the same at the end of a word, the merges, and the
    marks of start and end. With all merges of the file the numbers are those of CLIP.

    Args:
        merges: pairs of symbols, the most frequent first.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]) -> None:
        self.merges = [(left, right) for left, right in merges]
        symbols = [*_LETTERS, *(letter + _END for letter in _LETTERS), *(left + right for left, right in self.merges)]
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._number = {symbol: i for i, symbol in enumerate(symbols)}
        self.start, self.end = len(symbols), len(symbols) + 1
        self._symbols = lru_cache(2**16)(self._merged)

    def __len__(self) -> int:
        """The number of tokens."""
        return self.end + 1

    @property
    def vocabulary(self) -> dict[str, int]:
        """The number of each token, as transformers' CLIP tokenizer takes it: with names for start and end."""
        return self._number | {"<|startoftext|>": self.start, "<|endoftext|>": self.end}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, from the mark of its start to that of its end; these two alone for an empty one."""
        return [self.start, *(self._number[s] for word in _words(text) for s in self._symbols(word)), self.end]

    def restricted(self, texts: Iterable[str]) -> BPE:
        """The encoding with only those merges that these texts use: they are divided as before, with fewer tokens.

        Any other text can be encoded too: of words that these texts do not have, more pieces are left.
        """
        used = {symbol for word in {w for text in texts for w in _words(text)} for symbol in self._parts(word)}
        return BPE([pair for pair in self.merges if pair[0] + pair[1] in used])

    def _parts(self, word: str) -> set[str]:
        """All symbols that merging a word makes on the way."""
        made: set[str] = set()
        self._merged(word, made)
        return made

    def _merged(self, word: str, made: set[str] | None = None) -> list[str]:
        symbols = [_LETTER_OF[byte] for byte in word.encode("utf-8", "replace")]
        symbols[-1] += _END
        while len(symbols) > 1:
            pair = min(pairwise(symbols), key=lambda each: self._rank.get(each, len(self._rank)))
            if pair not in self._rank:
                break
            symbols = _joined(symbols, pair)
            if made is not None:
                made.add(pair[0] + pair[1])
        return symbols


def _words(text: str) -> list[str]:
    return _WORDS.findall(html.unescape(html.unescape(text)).lower())


def learned_merges(texts: Iterable[str], most: int = 2000) -> list[tuple[str, str]]:
    """Merges that join the words of these texts, the most frequent pair first; of equal ones the first in the alphabet.

    Source: Sennrich et al. 2016 (arXiv:1508.07909), section 3.2.
    """
    words = Counter(word for text in texts for word in _words(text))
    divided = {word: BPE([])._merged(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in divided.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        divided = {word: _joined(symbols, merges[-1]) for word, symbols in divided.items()}
    return merges


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word with each occurrence of a pair joined, from left to right."""
    joined, i = [], 0
    while i < len(symbols):
        both = tuple(symbols[i : i + 2]) == pair
        joined.append(symbols[i] + symbols[i + 1] if both else symbols[i])
        i += 2 if both else 1
    return joined


@lru_cache(1)
def clip_merges() -> tuple[tuple[str, str], ...] | None:
    """CLIP's merges; None where open_clip_torch is not installed.

    Raises:
        UserError: its file is damaged.
    """
    found = importlib.util.find_spec("open_clip")  # it is not imported: that would import torchvision
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).with_name(_FILE)
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; install open_clip_torch again") from None
    pairs = [line.split() for line in lines[1 : _MERGES + 1]]
    return tuple((left, right) for left, right in pairs)
