"""Which files belong to the data, and of which class they are: one table for folders, zip and tar archives."""

import io
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ornstein.data import ImageSet, open_images, open_streamed
from ornstein.data.classes import split_of
from ornstein.denoiser import SampleSpec
from ornstein.errors import UserError
from ornstein.evaluation.samples import class_number


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def make(root: Path, kind: str, files: dict[str, bytes]) -> Path:
    if kind == "folder":
        for name, data in files.items():
            (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "set" / name).write_bytes(data)
        return root / "set"
    path = root / f"set.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def labelled(images: ImageSet) -> dict[str, str]:
    labels = images.require_labels().tolist()
    return {name: images.classes[label] for name, label in zip(images.names, labels, strict=True)}


every = pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
CATS = {f"cat/{i}.png": png(i) for i in range(5)}
DOGS = {f"dog/{i}.png": png(i) for i in range(5)}


@every
def test_one_stray_picture_does_not_take_the_classes(tmp_path: Path, kind: str) -> None:
    images = open_images(make(tmp_path, kind, CATS | DOGS | {"cover.png": png()}))
    assert images.classes == ["cat", "dog"] and len(images) == 10
    assert images.skipped == [("cover.png", "in no class folder")]


@every
def test_strays_beside_a_single_folder_or_as_many_as_the_rest_mean_no_classes(tmp_path: Path, kind: str) -> None:
    one = open_images(_in(tmp_path, kind, 1))
    many = open_images(_in(tmp_path, kind, 5))
    for images, count in ((one, 6), (many, 15)):
        assert images.classes == [] and len(images) == count and images.skipped == []


def _in(root: Path, kind: str, strays: int) -> Path:
    files = {f"{i}.png": png() for i in range(strays)}
    (root / f"{strays}").mkdir(exist_ok=True)
    return make(root / f"{strays}", kind, CATS | (DOGS if strays > 1 else {}) | files)


@every
@pytest.mark.parametrize(
    "names", [("train", "val"), ("Training", "TEST", "dev"), ("train2017", "val2017"), ("train-images", "test_images")]
)
def test_folders_of_a_split_are_no_classes_and_only_train_is_read(
    tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    files = {f"{split}/{name}": data for split in names for name, data in (CATS | DOGS).items()}
    images = open_images(make(tmp_path, kind, files))
    assert labelled(images) == {f"{names[0]}/{name}": name.split("/")[0] for name in CATS | DOGS}
    assert images.ignored.total() == 10 * (len(names) - 1)
    assert f"10 in {names[1]}/" in images.summary


@every
def test_a_split_without_classes_and_a_split_in_a_wrapper(tmp_path: Path, kind: str) -> None:
    files = {f"data/{split}/{i}.png": png(i) for split in ("train", "test") for i in range(4)}
    images = open_images(make(tmp_path, kind, files))
    assert images.names == [f"data/train/{i}.png" for i in range(4)] and images.classes == []


@every
def test_a_class_may_be_called_train(tmp_path: Path, kind: str) -> None:
    files = {f"{name}/{i}.png": png() for name in ("train", "bus", "test") for i in range(2)}
    assert open_images(make(tmp_path, kind, files)).classes == ["bus", "test", "train"]


def test_of_shards_of_a_split_only_those_of_train_are_read(tmp_path: Path) -> None:
    for name in ("train-000", "train-001", "val-000"):
        make(tmp_path, "tar", {f"{name}{i}.png": png(i) for i in range(3)}).rename(tmp_path / f"{name}.tar")
    images = open_images(tmp_path)
    assert len(images) == 6 and all(name.startswith("train-") for name in images.names)


def test_names_of_splits() -> None:
    for name, expected in {
        "train": "train", "training_set": "train", "train-00012": "train", "Val": "other", "validation_images": "other",
        "test2017": "other", "trains": None, "testament": None, "cat": None, "": None,
    }.items():  # fmt: skip
        assert split_of(name) == expected, name


@every
def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path, kind: str) -> None:
    files = {}
    for i, form in enumerate(("NFC", "NFD")):
        files[f"{unicodedata.normalize(form, 'café')}/{i}.png"] = png(i)
    images = open_images(make(tmp_path, kind, files | DOGS))
    assert images.classes == [unicodedata.normalize("NFC", "café"), "dog"]
    assert images.require_labels().tolist() == [0, 0] + [1] * 5


@every
def test_files_of_the_system_are_no_part_of_it(tmp_path: Path, kind: str) -> None:
    others = ["@eaDir/cat/0.png", "cat/@eaDir/0.png", "$RECYCLE.BIN/x.png", "System Volume Information/y.png"]
    others += ["cat/Thumbs.db", "#recycle/a.png", "lost+found/b.png", "__MACOSX/c.png", "cat/.thumbnails/d.png"]
    others += ["cat/._0.png", "desktop.ini"]
    images = open_images(make(tmp_path, kind, CATS | DOGS | dict.fromkeys(others, png())))
    assert images.classes == ["cat", "dog"] and len(images) == 10
    assert not images.skipped and not images.ignored


