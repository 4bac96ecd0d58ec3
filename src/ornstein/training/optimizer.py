"""The optimizers: AdamW, and Muon for the matrices of a network with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ornstein.devices import choose_precision
from ornstein.training.config import TrainConfig

__all__ = ["Muon", "adamw", "optimizer_of", "orthogonal"]

_LEAST_SIDE = 16  # a weight with fewer inputs or outputs has no spectrum worth equalising
_MOMENTUM = 0.95
_FUSED = ("cpu", "cuda", "mps", "xpu")  # devices with a fused AdamW step


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the configuration over all parameters of a model."""
    return adamw(model, config) if config.optimizer == "adamw" else Muon(model, config)


def adamw(model: nn.Module, config: TrainConfig, but: frozenset[Tensor] = frozenset()) -> torch.optim.AdamW:
    """AdamW on the parameters of a model except `but`, with weight decay on those of more than one axis."""
    parameters = [p for p in model.parameters() if p not in but]
    decayed = [p for p in parameters if p.ndim > 1]
    kept = [p for p in parameters if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=config.betas,
        fused=all(p.device.type in _FUSED for p in parameters),
    )


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps on matrices and convolutions; AdamW on everything else.

    A convolution (O, I, h, w) is the matrix (O, I h w). The root mean square of a step is 0.2 times the learning rate,
    about that of AdamW, so that one learning rate serves both. Biases, norms, embedding tables, and weights with fewer
    than 16 inputs or outputs (a first or last layer on pixels) are left to AdamW. It computes in bf16 if the training
    does, else in float32: then one process and several make the same steps, to rounding.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv:2502.16982), section 2.2, the size of its steps.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
        self.matrices = [
            p for p in model.parameters() if p.ndim > 1 and min(p.shape[:2]) >= _LEAST_SIDE and p not in tables
        ]
        self.rest = adamw(model, config, frozenset(self.matrices))
        super().__init__(list(model.parameters()), {"lr": config.learning_rate})
        self.decay = config.weight_decay
        device = next(model.parameters()).device
        # fp16 has too few exponents for the powers of a matrix
        self.dtype = torch.bfloat16 if choose_precision(config.precision, device) == torch.bfloat16 else torch.float32
        # one state for all, keyed by the model's own parameters: it is saved and restored as that of AdamW
        self.rest.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A step along the current gradients, with the learning rate of the first group."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        rate = self.param_groups[0]["lr"]
        for group in self.rest.param_groups:
            group["lr"] = rate
        self.rest.step()
        for p in self.matrices:
            if p.grad is None:
                continue
            state: dict[str, Any] = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            weight, gradient, momentum = (_as_matrix(each, p) for each in (p.data, p.grad, state["momentum_buffer"]))
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            # Nesterov's: as the average will be with this gradient once more
            step = orthogonal(gradient.lerp(momentum, _MOMENTUM), self.dtype)
            weight.mul_(1 - rate * self.decay).add_(step, alpha=-0.2 * rate * max(weight.shape) ** 0.5)
        return loss


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (O, I) with its singular values moved near 1, into (0.68, 1.13), in x's dtype; computed in `dtype`.

    Five steps of x <- a x + b (x x^T) x + c (x x^T)^2 x from x / |x|. Source: Jordan et al. 2024 (Muon).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x.shape[0] <= x.shape[1]
    y = (x if wide else x.T).to(dtype)
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(5):
        square = y @ y.T
        y = torch.addmm(y, torch.addmm(square, square, square, beta=b, alpha=c), y, beta=a)
    return (y if wide else y.T).to(x.dtype)


def _as_matrix(x: Tensor, like: Tensor) -> Tensor:
    """x as (O, I h w), in the memory order of `like`; a view if x has that order."""
    if like.is_contiguous():
        return x.contiguous().flatten(1)
    form = torch.channels_last if like.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=form).movedim(1, -1).flatten(1)
