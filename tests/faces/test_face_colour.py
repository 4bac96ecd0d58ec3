"""L*a*b* against known values, and the colour match against the moments it promises."""

import pytest
import torch

from ornstein.faces.swap.colour import match_colour, to_lab, to_rgb


def noise(seed: int, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(seed))


def test_lab_of_known_colours() -> None:
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [0.5, 0.5, 0.5]]).T[:, None]
    known = torch.tensor([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [53.39, 0, 0]]).T
    torch.testing.assert_close(to_lab(rgb)[:, 0], known.float(), atol=0.02, rtol=0)


def test_lab_agrees_with_scikit_image() -> None:
    color = pytest.importorskip("skimage.color", reason="scikit-image is not installed")
    rgb = noise(0, 0, 1)
    expected = torch.from_numpy(color.rgb2lab(rgb.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    torch.testing.assert_close(to_lab(rgb), expected.float(), atol=0.02, rtol=0)


def test_lab_and_back() -> None:
    rgb = noise(1, -0.1, 1.2).double()
    torch.testing.assert_close(to_rgb(to_lab(rgb)), rgb, atol=1e-9, rtol=0)


def test_a_match_has_the_targets_moments_inside_the_mask() -> None:
    source, target = noise(2, 0.2, 0.5), noise(3, 0.35, 0.8)
    mask = torch.rand(1, 24, 20, generator=torch.Generator().manual_seed(4)) * (torch.arange(20) > 6)
    matched = to_lab(match_colour(source, target, mask).double())
    wanted = to_lab(target.double())
    share = (mask / mask.sum()).double()
    for channel in range(3):
        moments = []
        for image in (matched[channel], wanted[channel]):
            mean = (share[0] * image).sum()
            moments.append((mean.item(), (share[0] * (image - mean) ** 2).sum().sqrt().item()))
        assert moments[0] == pytest.approx(moments[1], abs=1e-3)


def test_a_picture_matched_to_itself_stays_and_a_flat_one_takes_the_mean() -> None:
    target, mask = noise(5, 0.1, 0.9), torch.ones(1, 24, 20)
    torch.testing.assert_close(match_colour(target, target, mask), target, atol=1e-5, rtol=0)
    flat = to_lab(match_colour(torch.full_like(target, 0.4), target, mask))
    torch.testing.assert_close(flat.mean((1, 2)), to_lab(target).mean((1, 2)), atol=1e-2, rtol=0)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask is empty"):
        match_colour(noise(0, 0, 1), noise(1, 0, 1), torch.zeros(1, 24, 20))
