"""Features, and whether distances in them rise with damage done to real images."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from ornstein.data import open_images, to_uint8, to_unit
from ornstein.errors import UserError
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.kernel import kernel_distance
from ornstein.randomness import normal

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class BytesModule(torch.nn.Module):
    """With the signature of the public Inception file: uint8 images in, and an option for features."""

    def forward(self, img: torch.Tensor, use_fp16: bool = False, return_features: bool = False) -> torch.Tensor:
        if img.dtype != torch.uint8 or not return_features:
            raise RuntimeError("wanted bytes")
        return img.float().mean((2, 3))


class FloatModule(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


def blur(images, std):
    reach = max(1, round(3 * std))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * std**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    x = functional.pad(to_unit(images), (reach,) * 4, mode="reflect")
    x = functional.conv2d(x, kernel, groups=images.shape[1])
    return to_uint8(functional.conv2d(x, kernel.transpose(2, 3), groups=images.shape[1]))


def noise(images, std):
    return to_uint8(to_unit(images) + std * normal(tuple(images.shape), 0, torch.arange(len(images)), 0))


def jpeg(images, quality):
    out = []
    for image in images:
        buffer = io.BytesIO()
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(buffer, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.array(Image.open(buffer)).reshape(pixels.shape)).permute(2, 0, 1))
    return torch.stack(out)


def blend(images, share):
    return to_uint8((1 - share) * to_unit(images) + share * to_unit(images.roll(len(images) // 2, 0)))


def shuffled_quarters(images, share):
    x, h = images.clone(), images.shape[-1] // 2
    x[: round(share * len(x))] = x[: round(share * len(x))].roll((h, h), (2, 3))
    return x


DAMAGE = {
    "blur": (blur, (0.4, 0.6, 1.0, 2.0)),
    "noise": (noise, (0.1, 0.2, 0.4)),
    "JPEG": (jpeg, (40, 15, 5)),
    "blend": (blend, (0.05, 0.1, 0.2, 0.4)),
    "quarters": (shuffled_quarters, (0.2, 0.4, 0.8)),
}


def sets(source, count, seed=0):
    """Real images, as many others, and the others with fewer and fewer of the classes."""
    images = open_images(source)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    pixels, labels = images.images[order], images.require_labels()[order]
    other, own = pixels[count:], labels[count:]
    # Of each number of classes the same number of images, drawn with repetition from as few different ones.
    few = torch.cat([torch.nonzero(own == k)[: count // 10, 0] for k in range(10)])
    dropped = {n: other[few[own[few] < n].repeat(10)[: len(few)]] for n in (10, 7, 4, 1)}
    return pixels[:count], other[:count], dropped


def damaged(extract, real, other, dropped):
    """Features of the real images, and of each damage level by level, the undamaged first."""
    undamaged = extract(other)
    rows = {
        name: [undamaged, *(extract(harm(other, level)) for level in levels)] for name, (harm, levels) in DAMAGE.items()
    }
    return extract(real), rows | {"classes": [extract(images) for images in dropped.values()]}


@pytest.fixture(scope="module")
def digits():
    found = sets("digits", 600)
    return {which: damaged(open_features(which)(found[0]), *found) for which in ("pixels", "conv")}


@pytest.mark.parametrize("distance", [frechet_distance, lambda a, b: kernel_distance(a, b, 1).value])
def test_distances_in_conv_rise_with_every_damage(digits, distance):
    real, rows = digits["conv"]
    for name, levels in rows.items():
        values = [distance(features, real) for features in levels]
        assert values == sorted(values), name
        assert values[-1] > 3 * abs(values[0]), name


def test_conv_sees_small_damage_that_pixels_hardly_see(digits):
    rise = {}
    for which, (real, rows) in digits.items():
        rise[which] = {k: frechet_distance(v[1], real) / frechet_distance(v[0], real) for k, v in rows.items()}
    for name in ("blur", "noise", "JPEG", "blend"):
        assert rise["conv"][name] > rise["pixels"][name], name


@pytest.mark.slow
def test_distances_in_conv_rise_on_your_images():
    """The table of docs/evaluate.md: ORNSTEIN_IMAGES is a folder or zip with ten folders of images, one a class."""
    source = os.environ.get("ORNSTEIN_IMAGES", "digits")
    found = sets(source, 800 if source == "digits" else 2000)
    real, rows = damaged(open_features("conv")(found[0]), *found)
    for name, levels in rows.items():
        values = [frechet_distance(features, real) for features in levels]
        print(f"{name:9s}", "  ".join(f"{value:8.4g}" for value in values))
        assert values == sorted(values), name


def test_conv_is_the_same_everywhere():
    """Weights by address, not by a library's generator: these figures were made once and hold on any machine."""
    index = torch.arange(6 * 3 * 12 * 12).reshape(6, 3, 12, 12)
    images = ((index * index * 31 + 17 * index) % 256).to(torch.uint8)
    features = open_features("conv")(images)
    assert features.name == "conv (144 random multi-scale features, seed 0, scaled on 6 real images)"
    out = features(images)
    assert out.shape == (6, 144)
    torch.testing.assert_close(out.mean(0), torch.zeros(144), atol=1e-4, rtol=0)
    torch.testing.assert_close(features(images[2:3])[0], out[2], atol=1e-4, rtol=1e-4)
    expected = torch.tensor(EXPECTED)
    torch.testing.assert_close(out[0, [0, 40, 48, 60, 72, 100, 120, 143]], expected, atol=2e-3, rtol=2e-3)


