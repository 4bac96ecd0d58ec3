"""Frames of videos as they are decoded: in memory up to a budget, above it in a temporary file."""

import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ornstein.data import images
from ornstein.errors import RunError, UserError

__all__ = ["FrameStore"]


class FrameStore:
    """A growing uint8 array (T, C, H, W): in memory up to the budget, above it in a temporary file."""

    def __init__(self) -> None:
        self.memory = bytearray()
        self.file: IO[bytes] | None = None
        self.bytes = 0
        self.shape: tuple[int, ...] = ()
        self.first = ""

    def __len__(self) -> int:
        return self.bytes // (int(np.prod(self.shape)) or 1)

    def append(self, frame: np.ndarray, name: str) -> None:
        """Add a frame (C, H, W) of the video `name`. Raises UserError if it differs in size from the first."""
        if not self.bytes:
            self.shape, self.first = frame.shape, name
        if frame.shape != self.shape:
            sizes = f"{self.first} gives {self.shape[1]} pixels a side, {name} {frame.shape[1]}"
            raise UserError(f"the videos are not all one size ({sizes}): choose one with --size")
        try:
            if self.file is None and self.bytes + frame.nbytes > images.MEMORY_BUDGET:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  (it goes with the array that maps it)
                self.file.write(self.memory)
                self.memory = bytearray()
            if self.file is None:
                self.memory += frame.tobytes()
            else:
                self.file.write(frame.tobytes())
        except OSError as error:
            raise RunError(
                f"the frames fill {tempfile.gettempdir()} ({error.strerror or error}): choose a smaller --size, a "
                "larger stride, or set TMPDIR to a larger disk"
            ) from error
        self.bytes += frame.nbytes

    def truncate(self, frames: int) -> None:
        self.bytes = frames * int(np.prod(self.shape)) if frames else 0
        if self.file is None:
            del self.memory[self.bytes :]
        else:
            self.file.seek(self.bytes)
            self.file.truncate()

    def finish(self) -> Tensor:
        shape = (len(self), *self.shape)
        if self.file is None:
            return torch.frombuffer(self.memory, dtype=torch.uint8).view(shape)
        self.file.flush()
        with self.file:
            return torch.from_numpy(np.memmap(self.file, dtype=np.uint8, mode="r+", shape=shape))
