"""The networks of face swaps: `FaceUNet` for photographs, `RelitUNet` for pairs with a known true swap."""

from ornstein.faces.nets.face import FaceUNet
from ornstein.faces.nets.relit import RelitUNet

__all__ = ["FaceUNet", "RelitUNet"]
