import math

import pytest
import torch

from ornstein.evaluation.distortion import psnr, ssim


def noise(n=3, c=1, size=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, c, size, size), generator=draw, dtype=torch.uint8)


def test_psnr_of_a_constant_error():
    truth = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    images = truth.clone()
    images[0] += 5
    images[1, :, :2] += 10
    found = psnr(images, truth)
    assert found[0] == pytest.approx(20 * math.log10(255 / 5))
    assert found[1] == pytest.approx(10 * math.log10(255**2 / 50))  # half of the pixels
    assert psnr(truth, truth).isposinf().all()


def test_a_mask_weighs_the_error():
    truth = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    images = torch.tensor([[[[10, 0], [0, 200]]]], dtype=torch.uint8)
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert psnr(images, truth, mask)[0] == pytest.approx(10 * math.log10(255**2 / 50))


def test_ssim_of_constant_images_in_closed_form():
    """Without variance SSIM is (2 a b + c1)/(a^2 + b^2 + c1)."""
    a, b, c1 = 60.0, 90.0, (0.01 * 255) ** 2
    images, truth = (torch.full((2, 3, 16, 16), int(v), dtype=torch.uint8) for v in (a, b))
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    torch.testing.assert_close(ssim(images, truth), torch.full((2,), expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [7, 8, 10, 11, 32])
def test_ssim_falls_with_noise_at_every_size(size):
    truth = noise(size=size)
    near = (truth.int() + noise(size=size, seed=1) // 16).clamp(0, 255).to(torch.uint8)
    assert (ssim(truth, truth) == 1).all()
    assert (ssim(near, truth) < 1).all()
    assert (ssim(noise(size=size, seed=2), truth) < ssim(near, truth)).all()


def test_ssim_is_that_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    truth = noise(c=3, size=24)
    images = (truth.int() + noise(c=3, size=24, seed=1) // 8).clamp(0, 255).to(torch.uint8)
    settings = {"channel_axis": 0, "data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    expected = [
        metrics.structural_similarity(a.numpy(), b.numpy(), **settings) for a, b in zip(images, truth, strict=True)
    ]
    torch.testing.assert_close(ssim(images, truth), torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_floats_have_the_figures_of_bytes():
    """On the scale of [-1, 1] with range 2, as on that of 0 to 255."""
    truth, images = noise(), noise(seed=1)
    x, y = images.double() / 127.5 - 1, truth.double() / 127.5 - 1
    torch.testing.assert_close(psnr(x, y), psnr(images, truth))
    torch.testing.assert_close(ssim(x, y), ssim(images, truth))
    torch.testing.assert_close(ssim(x, y, box=7), ssim(images, truth, box=7))


def test_ssim_within_a_mask():
    truth = noise()
    images = truth.clone()
    images[..., :16] = noise(seed=1)[..., :16]
    right = torch.zeros(3, 1, 32, 32)
    right[..., 24:] = 1  # out of reach of the window of 11 pixels
    torch.testing.assert_close(ssim(images, truth, right), torch.ones(3, dtype=torch.float64))
    assert (ssim(images, truth, 1 - right) < 0.9).all()


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(noise(), noise(size=16))
    with pytest.raises(ValueError, match="both uint8 or both floats"):
        ssim(noise().float(), noise())
    with pytest.raises(ValueError, match="both uint8 or both floats"):
        psnr(noise().int(), noise().int())
