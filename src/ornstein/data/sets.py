"""What all sets of images and clips share: the split, labels, and the line that says what was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ornstein.data.entry import counted
from ornstein.errors import UserError

__all__ = ["FEW", "check_fraction", "few_images", "no_labels", "number_labels", "read_line", "split_rows"]

FEW = 20  # images below which a model can only copy them
_CLASSES_SHOWN = 8


def check_fraction(fraction: float, n: int, source: str, kind: str = "image") -> None:
    """Raises ValueError unless 0 < fraction < 1, UserError on fewer than 2 images."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    if n < 2:
        raise UserError(f"{source} has {n} {kind}: at least 2 are needed to hold some out")


def split_rows(
    n: int, fraction: float, seed: int, labels: Tensor | None = None, at_most: int | None = None
) -> tuple[Tensor, Tensor]:
    """The rows to train on and those held out, int64, ascending: `fraction` of 0..n-1 drawn at random by the seed.

    With `labels` (n,) one row of each class is never held out, so that every class has something to train on. The rows
    held out for a smaller fraction are among those for a larger one.
    """
    count = min(max(round(n * fraction), 1), n - 1, n if at_most is None else at_most)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        last = {label: i for i, label in enumerate(labels[order].tolist())}
        keep = torch.ones(n, dtype=torch.bool)
        keep[torch.tensor(sorted(last.values()), dtype=torch.int64)] = False
        if bool(keep.any()):
            order = torch.cat([order[keep], order[~keep]])
            count = min(count, int(keep.sum()))
    return order[count:].sort().values, order[:count].sort().values


def number_labels(labels: Sequence[str | None], classes: Sequence[str]) -> Tensor | None:
    """int64 (n,): the place of each label in `classes`; None if there are no labels."""
    number = {name: i for i, name in enumerate(classes)}
    found = [number[label] for label in labels if label is not None]
    return torch.tensor(found) if found else None


def no_labels(source: str, names: Sequence[str] = ()) -> UserError:
    """The error for a set without labels, naming an image without a class."""
    outside = min(names, key=lambda name: name.count("/"), default=None)
    example = "" if outside is None else f" ({outside} has no class)"
    return UserError(
        f"{source} has no class labels: put the images of each class in a folder named after it, or in an archive a "
        f".cls file beside each image{example}"
    )


def read_line(
    n: int,
    kind: str,
    classes: Sequence[str],
    labels: Tensor | np.ndarray | None,
    ignored: Counter[str],
    skipped: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
) -> str:
    """One line: "1,203 pictures, 2 classes: cat 603, dog 600; ignored: 4 .txt; skipped: 2 damaged"."""
    line = f"{n:,} {kind}{'' if n == 1 else 's'}"
    if labels is not None and classes:
        counts = np.bincount(np.asarray(labels), minlength=len(classes))
        shown = [f"{name} {count:,}" for name, count in zip(classes[:_CLASSES_SHOWN], counts, strict=False)]
        more = len(classes) - _CLASSES_SHOWN
        line += f", {len(classes):,} classes: {', '.join(shown)}" + (f", and {more:,} more" if more > 0 else "")
    else:
        line += ", no classes"
    for note in notes:
        line += f"; {note}"
    if ignored:
        line += f"; ignored: {counted(ignored)}"
    if skipped:
        reasons = Counter(why.split(":")[0] for _, why in skipped)
        parts = [f"{number:,} {why}" for why, number in reasons.most_common(3)]
        line += f"; skipped: {', '.join(parts)}{', ...' if len(reasons) > 3 else ''}"
    return line


def few_images(n: int, kind: str = "image") -> str | None:
    """A warning if a set has too few images to learn from."""
    if n >= FEW:
        return None
    return f"only {n} {kind}{'' if n == 1 else 's'}: a model trained from scratch will copy them; give {FEW} or more"
