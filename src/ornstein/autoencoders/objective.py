"""The training loss of autoencoders: reconstruction, rates, perceptual distance, discriminator."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from ornstein.autoencoders.autoencoder import Autoencoder, Terms
from ornstein.autoencoders.discriminator import PatchDiscriminator
from ornstein.autoencoders.hierarchy import Noise
from ornstein.autoencoders.perceptual import Distance, open_perceptual

__all__ = ["AutoencoderLoss"]

_RECONSTRUCTIONS = ("nll", "l1", "l2")


class AutoencoderLoss(nn.Module):
    """The loss of an autoencoder, which is a submodule: one scalar, one backward pass, one optimizer.

    With N numbers an image, and every term per number:

        reconstruction + kl_weight min(1, progress/warmup) sum_l max(E rate_l, free_bits n_l)/N + penalty
        + perceptual_weight distance
        + [progress >= adversarial_start] (-adversarial_weight E D(x_hat) + hinge loss of D).

    With reconstruction "nll", kl_weight 1 and nothing else it is the bound E27-E29 in nats/dim of a density. With "l1"
    and "l2" the decoder's scale is fitted to the errors too, so that likelihoods can be reported. The discriminator's
    parameters get only the gradient of the hinge loss, the autoencoder's parameters none of it.

    Args:
        model: the autoencoder.
        reconstruction: "nll", -log N(x; x_hat, scale^2) with the learned scale; "l1", |x - x_hat|; "l2", (x - x_hat)^2.
        kl_weight: weight of the rates.
        warmup: the fraction of the training over which kl_weight rises from 0.
        free_bits: nats per dimension of a layer that cost nothing (Kingma et al. 2016, arXiv:1606.04934, eq. 15).
        perceptual: "random", a path of a TorchScript file, or None (see `perceptual`).
        perceptual_weight: weight of the distance.
        adversarial_weight: weight of the patch discriminator; 0 for none.
        adversarial_start: the fraction of the training at which the discriminator starts.

    Raises:
        ValueError: an argument is out of range.
        UserError: the file of `perceptual` is not usable.
    """

    def __init__(
        self,
        model: Autoencoder,
        *,
        reconstruction: Literal["nll", "l1", "l2"] = "nll",
        kl_weight: float = 1.0,
        warmup: float = 0.0,
        free_bits: float = 0.0,
        perceptual: str | None = None,
        perceptual_weight: float = 1.0,
        adversarial_weight: float = 0.0,
        adversarial_start: float = 0.3,
    ) -> None:
        super().__init__()
        if reconstruction not in _RECONSTRUCTIONS:
            raise ValueError(f"reconstruction is one of {', '.join(_RECONSTRUCTIONS)}, got {reconstruction!r}")
        weights = {
            "kl_weight": kl_weight,
            "free_bits": free_bits,
            "perceptual_weight": perceptual_weight,
            "adversarial_weight": adversarial_weight,
        }
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is a finite number >= 0, got {value}")
        for name, value in {"warmup": warmup, "adversarial_start": adversarial_start}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a fraction of the training, 0 to 1, got {value}")
        self.config: dict[str, Any] = {
            "reconstruction": reconstruction,
            "warmup": warmup,
            "perceptual": perceptual,
            "adversarial_start": adversarial_start,
        } | weights
        self.model = model
        self.discriminator = PatchDiscriminator(*model.shape[:2]) if adversarial_weight > 0 else None
        # not a submodule: it is not trained, averaged or saved
        self.distance: Distance | None = None if perceptual is None else open_perceptual(perceptual)

    @property
    def networks(self) -> list[nn.Module]:
        """The parts that may compute in half precision."""
        return [*self.model.networks, *([] if self.discriminator is None else [self.discriminator])]

    def forward(self, x: Tensor, noise: Noise, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and figures to log.

        Args:
            x: images (B, C, H, W) in [-1, 1].
            noise: see `hierarchy.Noise`.
            progress: fraction of the training done.

        Returns:
            The loss, and the same figures at every step: reconstruction and mse, per number of an image; rate_1, ...,
            nats of each layer and image; scale of the decoder; usage and perplexity of a codebook in this batch;
            perceptual; generator, discriminator.
        """
        config = self.config
        terms = self.model(x, noise)
        mse = (x - terms.reconstruction).square().mean()
        reconstruction = self._reconstruction(x, terms)
        loss = reconstruction + self.kl_weight(progress) * self.rate(terms) + terms.penalty.mean()
        figures = {"reconstruction": reconstruction, "mse": mse}
        figures |= {f"rate_{i}": rate.mean() for i, rate in enumerate(terms.rates, 1)}
        figures |= {"scale": terms.log_scale.exp()} | terms.figures
        if config["reconstruction"] != "nll":
            # fits the scale of the Gaussian to the errors, which get no gradient from it
            loss = loss - self._density(x, terms.reconstruction.detach())
        if self.distance is not None:
            figures["perceptual"] = self.distance(x, terms.reconstruction).mean()
            loss = loss + config["perceptual_weight"] * figures["perceptual"]
        if self.discriminator is not None:
            generator = hinge = x.new_zeros(())
            if progress >= config["adversarial_start"]:
                generator = self.discriminator.deceived(terms.reconstruction)
                hinge = self.discriminator.hinge(x, terms.reconstruction)
            loss = loss + config["adversarial_weight"] * generator + hinge
            figures |= {"generator": generator, "discriminator": hinge}
        return loss, {name: value.detach().float() for name, value in figures.items()}

    def kl_weight(self, progress: float) -> float:
        """The weight of the rates at a fraction of the training: linear from 0 over the warm-up."""
        warmup, weight = self.config["warmup"], self.config["kl_weight"]
        return weight * min(1.0, progress / warmup) if warmup > 0 else weight

    def rate(self, terms: Terms) -> Tensor:
        """The rates in nats per number of an image: the mean of each layer, at least the free bits."""
        size = terms.reconstruction[0].numel()
        total = terms.rates.new_zeros(())
        for rate, shape in zip(terms.rates, self.model.layer_shapes, strict=True):
            total = total + rate.mean().clamp(min=self.config["free_bits"] * math.prod(shape))
        return total / size

    def _reconstruction(self, x: Tensor, terms: Terms) -> Tensor:
        if self.config["reconstruction"] == "nll":
            return -self._density(x, terms.reconstruction)
        error = x - terms.reconstruction
        return error.abs().mean() if self.config["reconstruction"] == "l1" else error.square().mean()

    def _density(self, x: Tensor, x_hat: Tensor) -> Tensor:
        return self.model.log_density(x, x_hat).mean() / x[0].numel()
