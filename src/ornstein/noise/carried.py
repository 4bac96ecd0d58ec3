"""Noise carried by a flow of each sample: of a model that is trained and sampled on motion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.noise.covariance import Covariance, Identity, Operation, SingularCovarianceError
from ornstein.noise.warped import Warped, inflow, moved

__all__ = ["Carried", "carry", "check_flow"]

_CELLS = 2  # a side of a pixel, of the noise of a training


@dataclass(frozen=True, eq=False)
class Carried(Covariance):
    """The noise of a model of clips (B, *, F, H, W), in which sample b has the covariance `Warped(flow[b], degrade)`.

    A model stores it without flows; `along` puts in those of a batch. `ornstein.sample` does so with the condition
    "flow". Whatever mixes frames by R^-1 takes polynomials of C, as `Warped` does.

    Args:
        degrade: the share of white noise mixed in, of every sample; see `Warped`.
        flow: (B, F - 1, 2, H, W), or None.

    Raises:
        ValueError: degrade outside [0, 1); flows that are not finite or of another shape.
    """

    degrade: float = 0.25
    flow: Tensor | Sequence[object] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.degrade < 1:
            raise ValueError(f"degrade is a share of white noise in [0, 1), got {self.degrade}")
        if self.flow is not None:
            flow = torch.as_tensor(self.flow, dtype=torch.float32, device="cpu").detach()
            check_flow(flow)
            object.__setattr__(self, "flow", flow)

    @property
    def needs_flow(self) -> bool:
        """Whether no flow is known: then there is no covariance."""
        return self.flow is None

    def along(self, flow: Tensor) -> Carried:
        """The noise of a batch with these flows (B, F - 1, 2, H, W)."""
        return Carried(self.degrade, flow)

    @property
    def each(self) -> tuple[Warped, ...]:
        """The covariance of each sample.

        Raises:
            ValueError: no flow is known.
        """
        if self.flow is None:
            raise ValueError(
                "noise that is carried by motion needs the flow of each sample: give --flow or --like, or "
                "cond={'flow': (B, F - 1, 2, H, W)}"
            )
        if "_each" not in self.__dict__:
            known: dict[bytes, Warped] = {}  # clips often share a flow, whose pieces are found once
            flows = torch.as_tensor(self.flow)
            rows = [known.setdefault(f.numpy().tobytes(), Warped(f, self.degrade)) for f in flows]
            object.__setattr__(self, "_each", tuple(rows))
        return self.__dict__["_each"]

    def _operate(self, operation: Operation, x: Tensor) -> Tensor:
        rows = self.each
        if len(x) != len(rows):
            raise ValueError(f"{self} has the flows of {len(rows)} samples, got {len(x)}")
        return torch.cat([c._operate(operation, x[i : i + 1]) for i, c in enumerate(rows)])

    def logdet(self, sample_shape: Sequence[int]) -> float:
        if len({id(c) for c in self.each}) != 1:
            raise ValueError(f"{self} has no one determinant: its samples have different flows")
        return self.each[0].logdet(sample_shape)

    def dense(self) -> Tensor:
        """The matrix over (F, H, W) flattened, of each sample: (B, F H W, F H W) float64."""
        return torch.stack([c.dense() for c in self.each])

    def floored(self, g: float) -> Covariance:
        if self.degrade == 0 and self.flow is not None and not len(self.each):
            raise SingularCovarianceError(self)
        floored = Warped(torch.zeros(0, 2, 1, 1), self.degrade).floored(g)
        return floored if isinstance(floored, Identity) else Carried(floored.degrade, self.flow)  # pyright: ignore[reportAttributeAccessIssue]

    def __repr__(self) -> str:
        flows = "no flow" if self.flow is None else f"{len(self.each)} flows"
        return f"Carried(degrade={self.degrade:g}, {flows})"


def check_flow(flow: Tensor) -> None:
    """Raise ValueError unless `flow` is one of clips, (B, F - 1, 2, H, W), and finite."""
    if flow.ndim != 5 or flow.shape[2] != 2 or 0 in flow.shape[3:]:
        raise ValueError(f"flows are (B, F - 1, 2, H, W), (dx, dy) in pixels; got shape {tuple(flow.shape)}")
    if not bool(flow.isfinite().all()):
        raise ValueError("the flow has values that are not finite")


def carry(
    flow: Tensor, channels: int, white: Callable[[int, int], Tensor], degrade: float = 0.0, cells: int = _CELLS
) -> Tensor:
    """Noise of a batch of clips, carried by their flows (E40): (B, C, F, H, W), from fresh white noise.

    The law is that of `Warped(flow[b])` on cells of this size. No matrix is made: every cell keeps its number and adds
    it to the pixel that it is in. A training takes it, which meets a clip a few times only.

    Args:
        flow: (B, F - 1, 2, H, W).
        channels: C, which have noise of their own.
        white: (rows, columns) -> that many numbers of N(0, 1), for the cells a row each and the channels a column.
        degrade: the share of white noise, as of `Warped`.
        cells: a pixel has cells x cells of them.

    Raises:
        ValueError: a flow of another shape or that is not finite.
    """
    check_flow(flow)
    batch, between, _, height, width = flow.shape
    pixels = batch * height * width
    numbers = torch.zeros(0, channels)
    frames: list[Tensor] = []
    for sample, pixel, fresh in moved(flow, cells, inflow(flow.flatten(0, 1))):
        numbers = torch.cat([numbers.to(flow.device), white(fresh, channels).to(flow.device)])
        inside = pixel >= 0
        row = sample[inside] * (height * width) + pixel[inside]
        total = numbers.new_zeros(pixels, channels).index_add_(0, row, numbers[inside])
        count = torch.bincount(row, minlength=pixels).to(numbers)
        frames.append(total / count.sqrt()[:, None])
    z = torch.stack(frames).reshape(between + 1, batch, height, width, channels).permute(1, 4, 0, 2, 3)
    if degrade == 0:
        return z
    own = white(z.numel(), 1).to(z).reshape(z.shape)
    return ((1 - degrade) * z + degrade * own) / math.hypot(1 - degrade, degrade)
