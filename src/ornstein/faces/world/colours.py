"""The colours of a rendered face: skin, hair, eyes and lips, in plausible combinations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.faces.world.geometry import Shape, ramp

__all__ = ["Colours", "colours", "muted"]

# sRGB of skin from light to dark, and of hair from black to blond.
_SKIN = (
    (0.93, 0.80, 0.72),
    (0.90, 0.73, 0.61),
    (0.85, 0.65, 0.50),
    (0.72, 0.51, 0.36),
    (0.54, 0.36, 0.25),
    (0.38, 0.24, 0.17),
)
_HAIR = (
    (0.07, 0.055, 0.055),
    (0.15, 0.10, 0.08),
    (0.27, 0.17, 0.11),
    (0.48, 0.22, 0.11),
    (0.47, 0.33, 0.19),
    (0.80, 0.66, 0.42),
)
_IRIS = ((0.16, 0.09, 0.05), (0.30, 0.18, 0.08), (0.38, 0.33, 0.16), (0.32, 0.42, 0.32), (0.30, 0.47, 0.62))
_SHARED = {  # linear
    "white": (1.0, 1.0, 1.0),
    "black": (0.012, 0.009, 0.008),
    "eyeball": (0.62, 0.58, 0.55),
    "tooth": (0.80, 0.76, 0.66),
    "tongue": (0.40, 0.12, 0.11),
    "throat": (0.10, 0.017, 0.017),
}


def _palette(colours: tuple[tuple[float, float, float], ...], u: Tensor) -> Tensor:
    """Linear colour (B, 3) at u (B,) in [0, 1] along a palette of sRGB colours."""
    table = torch.tensor(colours).square()  # a gamma of 2 is near enough to that of sRGB, and its root is cheap
    at = u.clamp(0, 1) * (len(colours) - 1)
    low = at.floor().clamp(max=len(colours) - 2)
    return torch.lerp(table[low.long()], table[low.long() + 1], (at - low)[:, None])


def muted(colour: Tensor) -> Tensor:
    """Linear colour (B, 3) of an sRGB one at half its saturation: rooms and clothes are seldom pure red or blue."""
    return torch.lerp(colour, colour.mean(-1, keepdim=True), 0.5).square()


@dataclass
class Colours:
    """Linear colours (B, 3) of a face."""

    skin: Tensor
    lips: Tensor
    iris: Tensor
    hair: Tensor
    brows: Tensor
    cloth: Tensor
    frame: Tensor

    @property
    def red(self) -> Tensor:
        """Skin with more blood."""
        return self.skin * torch.tensor([1.02, 0.62, 0.58])

    @property
    def brown(self) -> Tensor:
        """Tanned skin, or skin in a fold."""
        return self.skin * torch.tensor([0.55, 0.40, 0.30])

    @property
    def dark(self) -> Tensor:
        """Skin in a crease."""
        return self.skin * torch.tensor([0.42, 0.28, 0.25])

    @property
    def ears(self) -> Tensor:
        """Translucent skin."""
        return self.skin * torch.tensor([1.0, 0.85, 0.82])

    def fixed(self, name: str) -> Tensor:
        """A colour that is the same for everybody."""
        return torch.tensor(_SHARED[name]).expand_as(self.skin)


def colours(face: Shape) -> Colours:
    """The colours of a face: hair and eyes are dark where the skin is, hair greys with age."""
    who = {name: column.flatten() for name, column in face.who.items()}
    tone = who["skin_tone"]
    warm = (who["skin_warmth"] - 0.5)[:, None] * torch.tensor([0.05, -0.01, -0.16])
    skin = _palette(_SKIN, tone) * (1 + warm)
    dark = 1 - 0.85 * ramp(tone, 0.35, 0.6)
    hair = _palette(_HAIR, who["hair_colour"] * dark)
    grey = (ramp(who["age"], 0.8, 1.0) * 0.85)[:, None]
    white = torch.tensor([0.62, 0.61, 0.60]).square()
    hair = torch.lerp(hair, white.expand_as(hair), grey)
    black = torch.tensor([0.03, 0.022, 0.02])
    brows = torch.lerp(hair, black.expand_as(hair), 0.45 + 0.4 * who["brow_darkness"][:, None]) * 0.8
    rouge = ramp(who["lip_colour"], 0.5, 1.0) * (1 - who["beard"])
    natural = skin * torch.tensor([0.92, 0.56, 0.56])
    painted = torch.tensor([0.45, 0.05, 0.07]).expand_as(skin) * (0.5 + skin[:, :1])
    lips = torch.lerp(natural, painted, 0.75 * rouge[:, None])
    frame = torch.lerp(
        torch.tensor([0.02, 0.02, 0.025]), torch.tensor([0.25, 0.11, 0.04]), who["glasses_shape"][:, None]
    )
    cloth = muted(torch.stack([face.does[f"cloth_{c}"].flatten() for c in ("red", "green", "blue")], -1))
    return Colours(skin, lips, _palette(_IRIS, who["eye_colour"] * dark), hair, brows, cloth, frame)