@every
def test_pictures_that_describe_others_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    files = {}
    for i in range(4):
        files |= {f"{i}.jpg": png(i), f"{i}.seg.png": png(99), f"{i}.Depth.png": png(98), f"{i}.2.png": png(50 + i)}
    images = open_images(make(tmp_path, kind, files))
    assert images.images[:, 0, 0, 0].tolist() == [v for i in range(4) for v in (50 + i, i)]
    assert images.ignored == {".seg.png": 4, ".depth.png": 4}
    alone = open_images(_alone(tmp_path, kind))
    assert len(alone) == 4  # nothing that they describe


def _alone(root: Path, kind: str) -> Path:
    (root / "alone").mkdir()
    return make(root / "alone", kind, {f"{i}.v1.png": png(i) for i in range(4)})


def test_dotted_names_in_a_tar_keep_their_own_class(tmp_path: Path) -> None:
    files = {}
    for i in range(6):
        files |= {f"img.v2.{i:03d}.png": png(i), f"img.v2.{i:03d}.cls": f"kind{i % 3}".encode()}
    path = make(tmp_path, "tar", files)
    for images in (open_images(path), open_streamed(path)):
        assert images is not None and images.classes == ["kind0", "kind1", "kind2"]
        assert images.require_labels().tolist() == [0, 1, 2] * 2


def test_the_class_of_a_webdataset_key_is_that_of_its_field(tmp_path: Path) -> None:
    files = {}
    for i in range(4):
        files |= {f"a/{i}.rgb.png": png(i), f"a/{i}.cls": str(i % 2).encode()}
    assert open_images(make(tmp_path, "tar", files)).require_labels().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("1.png", png()), ("1.png", png(1))], "1.png is in it twice"),
        ([("1.png", png()), ("1.cls", b"a"), ("1.cls", b"b")], "1.cls is in it twice"),
        ([("1.cls", b"a"), ("1.rgb.png", png()), ("1.seg.png", png())], "the sample 1 has several pictures"),
        ([("1.cls", b"a"), ("1.jpg", png()), ("1.png", png())], "the sample 1 has several pictures"),
        ([(f"{i}.{kind}.png", png()) for i in range(3) for kind in ("rgb", "seg")], r"\(.rgb.png, .seg.png\)"),
    ],
)
def test_a_tar_that_can_be_read_in_two_ways_is_refused(
    tmp_path: Path, files: list[tuple[str, bytes]], words: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for opener in (open_images, open_streamed):
        with pytest.raises(UserError, match=words) as error:
            opener(tmp_path / "a.tar")
        assert "\n" not in str(error.value)


@every
def test_one_line_says_what_was_read(tmp_path: Path, kind: str) -> None:
    others = {"notes.txt": b"x", "more.TXT": b"x", "film.wmv": b"x", "cat/bad.png": b"no image", "dog/empty.png": b""}
    path = make(tmp_path, kind, CATS | DOGS | others)
    line = open_images(path).summary
    assert line.startswith("10 pictures, 2 classes: cat 5, dog 5; ignored: 2 .txt, 1 .wmv; skipped: ")
    assert "1 not an image" in line and "1 empty file" in line and "\n" not in line
    streamed = open_streamed(path)
    assert streamed is not None
    line = streamed.summary
    assert "11 pictures, 2 classes: cat 6, dog 5; decoded as needed; ignored: 2 .txt, 1 .wmv" in line


def test_reprs_are_one_useful_line(tmp_path: Path) -> None:
    path = make(tmp_path, "folder", {f"class{i}/{j}.png": png() for i in range(200) for j in range(3)})
    streamed = open_streamed(path)
    for shown in (repr(open_images(path)), repr(streamed)):
        assert "600 pictures" in shown and "200 classes" in shown and "3x8x8" in shown
        assert len(shown) < 300 + len(str(path)) and "\n" not in shown


@every
def test_every_class_keeps_an_image_to_train_on(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, CATS | DOGS | {"emu/0.png": png(), "gnu/0.png": png(), "gnu/1.png": png()})
    streamed = open_streamed(path)
    assert streamed is not None
    lost = 0
    for seed in range(12):
        for images in (open_images(path), streamed):
            train, held_out = images.split(0.3, seed, every_class=True)
            assert len(train) == 9 and len(held_out) == 4
            assert set(train.require_labels().tolist()) == {0, 1, 2, 3}
        train, _ = streamed.split(0.3, seed)
        lost += set(train.require_labels().tolist()) != {0, 1, 2, 3}
        smaller = streamed.split(0.1, seed, every_class=True)[1]
        assert set(smaller.names) < set(streamed.split(0.3, seed, every_class=True)[1].names)
    assert lost > 0  # without it a class is lost by some seeds


def test_a_number_is_a_class_by_its_place_only_if_no_name_is_a_number() -> None:
    run = Path("run")
    named, numbered = SampleSpec((1, 8, 8), ("cat", "dog")), SampleSpec((1, 8, 8), ("3", "7"))
    assert class_number("dog", named, run) == class_number("1", named, run) == 1
    assert class_number("7", numbered, run) == 1 and class_number("3", numbered, run) == 0
    for label, spec in (("1", numbered), ("0", numbered), ("2", named), ("9" * 5000, named), ("emu", named)):
        with pytest.raises(UserError, match="no class"):
            class_number(label, spec, run)
    accents = SampleSpec((1, 8, 8), (unicodedata.normalize("NFC", "café"), "tea"))
    assert class_number(unicodedata.normalize("NFD", "café"), accents, run) == 0
