"""`FaceUNet`: a U-Net that paints a given identity into a given picture, for swaps on photographs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.nets.placement import still
from ornstein.faces.nets.unet import SwapUNet, blurred

__all__ = ["PRESETS", "FaceUNet"]

# width, multipliers, depths, resolutions with attention, the last three by level
PRESETS = {
    "xs": (32, (1, 2, 4), (1, 1, 2), (8,)),
    "s": (32, (1, 3, 5), (1, 1, 2), (8,)),
    "m": (64, (1, 2, 4), (1, 2, 2), (16, 8)),
    "l": (128, (1, 2, 3, 4), (2, 2, 2, 2), (32, 16, 8)),
}
_REACH = 0.2  # half sides by which the shown face moves, for a plan of 1


class FaceUNet(SwapUNet):
    """Network `(x, log_snr, scene, identity, appearance, dropped) -> v` (E8) for square crops and a^2 + s^2 = 1.

    The equations are those of `SwapUNet`. `scene` (B, S, H, W) describes the target: first a picture c near the answer
    (C channels), then where it is to change (one channel, 1 there and -1 where it stays), then anything else.
    `identity` (B, K) is a vector, an embedding for example. `appearance` (B, C + 1, H, W) shows the same person's face,
    and its last channel is 1 where it does; all are 0 elsewhere. The U-Net also predicts how to move that face and how
    much of its colours and of its detail to put into the picture, which then stands for c: a face need not pass
    through the U-Net to be seen. Without identity (None, or where `dropped` is true) nothing is shown.

    Args:
        channels: C of the images.
        size: H = W of the images in pixels, divisible by patch * 2^(levels - 1).
        scene: number S of channels that describe the target, at least C + 1.
        identity: length K of the identity vector.
        tokens: how many tokens an identity becomes.
        patch: side in pixels of the patches that the U-Net works on.
        spread: standard deviation of the answer about the scene's picture where it is to change.
        width, multipliers, depths, dropout: those of `UNet`.
        attention: the resolutions, of size / patch / 2^level, at which blocks attend.

    Raises:
        ValueError: an argument is out of range, or `size` does not divide.

    Source: Zhao et al. 2023 (DiffSwap, CVPR), a swap as conditional inpainting.
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
        if scene <= channels:
            raise ValueError(f"the scene has more channels than the images, {channels}, not {scene}")
        super().__init__(channels + scene + channels + 1, channels)
        self.carry = self._last(4)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(cls, name: str, *, size: int, scene: int, identity: int, channels: int = 3) -> FaceUNet:
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
        shape = {"width": width, "multipliers": multipliers, "depths": depths, "attention": attention}
        return cls(channels, size, scene, identity, patch=patch, **shape)

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None = None,
        identity: Tensor | None = None,
        appearance: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """v (B, C, H, W), in x's dtype.

        Args:
            x: (B, C, H, W).
            log_snr: log a^2/s^2, (B,).
            scene: (B, S, H, W); it must be given.
            identity, appearance: (B, K) and (B, C + 1, H, W), together or not at all.
            dropped: bool (B,), the rows in which they are ignored.

        Raises:
            ValueError: no scene, or shapes that do not fit the net.
        """
        (b, channels), cells = x.shape[:2], x.shape[2:]
        shapes = {
            "identity": (identity, (self.config["identity"],)),
            "appearance": (appearance, (channels + 1, *cells)),
        }
        scene = self._checked(x, log_snr, scene, dropped, shapes).to(x.dtype)
        if identity is None or appearance is None:
            who = self.nobody.expand(b, -1)
            appearance = x.new_zeros(b, channels + 1, *cells)
        else:
            who = self.who(identity.to(self.stem.weight.dtype))
            if dropped is not None:
                who = torch.where(dropped[:, None], self.nobody.to(who.dtype), who)
                appearance = appearance * ~dropped[:, None, None, None]
        a, s = self._scales(log_snr, x.dtype)
        picture, changes = scene[:, :channels], (scene[:, channels, None] + 1) / 2
        r = self._deviation(changes)
        d = (a.square() * r.square() + s.square()).sqrt()
        h = self._features(x - a * picture, d, [scene, appearance], log_snr, who)
        picture = self.carried(self.carry(h).to(x.dtype), appearance.to(x.dtype), picture)
        return self._answer(x, a, s, picture, r, h)

    def carried(self, plan: Tensor, appearance: Tensor, picture: Tensor) -> Tensor:
        """The picture (B, C, H, W) with the shown face laid over it.

        Args:
            plan: (B, 4, h, w): how much of the colours of the face's 8x8 blur, how much of its detail beyond that
                (logits), and the move, x then y.
            appearance: (B, C + 1, H, W).
            picture: (B, C, H, W).
        """
        plan = F.interpolate(plan, scale_factor=float(self.patch), mode="bilinear", align_corners=False)
        grid = still(self.size, plan.device).to(plan) + _REACH * plan[:, 2:].permute(0, 2, 3, 1)
        moved = F.grid_sample(appearance, grid, align_corners=False)
        face, blur = (each[:, : picture.shape[1]] / each[:, -1:].clamp(min=0.05) for each in (moved, blurred(moved)))
        of_blur, of_detail = (moved[:, -1:] * torch.sigmoid(plan[:, :2])).split(1, dim=1)
        return picture + of_blur * (blur - picture) + of_detail * (face - blur)
