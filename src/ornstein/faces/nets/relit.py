"""`RelitUNet`: a U-Net that moves and relights a shown face, for training on pairs with a known true swap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.faces.nets.placement import FEATURES, spots, still, thin_plate
from ornstein.faces.nets.unet import SwapUNet, blurred

__all__ = ["RelitUNet"]

# width, multipliers, depths
PRESETS = {
    "xs": (64, (1, 2, 4), (1, 1, 1)),
    "s": (128, (1, 2, 3), (1, 2, 2)),
    "m": (192, (1, 2, 3), (2, 2, 3)),
}
_ATTENTION = (8, 4)
_WORKS_AT = 16  # pixels a side at which the U-Net works
_REACH = 0.1  # half sides by which the shown face moves, for a plan of 1
_COVERS = 2.0  # logit of how much of the shown face is laid over the picture, for a map of 0
_STRAIGHT = 2.0  # the same, of how much of it is the face as it was photographed and not in a mirror
_CHANNELS, _SCENE, _PLAN, _MAPS = 3, 5, 8, 2
_SHOWN = 0.05  # of a pixel that shows the face: below it its colour is not known


class RelitUNet(SwapUNet):
    """Network `(x, log_snr, scene, identity, appearance, points, dropped) -> v` (E8), square crops and a^2 + s^2 = 1.

    The equations are those of `SwapUNet`. It is for training with known truths: copying the target's face is punished
    there, so nothing of the target is hidden, and light, pose and expression are read from it directly.

    `scene` (B, 5, H, W): the target, where it is to change (1 there, -1 where it stays), its landmarks as spots.
    `appearance` (B, 4, H, W): the source's face as it was photographed, and in the last channel where that is.
    `points` (B, 2, K, 2): the landmarks of source and target in pixels. A `Placement` predicts where the source's
    landmarks lie in the answer, and a thin plate moves the face there. With w its colours, the square root of light as
    in a file,

        c = m (gain (w + 1) - 1 + shift) + (1 - m) (k target + (1 - k) blur)

    where gain and shift (of each colour) and a further small move are smooth maps that the U-Net predicts: another
    light on the same skin is a factor. m and k are predicted for each pixel, as a face ends at a line. blur is the
    target's face of 8x8 cells. The U-Net works on patches at 16x16 pixels and below, whatever the size of the picture:
    that is where a processor multiplies most in a second.

    With `mirror`, the face in a mirror is moved there too, and a third map says for each pixel which of both is w: the
    half of a face that a turned head hides is nearly the other one in a mirror.

    Args:
        size: H = W of the images in pixels, divisible by `patch` 2^(levels - 1).
        identity: length of the identity vector.
        points: K of the landmarks.
        mirror: which of the K landmarks each one is in a mirror; without it no face is shown in a mirror.
        patch, spread, width, multipliers, depths, attention: those of `FaceUNet`.

    Raises:
        ValueError: an argument is out of range, or `size` does not divide.

    Source: Shu et al. 2017 (arXiv:1704.04131), a face as shading times albedo.
    """

    def __init__(
        self,
        size: int,
        identity: int,
        points: int,
        *,
        mirror: Sequence[int] = (),
        patch: int = 4,
        spread: float = 0.4,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        depths: Sequence[int] = (1, 1, 1),
        attention: Sequence[int] = _ATTENTION,
    ) -> None:
        if points < 1:
            raise ValueError(f"points are landmarks, at least 1, not {points}")
        if mirror and sorted(mirror) != list(range(points)):
            raise ValueError(f"mirror is an order of the {points} landmarks")
        faces = 2 if mirror else 1
        super().__init__(_CHANNELS + _SCENE + 1 + faces * (_CHANNELS + 1), _CHANNELS, points)
        self.mirror = list(mirror)
        self.plan = self._last(_PLAN + (_MAPS + faces - 1) * patch**2)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(cls, name: str, *, size: int, identity: int, points: int, mirror: Sequence[int] = ()) -> RelitUNet:
        """A net of one of three sizes.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, multipliers, depths = PRESETS[name]
        patch = max(1, size // _WORKS_AT)
        return cls(
            size, identity, points, mirror=mirror, patch=patch, width=width, multipliers=multipliers, depths=depths
        )

    def forward(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None = None,
        identity: Tensor | None = None,
        appearance: Tensor | None = None,
        points: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """v (B, 3, H, W), in x's dtype.

        Args:
            x: (B, 3, H, W).
            log_snr: log a^2/s^2, (B,).
            scene: (B, 5, H, W); it must be given.
            identity, appearance, points: (B, D), (B, 4, H, W) and (B, 2, K, 2), together or not at all. Of the points
                the first five are enough: see `Placement.completed`.
            dropped: bool (B,), the rows in which they are ignored.

        Raises:
            ValueError: no scene, or shapes that do not fit the net.
        """
        cells = (self.size, self.size)
        shapes = {
            "identity": (identity, (self.config["identity"],)),
            "appearance": (appearance, (_CHANNELS + 1, *cells)),
            "points": (points, (2, None, 2)),
        }
        scene = self._checked(x, log_snr, scene, dropped, shapes)
        target, changes = scene[:, :3], (scene[:, 3, None] + 1) / 2
        if identity is None or appearance is None or points is None:
            who = self.nobody.expand(len(x), -1)
            seen = x.new_full((len(x), 1, *cells), -1.0)
            moved = x.new_zeros(len(x), (_CHANNELS + 1) * (2 if self.mirror else 1), *cells)
        else:
            seen, moved, where = self.placed(points.to(x.dtype), appearance.to(x.dtype))
            who = self.who(identity.to(x.dtype)) + self.where(where)
            if dropped is not None:
                row = dropped[:, None]
                who = torch.where(row, self.nobody.to(who.dtype), who)
                moved, seen = moved * ~row[..., None, None], torch.where(row[..., None, None], -1.0, seen)
        a, s = self._scales(log_snr, x.dtype)
        hidden = torch.lerp(target, blurred(target), changes)
        r = self._deviation(changes)
        d = (a.square() * r.square() + s.square()).sqrt()
        h = self._features(x - a * hidden, d, [scene, seen, moved], log_snr, who)
        plan, maps = self.plan(h).to(x.dtype).tensor_split([_PLAN], dim=1)
        c = self.carried(plan, F.pixel_shuffle(maps, self.patch), moved, target, hidden)
        return self._answer(x, a, s, c, r, h)

    @torch.no_grad()
    def placed(self, points: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the source's face comes to lie in the answer, without a gradient: that is learned from landmarks alone.

        Args:
            points, appearance: as `forward` takes them.

        Returns:
            Its landmarks as spots (B, 1, H, W) in [-1, 1]; the face moved there (B, 4, H, W), and in a mirror (B, 8, H,
            W); the normalised landmarks of source, target and answer (B, 6K).
        """
        # half precision would put a landmark a quarter of a pixel off, and the bend of a plate anywhere
        with torch.autocast(points.device.type, enabled=False):
            source, target = (self.placement.completed(each) for each in self.units(points).unbind(1))
            answer = self.placement(source, target)
            moved = F.grid_sample(appearance, thin_plate(source, answer, self.size), align_corners=False)
            if self.mirror:
                other = (source * source.new_tensor([-1.0, 1.0]))[:, self.mirror]
                grid = thin_plate(other, answer, self.size)
                moved = torch.cat([moved, F.grid_sample(appearance.flip(3), grid, align_corners=False)], 1)
            numbers = torch.cat([self.placement.normalised(each) for each in (source, target, answer)], 1)
            seen = spots((answer[:, :FEATURES] + 1) * (self.size / 2) - 0.5, self.size)
        return 2 * seen - 1, moved, numbers

    def units(self, points: Tensor) -> Tensor:
        """Pixels, the upper left pixel's centre at 0, as halves of the picture from -1 to 1."""
        return (2 * points + 1) / self.size - 1

    def carried(self, plan: Tensor, maps: Tensor, moved: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """c: the moved face, relit, over the target and its blur.

        Args:
            plan: (B, 8, h, w): the further move, the logarithm of the gain, the shift.
            maps: (B, 2, H, W): logits of m and k; and with a mirror of what is not seen in it, (B, 3, H, W).
            moved: the face (B, 4, H, W), and in a mirror (B, 8, H, W).
            target, hidden: the target and its blur, (B, 3, H, W).
        """
        # exponentiated at low resolution, and split once: each slice of a large tensor costs another one backwards
        move, gain, shift = plan.split([2, 3, 3], dim=1)
        plan = torch.cat([move, gain.exp(), shift], 1)
        plan = F.interpolate(plan, (self.size, self.size), mode="bilinear", align_corners=False)
        move, gain, shift = plan.split([2, 3, 3], dim=1)
        grid = still(self.size, plan.device) + _REACH * move.permute(0, 2, 3, 1)
        moved = F.grid_sample(moved, grid, align_corners=False)
        if self.mirror:
            straight, other = moved.chunk(2, 1)
            moved = torch.lerp(other, straight, torch.sigmoid(maps[:, 2:] + _STRAIGHT))
        face, shown = moved.split([3, 1], dim=1)
        lit = (face / shown.clamp(min=_SHOWN) + 1) * gain - 1 + shift
        covers, keeps = maps[:, :1], maps[:, 1:2]
        under = torch.lerp(hidden, target, torch.sigmoid(keeps))
        return torch.lerp(under, lit, shown * torch.sigmoid(covers + _COVERS))
