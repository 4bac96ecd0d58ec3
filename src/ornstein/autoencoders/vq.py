"""The VQ-VAE: latents that are entries of a codebook (E30)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn

from ornstein.autoencoders.autoencoder import Autoencoder, NetworkSettings, Terms
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Noise
from ornstein.autoencoders.networks import Decoder, Encoder
from ornstein.devices import has_float64

__all__ = ["Codebook", "VQAutoencoder", "alone", "perplexity", "straight_through"]

_UNUSED = 0.1  # of an equal share of the tokens: an entry used less is replaced
_LATER = 2  # the layer number of the noise by which entries are replaced, after that of the latents
_AT_ONCE = 2**24  # distances that are held in memory at once


class VQAutoencoder(Autoencoder):
    """Every position of the latents (c, h, w) is the nearest of K codebook entries (E30).

    The gradient passes through the choice of an entry as if it were the identity. The commitment loss,
    beta mean ||z_e - sg(e)||^2, pulls the encoder to its entries, and the entries follow the encoder as moving
    averages. With the uniform prior over entries the bound is -log p(x|z) + tokens log K: q has no entropy, so it is
    exact. `encode` returns entries; `decode` replaces each position of its input by the nearest entry.

    Args:
        codes: K, the number of codebook entries.
        decay: of the moving averages, per step.
        commitment: beta.
        latent_channels: c, the dimension of an entry.
        channels, size, settings: see `Autoencoder`.

    Raises:
        ValueError: as `Autoencoder`.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), section 3 and appendix A.1; replaced entries: Dhariwal et al.
    2020 (arXiv:2005.00341), section 3.1.
    """

    kind = "vq"

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        codes: int = 512,
        decay: float = 0.98,
        commitment: float = 0.25,
        latent_channels: int = 8,
        **settings: Unpack[NetworkSettings],
    ) -> None:
        if commitment < 0:
            raise ValueError(f"commitment is a weight >= 0, got {commitment}")
        super().__init__(channels, size, latent_channels, **settings)
        self.commitment = commitment
        self.layer_shapes = [self.latent_shape[1:]]
        self.encoder = Encoder(channels, latent_channels, self.plan)
        self.decoder = Decoder(latent_channels, channels, self.plan)
        self.codebook = Codebook(codes, latent_channels, decay)

    def indices(self, x: Tensor) -> Tensor:
        """The index of the entry at each position, int64 (B, h, w)."""
        return self.codebook.nearest(_tokens(self.encoder(self.checked(x)))).unflatten(
            0, (len(x), *self.latent_shape[1:])
        )

    def embed(self, indices: Tensor) -> Tensor:
        """The latents (B, c, h, w) of indices (B, h, w)."""
        return self.codebook.entries[indices].movedim(-1, 1)

    def encode(self, x: Tensor) -> Latents:
        z = self.embed(self.indices(x)).to(x.dtype)
        return Latents(z, torch.zeros_like(z))

    def decode(self, z: Tensor) -> Tensor:
        z = self.checked_latents(z)
        indices = self.codebook.nearest(_tokens(z)).unflatten(0, (len(z), *z.shape[2:]))
        return self.decoder(self.embed(indices).to(z.dtype))

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        x = self.checked(x)
        encoded = self.encoder(x)
        tokens = _tokens(encoded).detach()
        if self.training:
            self.codebook.revive(tokens, noise)
        indices = self.codebook.nearest(tokens)
        entries = self.embed(indices.unflatten(0, (len(x), *self.latent_shape[1:]))).to(x.dtype)
        if self.training:
            self.codebook.update(tokens, indices)
        reconstruction = self.decoder(straight_through(encoded, entries))
        penalty = self.commitment * (encoded - entries).square().flatten(1).mean(1)
        used = self.codebook.count(indices)
        figures = {"usage": (used > 0).float().mean(), "perplexity": perplexity(used)}
        rate = math.prod(self.latent_shape[1:]) * math.log(self.codebook.size)
        rates = x.new_full((1, len(x)), rate)
        return Terms(reconstruction, rates, penalty, self.log_scale, figures)

    def prior(self, n: int, noise: Noise) -> Tensor:
        """One entry for each position, all equally likely: the quantile of a normal number among K equal parts."""
        return self.embed(_choice(noise(1, (n, *self.latent_shape[1:])), self.codebook.size).to(self.device))


class Codebook(nn.Module):
    """K entries (K, D), each the moving average of the tokens that were nearest to it (van den Oord et al. 2017, A.1).

    N_k <- decay N_k + (1 - decay) n_k, m_k <- decay m_k + (1 - decay) sum of the n_k tokens, e_k = m_k/N_k. All of it
    is in buffers, float32, and nothing in parameters. All entries of a new codebook are unused: its first batch fills
    it. `gather` collects the rows of all processes that share a batch.
    """

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int, dimension: int, decay: float) -> None:
        super().__init__()
        if size < 2 or not 0 <= decay < 1:
            raise ValueError(f"a codebook has at least 2 entries and a decay in [0, 1), got {size} and {decay}")
        self.size, self.decay = size, decay
        self.gather: Callable[[Tensor], Tensor] = alone
        self.register_buffer("entries", torch.zeros(size, dimension))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dimension))

    @torch.no_grad()
    def nearest(self, tokens: Tensor) -> Tensor:
        """The index of the nearest entry to each token, (N, D) -> (N,) int64; the first of equally near ones."""
        # ||t - e||^2 without ||t||^2, the same for all entries: a product of matrices. It is a small difference of
        # large numbers if the tokens lie far from the origin, so it is taken around their middle, in float64.
        dtype = torch.float64 if has_float64(tokens.device) else torch.float32
        middle = self.entries.mean(0)
        entries = (self.entries - middle).to(dtype)
        norms = entries.square().sum(1)
        parts = tokens.split(max(1, _AT_ONCE // self.size))
        return torch.cat([(norms - 2 * (part - middle).to(dtype) @ entries.mT).argmin(1) for part in parts])

    def count(self, indices: Tensor) -> Tensor:
        """How often each entry occurs in `indices`, (K,) float32."""
        flat = indices.flatten()
        # bincount would wait for the device, to read the largest index
        return torch.zeros_like(self.counts).index_add_(0, flat, torch.ones_like(flat, dtype=self.counts.dtype))

    @torch.no_grad()
    def update(self, tokens: Tensor, indices: Tensor) -> None:
        """One step of the moving averages."""
        tokens, indices = self.gather(tokens.to(self.entries.dtype)), self.gather(indices)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, tokens)
        self.counts.lerp_(self.count(indices), 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        used = self.counts > 0
        self.entries.copy_(torch.where(used[:, None], self.sums / self.counts.clamp(min=1e-12)[:, None], self.entries))

    @torch.no_grad()
    def revive(self, tokens: Tensor, noise: Noise) -> None:
        """Replace every entry that is hardly used by a token of the batch (N, D), chosen by `noise`.

        Hardly used is below a tenth of an equal share of the tokens; the new entry starts with an equal share.
        """
        tokens = self.gather(tokens)
        share = len(tokens) / self.size
        unused = self.counts < _UNUSED * share
        chosen = tokens[_choice(noise(_LATER, (self.size,)), len(tokens)).to(tokens.device)].to(self.entries.dtype)
        self.entries.copy_(torch.where(unused[:, None], chosen, self.entries))
        self.counts.copy_(torch.where(unused, share, self.counts))
        self.sums.copy_(torch.where(unused[:, None], share * chosen, self.sums))

    def usage(self) -> Tensor:
        """The share of entries that are in use by the moving averages, a scalar."""
        return (self.counts >= _UNUSED * self.counts.mean()).float().mean() * (self.counts.sum() > 0)

    def perplexity(self) -> Tensor:
        """Perplexity of the moving averages: K if all entries are used equally, 1 if only one is used."""
        return perplexity(self.counts)


def alone(rows: Tensor) -> Tensor:
    """`Codebook.gather` with one process: the rows themselves."""
    return rows


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares counts/sum, (K,) -> a scalar in [1, K]."""
    share = counts.float() / counts.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


def straight_through(encoded: Tensor, entries: Tensor) -> Tensor:
    """The value of `entries` with the gradient of `encoded` (van den Oord et al. 2017, section 3)."""
    return encoded + (entries - encoded).detach()


def _tokens(z: Tensor) -> Tensor:
    """(B, c, h, w) as vectors (B h w, c)."""
    return z.movedim(1, -1).flatten(0, 2)


def _choice(z: Tensor, size: int) -> Tensor:
    """Numbers 0..size-1, all equally likely, from standard normal z of any shape."""
    place = torch.special.ndtr(z.double() if has_float64(z.device) else z)
    return (place * size).long().clamp(max=size - 1)
