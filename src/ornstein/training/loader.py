"""The batches of the next steps, prepared by a thread while a step is computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.data.order import batch_indices
from ornstein.randomness import generator
from ornstein.training.task import Part

__all__ = ["AHEAD", "Batch", "Images", "Loader"]

AHEAD = 3
"""Steps whose batches are prepared in advance: enough to hide one slow batch, and little memory."""

Batch = tuple[Tensor, Tensor | None]


class Images(Protocol):
    """A data set for training: `ornstein.data.ImageSet`, or anything with the same two methods.

    With a third method, `order(batch, step, seed)`, int64 (batch,), it chooses the images of a step itself. With an
    attribute `crop` that is "random", `batch` is given a second tensor, float32 (B, 2) in [0, 1]: where to cut each
    image.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | Sequence[int], /) -> tuple[Tensor, Tensor | None]:
        """Images float32 (B, C, H, W) in [-1, 1] and labels int64 (B,), or None."""
        ...


class Loader:
    """The parts of a step's batch that this process computes, as a function of the step.

    Args:
        images: the data set.
        batch: images of a step, over all processes.
        seed: of their order.
        parts: the rows of the batch that this process computes, one part after the other.
        ahead: steps that a thread prepares in advance; 0 to make each batch when it is requested.
        pinned: keep images in page-locked memory, from which a CUDA device copies while the CPU goes on.
    """

    def __init__(
        self,
        images: Images,
        batch: int,
        seed: int,
        parts: Sequence[Part],
        ahead: int = AHEAD,
        pinned: bool = False,
    ) -> None:
        self.images, self.parts, self.ahead, self.pinned = images, parts, ahead, pinned
        self.waited = 0.0  # seconds in total that the training has waited for data
        order: Callable[..., Tensor] = getattr(images, "order", partial(batch_indices, len(images)))
        self._order, self._seed = partial(order, batch, seed=seed), seed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._coming: deque[tuple[int, Future[list[Batch]]]] = deque()

    def batches(self, step: int) -> list[Batch]:
        """Images and labels of each part."""
        began = time.perf_counter()
        try:
            if not self.ahead:
                return self._make(step)
            while self._coming and self._coming[0][0] != step:
                self._coming.popleft()[1].cancel()
            for ahead in range(step + len(self._coming), step + 1 + self.ahead):
                self._coming.append((ahead, self._thread.submit(self._make, ahead)))
            return self._coming.popleft()[1].result()
        finally:
            self.waited += time.perf_counter() - began

    def rows(self, step: int) -> Tensor:
        """Which images of a step this process computes, int64."""
        order = self._order(step=step)
        return torch.cat([order[part.rows] for part in self.parts])

    def close(self) -> None:
        """End the thread; batches that it has not begun are dropped."""
        self._coming.clear()
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int) -> list[Batch]:
        order = self._order(step=step)
        if getattr(self.images, "crop", None) == "random":  # where each image of the whole batch is cut
            at = torch.rand(len(order), 2, generator=generator(self._seed, "crop", step))
            batch: Any = self.images.batch
            batches = [batch(order[part.rows], at[part.rows]) for part in self.parts]
        else:
            batches = [self.images.batch(order[part.rows]) for part in self.parts]
        return [(x0.pin_memory(), labels) for x0, labels in batches] if self.pinned else batches
