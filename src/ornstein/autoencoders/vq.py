"""The VQ-VAE: latents that are entries of a codebook (E30)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ornstein.autoencoders.autoencoder import Autoencoder, Terms
from ornstein.autoencoders.gaussian import Latents
from ornstein.autoencoders.hierarchy import Noise
from ornstein.autoencoders.networks import Decoder, Encoder, Plan
from ornstein.autoencoders.spatial import default_factor

_DEAD = 0.1  # of an equal share of the tokens: an entry used less is replaced
_LATER = 2  # the noise by which entries are replaced, after that of the latents


class VQAutoencoder(Autoencoder):
    """Every position of the latents (c, h, w) is the nearest of K codebook entries (E30).

    Through the choice the gradient passes as if it were the identity; the encoder is drawn to its entries by the
    commitment loss, beta mean ||z_e - sg(e)||^2, and the entries follow the encoder as moving averages. Given the
    uniform prior over entries the bound is -log p(x|z) + tokens log K: q has no entropy, so it is exact.
    `encode` gives the entries, and `decode` takes each position of what it is given to its nearest entry.

    Args:
        codes: K, the entries of the codebook.
        decay: of the moving averages, a step.
        commitment: beta.
        latent_channels: c, the dimension of an entry.
        channels, size, factor, width, depths, attention: those of `KLAutoencoder`.

    Raises:
        ValueError: an argument is out of range, or `factor` does not divide `size` (it says which sizes work).

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
        factor: int | None = None,
        latent_channels: int = 8,
        width: int = 48,
        depths: Sequence[int] = (1, 1, 2),
        attention: int = 16,
    ) -> None:
        if commitment < 0:
            raise ValueError(f"commitment is a weight >= 0, got {commitment}")
        factor = default_factor(size) if factor is None else factor
        plan = Plan(size, factor, width, depths, attention)
        super().__init__(
            channels,
            size,
            (latent_channels, size // factor, size // factor),
            {
                "codes": codes,
                "decay": decay,
                "commitment": commitment,
                "factor": factor,
                "latent_channels": latent_channels,
                "width": width,
                "depths": list(depths),
                "attention": attention,
            },
        )
        self.commitment = commitment
        self.layer_shapes = [self.latent_shape[1:]]
        self.encoder = Encoder(channels, latent_channels, plan)
        self.decoder = Decoder(latent_channels, channels, plan)
        self.codebook = Codebook(codes, latent_channels, decay)

    def indices(self, x: Tensor) -> Tensor:
        """Which entry stands at each position, int64 (B, h, w)."""
        self.check(x)
        return self.codebook.nearest(_tokens(self.encoder(x))).unflatten(0, (len(x), *self.latent_shape[1:]))

    def embed(self, indices: Tensor) -> Tensor:
        """The latents (B, c, h, w) of indices (B, h, w)."""
        return self.codebook.entries[indices].movedim(-1, 1)

    def encode(self, x: Tensor) -> Latents:
        z = self.embed(self.indices(x)).to(x.dtype)
        return Latents(z, torch.zeros_like(z))

    def decode(self, z: Tensor) -> Tensor:
        self.check_latents(z)
        indices = self.codebook.nearest(_tokens(z)).unflatten(0, (len(z), *z.shape[2:]))
        return self.decoder(self.embed(indices).to(z.dtype))

    def forward(self, x: Tensor, noise: Noise) -> Terms:
        self.check(x)
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
        used = torch.bincount(indices, minlength=self.codebook.size)
        figures = {"usage": (used > 0).float().mean(), "perplexity": perplexity(used)}
        rate = math.prod(self.latent_shape[1:]) * math.log(self.codebook.size)
        rates = x.new_full((1, len(x)), rate)
        return Terms(reconstruction, rates, penalty, self.log_scale, figures)

    def prior(self, n: int, noise: Noise) -> Tensor:
        """Every position an entry, all equally likely: of a normal number its place among K equal shares."""
        place = torch.special.ndtr(noise(1, (n, *self.latent_shape[1:])).double())
        size = self.codebook.size
        return self.embed((place * size).long().clamp(max=size - 1).to(self.codebook.entries.device))


class Codebook(nn.Module):
    """K entries (K, D), each the moving average of the tokens that were nearest to it (van den Oord et al. 2017, A.1).

    N_k <- decay N_k + (1 - decay) n_k, m_k <- decay m_k + (1 - decay) sum of the n_k tokens, e_k = m_k/N_k. All of it
    is in buffers, float32, none of it in parameters. A new codebook is all dead: its first batch fills it. `gather`
    puts the rows of all processes that share a batch together.
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

    def nearest(self, tokens: Tensor) -> Tensor:
        """The index of the entry nearest to each token, (N, D) -> (N,) int64; the first of equals."""
        entries = self.entries
        # ||t - e||^2 without ||t||^2, the same for all entries
        return (entries.square().sum(1) - 2 * tokens.to(entries.dtype) @ entries.mT).argmin(1)

    @torch.no_grad()
    def update(self, tokens: Tensor, indices: Tensor) -> None:
        """One step of the moving averages."""
        tokens, indices = self.gather(tokens.to(self.entries.dtype)), self.gather(indices)
        used = torch.bincount(indices, minlength=self.size).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, tokens)
        self.counts.lerp_(used, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        alive = self.counts > 0
        self.entries.copy_(torch.where(alive[:, None], self.sums / self.counts.clamp(min=1e-12)[:, None], self.entries))

    @torch.no_grad()
    def revive(self, tokens: Tensor, noise: Noise) -> None:
        """Put a token of the batch (N, D), drawn by `noise`, in the place of every entry that is hardly used.

        Hardly is below a tenth of an equal share of the tokens; the new entry starts with an equal share.
        """
        tokens = self.gather(tokens)
        share = len(tokens) / self.size
        dead = self.counts < _DEAD * share
        place = torch.special.ndtr(noise(_LATER, (self.size,)).double()).to(tokens.device)
        chosen = tokens[(place * len(tokens)).long().clamp(max=len(tokens) - 1)].to(self.entries.dtype)
        self.entries.copy_(torch.where(dead[:, None], chosen, self.entries))
        self.counts.copy_(torch.where(dead, share, self.counts))
        self.sums.copy_(torch.where(dead[:, None], share * chosen, self.sums))

    def usage(self) -> Tensor:
        """The share of entries that are not dead by the moving averages, a scalar."""
        return (self.counts >= _DEAD * self.counts.mean()).float().mean() * (self.counts.sum() > 0)

    def perplexity(self) -> Tensor:
        """Of the moving averages of the usage: K where all entries are used alike, 1 where one is used alone."""
        return perplexity(self.counts)


def alone(rows: Tensor) -> Tensor:
    """What `Codebook.gather` is with one process: the rows themselves."""
    return rows


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares counts/sum, (K,) -> a scalar in [1, K]."""
    share = counts.float() / counts.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


def straight_through(encoded: Tensor, entries: Tensor) -> Tensor:
    """The entries in value, `encoded` in gradient: the choice counts as the identity (van den Oord et al. 2017, 3)."""
    return encoded + (entries - encoded).detach()


def _tokens(z: Tensor) -> Tensor:
    """(B, c, h, w) as vectors (B h w, c)."""
    return z.movedim(1, -1).flatten(0, 2)
