"""Which files of a source belong to the data, and the class of each, by the folders that they lie in."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from ornstein.data.entry import Listing
from ornstein.data.names import natural_key

__all__ = ["Grouping", "group", "label_entries", "mostly", "split_of", "without_companions"]

# A set whose folders all have such names is divided into parts, and not into classes.
_SPLIT = re.compile(
    r"(?P<split>train|training|val|valid|validation|dev|eval|test|testing)([-_ .]?(images?|imgs?|data|set|split|\d+))*",
    re.IGNORECASE,
)
_STRAY = 0.2  # share of the files at most that lie in no class folder and are left out; more of them: no classes
_COMPANION = re.compile(r"(?P<stem>.+)(?P<field>\.[A-Za-z]\w*\.\w+)")  # NAME.seg.png beside NAME.jpg


@dataclass
class Grouping:
    """labels: the class of each file, or None if there are no classes. skipped: the reason why a file is left out.

    ignored: numbers of files that belong to another part of the data, such as a validation split.
    """

    labels: list[str] | None
    skipped: dict[int, str] = field(default_factory=dict)
    ignored: dict[int, str] = field(default_factory=dict)


def group(names: Iterable[str], wrapped: bool, given: Sequence[str | None] | None = None) -> Grouping:
    """The files of `names` that belong to the data, and their classes.

    The class of a file is the one `given` for it; if none has one, the first folder on its path. Folders called train,
    val and test are no classes: what lies in train is the data, the rest is left out. A few files without a class among
    many with one are left out; if they are more, or there is a single class, there are no classes.

    Args:
        names: paths within the source, with "/" between folders.
        wrapped: a single folder around everything is the archive's own and names no class.
        given: for each file its class by a file beside it, or None.
    """
    result = Grouping(None)
    numbers: dict[str, int] = {}  # of distinct folders: there are few of them, whatever the number of files
    folder_of = [numbers.setdefault(name.rpartition("/")[0], len(numbers)) for name in names]
    folders = [folder.split("/") if folder else [] for folder in numbers]
    tops = {parts[0] if parts else None for parts in folders}
    inner = {parts[1] for parts in folders if len(parts) > 1}
    if len(tops) == 1 and None not in tops and (wrapped or _are_splits(inner)):
        folders = [parts[1:] for parts in folders]
        tops = {parts[0] if parts else None for parts in folders}
    depth = 0
    if _are_splits({top for top in tops if top is not None}):
        depth = 1
        others = {i: parts for i, parts in enumerate(folders) if not (parts and split_of(parts[0]) == "train")}
        reasons = {i: f"in {parts[0]}/" if parts else "beside train/" for i, parts in others.items()}
        result.ignored = {i: reasons[folder] for i, folder in enumerate(folder_of) if folder in reasons}
    if given is not None and any(label is not None for label in given):
        labels, missing = list(given), "no class is given for it"
    else:
        class_of = [parts[depth] if len(parts) > depth else None for parts in folders]
        labels, missing = [class_of[folder] for folder in folder_of], "in no class folder"
    if mostly([label for i, label in enumerate(labels) if i not in result.ignored]):
        result.skipped = {i: missing for i, label in enumerate(labels) if label is None and i not in result.ignored}
        result.labels = [label or "" for label in labels]
    return result


def mostly(labels: Sequence[str | None]) -> bool:
    """Whether these labels make classes: all files have one, or few have none and there are several classes."""
    without = sum(label is None for label in labels)
    if not without:
        return bool(labels)
    several = len({*labels}) > 2
    return several and (without == 1 or without <= _STRAY * len(labels))


def split_of(name: str) -> str | None:
    """ "train" or "other" if `name` is that of a part of a data set ("val", "test2017", "train-images"), else None."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    return "train" if match["split"].lower().startswith("train") else "other"


def _are_splits(names: set[str]) -> bool:
    kinds = {split_of(name) for name in names}
    return "train" in kinds and None not in kinds


def without_companions(names: Sequence[str]) -> dict[int, str]:
    """The pictures that describe another one: NAME.seg.png if there is NAME.jpg in the same folder; with their field.

    A field begins with a letter: photo.2.jpg beside photo.jpg is a picture of its own.
    """
    stems = {name.rpartition(".")[0] for name in names}
    found = {}
    for i, name in enumerate(names):
        match = _COMPANION.fullmatch(name)
        if match and "/" not in match["field"] and match["stem"] in stems:
            found[i] = match["field"].lower()
    return found


def label_entries(listing: Listing, wrapped: bool, by_folder: bool = True) -> Listing:
    """The listing in natural order with the class of each entry, without what belongs to another part of the data.

    With `by_folder` false folders name no classes, and only companions of pictures are left out.
    """
    entries = sorted(listing.entries, key=lambda entry: natural_key(entry.name))
    companions = without_companions([entry.name for entry in entries])
    ignored = listing.ignored + Counter(companions.values())
    entries = [entry for i, entry in enumerate(entries) if i not in companions]
    if not by_folder:
        return Listing(entries, listing.skipped, ignored)
    given = [entry.label for entry in entries]
    groups = group([entry.name for entry in entries], wrapped, given)
    ignored += Counter(groups.ignored.values())
    skipped = listing.skipped + [(entries[i].name, why) for i, why in groups.skipped.items()]
    kept = [i for i in range(len(entries)) if i not in groups.ignored and i not in groups.skipped]
    labels = groups.labels
    return Listing([replace(entries[i], label=None if labels is None else labels[i]) for i in kept], skipped, ignored)
