"""Images and clips for training: folders, archives, bundled sources; pixels; the order in which data are read."""

from ornstein.data.buckets import BucketSet, open_buckets
from ornstein.data.clips import Clips, ClipSet
from ornstein.data.identity import same_data
from ornstein.data.images import ImageSet
from ornstein.data.motion import MotionClips
from ornstein.data.open import open_clips, open_images, open_streamed
from ornstein.data.order import batch_indices
from ornstein.data.pixels import grid, save_grid, to_uint8, to_unit
from ornstein.data.streamed import StreamedSet
from ornstein.data.video import clip_grid, save_gif, save_mp4, save_sheet

__all__ = [
    "BucketSet",
    "ClipSet",
    "Clips",
    "ImageSet",
    "MotionClips",
    "StreamedSet",
    "batch_indices",
    "clip_grid",
    "grid",
    "open_buckets",
    "open_clips",
    "open_images",
    "open_streamed",
    "same_data",
    "save_gif",
    "save_grid",
    "save_mp4",
    "save_sheet",
    "to_uint8",
    "to_unit",
]
