"""Images for training: folders, archives, the bundled digits; pixels; the order in which data are read."""

from ornstein.data.images import ImageSet, open_images
from ornstein.data.order import batch_indices
from ornstein.data.pixels import grid, save_grid, to_uint8, to_unit

__all__ = ["ImageSet", "batch_indices", "grid", "open_images", "save_grid", "to_uint8", "to_unit"]
