"""Training on captions: what the text encoder reads of each picture's captions, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.data import BucketSet, ImageSet, StreamedSet
from ornstein.data.captions import Captions, read_captions
from ornstein.data.clips import Clips, ClipSet
from ornstein.data.rows import RowFile
from ornstein.errors import UserError
from ornstein.progress import warn
from ornstein.text import BPE, FrozenEncoder, TextEncoder, open_encoder
from ornstein.text.bpe import clip_merges, learned_merges
from ornstein.training.shared_rows import fill, find_cache, keep_cache

__all__ = ["CaptionTable", "Captioned", "captions_of", "encoder_of", "tabled"]

_FOLDER, _FILE = "captions", "states.npy"
_BATCH = 64


class Captioned:
    """A data set whose labels are the numbers of its rows, by which a `CaptionTable` finds the captions."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> Any:
        if name == "images":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.images, name)

    def batch(self, indices: Tensor | Sequence[int], /, *crop: Tensor) -> tuple[Tensor, Tensor]:
        """Images as those of the set, and the numbers of their rows, int64 (B,)."""
        return self.images.batch(indices, *crop)[0], torch.as_tensor(indices, dtype=torch.int64)


class _Rows(Protocol):
    """What an encoder reads of caption i: conditions of captions by number, -1 for none."""

    def __call__(self, captions: Tensor, /) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class CaptionTable:
    """The captions of each picture as conditions.

    first: int64 (N + 1,), where the captions of a picture begin in `which`. which: numbers of captions, -1 for an empty
    one. read: their conditions. digest: of all captions.
    """

    first: Tensor
    which: Tensor
    read: _Rows
    digest: str

    def conditions(self, rows: Tensor, chosen: Tensor, dropped: Tensor) -> dict[str, Tensor]:
        """The conditions of pictures.

        Args:
            rows: numbers of the pictures (B,).
            chosen: (B,) in [0, 1), which of the captions of each.
            dropped: (B,) bool, pictures that are trained without their caption.
        """
        count = self.first[rows + 1] - self.first[rows]
        at = self.first[rows] + (chosen * count).long().clamp(max=count - 1).clamp(min=0)
        there = (count > 0) & ~dropped
        return self.read(torch.where(there, self.which[at.clamp(max=len(self.which) - 1)], -1))


def captions_of(settings: Any, images: ImageSet | StreamedSet | BucketSet | Clips) -> Captions:
    """The captions of the images of a run; of clips those of their videos. Raises UserError if there are none."""
    if isinstance(images, StreamedSet):
        names = [images.files.name(int(i)) for i in images.rows]
    elif isinstance(images, ClipSet):
        names = [images.names[i] for i in images.videos.tolist()]
    elif isinstance(images, ImageSet | BucketSet):
        names = images.names
    else:
        raise UserError(f"no captions in {settings.data}: its clips are generated; give a folder of videos")
    return read_captions(settings.data, names, settings.captions)


def encoder_of(settings: Any, captions: Captions) -> TextEncoder | FrozenEncoder:
    """The text encoder of the settings, over the words of the captions if it is one's own."""
    if settings.text_encoder not in (None, TextEncoder.kind):
        return open_encoder(settings.text_encoder)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(settings.seed)
        merges = clip_merges()
        if merges is None:
            warn("open_clip_torch has CLIP's division of words and is not installed: one is learned from the captions")
            merges = learned_merges(text for texts in captions.texts for text in texts)
        return TextEncoder.over(captions.different, BPE(merges))


def tabled(
    captions: Captions,
    encoder: TextEncoder | FrozenEncoder,
    out: Path,
    device: torch.device,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> tuple[CaptionTable, str]:
    """The table of captions for an encoder, and a line about their length.

    The states of a frozen encoder are cached in `out`/captions, and computed again if captions or encoder have changed.
    """
    texts = captions.different
    number = {text: i for i, text in enumerate(texts)}
    which = [number.get(text, -1) for each in captions.texts for text in each]
    counts = torch.tensor([0, *(len(each) for each in captions.texts)])
    digest = hashlib.sha256(repr(captions.texts).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    if isinstance(encoder, TextEncoder):
        tokens, cut = encoder.tokenized(texts)
        lengths, limit = (tokens >= 0).sum(1).tolist(), encoder.length
        read: _Rows = _Tokens(torch.cat([tokens, tokens.new_full((1, tokens.shape[1]), -1)]))
        count = len(cut)
        about = f"vocabulary of {len(encoder.bpe):,} tokens, "
    else:
        lengths, limit = encoder.count(texts), encoder.length
        count = sum(length > limit for length in lengths)
        lengths = [min(length, limit) for length in lengths]
        read, about = _States(_encoded(texts, lengths, encoder, out, device, progress), lengths), ""
    line = f"{len(texts):,} different captions, {about}{max(lengths)} tokens at most"
    line += f", {count:,} cut to the {limit} that are read" if count else ""
    return CaptionTable(counts.cumsum(0), torch.tensor(which or [-1]), read, digest), line


class _Tokens:
    """Tokens of the captions (K + 1, L), the last row none."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __call__(self, captions: Tensor, /) -> dict[str, Tensor]:
        tokens = self.tokens[captions]
        return {"tokens": tokens[:, : max(1, int((tokens >= 0).sum(1).max()))]}


class _States:
    """States of the captions in a file (K, L, D), of which caption i has lengths[i]."""

    def __init__(self, file: RowFile, lengths: Sequence[int]) -> None:
        self.file, self.lengths = file, torch.tensor([*lengths, 0])

    def __call__(self, captions: Tensor, /) -> dict[str, Tensor]:
        lengths = self.lengths[captions]
        longest = max(1, int(lengths.max()))
        text = torch.from_numpy(self.file.read(captions.clamp(min=0).numpy()))[:, :longest]
        return {"text": text, "text_mask": torch.arange(longest) < lengths[:, None]}


def _encoded(
    texts: Sequence[str],
    lengths: Sequence[int],
    encoder: FrozenEncoder,
    out: Path,
    device: torch.device,
    progress: Callable[[int, int], object],
) -> RowFile:
    file = out / _FOLDER / _FILE
    digest = hashlib.sha256("\n".join(texts).encode("utf-8", "backslashreplace")).hexdigest()
    key = {"encoder": encoder.fingerprint, "captions": digest}
    _, partial = find_cache(file, key)
    if partial is not None:
        longest = max(lengths)

        def encode(rows: range) -> Tensor:
            states, mask = encoder.states([texts[i] for i in rows], device)
            states = torch.where(mask[..., None], states, 0.0)
            return torch.nn.functional.pad(states, (0, 0, 0, longest - states.shape[1]))

        fill(partial, (len(texts), longest, encoder.width), _BATCH, encode, done=lambda n: progress(n, len(texts)))
        keep_cache(file, partial, key)
    found = RowFile(file)
    if found.shape != (len(texts), max(lengths), encoder.width):
        raise UserError(f"{file} is not what this run wrote: remove {file.parent} and start again")
    return found
