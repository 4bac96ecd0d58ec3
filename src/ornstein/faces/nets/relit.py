"""A U-Net that places, moves and relights a face that is shown to it: a swap where pairs with a known truth exist."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.faces.nets.face import TokenAttention, answer, blurred, deviation, down_and_up
from ornstein.faces.nets.placement import Placement, spots, still, thin_plate
from ornstein.nets.blocks import Block, group_norm, zeroed
from ornstein.nets.unet import LOG_SNR_RANGE, Embedding

# width, multipliers, depths
PRESETS = {
    "xs": (64, (1, 2, 4), (1, 1, 1)),
    "s": (128, (1, 2, 3), (1, 2, 2)),
    "m": (192, (1, 2, 3), (2, 2, 3)),
}
_ATTENTION = (8, 4)
_WORKS_AT = 16  # pixels a side at which the U-Net works
_REACH = 0.1  # half sides by which what is shown of a face moves, for a plan of 1
_COVERS = 2.0  # logit of how much of what is shown is laid over the picture, for a map of 0
_TOKENS, _PLAN, _MAPS = 4, 8, 2
_SHOWN = 0.05  # of a pixel that shows the face: below it its colour is not known


class RelitUNet(nn.Module):
    """Network `(x, log_snr, scene, identity, appearance, points, dropped) -> v` (E8), square crops and a^2 + s^2 = 1.

    As `FaceUNet` it learns how the answer differs from a picture c, by the same equation, and differs from it in what c
    is and in what it sees. It is for training with known truths: there nothing of the target's face needs to be hidden,
    as copying it is punished, and light, pose and expression are read from it as they are.

    `scene` (B, 5, H, W): the target as it is, where it is to change (1 there, -1 where it stays), its landmarks as
    spots. `appearance` (B, 4, H, W): the source's face where it was photographed, and in the last channel where that
    is. `points` (B, 2, K, 2): the landmarks of source and target in pixels. A `Placement` says where the source's lie
    in the answer, and a thin plate moves the face there. With w its colours, the square root of light as in a file,

        c = m (gain (w + 1) - 1 + shift) + (1 - m) (k target + (1 - k) blur)

    where gain and shift (of each colour) and a further small move are smooth maps that the U-Net makes: another light
    on the same skin is a factor. m and k are told for each pixel, as a face ends at a line. blur is the target's face
    of 8x8 cells. The U-Net works on patches at 16x16 pixels and below, whatever the size of the picture: that is where
    a processor multiplies most in a second.

    Args:
        size: H = W of the images in pixels, divisible by `patch` 2^(levels - 1).
        identity: length of the identity vector.
        points: K of the landmarks.
        patch, spread, width, multipliers, depths, attention: those of `FaceUNet`.

    Raises ValueError where an argument is out of range. Source: Karras et al. 2022 (arXiv:2206.00364), eq. 7, about c
    and for v; Shu et al. 2017 (arXiv:1704.04131), a face as shading times albedo.
    """

    channels, scene = 3, 5

    def __init__(
        self,
        size: int,
        identity: int,
        points: int,
        *,
        patch: int = 4,
        spread: float = 0.4,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        depths: Sequence[int] = (1, 1, 1),
        attention: Sequence[int] = _ATTENTION,
    ) -> None:
        super().__init__()
        levels = len(multipliers)
        if min(size, identity, points, patch, width, levels, *multipliers, *depths) < 1 or not 0 < spread <= 1:
            raise ValueError("sizes of a RelitUNet are positive, and 0 < spread <= 1")
        if len(depths) != levels:
            raise ValueError(f"depths has {len(depths)} entries and multipliers {levels}: give one per level")
        if size % (patch * 2 ** (levels - 1)):
            raise ValueError(f"size {size} is not divisible by {patch * 2 ** (levels - 1)}")
        self.config: dict[str, Any] = {
            "size": size,
            "identity": identity,
            "points": points,
            "patch": patch,
            "spread": spread,
            "width": width,
            "multipliers": list(multipliers),
            "depths": list(depths),
            "attention": list(attention),
        }
        self.size, self.patch, self.spread = size, patch, spread
        widths = [width * m for m in multipliers]
        embedding = 4 * width
        self.embedding = Embedding(0, embedding)
        self.placement = Placement(points)
        self.where = nn.Sequential(nn.Linear(6 * points, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.who = nn.Sequential(nn.Linear(identity, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.tokens = nn.Linear(embedding, _TOKENS * embedding)
        self.nobody = nn.Parameter(torch.zeros(embedding))
        inputs = self.channels + self.scene + 1 + self.channels + 1
        self.stem = nn.Conv2d(inputs * patch**2, width, 3, padding=1)
        side = size // patch

        def stage(level: int, before: int, down: bool) -> nn.ModuleList:
            out, attend = widths[level], side >> level in attention
            rows = nn.ModuleList()
            for i in range(depths[level]):
                block = Block(before if i == 0 else out, out, embedding, down and i == 0)
                rows.append(nn.ModuleList([block, TokenAttention(out, embedding)] if attend else [block]))
            return rows

        def last(outputs: int) -> nn.Sequential:
            return nn.Sequential(group_norm(width), nn.SiLU(), zeroed(nn.Conv2d(width, outputs, 3, padding=1)))

        self.encoder = nn.ModuleList(stage(i, widths[max(0, i - 1)], i > 0) for i in range(levels))
        self.decoder = nn.ModuleList(stage(i, widths[i], False) for i in reversed(range(levels)))
        self.up = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in reversed(range(levels - 1)))
        self.head, self.plan = last(self.channels * patch**2), last(_PLAN + _MAPS * patch**2)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing from the stubs)

    @classmethod
    def preset(cls, name: str, *, size: int, identity: int, points: int) -> "RelitUNet":
        """A net of one of three sizes. Raises ValueError where there is no such preset."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        width, multipliers, depths = PRESETS[name]
        patch = max(1, size // _WORKS_AT)
        return cls(size, identity, points, patch=patch, width=width, multipliers=multipliers, depths=depths)

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
        """v (B, 3, H, W) from x (B, 3, H, W) and log_snr (B,), which is log a^2/s^2.

        scene must be given; identity, appearance and points together or not at all; dropped (B,) bool, the rows in
        which they are not looked at. Of the points the first five are enough: see `Placement.completed`.

        Raises ValueError on no scene, or shapes that do not fit the net.
        """
        scene = self.check(x, log_snr, scene, identity, appearance, points, dropped)
        target, changes = scene[:, :3], (scene[:, 3, None] + 1) / 2
        if identity is None or appearance is None or points is None:
            who = self.nobody.expand(len(x), -1)
            seen, moved = x.new_full((len(x), 1, self.size, self.size), -1.0), torch.zeros_like(scene[:, :4])
        else:
            seen, moved, where = self.placed(points.to(x.dtype), appearance.to(x.dtype))
            who = self.who(identity.to(x.dtype)) + self.where(where)
            if dropped is not None:
                row = dropped[:, None]
                who = torch.where(row, self.nobody.to(who.dtype), who)
                moved, seen = moved * ~row[..., None, None], torch.where(row[..., None, None], -1.0, seen)
        embedding = self.embedding(log_snr, None) + F.silu(who)
        tokens = self.tokens(F.silu(who)).unflatten(1, (-1, embedding.shape[1]))
        level = log_snr.to(x.dtype).clamp(*LOG_SNR_RANGE)[:, None, None, None]
        a, s = torch.sigmoid(level).sqrt(), torch.sigmoid(-level).sqrt()
        hidden = torch.lerp(target, blurred(target), changes)
        r = deviation(self.spread, changes)
        d = (a.square() * r.square() + s.square()).sqrt()
        h = F.pixel_unshuffle(torch.cat([(x - a * hidden) / d, scene, seen, moved], dim=1), self.patch)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        h = down_and_up(self.encoder, self.decoder, self.up, h, embedding, tokens)
        residual = F.pixel_shuffle(self.head(h), self.patch).to(x.dtype)
        plan, maps = self.plan(h).to(x.dtype).tensor_split([_PLAN], dim=1)
        c = self.carried(plan, F.pixel_shuffle(maps, self.patch), moved, target, hidden)
        return answer(x, a, s, c, r, residual)

    @torch.no_grad()
    def placed(self, points: Tensor, appearance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the source's landmarks lie in the answer, as spots (B, 1, H, W) in [-1, 1]; its face moved there.

        And all landmarks, of source, target and answer, as numbers (B, 6K). Without a gradient: what is to be learned
        of places is learned from places.
        """
        # half precision would put a landmark a quarter of a pixel off, and the bend of a plate anywhere
        with torch.autocast(points.device.type, enabled=False):
            source, target = (self.placement.completed(each) for each in self.units(points).unbind(1))
            answer_ = self.placement(source, target)
            moved = F.grid_sample(appearance, thin_plate(source, answer_, self.size), align_corners=False)
            numbers = torch.cat([self.placement.normalised(each) for each in (source, target, answer_)], 1)
            seen = spots((answer_ + 1) * (self.size / 2) - 0.5, self.size)
        return 2 * seen - 1, moved, numbers

    def units(self, points: Tensor) -> Tensor:
        """Pixels, the upper left pixel's centre at 0, as halves of the picture from -1 to 1."""
        return (2 * points + 1) / self.size - 1

    def carried(self, plan: Tensor, maps: Tensor, moved: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """c: the face `moved` (B, 4, H, W) relit, as `plan` says, over the target and its blur, as `maps` say.

        plan (B, 8, h, w): the further move, the logarithm of the gain, the shift. maps (B, 2, H, W): logits of m and k.
        """
        # made where they are few, and split once: each slice of a large tensor costs another one on the way back
        move, gain, shift = plan.split([2, 3, 3], dim=1)
        plan = torch.cat([move, gain.exp(), shift], 1)
        plan = F.interpolate(plan, (self.size, self.size), mode="bilinear", align_corners=False)
        move, gain, shift = plan.split([2, 3, 3], dim=1)
        grid = still(self.size, plan.device) + _REACH * move.permute(0, 2, 3, 1)
        face, shown = F.grid_sample(moved, grid, align_corners=False).split([3, 1], dim=1)
        lit = (face / shown.clamp(min=_SHOWN) + 1) * gain - 1 + shift
        covers, keeps = maps.split(1, dim=1)
        under = torch.lerp(hidden, target, torch.sigmoid(keeps))
        return torch.lerp(under, lit, shown * torch.sigmoid(covers + _COVERS))

    def check(
        self,
        x: Tensor,
        log_snr: Tensor,
        scene: Tensor | None,
        identity: Tensor | None,
        appearance: Tensor | None,
        points: Tensor | None,
        dropped: Tensor | None,
    ) -> Tensor:
        b, size = len(x), self.size
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"x is {tuple(x.shape)}, but this net takes (B, 3, {size}, {size})")
        if log_snr.shape != (b,):
            raise ValueError(f"log_snr is {tuple(log_snr.shape)}; it must be ({b},), one per sample")
        if scene is None or scene.shape != (b, self.scene, size, size):
            given = "missing" if scene is None else f"{tuple(scene.shape)}"
            raise ValueError(f"scene is {given}; it must be {(b, self.scene, size, size)}")
        if len({identity is None, appearance is None, points is None}) > 1:
            raise ValueError("identity, appearance and points go together: give all of them, or none")
        if dropped is not None and (identity is None or dropped.shape != (b,) or dropped.dtype != torch.bool):
            raise ValueError(f"dropped goes with an identity and is bool ({b},)")
        if identity is None or appearance is None or points is None:
            return scene
        if identity.shape != (b, self.config["identity"]):
            raise ValueError(f"identity is {tuple(identity.shape)}; it must be {(b, self.config['identity'])}")
        if appearance.shape != (b, 4, size, size):
            raise ValueError(f"appearance is {tuple(appearance.shape)}; it must be {(b, 4, size, size)}")
        if points.ndim != 4 or points.shape[:2] != (b, 2) or points.shape[3] != 2:
            raise ValueError(f"points are {tuple(points.shape)}; they must be ({b}, 2, K, 2): of source and target")
        return scene
