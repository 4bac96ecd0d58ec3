"""Preparing a set of faces: what is kept, what is passed over and why, resuming, parts, and the split by person."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces.align import Similarity, template
from ornstein.faces.train import prepare as prepare_module
from ornstein.faces.train.prepare import NO_FACE, FaceSet, open_faces, prepare


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def photos(portrait: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people, six files: four photos of the portrait, one without a face, one that is no picture."""
    root = tmp_path_factory.mktemp("photos")
    save(portrait, root / "Ann" / "1.png")
    save(portrait.flip(2), root / "Ann" / "2.png")
    save(portrait.rot90(1, (1, 2)), root / "Ben" / "1.png")
    save((portrait.float() * 0.7).to(torch.uint8), root / "Cy" / "1.png")
    save(torch.arange(48, dtype=torch.uint8).repeat(3, 48, 1), root / "Cy" / "2.png")
    (root / "Cy" / "3.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "FILES_PER_SHARD", 2)


@pytest.fixture(scope="module")
def done(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "FILES_PER_SHARD", 2)
        prepare(photos, out, 64, workers=1)
    return out


def same(one: FaceSet, two: FaceSet) -> bool:
    tensors = ("images", "embeddings", "landmarks", "transforms", "scores", "person")
    return one.names == two.names and all(torch.equal(getattr(one, t), getattr(two, t)) for t in tensors)


def test_the_set_holds_the_aligned_faces(done: Path, photos: Path) -> None:
    faces = open_faces(done)
    assert faces.names == ["Ann/1.png", "Ann/2.png", "Ben/1.png", "Cy/1.png"] and len(faces) == 4
    assert faces.people == ["Ann", "Ben", "Cy"] and faces.person.tolist() == [0, 0, 1, 2]
    assert faces.images.shape == (4, 3, 64, 64) and faces.images.dtype == torch.uint8
    assert faces.embeddings.shape == (4, 128) and faces.embeddings.dtype == torch.float32
    assert (faces.landmarks - template(64)).norm(dim=-1).max() < 4
    # One face in four photos, of which one is mirrored, one turned and one darker.
    assert (faces.embeddings - faces.embeddings[0]).norm(dim=1).max() < 0.5
    upright, turned = faces.images[0].float(), faces.images[2].float()
    assert (upright - turned).abs().mean() < 8
    # The transform leads from the photo to the crop: the photo's pixel under a landmark is the crop's.
    photo = np.asarray(Image.open(photos / "Ann/1.png"))
    there = Similarity.from_matrix(faces.transforms[0])
    x, y = there.inverse()(faces.landmarks[0]).mean(0).round().long().tolist()
    column, row = there(torch.tensor([[x, y]]))[0].round().long().tolist()
    assert np.abs(photo[y - 2 : y + 3, x - 2 : x + 3].mean((0, 1)) - upright[:, row, column].numpy()).max() < 12


def test_what_was_passed_over_is_in_the_index_and_no_embedding_is(photos: Path, done: Path) -> None:
    index = json.loads((done / "index.json").read_text())
    assert index["faces"] == 4 and index["people"] == 3 and index["files"] == 6 and index["size"] == 64
    reasons = {item["file"]: item["reason"] for item in index["skipped"]}
    assert set(reasons) == {"Cy/2.png", "Cy/3.jpg"}
    assert reasons["Cy/2.png"] == NO_FACE and "not an image" in reasons["Cy/3.jpg"]
    assert "embedding" not in json.dumps(index)
    assert repr(open_faces(done)) == f"FaceSet({str(done)!r}, 4 faces of 3 people, 64 pixels)"


def test_an_interrupted_run_goes_on(photos: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "set"
    written = []

    def dies_in_the_second(path: Path, *arguments: object) -> None:
        if len(written) == 1:
            path.with_name(f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        original(path, *arguments)  # type: ignore[arg-type]
        written.append(path)

    original = prepare_module.write_shard
    monkeypatch.setattr(prepare_module, "write_shard", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(photos, out, 64, workers=1)
    monkeypatch.setattr(prepare_module, "write_shard", original)
    first = written[0].read_bytes(), written[0].stat().st_mtime_ns
    with pytest.raises(UserError, match=r"incomplete, 2 of 3 shards are missing: .*--resume"):
        open_faces(out)
    with pytest.raises(UserError, match=r"already holds 1 of these shards: go on with --resume"):
        prepare(photos, out, 64, workers=1)
    seen: list[tuple[int, int]] = []
    summary = prepare(photos, out, 64, workers=1, resume=True, progress=lambda *args: seen.append(args))
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert (summary.faces, summary.people, summary.files, summary.without_face, summary.missing) == (4, 3, 6, 1, 0)
    assert (written[0].read_bytes(), written[0].stat().st_mtime_ns) == first
    assert same(open_faces(out), open_faces(done))
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in done.iterdir())


def test_parts_merge_by_lying_in_one_folder(photos: Path, done: Path, tmp_path: Path) -> None:
    one = prepare(photos, tmp_path / "a", 64, part=(1, 2), workers=1)
    assert (one.faces, one.missing) == (2, 1) and not (tmp_path / "a" / "index.json").exists()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    two = prepare(photos, tmp_path / "b", 64, part=(2, 2), workers=1)
    assert (two.faces, two.missing) == (4, 0)
    assert same(open_faces(tmp_path / "b"), open_faces(done))


def test_worker_processes_make_the_same(photos: Path, done: Path, tmp_path: Path) -> None:
    # FILES_PER_SHARD is another in the processes that are started: the two shards of 64 files stand for it.
    many = tmp_path / "photos"
    save_count = 66
    for i in range(save_count):
        folder = many / f"p{i}"
        folder.mkdir(parents=True)
        (folder / "bad.png").write_bytes(b"no picture")
    shutil.copy(photos / "Ann/1.png", many / "p0" / "good.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "FILES_PER_SHARD", 64)
        summary = prepare(many, tmp_path / "set", 64, workers=2)
    assert summary.faces == 1 and len(summary.skipped) == save_count
    faces = open_faces(tmp_path / "set")
    assert torch.equal(faces.images[0], open_faces(done).images[0])
    assert torch.equal(faces.embeddings[0], open_faces(done).embeddings[0])


def test_photos_without_folders_are_a_person_each(portrait: Tensor, tmp_path: Path) -> None:
    save(portrait, tmp_path / "in" / "a.png")
    save(portrait, tmp_path / "in" / "b.png")
    prepare(tmp_path / "in", tmp_path / "set", 128, workers=1)
    faces = open_faces(tmp_path / "set")
    assert faces.people == ["a.png", "b.png"] and faces.images.shape[2:] == (128, 128)


def test_of_several_faces_the_one_the_photo_is_of_is_kept(portrait: Tensor, tmp_path: Path) -> None:
    half = torch.nn.functional.avg_pool2d(portrait.float(), 2).to(torch.uint8)
    scene = torch.full((3, 520, 520), 128, dtype=torch.uint8)
    scene[:, 130:390, 130:390] = portrait
    scene[:, :130, :130] = half
    scene[:, 390:, 390:] = half
    save(scene, tmp_path / "in" / "Ann" / "a.png")
    prepare(tmp_path / "in", tmp_path / "set", 64, workers=1)
    faces = open_faces(tmp_path / "set")
    there = Similarity.from_matrix(faces.transforms[0]).inverse()
    x, y = there(template(64)).mean(0).tolist()
    assert len(faces) == 1 and 200 < x < 320 and 200 < y < 320


def test_a_split_holds_out_people_and_not_photos() -> None:
    count, people = 60, 12
    person = torch.arange(count) % people
    rows = torch.arange(count)
    faces = FaceSet(
        "given",
        images=rows.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4),
        embeddings=rows[:, None].float().expand(-1, 128),
        landmarks=rows[:, None, None].float().expand(-1, 5, 2),
        transforms=rows[:, None, None].double().expand(-1, 2, 3),
        scores=rows.float(),
        people=[f"p{i}" for i in range(people)],
        person=person,
        names=[f"{i}.jpg" for i in range(count)],
    )
    train, held_out = faces.split(0.25, seed=3)
    assert len(held_out.people) == 3 and len(train.people) == 9
    assert not set(train.people) & set(held_out.people)
    assert sorted(train.names + held_out.names) == sorted(faces.names)
    for part in (train, held_out):
        for row, name in enumerate(part.names):
            original = int(name.removesuffix(".jpg"))
            assert part.people[part.person[row]] == f"p{original % people}"
            assert part.images[row, 0, 0, 0] == part.embeddings[row, 0] == part.scores[row] == original
            assert part.landmarks[row, 0, 0] == part.transforms[row, 0, 0] == original
    again, other = faces.split(0.25, seed=3)[1], faces.split(0.25, seed=4)[1]
    assert again.people == held_out.people != other.people
    assert len(faces.split(0.01, seed=0)[1].people) == 1
    with pytest.raises(ValueError, match="fraction"):
        faces.split(1.0, seed=0)
    alone = held_out.split(0.4, seed=0)[1]
    with pytest.raises(UserError, match="1 person: at least 2"):
        alone.split(0.5, seed=0)


def test_a_set_that_is_none_or_mixed_is_refused(photos: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prepared faces: make them with `ornstein faces prepare"):
        open_faces(tmp_path)
    mixed = tmp_path / "mixed"
    shutil.copytree(done, mixed)
    with pytest.raises(UserError, match="made from other files or with another --size"):
        prepare(photos, mixed, 128, workers=1, resume=True)
    shard = mixed / "faces-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"faces-00001-of-00003\.safetensors is no shard of faces, or damaged"):
        open_faces(mixed)
    with pytest.raises(UserError, match="delete it and go on with --resume"):
        prepare(photos, mixed, 64, workers=1, resume=True)


def test_a_source_without_a_photo_or_a_face(tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="the extra `faces` is not installed")
    with pytest.raises(UserError, match="is empty: give a folder or zip archive of photos"):
        prepare(tmp_path, tmp_path / "set", 64)
    save(torch.arange(40, dtype=torch.uint8).repeat(3, 40, 1), tmp_path / "in" / "Ann" / "wall.png")
    with pytest.raises(UserError, match=r"no face found in any photo of .*in: 1 looked at"):
        prepare(tmp_path / "in", tmp_path / "set", 64, workers=1)


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_a_size_or_part_that_is_none(photos: Path, tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="--size is one of 64, 128, 256, not 100"):
        prepare(photos, tmp_path, 100)
    with pytest.raises(UserError, match=r"--shard \d/2: the first number counts from 1"):
        prepare(photos, tmp_path, 64, part=part)
