"""What the two networks of face swaps share: a U-Net about a picture, identity tokens, and the checks of conditions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.faces.nets.placement import Placement
from ornstein.nets.blocks import Attention, Block, attend, group_norm, zeroed
from ornstein.nets.conditions import LOG_SNR_RANGE, Embedding
from ornstein.nets.recorded import Recorded

__all__ = ["BLUR", "SwapUNet", "TokenAttention", "blurred"]

# The standard deviation of the answer where the scene's picture stays, and q, both as shares of `spread`.
_STAYS, _TRUST = 0.1, 0.25
BLUR = 8  # cells a side of the blur that keeps the colours of a face and drops its detail


class SwapUNet(Recorded):
    """The base of `FaceUNet` and `RelitUNet`: a network for v (E8) of square crops, with a^2 + s^2 = 1.

    It learns how the answer differs from a picture c. With y = x - a c and D = a^2 q^2 + s^2,

        x0 = c + (a q^2 / D) y + g F(y / d, ...),    v = (a s (1 - q^2) / D) y - s c - (g / s) F.

    F is the U-Net; it starts at 0 and has unit variance to learn: for x0 of standard deviation r about c,
    d^2 = a^2 r^2 + s^2 and g^2 = (r s^2 / D)^2 + (a s q^2 / D)^2. r is `spread` where the picture is to change and a
    tenth of it elsewhere. q = r would be the preconditioning of Karras et al., which passes the noise of x on for F to
    remove. q = r/4 does so at low noise only; at high noise F predicts x0. A network that is trained for minutes is
    smooth with it and noisy without.

    A vector stands for the source: it modulates the second norm of each block together with the log-SNR, and becomes a
    few tokens that every attention reads beside the pixels. A learned vector stands for no source: for guidance.

    The subclass's arguments are in `config`; of these the base reads size, patch, spread, width, multipliers, depths,
    attention, identity, and where they are there tokens, scene and dropout.

    Args:
        inputs: channels that enter the U-Net, before they become patches.
        channels: C of the images.
        points: landmarks of a `Placement`, 0 for a network without one.

    Raises:
        ValueError: an argument is out of range, or `size` does not divide.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7, here about c and for v; Dhariwal & Nichol 2021
    (arXiv:2105.05233), adaptive group norm; Nichol et al. 2021 (GLIDE, arXiv:2112.10741), section 4: tokens of the
    condition in the attention of the image.
    """

    def __init__(self, inputs: int, channels: int, points: int = 0) -> None:
        super().__init__()
        config = self.config
        self.size, self.patch, self.spread = config["size"], config["patch"], config["spread"]
        width, multipliers, depths = config["width"], config["multipliers"], config["depths"]
        levels, dropout, tokens = len(multipliers), config.get("dropout", 0.0), config.get("tokens", 4)
        numbers = (channels, self.size, config["identity"], tokens, self.patch, width, levels, *multipliers, *depths)
        if min(numbers) < 1 or not 0 < self.spread <= 1:
            raise ValueError(f"sizes of a {type(self).__name__} are positive, and 0 < spread <= 1")
        if len(depths) != levels:
            raise ValueError(f"depths has {len(depths)} entries and multipliers {levels}: give one per level")
        cells = self.patch * 2 ** (levels - 1)
        if self.size % cells:
            raise ValueError(
                f"size {self.size} is not divisible by {cells}: patches of {self.patch} pixels, halved {levels - 1} "
                "times"
            )
        widths, embedding, side = [width * m for m in multipliers], 4 * width, self.size // self.patch

        def stage(level: int, before: int, down: bool) -> nn.ModuleList:
            out, attend = widths[level], side >> level in config["attention"]
            rows = nn.ModuleList()
            for i in range(depths[level]):
                block = Block(before if i == 0 else out, out, embedding, down and i == 0, dropout=dropout)
                rows.append(nn.ModuleList([block, TokenAttention(out, embedding)] if attend else [block]))
            return rows

        self.embedding = Embedding(0, embedding)
        if points:
            self.placement = Placement(points)
            self.where = _mlp(6 * points, embedding)
        self.who = _mlp(config["identity"], embedding)
        self.tokens = nn.Linear(embedding, tokens * embedding)
        self.nobody = nn.Parameter(torch.zeros(embedding))
        self.stem = nn.Conv2d(inputs * self.patch**2, width, 3, padding=1)
        self.encoder = nn.ModuleList(stage(i, widths[max(0, i - 1)], i > 0) for i in range(levels))
        self.decoder = nn.ModuleList(stage(i, widths[i], False) for i in reversed(range(levels)))
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in reversed(range(levels - 1)))
        self.head = self._last(channels * self.patch**2)

    def _last(self, outputs: int) -> nn.Sequential:
        """Norm, SiLU and a convolution that starts at 0: the last layers, from the U-Net's features."""
        width = self.config["width"]
        return nn.Sequential(group_norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, outputs, 3, padding=1)))

    def _scales(self, log_snr: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a and s (B, 1, 1, 1)."""
        level = log_snr.to(dtype).clamp(*LOG_SNR_RANGE)[:, None, None, None]
        return torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()

    def _features(self, y: Tensor, deviation: Tensor, others: list[Tensor], log_snr: Tensor, who: Tensor) -> Tensor:
        """The features (B, width, h, w) of the U-Net.

        Args:
            y: x - a c, (B, C, H, W).
            deviation: d, (B, 1, H, W).
            others: what enters beside y / d, (B, *, H, W) each.
            log_snr: (B,).
            who: the vector of the source (B, 4 width).
        """
        embedding = self.embedding(log_snr, None) + F.silu(who)
        tokens = self.tokens(F.silu(who)).unflatten(1, (-1, embedding.shape[1]))
        h = F.pixel_unshuffle(torch.cat([y / deviation, *others], dim=1).to(self.stem.weight.dtype), self.patch)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        across = []
        for stage in self.encoder:
            h = _through(stage, h, embedding, tokens)
            across.append(h)
        h = across.pop()
        for i, stage in enumerate(self.decoder):
            if i:
                h = F.interpolate(self.up[i - 1](h), scale_factor=2.0) + across.pop()
            h = _through(stage, h, embedding, tokens)
        return h

    def _answer(self, x: Tensor, a: Tensor, s: Tensor, picture: Tensor, r: Tensor, h: Tensor) -> Tensor:
        """v for c = `picture` (B, C, H, W), deviations r (B, 1, H, W) and the features h of the U-Net."""
        residual = F.pixel_shuffle(self.head(h), self.patch).to(x.dtype)
        q = (_TRUST * r).square()
        square = a.square() * q + s.square()
        scale = (r.square() * s.square() + a.square() * q.square()).sqrt() / square  # g / s
        return (a * s * (1 - q) / square) * (x - a * picture) - s * picture - scale * residual

    def _deviation(self, changes: Tensor) -> Tensor:
        """r (B, 1, H, W), for `changes` in [0, 1]: where the picture is to change."""
        return self.spread * torch.lerp(torch.full_like(changes, _STAYS), torch.ones_like(changes), changes)

    def _checked(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None,
        dropped: Tensor | None,
        shapes: Mapping[str, tuple[Tensor | None, tuple[int | None, ...]]],
    ) -> Tensor:
        """The scene, if all shapes fit.

        Args:
            x, log_snr, scene, dropped: arguments of `forward`.
            shapes: each of the conditions of the source, and its shape without the batch; None is any number.

        Raises:
            ValueError: no scene, only some of the conditions, or a shape that does not fit.
        """
        channels, size, cells = self.head[-1].out_channels // self.patch**2, self.size, (self.size, self.size)
        if x.ndim != 4 or x.shape[1:] != (channels, *cells):
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {channels}, {size}, {size})")
        b = len(x)
        if log_snr.shape != (b,):
            raise ValueError(f"log_snr is {tuple(log_snr.shape)}; it must be ({b},), one per sample")
        wanted = (b, self.config.get("scene", 5), *cells)
        if scene is None or scene.shape != wanted:
            given = "missing" if scene is None else f"{tuple(scene.shape)}"
            raise ValueError(f"scene is {given}; it must be {wanted}: see ornstein.faces.conditions")
        missing = [name for name, (value, _) in shapes.items() if value is None]
        if missing and len(missing) < len(shapes):
            names = " and ".join((", ".join(list(shapes)[:-1]), list(shapes)[-1]))
            raise ValueError(f"{names} go together: give all of them, or none; {missing[0]} is missing")
        if dropped is not None and (missing or dropped.shape != (b,) or dropped.dtype != torch.bool):
            raise ValueError(f"dropped goes with an identity and is bool ({b},)")
        for name, (value, shape) in shapes.items():
            given = None if value is None else tuple(value.shape)
            if given is None:
                continue
            fits = len(given) == 1 + len(shape) and given[0] == b
            if not fits or any(n is not None and n != k for n, k in zip(shape, given[1:], strict=True)):
                text = ", ".join("K" if n is None else str(n) for n in (b, *shape))
                raise ValueError(f"{name} {'are' if name.endswith('s') else 'is'} {given}; it must be ({text})")
        return scene


class TokenAttention(Attention):
    """Self-attention over the pixels of (B, C, H, W), which read tokens (B, N, `width`) as well."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels)
        self.of_tokens = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        more = self.of_tokens(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([k, more[0]], dim=2), torch.cat([v, more[1]], dim=2)
        mixed = attend(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


def blurred(images: Tensor, cells: int = BLUR) -> Tensor:
    """Images (B, C, H, W) averaged over `cells` x `cells` squares and interpolated back."""
    small = F.adaptive_avg_pool2d(images, cells)
    return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def _through(stage: nn.Module, h: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList)
    for row in stage:
        assert isinstance(row, nn.ModuleList)
        h = row[0](h, embedding)
        if len(row) > 1:
            h = row[1](h, tokens)
    return h
