"""What takes a step: AdamW, and Muon for the matrices of a network with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ornstein.training.config import TrainConfig

_LEAST_SIDE = 16  # a weight with fewer inputs or outputs is vectors, with no spectrum worth levelling
_MOMENTUM = 0.95


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the configuration over all parameters of a model."""
    return adamw(model, config) if config.optimizer == "adamw" else Muon(model, config)


def adamw(model: nn.Module, config: TrainConfig, but: frozenset[Tensor] = frozenset()) -> torch.optim.AdamW:
    """AdamW on the parameters of a model `but` those, with decay on what has more than one axis."""
    parameters = [p for p in model.parameters() if p not in but]
    decayed = [p for p in parameters if p.ndim > 1]
    kept = [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, on matrices and convolutions; AdamW on everything else.

    A convolution (O, I, h, w) is the matrix (O, I h w). A step's root mean square is 0.2 times the learning rate, about
    that of AdamW's, so that one learning rate serves both. Biases, norms, tables of embeddings, and weights with
    fewer than 16 inputs or outputs (a first or last layer on pixels) are AdamW's.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv:2502.16982), section 2.2, the size of its steps.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
        self.matrices = [
            p for p in model.parameters() if p.ndim > 1 and min(p.shape[:2]) >= _LEAST_SIDE and p not in tables
        ]
        self.rest = adamw(model, config, frozenset(self.matrices))
        super().__init__(list(model.parameters()), {"lr": config.learning_rate})
        self.views = [nn.Parameter(_as_matrix(p.data, p)) for p in self.matrices]
        self.muon = torch.optim.Muon(
            self.views,
            lr=config.learning_rate,
            momentum=_MOMENTUM,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ) if self.views else None  # fmt: skip
        # one state for all: what is saved and put back is keyed by the model's own parameters
        self.rest.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step by the gradients that are there, at the learning rate of the first group."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        rate = self.param_groups[0]["lr"]
        for group in (*self.rest.param_groups, *(self.muon.param_groups if self.muon else ())):
            group["lr"] = rate
        self.rest.step()
        if self.muon is not None:
            for p, view in zip(self.matrices, self.views, strict=True):
                view.grad = None if p.grad is None else _as_matrix(p.grad, p)
                state: dict[str, Any] = self.state[p]
                if p.grad is not None and "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                if state:
                    self.muon.state[view]["momentum_buffer"] = _as_matrix(state["momentum_buffer"], p)
            self.muon.step()
        return loss


def _as_matrix(x: Tensor, like: Tensor) -> Tensor:
    """x as (O, I h w), in the order in which `like` lies in memory: without a copy where x lies as it does."""
    if like.is_contiguous():
        return x.contiguous().flatten(1)
    form = torch.channels_last if like.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=form).movedim(1, -1).flatten(1)
