"""What conditions a network: log-SNR, class and text, as an embedding and as tokens."""

from __future__ import annotations

import math
import weakref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FREQUENCIES", "LOG_SNR_RANGE", "TEXT", "Context", "Embedding", "TextTokens", "check_log_snr", "check_text"]

LOG_SNR_RANGE = (-20.0, 20.0)
"""Log-SNR is clamped to this: beyond it the data, or the noise, is below the resolution of float32."""

FREQUENCIES = 16
"""Fourier features of the log-SNR: so many cosines and sines."""

Context = tuple[Tensor, Tensor]
"""Tokens (B, N, width) that attention reads, and a bias (B, 1, 1, N) of its scores: 0, or -inf for no token."""


TEXT = ("text", "text_mask")
"""The conditions that a network takes if it was made with a `text_width`."""


class Embedding(nn.Module):
    """Log-SNR (B,) and class (B,) -> the vector (B, width) that modulates every block."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        # Periods from 125 (the whole clamped range and more) to 1.25 in log-SNR: finer detail in the noise level than
        # that is not in the optimal denoiser, and would only let the network memorise it.
        # On the CPU: logspace on the "meta" device, where a network is built to be counted, imports sympy for a second.
        frequencies = torch.logspace(math.log10(0.05), math.log10(5.0), FREQUENCIES, device="cpu")
        frequencies = frequencies.to(torch.get_default_device())
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first = nn.Linear(2 * FREQUENCIES, width)
        self.second = nn.Linear(width, width)
        self.classes = classes
        self.label = nn.Embedding(classes + 1, width) if classes else None  # the last row: no class
        self._checked: weakref.ref[Tensor] | None = None  # the labels that were checked last

    def forward(self, log_snr: Tensor, label: Tensor | None, more: Tensor | None = None) -> Tensor:
        """`more` (B, width) is added: what the embedding says of other conditions."""
        angle = log_snr.float().clamp(*LOG_SNR_RANGE)[:, None] * self.frequencies
        features = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.first.weight.dtype)
        out = self.second(F.silu(self.first(features)))
        if self.label is not None:
            if label is None:
                label = log_snr.new_full(log_snr.shape, -1, dtype=torch.long)
            label = label.to(log_snr.device, non_blocking=True)
            out = out + self.label(torch.where(label < 0, self.classes, label))
        return F.silu(out if more is None else out + more)

    def check(self, label: Tensor | None, batch: int) -> None:
        """Raise ValueError for labels of a network without classes, of another shape or type, or out of range."""
        if label is None:
            return
        if not self.classes:
            raise ValueError("a label was given, but this net is unconditional (classes=0): leave label out")
        if label.shape != (batch,) or label.dtype != torch.long:
            raise ValueError(f"label is {label.dtype} {tuple(label.shape)}; it must be int64 ({batch},)")
        if label.device.type != "cpu":
            # To read a value is to wait for the device. A sampler gives the same tensor at every step, which is read
            # once; a training has checked its labels on the CPU.
            if self.training or (self._checked is not None and self._checked() is label):
                return
            self._checked = weakref.ref(label)
        low, high = torch.stack(label.aminmax()).tolist() if batch else (0, 0)
        if low < -1 or high >= self.classes:
            self._checked = None
            wrong = low if low < -1 else high
            raise ValueError(f"label {wrong} is out of range: 0..{self.classes - 1}, or -1 for no class")


class TextTokens(nn.Module):
    """Token states of a text as tokens for attention, and their mean for the embedding.

    A learned token that is always there stands for no text: a text that is left out, or masked out, is that token
    alone. A masked token has no influence, whatever it holds.

    Args:
        text_width: D of the token states.
        width: of the tokens that attention reads.
        embedding: width of the embedding.
    """

    def __init__(self, text_width: int, width: int, embedding: int) -> None:
        super().__init__()
        self.text_width = text_width
        self.null = nn.Parameter(torch.randn(width) * width**-0.5)
        self.norm = nn.LayerNorm(text_width)
        self.project = nn.Linear(text_width, width)
        self.pooled = nn.Linear(text_width, embedding, bias=False)

    def forward(self, text: Tensor | None, mask: Tensor | None, batch: int) -> tuple[Context, Tensor | None]:
        """((tokens (B, 1 + L, width), bias (B, 1, 1, 1 + L)), pooled (B, embedding) or None without text)."""
        dtype, device = self.project.weight.dtype, self.project.weight.device
        null = self.null.expand(batch, 1, -1)
        if text is None:
            return (null, torch.zeros(batch, 1, 1, 1, dtype=dtype, device=device)), None
        text = text.to(device, dtype, non_blocking=True)
        there = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask.to(device, non_blocking=True)
        states = self.norm(torch.where(there[..., None], text, 0.0))  # where: a masked state may hold anything
        bias = torch.where(there, 0.0, -math.inf).to(dtype)
        bias = torch.cat([bias.new_zeros(batch, 1), bias], 1)[:, None, None]
        weight = there.to(states.dtype)[..., None]
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        return (torch.cat([null.to(states.dtype), self.project(states)], 1), bias), self.pooled(mean)


def check_text(tokens: TextTokens | None, text: Tensor | None, mask: Tensor | None, batch: int) -> None:
    """Raise ValueError for a text of a network without text, of another shape, or with a mask that does not fit."""
    if text is None:
        if mask is not None:
            raise ValueError("text_mask was given without text: leave it out")
        return
    if tokens is None:
        raise ValueError("text was given, but this net takes no text (text_width=0): leave it out")
    if text.ndim != 3 or len(text) != batch or text.shape[2] != tokens.text_width:
        raise ValueError(f"text is {tuple(text.shape)}; it must be ({batch}, L, {tokens.text_width}), states of tokens")
    if mask is not None and (mask.shape != text.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"text_mask is {mask.dtype} {tuple(mask.shape)}; it must be bool {tuple(text.shape[:2])}")


def check_log_snr(log_snr: Tensor, batch: int) -> None:
    """Raise ValueError unless there is one log-SNR a sample."""
    if log_snr.shape != (batch,):
        raise ValueError(f"log_snr is {tuple(log_snr.shape)}; it must be ({batch},), one per sample")
