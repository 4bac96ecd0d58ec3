"""What a folder or an archive holds: its usable files in order, their classes, and what is left out."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ornstein.data import hugging_face
from ornstein.data.classes import label_entries
from ornstein.data.entry import IMAGE_SUFFIXES, MAX_FILE_BYTES, Listing
from ornstein.data.folder import list_folder, list_zip, open_zip
from ornstein.data.names import natural_key
from ornstein.data.remote import expanded, is_remote, remote_shards
from ornstein.data.shard_file import Place
from ornstein.data.tar_index import TarIndex
from ornstein.data.webdataset import is_tar, training_shards
from ornstein.errors import UserError

__all__ = ["open_source", "tar_archives"]


@contextmanager
def open_source(
    path: str | Path,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    limit_bytes: int = MAX_FILE_BYTES,
    by_folder: bool = True,
) -> Iterator[Listing]:
    """List a folder (recursively), a zip, or what `tar_archives` takes. Archives stay open and are never extracted.

    A folder of tar archives without other files of `suffixes` is read as WebDataset shards; a folder that `datasets`
    has saved is read as that data set. Files with other suffixes are counted as ignored, those above `limit_bytes`
    skipped. Hidden files, the system's own (thumbnails, bins), run directories and pictures that describe others
    (NAME.seg.png beside NAME.jpg) are left out. The class of a file is given by `classes.group`; with `by_folder`
    false, folders name no classes.

    Raises:
        UserError: there is no such source, or it cannot be read.
    """
    shards = tar_archives(path, suffixes, limit_bytes)
    if shards:
        index = TarIndex(shards, suffixes, limit_bytes, by_folder)
        entries = sorted(map(index.entry, range(len(index))), key=lambda entry: natural_key(entry.name))
        yield Listing(entries, index.skipped, index.ignored, prefixed=len(shards) > 1)
        return
    path = Path(path)
    if path.is_dir():
        if hugging_face.is_dataset(path):
            yield label_entries(hugging_face.list_dataset(path, limit_bytes), wrapped=False)
        else:
            yield label_entries(list_folder(path, suffixes, limit_bytes), False, by_folder)
    elif not path.exists():
        raise UserError(f"no such folder or file: {path}")
    else:
        with open_zip(path) as archive:
            yield label_entries(list_zip(archive, path, suffixes, limit_bytes), True, by_folder)


def tar_archives(
    path: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES, limit_bytes: int = MAX_FILE_BYTES
) -> Sequence[Place]:
    """The tar archives to read for `path`; none if it is another source.

    It is an archive, a folder of them without other files of `suffixes`, or a text: a URL, or several places with
    commas and braces ("shard-{000..009}.tar").

    Raises:
        UserError: an archive of several is not there, or a URL cannot be read.
        RunError: a server does not answer.
    """
    text, path = str(path), Path(path)
    if is_remote(text):
        places = expanded(text)
        if not all(map(is_remote, places)):
            raise UserError(f"{text}: URLs and files of this machine cannot be mixed")
        shards = remote_shards(places)
        return shards if len(places) == len(shards) else training_shards(shards)
    if path.is_dir():
        local = [each for each in path.iterdir() if is_tar(each)]
        return [] if not local or list_folder(path, suffixes, limit_bytes).entries else training_shards(local)
    places = [text] if path.exists() else expanded(text)
    if len(places) > 1:
        missing = [place for place in places if not is_tar(Path(place))]
        if missing:
            raise UserError(f"{missing[0]} is no tar archive: a list of places takes .tar files")
    return [Path(place) for place in places if is_tar(Path(place))]
