"""The captioned faces: what is held out, what the reader reads, and training from the command line."""

from __future__ import annotations

import pytest
import torch

from ornstein.data import open_images
from ornstein.data.captions import read_captions
from ornstein.faces.world import captioned, identities, render
from running import ornstein, refused


def pictures(people: int, seed: int) -> tuple[torch.Tensor, list[captioned.State]]:
    """People that neither the set nor the reader knows, in every state in turn."""
    states = [captioned.STATES[i % len(captioned.STATES)] for i in range(people)]
    drawn = render(identities(people, seed), captioned.numbers(states), 64).image
    return ((drawn + 1) * 127.5).round().to(torch.uint8), states


def test_states_are_read_from_pictures_of_unknown_people() -> None:
    drawn, states = pictures(192, seed=77)
    found = captioned.read(drawn)
    right = sum(a == b for one, other in zip(found, states, strict=True) for a, b in zip(one, other, strict=True))
    assert right / (4 * len(states)) > 0.98
    # light from the other side, seen in a mirror: pose and light change places, expression and background stay
    turned = [(2 - pose, smile, back, 1 - light) for pose, smile, back, light in states]
    mirrored = captioned.read(drawn.flip(-1))
    right = sum(a == b for one, other in zip(mirrored, turned, strict=True) for a, b in zip(one, other, strict=True))
    assert right / (4 * len(states)) > 0.95


def test_no_picture_of_the_set_has_a_state_that_is_held_out() -> None:
    texts = {text for i in range(8000) for text in captioned.captions(i)}
    held_out = {captioned.caption(state) for state in captioned.HELD_OUT}
    assert len(texts) + len(held_out) == len(captioned.STATES) and not texts & held_out
    words = {word for text in texts for word in text.split()}
    assert all(set(text.split()) <= words for text in held_out)


def test_pictures_show_their_captions() -> None:
    rows = list(range(0, 8000, 97))
    drawn = captioned.faces(rows, 32)
    shown = [captioned.caption(state) for state in captioned.read(drawn)]
    told = [captioned.captions(i)[0] for i in rows]
    assert sum(a == b for a, b in zip(shown, told, strict=True)) / len(rows) > 0.9
    assert torch.equal(captioned.faces(rows[3:5], 32), drawn[3:5])


@pytest.mark.slow
def test_the_set_is_opened_by_name() -> None:
    opened = open_images("captioned-faces", 32)
    found = read_captions("captioned-faces", opened.names)
    assert tuple(opened.images.shape) == (8000, 3, 32, 32)
    assert found.texts[41] == captioned.captions(41)
    assert torch.equal(torch.as_tensor(opened.images[41]), captioned.faces([41], 32)[0])


def test_commands(tmp_path) -> None:
    train = ("train", "--data", "captioned-faces", "--captions", "auto", "--steps", 1, "--net", "xs", "--batch", 2)
    refused(ornstein(*train, "--size", 40, "--out", tmp_path / "r"), "captioned-faces", "32 or 64")
