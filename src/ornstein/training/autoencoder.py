"""Training of an autoencoder, with its discriminator where it has one (E27-E30)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders import AutoencoderLoss, checkpoint, drawn
from ornstein.training.task import Task


class Autoencoding(Task[AutoencoderLoss]):
    """Training of the autoencoder that a loss holds; it alone is saved as the model."""

    def __init__(self, criterion: AutoencoderLoss) -> None:
        super().__init__(criterion, criterion.networks)

    def loss(
        self, x0: Tensor, labels: Tensor | None, draw: torch.Generator, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model(x0, drawn(draw), progress)

    def config(self) -> dict[str, Any]:
        return checkpoint.to_config(self.model.model, {"loss": self.model.config})

    def save(self, model: AutoencoderLoss, out: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(model.model, out, {"loss": model.config} | extra)
