"""A U-Net that paints a given identity into a given picture: what a face swap asks of a denoiser."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.nets.blocks import Attention, Block, group_norm, zeroed
from ornstein.nets.unet import LOG_SNR_RANGE, Embedding

# width, multipliers, depths, resolutions with attention, the last three by level
PRESETS = {
    "xs": (32, (1, 2, 4), (1, 1, 2), (8,)),
    "s": (32, (1, 3, 5), (1, 1, 2), (8,)),
    "m": (64, (1, 2, 4), (1, 2, 2), (16, 8)),
    "l": (128, (1, 2, 3, 4), (2, 2, 2, 2), (32, 16, 8)),
}


# the answer's deviation where the scene's picture stays, and how far x_t is taken at its word, as shares of `spread`
_STAYS, _TRUST = 0.1, 0.25
BLUR = 8  # cells a side of the blur that tells the colours of a face from its detail
_REACH = 0.2  # half sides by which what is shown of a face moves, for a plan of 1


class FaceUNet(nn.Module):
    """Network `(x, log_snr, scene, identity, appearance, dropped) -> v` (E8) for square crops and a^2 + s^2 = 1.

    `scene` (B, S, H, W) tells of the target, in further input channels: a picture c near the answer (C channels), where
    it is to change (one channel, 1 there and -1 where it stays), and whatever else. What is learned is how the answer
    differs: with y = x - a c and D = a^2 q^2 + s^2,

        x0 = c + (a q^2 / D) y + g F(y / d, scene, ...),    v = (a s (1 - q^2) / D) y - s c - (g / s) F

    F is the U-Net, starts at 0, and has unit variance to learn: for x0 of deviation r about c, d^2 = a^2 r^2 + s^2 and
    g^2 = (r s^2 / D)^2 + (a s q^2 / D)^2. r is `spread` where the picture is to change and a tenth of that elsewhere.
    With q = r that is the preconditioning of Karras et al., which hands the noise of x on for F to take away again;
    q = r/4 does so only where there is little of it, and above makes of F a prediction of x0. In a net trained for
    minutes that is the difference between a smooth face and a noisy one.

    `identity` (B, K) is a vector, an embedding say. It modulates the second norm of each block together with the
    log-SNR, and makes a few tokens that every attention looks at beside the pixels. `appearance` (B, C + 1, H, W) shows
    the same person's face, and in its last channel where it does (1; all are 0 elsewhere). The U-Net also says how that
    face is to be moved and how much of its colours and of its detail belongs into c, which then stands for c above: a
    face need not pass through the U-Net to be seen. Image, scene and appearance enter as patches of `patch` pixels, so
    that a convolution at full resolution, which costs the most, is not needed. Without identity (None, or where
    `dropped` is true) a learned vector stands for it and nothing is shown: for guidance.

    Args:
        channels: C of the images.
        size: H = W of the images in pixels, divisible by patch * 2^(levels - 1).
        scene: number S of channels that tell of the target, at least C + 1.
        identity: length K of the identity vector.
        tokens: how many tokens an identity becomes.
        patch: side in pixels of the patches the U-Net works on.
        spread: standard deviation of the answer about the scene's picture where it is to change.
        width, multipliers, depths, dropout: those of `UNet`.
        attention: the resolutions, of size / patch / 2^level, at which blocks attend.

    Raises:
        ValueError: an argument is out of range, or `size` does not divide.

    Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7, here about c and for v; Dhariwal & Nichol 2021
    (arXiv:2105.05233), adaptive group norm; Zhao et al. 2023 (DiffSwap, CVPR), a swap
    as conditional inpainting; Nichol et al. 2021 (GLIDE, arXiv:2112.10741), section 4: tokens of the condition in the
    attention of the image.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        scene: int,
        identity: int,
        *,
        tokens: int = 4,
        patch: int = 2,
        spread: float = 0.4,
        width: int = 48,
        multipliers: Sequence[int] = (1, 2, 4),
        depths: Sequence[int] = (1, 1, 2),
        attention: Sequence[int] = (16, 8),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        numbers = (channels, size, scene, identity, tokens, patch, width, levels, *multipliers, *depths)
        if min(numbers) < 1 or scene <= channels or not 0 < spread <= 1:
            raise ValueError(
                "sizes of a FaceUNet are positive, its scene has more channels than its images, and 0 < spread <= 1"
            )
        if len(depths) != levels:
            raise ValueError(f"depths has {len(depths)} entries and multipliers {levels}: give one per level")
        if size % (patch * 2 ** (levels - 1)):
            raise ValueError(
                f"size {size} is not divisible by {patch * 2 ** (levels - 1)}: patches of {patch} pixels, halved "
                f"{levels - 1} times"
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "size": size,
            "scene": scene,
            "identity": identity,
            "tokens": tokens,
            "patch": patch,
            "spread": spread,
            "width": width,
            "multipliers": list(multipliers),
            "depths": list(depths),
            "attention": list(attention),
            "dropout": dropout,
        }
        self.patch, self.spread = patch, spread
        widths = [width * m for m in multipliers]
        embedding = 4 * width
        self.embedding = Embedding(0, embedding)
        self.who = nn.Sequential(nn.Linear(identity, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.tokens = nn.Linear(embedding, tokens * embedding)
        self.nobody = nn.Parameter(torch.zeros(embedding))
        self.stem = nn.Conv2d((channels + scene + channels + 1) * patch**2, width, 3, padding=1)
        side = size // patch

        def stage(level: int, inputs: int, down: bool) -> nn.ModuleList:
            out, attend = widths[level], side >> level in attention
            rows = nn.ModuleList()
            for i in range(depths[level]):
                block = Block(inputs if i == 0 else out, out, embedding, down and i == 0, dropout=dropout)
                rows.append(nn.ModuleList([block, TokenAttention(out, embedding)] if attend else [block]))
            return rows

        self.encoder = nn.ModuleList(stage(i, widths[max(0, i - 1)], i > 0) for i in range(levels))
        self.decoder = nn.ModuleList(stage(i, widths[i], False) for i in reversed(range(levels)))
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in reversed(range(levels - 1)))
        last = zeroed(nn.Conv2d(width, channels * patch**2, 3, padding=1))
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), last)
        self.carry = nn.Sequential(group_norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, 4, 3, padding=1)))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(cls, name: str, *, size: int, scene: int, identity: int, channels: int = 3) -> "FaceUNet":
        """A net of one of four sizes; patches of 2 pixels, of 4 from 256 pixels on.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, multipliers, depths, attention = PRESETS[name]
        patch = 1 if size < 64 else 2 if size < 256 else 4
        # larger images are halved further, and attend at the same resolutions: it costs the square of the pixels
        while size // patch >> (len(multipliers) - 1) > 8:
            multipliers, depths = (*multipliers, multipliers[-1]), (*depths, depths[-1])
        return cls(
            channels,
            size,
            scene,
            identity,
            patch=patch,
            width=width,
            multipliers=multipliers,
            depths=depths,
            attention=attention,
        )

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None = None,
        identity: Tensor | None = None,
        appearance: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """v (B, C, H, W), in x's dtype, from x (B, C, H, W) and log_snr (B,), which is log a^2/s^2.

        scene (B, S, H, W) must be given; identity (B, K) and appearance (B, C + 1, H, W) together or not at all;
        dropped (B,) bool, the rows in which they are not looked at.

        Raises:
            ValueError: no scene, or shapes that do not fit the net.
        """
        scene = self.check(x, log_snr, scene, identity, appearance, dropped).to(x.dtype)
        channels, dtype = x.shape[1], self.stem.weight.dtype
        if identity is None or appearance is None:
            who = self.nobody.expand(len(x), -1)
            appearance = x.new_zeros(len(x), channels + 1, *x.shape[2:])
        else:
            who = self.who(identity.to(dtype))
            if dropped is not None:
                who = torch.where(dropped[:, None], self.nobody.to(who.dtype), who)
                appearance = appearance * ~dropped[:, None, None, None]
        embedding = self.embedding(log_snr, None) + F.silu(who)
        tokens = self.tokens(F.silu(who)).unflatten(1, (-1, embedding.shape[1]))
        level = log_snr.to(x.dtype).clamp(*LOG_SNR_RANGE)[:, None, None, None]
        a, s = torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()
        picture, changes = scene[:, :channels], (scene[:, channels, None] + 1) / 2
        r = deviation(self.spread, changes)
        y, d = x - a * picture, (a.square() * r.square() + s.square()).sqrt()
        h = F.pixel_unshuffle(torch.cat([y / d, scene, appearance], dim=1).to(dtype), self.patch)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        h = down_and_up(self.encoder, self.decoder, self.up, h, embedding, tokens)
        residual = F.pixel_shuffle(self.head(h), self.patch).to(x.dtype)
        picture = self.carried(self.carry(h).to(x.dtype), appearance.to(x.dtype), picture)
        return answer(x, a, s, picture, r, residual)

    def carried(self, plan: Tensor, appearance: Tensor, picture: Tensor) -> Tensor:
        """The picture (B, C, H, W) with the face that is shown laid over it, moved by the last two channels of `plan`.

        The first two say how much of the colours of its 8x8 blur is laid over, and how much of its detail beyond that.
        """
        plan = F.interpolate(plan, scale_factor=float(self.patch), mode="bilinear", align_corners=False)
        height, width = picture.shape[2:]
        y, x = (torch.arange(n, device=picture.device) for n in (height, width))
        still = torch.stack(torch.meshgrid((2 * x + 1) / width - 1, (2 * y + 1) / height - 1, indexing="xy"), -1)
        grid = still.to(plan) + _REACH * plan[:, 2:].permute(0, 2, 3, 1)
        moved = F.grid_sample(appearance, grid, align_corners=False)
        face, blur = (each[:, : picture.shape[1]] / each[:, -1:].clamp(min=0.05) for each in (moved, blurred(moved)))
        of_blur, of_detail = (moved[:, -1:] * torch.sigmoid(plan[:, :2])).split(1, dim=1)
        return picture + of_blur * (blur - picture) + of_detail * (face - blur)

    def check(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None,
        identity: Tensor | None,
        appearance: Tensor | None,
        dropped: Tensor | None,
    ) -> Tensor:
        c, size, s, k = (self.config[key] for key in ("channels", "size", "scene", "identity"))
        if x.ndim != 4 or x.shape[1:] != (c, size, size):
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, {c}, {size}, {size})")
        if log_snr.shape != x.shape[:1]:
            raise ValueError(f"log_snr is {tuple(log_snr.shape)}; it must be ({len(x)},), one per sample")
        if scene is None or scene.shape != (len(x), s, size, size):
            given = "missing" if scene is None else f"{tuple(scene.shape)}"
            raise ValueError(f"scene is {given}; it must be {(len(x), s, size, size)}: see ornstein.faces.conditions")
        if identity is not None and identity.shape != (len(x), k):
            raise ValueError(f"identity is {tuple(identity.shape)}; it must be {(len(x), k)}")
        if (identity is None) != (appearance is None):
            raise ValueError("identity and appearance go together: give both, or neither")
        if appearance is not None and appearance.shape != (len(x), c + 1, size, size):
            raise ValueError(f"appearance is {tuple(appearance.shape)}; it must be {(len(x), c + 1, size, size)}")
        if dropped is not None and (identity is None or dropped.shape != x.shape[:1] or dropped.dtype != torch.bool):
            raise ValueError(f"dropped goes with an identity and is bool ({len(x)},)")
        return scene


class TokenAttention(Attention):
    """Self-attention over the pixels of (B, C, H, W), which look at tokens (B, N, `width`) as well."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels)
        self.of_tokens = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        more = self.of_tokens(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([k, more[0]], dim=2), torch.cat([v, more[1]], dim=2)
        if x.device.type == "cpu":
            mixed = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


def deviation(spread: float, changes: Tensor) -> Tensor:
    """The answer's deviation r about the scene's picture; `changes` (B, 1, H, W) in [0, 1], where it is to change."""
    return spread * torch.lerp(torch.full_like(changes, _STAYS), torch.ones_like(changes), changes)


def answer(x: Tensor, a: Tensor, s: Tensor, picture: Tensor, r: Tensor, residual: Tensor) -> Tensor:
    """v of `FaceUNet`'s first equation: x0 about c = `picture` by F = `residual`, for deviations `r` (B, 1, H, W)."""
    y = x - a * picture
    q = (_TRUST * r).square()
    square = a.square() * q + s.square()
    scale = (r.square() * s.square() + a.square() * q.square()).sqrt() / square  # g / s
    return (a * s * (1 - q) / square) * y - s * picture - scale * residual


def blurred(images: Tensor, cells: int = BLUR) -> Tensor:
    """Images (B, C, H, W) averaged over `cells` x `cells` squares and interpolated back."""
    small = F.adaptive_avg_pool2d(images, cells)
    return F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)


def down_and_up(
    encoder: nn.ModuleList, decoder: nn.ModuleList, up: nn.ModuleList, h: Tensor, embedding: Tensor, tokens: Tensor
) -> Tensor:
    """Features h (B, C, H, W) through the levels of a U-Net and back, with the encoder's last ones added on each."""
    across = []
    for stage in encoder:
        h = _through(stage, h, embedding, tokens)
        across.append(h)
    h = across.pop()
    for i, stage in enumerate(decoder):
        if i:
            h = F.interpolate(up[i - 1](h), scale_factor=2.0) + across.pop()
        h = _through(stage, h, embedding, tokens)
    return h


def _through(stage: nn.Module, h: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
    assert isinstance(stage, nn.ModuleList)
    for row in stage:
        assert isinstance(row, nn.ModuleList)
        h = row[0](h, embedding)
        if len(row) > 1:
            h = row[1](h, tokens)
    return h
