"""Swapping: faces in a picture are aligned, repainted by a model, colour-matched and pasted back."""

from ornstein.faces.swap.choose import ALL, LARGEST, Choice, Source, ordered
from ornstein.faces.swap.photo import Order, swap_photo
from ornstein.faces.swap.sampling import FaceModel, swap_crops
from ornstein.faces.swap.swapper import Aligned, SwapModel, Swapper, SwapSettings, load_model

__all__ = [
    "ALL",
    "LARGEST",
    "Aligned",
    "Choice",
    "FaceModel",
    "Order",
    "Source",
    "SwapModel",
    "SwapSettings",
    "Swapper",
    "load_model",
    "ordered",
    "swap_crops",
    "swap_photo",
]
