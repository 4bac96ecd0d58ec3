"""Swaps of photos: everything around the model, with stand-ins for dlib and for a trained network."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ornstein.errors import UserError
from ornstein.faces import provenance
from ornstein.faces.detect import Face
from ornstein.faces.provenance.blocklist import BlockList
from ornstein.faces.provenance.card import ModelCard
from ornstein.faces.provenance.consent import Consent
from ornstein.faces.provenance.label import badge, labelled
from ornstein.faces.swap import Choice, Source, SwapModel, Swapper, SwapSettings, load_model
from ornstein.faces.swap.colour import to_lab
from ornstein.faces.swap.photo import Order, photos_in, swap_photo
from ornstein.faces.swap.picture import read_picture

CONSENT = Consent("Green and Red, a test")
PLAIN = SwapSettings(steps=2, guidance=1.0, label=False)


def save(pixels: Tensor, path: Path) -> Path:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return path


def load(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.fixture
def swapper(stubs: SimpleNamespace) -> Swapper:
    return Swapper(stubs.untrained(), PLAIN, stubs.Squares(), stubs.Colours())


@pytest.fixture
def model(swapper: Swapper) -> SwapModel:
    return SwapModel(swapper.model, ModelCard("CC0", "squares"), "ab" * 32)


@pytest.fixture
def source(stubs: SimpleNamespace, tmp_path: Path) -> Path:
    return save(stubs.scenery(60, 60, green=(20, 20, 20)), tmp_path / "source.png")


@pytest.fixture
def scene(stubs: SimpleNamespace) -> Tensor:
    """Red, large, and blue, small, on noise."""
    noise = torch.randint(100, 150, (3, 90, 140), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    people = stubs.scenery(90, 140, red=(20, 20, 30), blue=(95, 30, 20))
    return torch.where(people == 128, noise, people)


def swapped(swapper: Swapper, model: SwapModel, source: Path, target: Path, out: Path, every: str = "all") -> int:
    choice = Choice([swapper.source([source])], every)
    return swap_photo(swapper, model, choice, Order([[source]], target, out, CONSENT))


@pytest.mark.parametrize("blend", ["feather", "laplacian", "poisson"])
def test_a_photo_comes_out_with_its_background_bit_for_bit(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path, blend: str
) -> None:
    swapper.settings = replace(PLAIN, blend=blend)
    target, out = save(scene, tmp_path / "target.png"), tmp_path / "new" / "out.png"
    assert swapped(swapper, model, source, target, out, "largest") == 1
    result = load(out)
    changed = (result != scene).any(0)
    face = swapper.aligned(scene, swapper.detector(scene)[0])
    reach = torch.zeros_like(changed)
    reach[5:65, 5:65] = True  # the crop of the red face, twice its square
    assert bool(changed[30:40, 30:40].any()) and not bool((changed & ~reach).any())
    assert float(face.mask.max()) == 1


def test_the_face_has_the_targets_colours(swapper: Swapper, scene: Tensor, source: Path) -> None:
    face = swapper.aligned(scene, swapper.detector(scene)[0])
    (made,) = swapper.painted([face], [swapper.source([source])])
    inside = face.mask / face.mask.sum()
    means = [(to_lab(each.double()) * inside).sum((1, 2)) for each in (made, face.crop / 255)]
    torch.testing.assert_close(means[0], means[1], atol=1.5, rtol=0)  # but for colours that a screen does not have
    assert torch.equal(made[:, face.mask[0] == 0], (face.crop / 255)[:, face.mask[0] == 0])


def test_the_same_seed_is_the_same_file_but_for_its_signature(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    target = save(scene, tmp_path / "target.png")
    pictures = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        swapper.settings = replace(PLAIN, seed=seed)
        swapped(swapper, model, source, target, tmp_path / f"{name}.png")
        pictures.append(load(tmp_path / f"{name}.png"))
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


def test_which_faces(swapper: Swapper, scene: Tensor, stubs: SimpleNamespace) -> None:
    one = stubs.someone([0.0] * 3)
    everyone = swapper.choose(scene, Choice([one]), "t.png")
    assert [who for _, who in everyone] == [0, 0]
    ((largest, _),) = swapper.choose(scene, Choice([one], "largest"), "t.png")
    assert largest.landmarks.mean(0)[0] < 70  # the red one, on the left
    known = {name: torch.tensor(colour) / 50 for name, colour in stubs.PEOPLE.items()}
    ((blue, who),) = swapper.choose(scene, Choice([one], references=known["blue"][None]), "t.png")
    assert blue.landmarks.mean(0)[0] > 70 and who == 0
    both = Choice([one, one], references=torch.stack([known["blue"], known["red"]]))
    assert {round(float(f.landmarks.mean(0)[0])) < 70: who for f, who in swapper.choose(scene, both, "t")} == {
        True: 1,
        False: 0,
    }
    with pytest.raises(UserError, match=r"none of the 2 faces in t\.png is that of a reference"):
        swapper.choose(scene, Choice([one], references=known["green"][None]), "t.png")


def test_each_reference_is_given_once(stubs: SimpleNamespace) -> None:
    one = stubs.someone([0.0] * 3)
    choice = Choice([one, one], references=torch.tensor([[0.0, 0.0], [0.3, 0.0]]))
    faces = torch.tensor([[0.1, 0.0], [0.14, 0.0], [5.0, 5.0], [0.05, 0.0]])
    assert choice.who(faces) == [-1, 1, -1, 0]


def test_each_face_gets_its_own_source(
    swapper: Swapper, scene: Tensor, stubs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [stubs.someone([float(i)] * 3, str(i)) for i in range(2)]
    references = torch.stack([torch.tensor(stubs.PEOPLE[name]) / 50 for name in ("blue", "red")])
    choice = Choice(sources, references=references)
    given = {}

    def painted(faces: list, people: list[Source]) -> list[Tensor]:
        for face, person in zip(faces, people, strict=True):
            given[float(person.faces.identity[0, 0])] = face.transform.inverse().b.real
        return [face.crop / 255 for face in faces]

    monkeypatch.setattr(swapper, "painted", painted)
    swapper.picture(scene, scene, swapper.choose(scene, choice, "t"), choice)
    assert given[0.0] > 70 > given[1.0]


def test_several_photos_are_averaged(swapper: Swapper, stubs: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "person"
    folder.mkdir()
    for i, colour in enumerate(("green", "red")):
        save(stubs.scenery(60, 60, **{colour: (20, 20, 20)}), folder / f"{i}.png")
    (folder / "notes.txt").write_text("no photo")
    photos = photos_in(folder)
    both, each = swapper.source(photos), [swapper.source([path]) for path in photos]
    torch.testing.assert_close(both.embedding, (each[0].embedding + each[1].embedding) / 2)
    mean = (each[0].faces.identity + each[1].faces.identity) / 2
    torch.testing.assert_close(both.faces.identity, mean.expand(2, -1))
    for one, i in zip(each, range(2), strict=True):  # each of its pictures is still there, for a target turned as it is
        torch.testing.assert_close(both.faces.image[i], one.faces.image[0])
    landmarks = torch.stack([both.faces.landmarks[0] - 1, both.faces.landmarks[1] + 1])
    both = replace(both, faces=replace(both.faces, landmarks=landmarks))
    assert torch.equal(both.facing(landmarks[1] + 0.3).image[0], each[1].faces.image[0])
    assert torch.equal(both.facing(landmarks[0]).image[0], each[0].faces.image[0])
    assert repr(both) == "Source(0.png, 1.png)"
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "no photo in the folder"), (tmp_path / "none", "there is no file")):
        with pytest.raises(UserError, match=message):
            photos_in(path)


def test_transparency_and_grey_are_kept(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    alpha = torch.full((1, 90, 140), 255, dtype=torch.uint8)
    alpha[:, :10], alpha[:, 80:] = 0, 77
    target = save(torch.cat([scene, alpha]), tmp_path / "rgba.png")
    swapped(swapper, model, source, target, tmp_path / "out.webp")
    result = torch.from_numpy(np.array(Image.open(tmp_path / "out.webp"))).permute(2, 0, 1)
    assert torch.equal(result[3:], alpha) and torch.equal(result[:3, :4], scene[:, :4])  # also where it is transparent
    with pytest.raises(UserError, match="JPEG keeps no transparency"):
        swapped(swapper, model, source, target, tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()

    class Anywhere:
        def __call__(self, image: Tensor) -> list:
            return swapper.detector(scene)

    grey = Image.fromarray(scene.permute(1, 2, 0).numpy()).convert("L")
    grey.save(tmp_path / "grey.png")
    blind = Swapper(swapper.model, PLAIN, Anywhere(), swapper.recogniser)
    swapped(blind, model, source, tmp_path / "grey.png", tmp_path / "out.png")
    result = Image.open(tmp_path / "out.png")
    assert result.mode == "L"
    changed = np.array(result) != np.array(grey)
    assert changed[20:50, 20:50].any() and not changed[:, 70:80].any()


def test_a_photo_that_lies_on_its_side(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene.rot90(1, (1, 2)).permute(1, 2, 0).numpy()).save(tmp_path / "turned.png", exif=exif)
    swapped(swapper, model, source, tmp_path / "turned.png", tmp_path / "out.png", "largest")
    assert torch.equal(load(tmp_path / "out.png")[:, :, 70:], scene[:, :, 70:])
    assert 0x0112 not in Image.open(tmp_path / "out.png").getexif()


def test_a_face_cut_by_the_border(swapper: Swapper, source: Path, stubs: SimpleNamespace) -> None:
    image = stubs.scenery(60, 80, red=(-8, 30, 30))
    choice = Choice([swapper.source([source])])
    out = swapper.picture(image, image, swapper.choose(image, choice, "t.png"), choice)
    assert out.shape == image.shape and bool((out != image).any()) and torch.equal(out[:, :, 60:], image[:, :, 60:])


def test_no_face_says_which_file_and_nothing_is_written(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    wall, target = save(torch.full((3, 50, 50), 128, dtype=torch.uint8), tmp_path / "wall.png"), tmp_path / "t.png"
    save(scene, target)
    before = sorted(tmp_path.rglob("*"))
    for a, b in ((wall, target), (source, wall)):
        with pytest.raises(UserError, match=r"no face found in .*wall\.png"):
            swapped(swapper, model, a, b, tmp_path / "out.png")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["out.gif", "out", "out.mp4"])
def test_kinds_that_are_not_written(
    swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=r"is written as \.png"):
        swapped(swapper, model, source, save(scene, tmp_path / "t.png"), tmp_path / name)


def test_an_input_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is one of the inputs"):
        Order([[source]], tmp_path / "t.png", source, CONSENT)


def test_pictures_that_cannot_be_used(tmp_path: Path, scene: Tensor) -> None:
    frames = [Image.fromarray(scene.permute(1, 2, 0).numpy()), Image.new("RGB", (140, 90))]
    frames[0].save(tmp_path / "two.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "large.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff damaged")
    for name, limit, message in (
        ("two.webp", 10**6, "animation, WEBP with several pictures: save it as an mp4"),
        ("large.png", 5000, "140x90 pixels: more than the limit of 5,000"),
        ("bad.jpg", 10**6, r"bad\.jpg cannot be used"),
        ("none.png", 10**6, r"cannot read .*none\.png"),
    ):
        with pytest.raises(UserError, match=message):
            read_picture(tmp_path / name, limit)


def test_protected_faces_are_refused_as_source_and_as_target(
    own_key: None,
    swapper: Swapper,
    model: SwapModel,
    source: Path,
    scene: Tensor,
    tmp_path: Path,
    stubs: SimpleNamespace,
) -> None:
    colours = {name: torch.tensor(colour)[None] / 50 for name, colour in stubs.PEOPLE.items()}
    target = save(scene, tmp_path / "t.png")
    for name, file in (("green", "source.png"), ("blue", "t.png")):
        BlockList(colours[name]).save(tmp_path / "list.json")
        swapper.protected = BlockList.load(tmp_path / "list.json")
        with pytest.raises(UserError, match=f"a face in .*{file} is on the list"):
            swapped(swapper, model, source, target, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    assert swapped(swapper, model, source, target, tmp_path / "out.png", "largest") == 1  # blue is left alone


def test_a_block_list_is_its_owners_alone_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "list.json"
    BlockList(torch.zeros(1, 4), 0.5).with_faces(torch.ones(2, 4)).save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    found = BlockList.load(path)
    assert len(found) == 3 and found.threshold == 0.5 and repr(found) == "BlockList(3 faces within 0.5)"
    found.check(torch.full((1, 4), 0.3), "x")  # 0.6 from the first
    with pytest.raises(UserError, match="a face in x"):
        found.check(torch.full((1, 4), 0.2), "x")
    with pytest.raises(UserError, match="4 numbers a face, this recogniser 3"):
        found.check(torch.zeros(1, 3), "x")
    path.write_text('{"format": 1, "threshold": 0.6, "embeddings": []}')
    with pytest.raises(UserError, match="no list of protected faces"):
        BlockList.load(path)


def test_what_was_done_is_in_the_manifest_and_in_the_log(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    from ornstein.faces.provenance.log import sha256

    target, out = save(scene, tmp_path / "t.png"), tmp_path / "out.png"
    swapped(swapper, model, source, target, out)
    found = provenance.read(out)
    assert found.state == provenance.INTACT and found.swap is not None
    assert found.swap["consent"] == CONSENT.statement and found.swap["label"] is False
    assert found.swap["model"] == {"sha256": "ab" * 32, "licence": "CC0", "data": "squares", "research_only": False}
    assert found.swap["target"] == sha256(target) and found.swap["sources"] == [[sha256(source)]]
    (line,) = (tmp_path / "ornstein-swaps.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert logged == found.swap | {"file": "out.png", "output": sha256(out), "faces": 2}
    assert set(logged["settings"]) == {
        *("steps", "identity", "guidance", "towards", "blend", "label", "seed", "precision", "faces", "max_turn"),
        *("regions", "padding", "occlusion", "colour", "detail", "shape", "onset"),
    }


def test_the_label_is_there_unless_it_is_taken_away(
    own_key: None, swapper: Swapper, model: SwapModel, source: Path, scene: Tensor, tmp_path: Path
) -> None:
    target = save(scene, tmp_path / "t.png")
    mark = badge(140, 90)
    rows, columns = mark.shape[1:]
    for label in (True, False):
        swapper.settings = replace(PLAIN, label=label)
        swapped(swapper, model, source, target, tmp_path / "out.png", "largest")
        corner = load(tmp_path / "out.png")[:, -rows - 6 :, -columns - 6 :]
        there = any(torch.equal(corner[:, y : y + rows, x : x + columns], mark) for y in range(7) for x in range(7))
        assert there is label
        assert provenance.read(tmp_path / "out.png").swap["label"] is label  # type: ignore[index]


@pytest.mark.parametrize("size", [(2, 2), (20, 9), (64, 64), (500, 300), (4000, 3000)])
def test_the_badge_is_legible_and_fits(size: tuple[int, int]) -> None:
    width, height = size
    image = torch.full((3, height, width), 128, dtype=torch.uint8)
    out, (left, top, right, bottom) = labelled(image)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert torch.equal(out[:, outside], image[:, outside])
    if width >= 64:
        mark = out[:, top:bottom, left:right].float().mean(0)
        assert float(mark.max()) > 200 and float(mark.median()) < 60 and right - left <= 0.6 * width + 1


def test_the_badge_leaves_the_face_free() -> None:
    image = torch.full((3, 200, 300), 128, dtype=torch.uint8)
    face = torch.cartesian_prod(torch.arange(200, 300, 10), torch.arange(120, 200, 10))
    _, (_, _, right, bottom) = labelled(image, face)
    assert right < 200 and bottom > 180  # the other lower corner


def test_settings_out_of_range() -> None:
    nan = float("nan")
    for wrong in ({"steps": 0}, {"blend": "x"}, {"identity": -1}, {"guidance": nan}, {"seed": -1}, {"towards": 2}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SwapSettings(**wrong)


def test_a_model_is_a_face_swap_model(swapper: Swapper, tmp_path: Path) -> None:
    import ornstein as orn

    with pytest.raises(UserError, match="no such folder; `ornstein faces train`"):
        load_model(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has no config\.json"):
        load_model(tmp_path / "empty")
    net = orn.nets.UNet(3, 16, width=16, multipliers=(1,), depths=(1,))
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine())).save(tmp_path / "other")
    with pytest.raises(UserError, match="one of another kind"):
        load_model(tmp_path / "other")
    run = tmp_path / "run"
    swapper.model.denoiser.save(run)
    with pytest.raises(UserError, match="there is no file"):
        load_model(run)
    swapper.model.recogniser.save(run / "identity")
    first = load_model(run)
    assert load_model(run).sha256 == first.sha256 and first.card == ModelCard()
    with torch.no_grad():
        next(swapper.model.denoiser.net.parameters())[0] += 1
    swapper.model.denoiser.save(run)
    assert load_model(run).sha256 != first.sha256


def test_the_astronaut(own_key: None, portrait: Tensor, stubs: SimpleNamespace, tmp_path: Path) -> None:
    """With dlib itself: the portrait into itself, by its own embedding."""
    swapper = Swapper(stubs.untrained(32), replace(PLAIN, steps=1))
    path = save(portrait, tmp_path / "a.png")
    reference = swapper.reference(path)
    source = swapper.source([path])
    torch.testing.assert_close(reference, source.embedding)
    model = SwapModel(swapper.model, ModelCard(), "cd" * 32)
    order = Order([[path]], path, tmp_path / "out.png", CONSENT, [path])
    assert swap_photo(swapper, model, Choice([source], references=reference[None]), order) == 1
    changed = (load(tmp_path / "out.png") != portrait).any(0)
    assert 0.02 < float(changed.float().mean()) < 0.5 and not bool(changed[-20:].any())


def test_the_full_look_at_a_photo_is_made_where_the_quick_one_shows_no_large_face(
    stubs: SimpleNamespace, scene: Tensor
) -> None:
    """Red has 30 of 90 pixels: it is the subject at once. Of blue alone, with 12 of 140, a full look is asked for."""
    full: list[Tensor] = []
    squares = stubs.Squares()

    def thorough(image: Tensor) -> list[Face]:
        full.append(image)
        return squares(image)

    def blind(image: Tensor) -> list[Face]:
        return []

    quick = Swapper(stubs.untrained(), PLAIN, thorough, stubs.Colours(), scanner=squares)
    red = quick.subject(scene, "scene")
    assert not full and red.side == max(face.side for face in squares(scene))
    small = stubs.scenery(140, 140, blue=(95, 30, 12))
    assert quick.subject(small, "small").side == squares(small)[0].side and len(full) == 1
    assert (
        Swapper(stubs.untrained(), PLAIN, thorough, stubs.Colours(), scanner=blind).subject(scene, "s").side == red.side
    )
    assert len(full) == 2
    with pytest.raises(UserError, match=r"no face found in empty \(30x30"):
        quick.subject(torch.zeros(3, 30, 30, dtype=torch.uint8), "empty")
