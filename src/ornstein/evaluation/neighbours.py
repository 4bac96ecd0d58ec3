"""Nearest real images: the class of a sample, and whether it is a copy of a training image.

Images are (N, C, H, W), or any (N, *): uint8, scaled to [-1, 1], or floats in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "CopyReport",
    "Nearest",
    "copy_report",
    "flat_pixels",
    "knn_agreement",
    "nearest",
    "nearest_distances",
]

# Doubles held at once by one block of the distance matrix or of one image set: 32 MiB each.
_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class Nearest:
    """The nearest images of a set: distance (N,), float64, RMS per pixel; index (N,), int64, into that set."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class CopyReport:
    """Distances of samples and of real test images to the nearest training image, RMS per pixel in [-1, 1].

    threshold: the 1% quantile of the distances of the test images. close_share: the share of samples below it, near
    0.01 for a model that generalises, and near 1 for one that copies. duplicates: samples at distance zero.
    """

    sample_median: float
    sample_q05: float
    test_median: float
    test_q05: float
    threshold: float
    close_share: float
    duplicates: int
    test_duplicates: int


def flat_pixels(images: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """One row for each image, (N, D), on the CPU, in [-1, 1]: uint8 is mapped by x / 127.5 - 1, floats are kept.

    Raises:
        ValueError: another dtype, an empty set, a tensor without a batch axis, or values that are not finite.
    """
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must be a non-empty (N, C, H, W) tensor, got shape {tuple(images.shape)}")
    flat = images.detach().cpu().flatten(1)
    if flat.dtype == torch.uint8:
        return flat.to(dtype) / 127.5 - 1.0
    if not flat.is_floating_point():
        raise ValueError(f"images must be uint8 or floats in [-1, 1], got {images.dtype}")
    if not bool(flat.isfinite().all()):
        raise ValueError("images hold values that are not finite: the run that made them diverged")
    return flat.to(dtype)


def _same_size(a: Tensor, b: Tensor) -> None:
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"images differ in shape: {tuple(a.shape[1:])} against {tuple(b.shape[1:])}")


def knn_agreement(
    samples: Tensor, requested_labels: Tensor, train_images: Tensor, train_labels: Tensor, k: int = 5
) -> float:
    """Share of samples whose k-nearest-neighbour class is the class that was requested, in [0, 1].

    The classifier is fitted on the real training images (N, C, H, W) and their labels (N,), by L2 on raw pixels.

    Raises:
        ValueError: shapes or counts that do not match, or fewer than k training images.
    """
    from sklearn.neighbors import KNeighborsClassifier  # takes a second to import

    _same_size(samples, train_images)
    for name, images, labels in (
        ("samples", samples, requested_labels),
        ("training images", train_images, train_labels),
    ):
        if labels.shape != (len(images),):
            raise ValueError(f"{len(images)} {name} need labels of shape ({len(images)},), got {tuple(labels.shape)}")
    if not 1 <= k <= len(train_images):
        raise ValueError(f"k must lie between 1 and the {len(train_images)} training images, got {k}")
    classifier = KNeighborsClassifier(n_neighbors=k)
    classifier.fit(flat_pixels(train_images, torch.float32).numpy(), train_labels.cpu().numpy())
    predicted = classifier.predict(flat_pixels(samples, torch.float32).numpy())
    return float((predicted == requested_labels.cpu().numpy()).mean())


def nearest(a: Tensor, b: Tensor, exclude_self: bool = False) -> Nearest:
    """For each image of a the nearest image of b: d(x) = min_y |x - y| / sqrt(D), D = C H W values an image.

    The distance is the root mean square over the values of an image in [-1, 1]: 0 for equal images, 2 between black and
    white. The distance matrix is never held whole: time grows with len(a) len(b) D, memory does not.

    Args:
        a, b: images of one shape.
        exclude_self: a and b are the same set, and an image is not its own neighbour.

    Raises:
        ValueError: images of different shapes; with exclude_self, sets of different sizes or fewer than two images.
    """
    _same_size(a, b)
    if exclude_self and (len(a) != len(b) or len(b) < 2):
        raise ValueError(f"exclude_self needs one set of at least two images, given twice, got {len(a)} and {len(b)}")
    x = flat_pixels(a)
    dim = x.shape[1]
    rows_b = max(1, min(len(b), _BLOCK // dim))
    rows_a = max(1, min(len(a), _BLOCK // rows_b))
    best = torch.full((len(a),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(a), dtype=torch.int64)
    for at_b in range(0, len(b), rows_b):
        y = flat_pixels(b[at_b : at_b + rows_b])
        half_norm = 0.5 * y.square().sum(1)
        for at_a in range(0, len(a), rows_a):
            block = x[at_a : at_a + rows_a]
            # |x - y|^2 / 2 without the part that does not depend on y: it has the same order, by one matrix product
            rank = torch.addmm(half_norm, block, y.T, alpha=-1.0)
            if exclude_self:
                rank.diagonal(at_a - at_b).fill_(torch.inf)
            value, where = rank.min(1)
            here = slice(at_a, at_a + len(block))
            closer = value < best[here]
            best[here] = torch.where(closer, value, best[here])
            index[here] = torch.where(closer, where + at_b, index[here])
    # From the difference itself: the expanded square loses small distances to cancellation.
    rows = max(1, _BLOCK // dim)
    parts = [
        (x[i : i + rows] - flat_pixels(b[index[i : i + rows].to(b.device)])).square().mean(1).sqrt()
        for i in range(0, len(a), rows)
    ]
    return Nearest(torch.cat(parts), index)


def nearest_distances(a: Tensor, b: Tensor, exclude_self: bool = False) -> Tensor:
    """Distance (N,) from each image of a to the nearest of b, RMS per pixel in [-1, 1]; see `nearest`."""
    return nearest(a, b, exclude_self).distance


def copy_report(samples: Tensor, train: Tensor, test: Tensor) -> CopyReport:
    """Memorisation check: whether samples are nearer to training images than held-out images are.

    Duplicates have distance zero: give samples and training images as uint8, since floats out of a network never equal
    an image exactly.

    Args:
        samples: images of the model.
        train: its training images.
        test: held-out images from the same source.

    Raises:
        ValueError: images of different shapes.
    """
    sample = nearest_distances(samples, train)
    real = nearest_distances(test, train)
    threshold = float(real.quantile(0.01))
    return CopyReport(
        sample_median=float(sample.quantile(0.5)),
        sample_q05=float(sample.quantile(0.05)),
        test_median=float(real.quantile(0.5)),
        test_q05=float(real.quantile(0.05)),
        threshold=threshold,
        # a data set with duplicates has threshold 0, and no distance is below 0
        close_share=float(((sample < threshold) | (sample == 0)).double().mean()),
        duplicates=int((sample == 0).sum()),
        test_duplicates=int((real == 0).sum()),
    )
