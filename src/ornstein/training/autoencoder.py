"""Training of an autoencoder, and of its discriminator if it has one (E27-E30)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders import AutoencoderLoss, checkpoint, drawn
from ornstein.autoencoders.vq import Codebook
from ornstein.errors import UserError
from ornstein.processes import Processes
from ornstein.training.task import Task

__all__ = ["Autoencoding"]


class Autoencoding(Task[AutoencoderLoss]):
    """Training of the autoencoder inside a loss; only the autoencoder is saved as the model.

    Computed in parts it is the same training to rounding, except with free bits, which bound the rates of the part and
    not of the batch. A codebook follows the tokens of all processes.
    """

    by_rows = True

    def __init__(self, criterion: AutoencoderLoss) -> None:
        super().__init__(criterion, criterion.networks)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n, rows = self.whole(x0)
        noise = drawn(draw)

        def of_rows(layer: int, shape: tuple[int, ...]) -> Tensor:
            # noise (B, *) of a batch is cut to the rows; the numbers that a codebook draws are the same for all parts
            return noise(layer, (n, *shape[1:]))[rows] if len(shape) > 1 else noise(layer, shape)

        return self.model(x0, of_rows, progress)

    def varying(self, labelled: bool) -> bool:
        return self.model.discriminator is not None

    def share(self, processes: Processes, accumulate: int) -> None:
        for module in self.model.modules():
            if isinstance(module, Codebook):
                if accumulate > 1:
                    raise UserError("a codebook is updated with whole batches: leave out --accumulate for a vq")
                module.gather = processes.gather

    def config(self) -> dict[str, Any]:
        return checkpoint.to_config(self.model.model, {"loss": self.model.config})

    def save(self, model: AutoencoderLoss, out: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(model.model, out, {"loss": model.config} | extra)
