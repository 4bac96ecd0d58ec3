import os
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import ImageSet, open_images
from ornstein.data.names import natural_key
from ornstein.errors import UserError


def picture(value: int = 0, side: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("L", (side, side), value).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make(tmp_path: Path, kind: str, files: dict[str, bytes]) -> Path:
    return fill(tmp_path / "folder", files) if kind == "folder" else pack(tmp_path / "archive.zip", files)


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def refused(path: str | Path, **options: int) -> str:
    with pytest.raises(UserError) as caught:
        open_images(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
def test_classes_are_the_first_folders(tmp_path: Path, kind: str) -> None:
    files = {"dog/b.png": picture(3), "cat/2.png": picture(1), "cat/10.PNG": picture(2), "dog/x/y/a.png": picture(4)}
    data = open_images(make(tmp_path, kind, files))
    assert data.names == ["cat/2.png", "cat/10.PNG", "dog/b.png", "dog/x/y/a.png"]
    assert values(data) == [1, 2, 3, 4]
    assert data.classes == ["cat", "dog"]
    assert data.require_labels().tolist() == [0, 0, 1, 1]
    assert data.skipped == []


@both
def test_images_directly_inside_have_no_labels(tmp_path: Path, kind: str) -> None:
    data = open_images(make(tmp_path, kind, {"10.png": picture(2), "9.png": picture(1)}))
    assert values(data) == [1, 2]
    assert data.labels is None and data.classes == []
    with pytest.raises(UserError, match=r"no class labels.*folder.*\(9\.png has no class\)"):
        data.require_labels()


@both
def test_one_image_beside_the_class_folders_is_left_out_and_named(tmp_path: Path, kind: str) -> None:
    data = open_images(make(tmp_path, kind, {"a/1.png": picture(), "b/1.png": picture(), "z.png": picture()}))
    assert data.names == ["a/1.png", "b/1.png"] and data.classes == ["a", "b"]
    assert data.skipped == [("z.png", "in no class folder")]


@both
def test_many_images_beside_the_class_folders_take_the_labels_and_are_named(tmp_path: Path, kind: str) -> None:
    files = {"a/1.png": picture(), "b/1.png": picture(), "y.png": picture(), "z.png": picture()}
    data = open_images(make(tmp_path, kind, files))
    assert len(data) == 4
    with pytest.raises(UserError, match=r"y\.png has no class"):
        data.require_labels()


def test_an_archive_wrapped_in_one_folder(tmp_path: Path) -> None:
    files = {
        "pets/cat/1.png": picture(1),
        "pets/dog/1.png": picture(2),
        "__MACOSX/pets/cat/._1.png": b"x",
        "a.txt": b"x",
    }
    data = open_images(pack(tmp_path / "a.zip", files))
    assert data.classes == ["cat", "dog"] and values(data) == [1, 2] and data.skipped == []
    flat = open_images(pack(tmp_path / "b.zip", {"photos/1.png": picture(1), "photos/2.png": picture(2)}))
    assert flat.labels is None and values(flat) == [1, 2]


def test_a_folder_of_one_class_keeps_it(tmp_path: Path) -> None:
    data = open_images(fill(tmp_path, {"cat/1.png": picture()}))
    assert data.classes == ["cat"] and data.require_labels().tolist() == [0]


def test_odd_spellings_of_archive_paths(tmp_path: Path) -> None:
    data = open_images(pack(tmp_path / "a.zip", {"./cat/1.png": picture(1), "dog\\1.png": picture(2)}))
    assert data.classes == ["cat", "dog"]


def test_an_archive_is_not_extracted_and_equals_its_folder(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": picture(20 * i) for c in ("a", "b") for i in range(12)}
    folder, archive = fill(tmp_path / "folder", files), pack(tmp_path / "a.zip", files)
    before = sorted(tmp_path.rglob("*"))
    one, other = open_images(folder), open_images(archive)
    assert sorted(tmp_path.rglob("*")) == before
    assert one.names == other.names and (one.images == other.images).all()
    assert one.fingerprint == other.fingerprint


@both
def test_other_files_are_no_part_of_it(tmp_path: Path, kind: str) -> None:
    others = {"notes.txt": b"x", "a/meta.json": b"{}", ".DS_Store": b"x", "__MACOSX/a/1.png": b"x", "a/._1.png": b"x"}
    data = open_images(make(tmp_path, kind, {"a/1.png": picture(), ".cache/x.png": picture()} | others))
    assert data.names == ["a/1.png"] and data.skipped == []


@both
def test_bad_files_are_listed_with_their_reasons(tmp_path: Path, kind: str) -> None:
    files = {
        "good.png": picture(7),
        "text.jpg": b"this is no picture",
        "empty.png": b"",
        "cut.png": picture(side=64)[:48],
        "dot.png": picture(side=1),
        "phone.heic": b"\0\0\0\x18ftypheic",
    }
    data = open_images(make(tmp_path, kind, files))
    assert values(data) == [7]
    assert [name for name, _ in data.skipped] == ["cut.png", "dot.png", "empty.png", "phone.heic", "text.jpg"]
    reasons = dict(data.skipped)
    assert "truncated" in reasons["cut.png"] and "too small" in reasons["dot.png"]
    assert "empty" in reasons["empty.png"]
    assert "not an image" in reasons["text.jpg"]
    assert "HEIC" in reasons["phone.heic"] or "damaged" in reasons["phone.heic"]  # with pillow-heif


@both
def test_nothing_usable(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {"a.txt": b"x", "b.json": b"x", "c.jpg": b"x", "d.png": b""})
    message = refused(path)
    assert str(path) in message and "2 skipped" in message and "2 of other kinds" in message
    assert "d.png: empty file" in message or "c.jpg: not an image" in message


def test_sources_that_are_none(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == f"no such folder or file: {tmp_path / 'nowhere'}"
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(tmp_path / "empty")
    assert "is empty" in refused(pack(tmp_path / "empty.zip", {}))
    assert "3 of other kinds" in refused(fill(tmp_path / "text", {f"{i}.txt": b"x" for i in range(3)}))
    fill(tmp_path, {"fake.zip": b"no archive", "one.png": picture(), "zero.zip": b""})
    for name in ("fake.zip", "one.png", "zero.zip"):
        assert "neither a folder nor a sound zip archive" in refused(tmp_path / name)
    archive = pack(tmp_path / "cut.zip", {"a.png": picture()})
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "neither a folder nor a sound zip archive" in refused(archive)


def patched(path: Path, changes: dict[int, bytes]) -> Path:
    """Overwrite bytes of the (last) central directory entry of an archive, by their offset in it."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")
    for offset, new in changes.items():
        data[start + offset : start + offset + len(new)] = new
    path.write_bytes(data)
    return path


FLAGS, METHOD, SIZE = 8, 10, 24  # offsets in a central directory entry (APPNOTE 4.3.12)


def test_encrypted_archives(tmp_path: Path) -> None:
    whole = patched(pack(tmp_path / "a.zip", {"a.png": picture()}), {FLAGS: b"\1"})
    assert "is encrypted: decrypt the archive first" in refused(whole)
    partly = patched(pack(tmp_path / "b.zip", {"a.png": picture(), "b.png": picture()}), {FLAGS: b"\1"})
    assert open_images(partly).skipped == [("b.png", "encrypted")]


def test_damaged_archive_entries_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that only the checksum can tell
        archive.writestr("a.png", picture(1, side=64))
        archive.writestr("b.png", picture(2, side=64))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT", data.index(b"b.png")) + 6] ^= 0xFF
    path.write_bytes(data)
    found = open_images(path)
    assert values(found) == [1]
    ((name, reason),) = found.skipped
    assert name == "b.png" and "CRC" in reason
    unknown = patched(pack(tmp_path / "c.zip", {"a.png": picture(), "b.png": picture()}), {METHOD: b"\x63"})
    ((name, reason),) = open_images(unknown).skipped
    assert name == "b.png" and "damaged in the archive" in reason


def test_archive_paths_that_lead_out(tmp_path: Path) -> None:
    outside = {"/etc/a.png": picture(), "../b.png": picture(), "x/../../c.png": picture(), "C:\\d.png": picture()}
    data = open_images(pack(tmp_path / "a.zip", {"ok.png": picture()} | outside))
    assert data.names == ["ok.png"]
    assert len(data.skipped) == 4 and {why for _, why in data.skipped} == {"its path leads out of the archive"}


def test_files_too_large_to_read(tmp_path: Path) -> None:
    fill(tmp_path / "folder", {"ok.png": picture()})
    with (tmp_path / "folder" / "huge.png").open("wb") as file:
        file.truncate(600 * 2**20)  # sparse: takes no room
    bomb = patched(
        pack(tmp_path / "a.zip", {"ok.png": picture(), "huge.png": picture()}), {SIZE: struct.pack("<I", 2**30)}
    )
    for path in (tmp_path / "folder", bomb):
        ((name, reason),) = open_images(path).skipped
        assert name == "huge.png" and "more than the limit of 512 MB" in reason


def test_symbolic_links(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"secret.png": picture(), "more/x.png": picture()})
    root = fill(tmp_path / "root", {"a.png": picture(1), "sub/b.png": picture(2)})
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    (root / "folder").symlink_to(outside / "more")
    (root / "loop").symlink_to(root)
    data = open_images(root)
    assert data.names == ["a.png", "inside.png", "sub/b.png"]
    reasons = dict(data.skipped)
    assert set(reasons) == {"out.png", "broken.png", "folder", "loop"}
    assert "leads out" in reasons["out.png"] and "not followed" in reasons["folder"]
    (tmp_path / "link").symlink_to(root)  # the folder itself may be a link
    assert open_images(tmp_path / "link").names == data.names


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": picture()})
    os.mkfifo(tmp_path / "pipe.png")
    assert open_images(tmp_path).skipped == [("pipe.png", "not a regular file")]


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind the superuser, as whom tests often run: the refusal is made here instead.
    root = fill(tmp_path / "root", {"a.png": picture(), "b.png": picture()})
    opened = os.open

    def guarded(path: Path, *rest: int) -> int:
        if Path(path).name == "b.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", guarded)
    assert open_images(root).skipped == [("b.png", "Permission denied")]


def test_unreadable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "root", {"a/1.png": picture(), "b/1.png": picture()})
    scan = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    data = open_images(root)
    assert data.names == ["a/1.png"] and data.skipped == [("b", "Permission denied")]


def test_names_stay_on_one_line(tmp_path: Path) -> None:
    data = open_images(fill(tmp_path, {"a\n\x1b[31m.png": picture(), "é.png": picture()}))
    assert data.names == ["a\\n\\x1b[31m.png", "é.png"]


def test_natural_order() -> None:
    names = ["img10", "img2", "img02", "a", "img2b", "9", "10", "b/1", "a/2", "img" + "9" * 5000]
    expected = ["9", "10", "a", "a/2", "b/1", "img02", "img2", "img2b", "img10", "img" + "9" * 5000]
    assert sorted(names, key=natural_key) == expected
