"""The set of shapes: the parser finds exactly what was drawn, and held-out combinations are in no training picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ornstein.data import open_images
from ornstein.data.captions import read_captions
from ornstein.data.shapes import COLOURS, HELD_OUT, RELATIONS, SHAPES, Object, Scene, judge, parse, render, scenes
from ornstein.errors import UserError


@pytest.mark.parametrize("size", [32, 64])
def test_the_parser_finds_exactly_what_was_drawn(size: int) -> None:
    asked = scenes(60, seed=3) + scenes(60, seed=3, unseen=True)
    for scene, found in zip(asked, parse(render(asked, size)), strict=True):
        verdict = judge(scene, found)
        assert verdict.picture, (scene, found)
        for wanted in scene.objects:
            near = next(each for each in found if each.colour == wanted.colour)
            assert abs(near.x - wanted.x) < 0.6 / size and abs(near.y - wanted.y) < 0.6 / size


def test_a_scene_is_a_function_of_its_number() -> None:
    assert scenes(5, seed=2, first=3) == scenes(8, seed=2)[3:]
    assert scenes(3, seed=2) != scenes(3, seed=4)


def test_no_training_picture_has_a_held_out_combination() -> None:
    seen, unseen = scenes(400), scenes(200, unseen=True)
    assert not any((o.shape, o.colour) in HELD_OUT for scene in seen for o in scene.objects)
    told = {(name, str(s.objects[0]), str(s.objects[i])) for s in seen for name, i in s.relations}
    for scene in unseen:
        pair = any((o.shape, o.colour) in HELD_OUT for o in scene.objects)
        relation = any((n, str(scene.objects[0]), str(scene.objects[i])) not in told for n, i in scene.relations)
        assert pair or relation
    # each shape and each colour alone is well known
    assert {o.shape for s in seen for o in s.objects} == set(SHAPES)
    assert {o.colour for s in seen for o in s.objects} == set(COLOURS)
    assert {name for s in seen for name, _ in s.relations} == set(RELATIONS) - {"around"}


def test_captions_tell_a_scene_from_both_ends() -> None:
    a, b, c = Object("circle", "red", 0.3, 0.5), Object("square", "blue", 0.7, 0.5), Object("cross", "white", 0.3, 0.8)
    scene = Scene((a, b, c), (("left of", 1), ("above", 2)))
    assert scene.captions == (
        "a red circle left of a blue square and above a white cross",
        "a white cross below a red circle that is left of a blue square",
    )
    assert Scene((a,)).captions == ("a red circle",)


def test_a_wrong_picture_is_judged_to_be_wrong() -> None:
    a, b = Object("circle", "red", 0.3, 0.5), Object("square", "blue", 0.7, 0.55)
    scene = Scene((a, b), (("left of", 1),))
    assert judge(scene, [a, b]).picture
    mirrored = judge(scene, [replace(a, x=0.8), b])
    assert mirrored.attributes == (4, 4) and mirrored.relations == (0, 1)
    swapped = judge(scene, [replace(a, colour="blue"), replace(b, colour="red")])
    assert swapped.objects == (0, 2) and swapped.attributes == (2, 4) and swapped.relations == (0, 1)
    assert judge(scene, []).attributes == (0, 4)
    assert not judge(scene, [a, b, Object("cross", "white")]).picture
    inside = Scene((replace(a, radius=0.1), replace(b, radius=0.3)), (("inside", 1),))
    assert judge(inside, [replace(a, x=0.7, radius=0.1), replace(b, radius=0.3)]).relations == (1, 1)
    assert judge(inside, inside.objects).relations == (0, 1)


def test_shapes_is_a_bundled_set_with_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    from ornstein.data import bundled

    monkeypatch.setitem(bundled.CAPTIONED, "shapes", replace(bundled.CAPTIONED["shapes"], count=12))
    images = open_images("shapes", 64)
    assert images.shape == (3, 64, 64) and len(images) == 12
    captions = read_captions("shapes", images.names)
    expected = scenes(12)
    assert captions.texts == [scene.captions for scene in expected]
    assert torch.equal(images.images, render(expected, 64))
    with pytest.raises(UserError, match="32 or 64 pixels"):
        open_images("shapes", 48)
    with pytest.raises(UserError, match="colour"):
        open_images("shapes", 32, 1)