EXPECTED = [-1.1858, -0.2187, -0.22, -0.729, 0.6598, -0.3797, -0.5734, 1.127]


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (8, 8), (37, 20), (64, 64)])
def test_conv_takes_images_of_any_size(shape):
    images = torch.randint(0, 256, (5, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    out = open_features("conv")(images)(images)
    assert len(out) == 5 and bool(out.isfinite().all())


def test_what_all_real_images_share_is_not_blown_up():
    images = torch.full((6, 1, 8, 8), 255, dtype=torch.uint8)
    one_off = images.clone()
    one_off[0] = 254
    assert float(open_features("conv")(images)(one_off).abs().max()) < 2


def test_pixels_are_the_images_in_unit_range():
    images = torch.tensor([[[[0, 255]]], [[[51, 204]]]], dtype=torch.uint8)
    features = open_features("pixels")(images)
    assert features.name == "pixels"
    torch.testing.assert_close(features(images), torch.tensor([[-1.0, 1.0], [-0.6, 0.6]]))


def test_a_file_that_returns_features_is_given_bytes_in_colour(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.save(torch.jit.script(BytesModule()), path)
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    features = open_features(str(path))(images)
    assert features.name.startswith("inception.pt (sha256 ")
    torch.testing.assert_close(features(images), images.float().mean((1, 2, 3))[:, None].expand(-1, 3))


def test_any_other_file_is_given_numbers_in_unit_range(tmp_path):
    path = tmp_path / "own.pt"
    torch.jit.save(torch.jit.trace(FloatModule(), torch.zeros(1, 2, 4, 4)), path)
    images = torch.full((300, 2, 4, 4), 255, dtype=torch.uint8)
    torch.testing.assert_close(open_features(str(path))(images)(images), torch.ones(300, 2))


def test_files_that_cannot_serve_are_named(tmp_path):
    with pytest.raises(UserError, match="unknown features 'vgg': give pixels, conv or the path"):
        open_features("vgg")
    (tmp_path / "no.pt").write_text("nothing of the kind")
    with pytest.raises(UserError, match=r"no\.pt cannot be opened as TorchScript: .*zip archive") as error:
        open_features(str(tmp_path / "no.pt"))
    assert "\n" not in str(error.value)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 4, 4)), tmp_path / "rgb.pt")
    with pytest.raises(ValueError, match=r"rgb\.pt .* does not take images of 1x4x4: .*channels") as error:
        open_features(str(tmp_path / "rgb.pt"))(images)(images)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"uint8 images .* got torch.float32"):
        open_features("pixels")(images)(images.float())


def test_features_that_are_not_finite_are_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.LogSigmoid(), torch.zeros(1, 3, 4, 4)), tmp_path / "fine.pt")

    class Broken(torch.nn.Module):
        def forward(self, x):
            return x / 0

    torch.jit.save(torch.jit.trace(Broken(), torch.ones(1, 3, 4, 4)), tmp_path / "broken.pt")
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert open_features(str(tmp_path / "fine.pt"))(images)(images).shape == (2, 48)
    with pytest.raises(ValueError, match=r"broken\.pt .*not finite"):
        open_features(str(tmp_path / "broken.pt"))(images)(images)
