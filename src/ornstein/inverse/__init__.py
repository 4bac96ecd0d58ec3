"""Inverse problems: what was measured, and denoisers of what it may have come from (E39)."""

from ornstein.inverse.decoded import Decoded
from ornstein.inverse.gradients import DPS, PiGDM
from ornstein.inverse.inversion import Inversion, invert
from ornstein.inverse.jpeg import JPEG
from ornstein.inverse.moments import Moments
from ornstein.inverse.named import named_operator
from ornstein.inverse.operators import (
    Blur,
    Chain,
    Cut,
    Grey,
    Mask,
    Matrix,
    Operator,
    Resized,
    Stacked,
    downsampling,
    known_frames,
    radon,
    sensing,
)
from ornstein.inverse.particles import twisted
from ornstein.inverse.posterior import Posterior
from ornstein.inverse.projections import DDNM, DDRM, DiffPIR, repaint

__all__ = [
    "DDNM", "DDRM", "DPS", "JPEG", "METHODS", "Blur", "Chain", "Cut", "Decoded", "DiffPIR", "Grey", "Inversion", "Mask",
    "Matrix", "Moments", "Operator", "PiGDM", "Posterior", "Resized", "Stacked", "downsampling", "invert",
    "known_frames", "named_operator", "radon", "repaint", "sensing", "twisted",
]  # fmt: skip

METHODS: dict[str, type[Posterior]] = {
    "moments": Moments,
    "pigdm": PiGDM,
    "dps": DPS,
    "ddrm": DDRM,
    "ddnm": DDNM,
    "diffpir": DiffPIR,
}
"""The methods by name; "repaint" and "twisted" are solvers, of `DDNM` and of `Moments`."""
