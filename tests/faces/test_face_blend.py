"""Pasting back: the background to the bit, the face up to interpolation."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.faces.align import Similarity, crop, mask, template
from ornstein.faces.swap.blend import METHODS, paste

SIZE = 64
# Face as large as its crop, three times as large, half as large; turned; cut by two borders of the picture.
PLACES = [
    Similarity.about(90 + 80j, 31.5 + 31.5j, 1.0, 12),
    Similarity.about(90 + 80j, 31.5 + 31.5j, 0.5, -75),
    Similarity.about(90 + 80j, 31.5 + 31.5j, 2.1, 200),
    Similarity.about(12 + 10j, 31.5 + 31.5j, 0.8, 30),
]


def picture() -> Tensor:
    """Smooth, uint8 (3, 160, 180)."""
    y, x = torch.meshgrid(torch.arange(160) / 160, torch.arange(180) / 180, indexing="ij")
    channels = [(math.tau * (u * x + v * y + p)).sin() for u, v, p in ((1, 1, 0.1), (1, -1, 0.3), (-0.5, 1, 0.7))]
    return (120 + 60 * torch.stack(channels)).round().to(torch.uint8)


def face_mask() -> Tensor:
    return mask(template(SIZE)[None], SIZE)[0]


def crop_coordinates(place: Similarity) -> Tensor:
    y, x = torch.meshgrid(torch.arange(160), torch.arange(180), indexing="ij")
    return place(torch.stack([x, y], -1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_the_background_is_untouched_and_the_face_replaced(method: str, place: Similarity) -> None:
    image = picture()
    face = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    out = paste(image, face, face_mask(), place, method)
    assert out.dtype == torch.uint8 and out.shape == image.shape
    # The hull in crop pixels, and two crop pixels of interpolation around it (at least two of the picture).
    at = (crop_coordinates(place) + 0.5) / SIZE
    u, v = (at[..., 0] - 0.5).abs(), (at[..., 1] - 0.555).abs()
    margin = 2 * max(1.0, place.scale) / SIZE
    outside = (u > 0.30 + margin) | (v > 0.365 + margin)
    assert torch.equal(out[:, outside], image[:, outside])
    inside = ((u / 0.30) ** 2 + (v / 0.365) ** 2) < 0.3
    assert (out != image)[:, inside].float().mean() > 0.8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_a_face_pasted_where_it_was_leaves_the_picture_as_it_was(method: str, place: Similarity) -> None:
    image = picture()
    out = paste(image, crop(image, place, SIZE), face_mask(), place, method)
    assert (out.int() - image.int()).abs().max() <= 3


def test_poisson_takes_away_a_constant_offset() -> None:
    image, place = picture(), PLACES[0]
    face = crop(image, place, SIZE).float() / 255 + 0.15
    weighed = paste(image, face, face_mask(), place, "feather").int()
    assert (weighed - image.int()).max() > 30
    blended = paste(image, face, face_mask(), place, "poisson").int()
    assert (blended - image.int()).abs().max() <= 3


def test_feather_is_the_weighed_mean() -> None:
    image = torch.full((3, 80, 80), 100, dtype=torch.uint8)
    half = torch.zeros(1, SIZE, SIZE)
    half[:, 16:48, 16:48] = 0.5
    out = paste(image, torch.full((3, SIZE, SIZE), 200 / 255), half, Similarity(1, 0), "feather")
    assert (out[:, 20:44, 20:44] == 150).all() and (out[:, 51:] == 100).all()


def test_laplacian_mixes_coarse_bands_widely_and_fine_ones_narrowly() -> None:
    """Inside a hard mask, near its rim: a stripe pattern keeps its contrast, while the brightness runs over."""
    image = torch.full((3, 128, 128), 100, dtype=torch.uint8)
    hard = torch.zeros(1, 128, 128)
    hard[:, 20:108, 20:108] = 1
    stripes = 20 * (torch.arange(128) % 2 * 2 - 1)
    face = ((160 + stripes[:, None]).expand(3, 128, 128) / 255).contiguous()
    out = paste(image, face, hard, Similarity(1, 0), "laplacian")[0].float()
    brightness, contrast = (out[32:96] + out[33:97]) / 2, (out[32:96] - out[33:97]).abs() / 2
    assert brightness[:, 64].mean().item() == pytest.approx(160, abs=4)
    assert brightness[:, 21].mean() < 150
    assert contrast[:, 24:104].min() > 15


def test_a_crop_outside_the_picture_changes_nothing() -> None:
    image = picture()
    away = Similarity(1, 5000 + 5000j)
    assert torch.equal(paste(image, torch.zeros(3, SIZE, SIZE), face_mask(), away), image)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'glue' is unknown: one of feather, laplacian, poisson"):
        paste(picture(), torch.zeros(3, SIZE, SIZE), face_mask(), PLACES[0], "glue")
