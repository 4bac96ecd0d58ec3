"""Measurements of the picture that a latent decodes to: y = A D(z), with D linearised at each prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ornstein.inverse.operators import Operator

__all__ = ["Decoded"]

Decoder = Callable[[Tensor], Tensor]


class Decoded(Operator):
    """A of the pictures that latents decode to. It is not linear; `at` gives the linear part about a latent.

    Args:
        A: what was measured of the picture.
        decode: latents (B, *shape) to pictures (B, *A.shape), differentiable.
        shape: of one latent.

    Raises:
        ValueError: the decoder gives pictures of another shape than the operator's.
    """

    def __init__(self, A: Operator, decode: Decoder, shape: tuple[int, ...]) -> None:
        self.A, self.decode, self.shape, self.error = A, decode, tuple(shape), A.error
        made = tuple(self._of_zero.shape[1:])
        if made != tuple(A.shape):
            raise ValueError(f"the operator acts on samples of {tuple(A.shape)}, the decoder makes {made}")

    @property
    def _of_zero(self) -> Tensor:
        with torch.no_grad():
            return self.decode(torch.zeros(1, *self.shape))

    def linear(self, x: Tensor) -> Tensor:
        return self.A.linear(self.decode(x))

    def at(self, x: Tensor) -> tuple[Operator, Tensor]:
        tangent = _Tangent(self.A, self.decode, x)
        return tangent, self.A.linear(tangent.pictures.detach())


class _Tangent(Operator):
    """A J, with J the derivative of the decoder at latents (B, *)."""

    def __init__(self, A: Operator, decode: Decoder, latents: Tensor) -> None:
        self.A, self.shape = A, tuple(latents.shape[1:])
        # the fused kernels of attention have no second derivative, which J v takes: it is that of u^T J in u
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self.latents = latents.detach().requires_grad_()
            self.pictures = decode(self.latents)
            self.u = torch.zeros_like(self.pictures, requires_grad=True)
            (self.pulled,) = torch.autograd.grad(self.pictures, self.latents, self.u, create_graph=True)

    def linear(self, x: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(self.pulled, self.u, x, retain_graph=True)
        return self.A.linear(pushed)

    def adjoint(self, y: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(self.pictures, self.latents, self.A.adjoint(y), retain_graph=True)
        return out
