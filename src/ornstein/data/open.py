"""The public openers: images and clips from a folder, an archive, arrays or a bundled source."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ornstein.data.arrays import is_arrays, open_arrays
from ornstein.data.bundled import CAPTIONED, is_bundled, open_captioned
from ornstein.data.colour import CHANNEL_MODES, flatten
from ornstein.data.decode import (
    LIMIT_PIXELS,
    MAX_ENLARGEMENT,
    BadImage,
    check_form,
    check_picture,
    check_side,
    fit,
    to_array,
)
from ornstein.data.entry import nothing_usable
from ornstein.data.framing import Crop, Framing, Size, framing
from ornstein.data.identity import checksum
from ornstein.data.images import ImageSet, Progress, allocate, decode_images
from ornstein.data.names import natural_key
from ornstein.data.open_videos import open_clips
from ornstein.data.sources import open_source, tar_archives
from ornstein.data.streamed import Files, ListedFiles, StreamedSet, shape_of
from ornstein.data.tar_index import TarIndex
from ornstein.errors import UserError
from ornstein.settings import extent_text

__all__ = ["open_clips", "open_images", "open_streamed"]


def open_images(
    path: str | Path,
    size: Size = None,
    channels: int | None = None,
    *,
    crop: Crop = "centre",
    limit_pixels: int = LIMIT_PIXELS,
    progress: Progress = None,
) -> ImageSet:
    """Open images and decode them into memory.

    `path` is a folder; an archive, read in place: .zip, or .tar as WebDataset makes them, of which a folder may hold
    several; a .npy or .npz file (see `arrays`); a data set that Hugging Face's `datasets` saved on disk; or "digits",
    scikit-learn's 1,797 scans of 8x8 (a folder of that name is given as "./digits"), or "shapes"
    or "captioned-faces", drawn pictures with captions.

    If the images lie in sub-folders, the first folder on the path is the class; folders called train, val and test
    divide the set, and only train is read (see `classes.group`). An archive wrapped in one single folder is read as
    that folder. Each image is turned upright; its centre, of the aspect ratio of `size`, is resized. The result does
    not depend on the number of threads. Above 2 GB the pixels live in a temporary file. Files that cannot be used,
    among them images above `limit_pixels`, smaller than 2 pixels a side or enlarged more than 8 times, are listed in
    `skipped`; files of other kinds are counted in `ignored`; `summary` says it all in one line.

    Args:
        size: pixels a side, or (height, width); None keeps the size that all have.
        channels: 3 (RGB), 1 (luma), 4 or 2 (the same with alpha); None means 3, and 1 for the digits. Arrays may have
            any number.
        crop: "centre", or "none" for whole pictures, resized in both directions.
        progress: called with (done, total) as files are decoded.

    Raises:
        UserError: there is no such source, nothing usable in it, or the sizes differ and size=None.
        RunError: the disk has no room for the temporary file.
    """
    check_form(size, channels)
    frame = framing(size, crop)
    if str(path) == "digits" and (isinstance(path, str) or not path.exists()):
        return _open_digits(frame, 1 if channels is None else channels)
    if is_bundled(path, CAPTIONED):
        return open_captioned(str(path), frame, channels)
    if is_arrays(path):
        return _from_arrays(Path(path), frame, channels, progress)
    check_picture(channels or 3)
    with open_source(path) as listing:
        if not listing.entries:
            raise nothing_usable(path, listing.skipped, listing.ignored)
        labels = {entry.label for entry in listing.entries if entry.label is not None}
        classes = sorted(labels, key=natural_key)
        images = decode_images(str(path), listing.entries, classes, frame, channels or 3, limit_pixels, progress)
    images.skipped = sorted(listing.skipped + images.skipped, key=lambda item: natural_key(item[0]))
    images.ignored = listing.ignored
    if not len(images):
        raise nothing_usable(path, images.skipped, images.ignored)
    return _with_used_classes(images)


def open_streamed(
    path: str | Path, size: Size = None, channels: int | None = None, *, crop: Crop = "centre", above: int = 0
) -> StreamedSet | None:
    """Open a folder, a .zip, a .tar or a folder of .tar, or a data set of Hugging Face to decode its images as needed.

    Classes, `size` and `channels` are as for `open_images`, and so is `crop`, which may be "random" too: then each use
    of a picture cuts another part of it. With size=None all images must be of one size, which is
    checked for some of them.

    Returns:
        The set; None if the images, decoded, are no more than `above` bytes, or are arrays already.

    Raises:
        UserError: there is no such source, nothing usable in it, or the sizes differ and size=None.
    """
    check_form(size, channels)
    if str(path) == "digits" or is_bundled(path, CAPTIONED) or is_arrays(path):
        return None
    check_picture(channels or 3)
    frame = framing(size, crop)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about files that are decoded all the same, or skipped
    shards = tar_archives(path)
    files: Files = TarIndex(shards) if shards else ListedFiles(Path(path))
    if not len(files):
        raise nothing_usable(path, files.skipped, files.ignored)
    if frame.size is not None and len(files) * (channels or 3) * frame.size[0] * frame.size[1] <= above:
        return None
    shape = shape_of(str(path), files, frame, channels or 3)
    images = StreamedSet(str(path), files, np.arange(len(files)), shape, crop)
    return images if images.decoded_bytes > above else None


def _with_used_classes(images: ImageSet) -> ImageSet:
    """The set without the classes that none of its images has: all of theirs were damaged."""
    if images.labels is not None:
        used, labels = torch.unique(images.labels, return_inverse=True)
        images.labels, images.classes = labels, [images.classes[i] for i in used.tolist()]
    return images


def _open_digits(frame: Framing, channels: int) -> ImageSet:
    check_picture(channels)
    if frame.size is not None and max(frame.size) > 8 * MAX_ENLARGEMENT:
        size = extent_text(frame.size)
        raise UserError(f"the digits are 8x8 pixels: --size can be at most {8 * MAX_ENLARGEMENT}, not {size}")
    from sklearn.datasets import load_digits  # a second to import, and only the digits need it

    scans, targets = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(scans).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    mode = CHANNEL_MODES[channels]
    images = np.stack([to_array(fit(Image.fromarray(scan).convert(mode), frame)) for scan in pixels])
    return ImageSet(
        source="digits",
        images=torch.from_numpy(images),
        names=[f"digits/{i:04d}" for i in range(len(images))],
        file_sizes=[64] * len(images),
        sums=[checksum(scan.tobytes()) for scan in pixels],
        labels=torch.from_numpy(np.asarray(targets).astype(np.int64)),
        classes=[str(digit) for digit in range(10)],
    )


def _from_arrays(path: Path, frame: Framing, channels: int | None, progress: Progress) -> ImageSet:
    arrays = open_arrays(path, channels)
    height, width, stored = arrays.shape
    try:
        check_side(width, height, frame)
    except BadImage as bad:
        raise UserError(f"the images in {path} are {bad}") from None
    channels, extent = channels or stored, frame.shape(width, height)
    if channels != stored and not {channels, stored} <= CHANNEL_MODES.keys():
        raise UserError(f"{path} has images of {stored} channels, which cannot become {channels}: leave out --channels")
    images = allocate((arrays.count, channels, *extent))
    sums: list[int] = []
    for chunk in arrays.chunks():
        for pixels in chunk:
            plain = np.ascontiguousarray(pixels)
            if (height, width, stored) == (*extent, channels):
                images[len(sums)] = plain.transpose(2, 0, 1)
            else:
                images[len(sums)] = _brought(plain, frame, channels)
            sums.append(checksum(plain.tobytes()))
        if progress is not None:
            progress(len(sums), arrays.count)
    digits = len(str(arrays.count - 1))
    return ImageSet(
        source=f"{path} ({', '.join(arrays.notes)})",
        images=torch.from_numpy(images),
        names=[f"{i:0{digits}d}" for i in range(arrays.count)],
        file_sizes=[height * width * stored] * arrays.count,
        sums=sums,
        labels=None if arrays.labels is None else torch.from_numpy(arrays.labels),
        classes=arrays.classes,
        ignored=Counter(f"array {name}" for name in arrays.ignored),
        notes=arrays.notes,
    )


def _brought(pixels: np.ndarray, frame: Framing, channels: int) -> np.ndarray:
    """uint8 (H, W, c) in the size of `frame`, uint8 (channels, *); channel by channel where they are no colours."""
    stored = pixels.shape[2]
    if stored == channels not in (1, 3):  # Pillow takes 2 and 4 for alpha, and blends by it
        return np.stack([np.asarray(fit(Image.fromarray(plane), frame)) for plane in np.moveaxis(pixels, 2, 0)])
    picture = Image.fromarray(pixels[..., 0] if stored == 1 else pixels)
    return to_array(fit(picture if stored == channels else flatten(picture, channels), frame))
