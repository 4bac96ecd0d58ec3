"""The latent space of a diffusion model: decoding in tiles, the joint bound, and what it refuses."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import autoencoders
from ornstein.autoencoders.latent import LatentSpace, decode_tiled, joint_bound
from ornstein.errors import UserError
from ornstein.nets import UNet
from ornstein.oracles import GaussianMixture


def model(kind: str = "kl", **settings) -> autoencoders.Autoencoder:
    torch.manual_seed(0)
    made = autoencoders.AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1), **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return made.eval()


def space(of: autoencoders.Autoencoder, seed: int = 0) -> LatentSpace:
    draw = torch.Generator().manual_seed(seed)
    c = of.latent_shape[0]
    return LatentSpace(of, torch.randn(c, generator=draw), 0.5 + torch.rand(c, generator=draw), Path("ae"), "hash")


def pixels(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 127.5 - 1


def minus_log_normal(z: Tensor) -> Tensor:
    return 0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.mark.parametrize("kind", ["kl", "vae", "hvae"])
def test_normalised_and_back(kind: str):
    here = space(model(kind))
    x = pixels(5)
    mean, std = here.encode(x)
    q = here.autoencoder.encode(x)
    assert mean.shape == std.shape == (5, *here.latent_shape)
    torch.testing.assert_close(here.denormalise(mean).flatten(1), q.mean.flatten(1))
    torch.testing.assert_close((std * here.std.view(-1, 1, 1)).flatten(1), q.std.flatten(1))
    torch.testing.assert_close(here.decode(mean), here.autoencoder.decode(q.mean).clamp(-1, 1))
    # log |dz/dy| over all numbers of a latent
    everywhere = here.std.view(-1, 1, 1).expand(here.latent_shape)
    assert here.log_scale == pytest.approx(float(everywhere.log().sum()), rel=1e-5)


def test_the_joint_bound_does_not_know_how_latents_are_normalised():
    one, x = model(), pixels(6)
    totals = []
    for seed in (0, 1):
        here = space(one, seed)

        def prior(y: Tensor, first: int, here: LatentSpace = here) -> Tensor:
            return minus_log_normal(here.denormalise(y)) - here.log_scale  # -log N(z; 0, I) as a density of y

        totals.append(joint_bound(here, x, prior))
    torch.testing.assert_close(totals[0].total, totals[1].total, rtol=1e-5, atol=1e-3)


def test_with_the_own_prior_it_is_the_autoencoders_bound():
    one, x = model(), pixels(4)
    here, n = space(one), 400
    rows = x.repeat(n, 1, 1, 1)
    joint = joint_bound(here, rows, lambda y, first: minus_log_normal(here.denormalise(y)) - here.log_scale, batch=800)
    own = one.bound(rows, autoencoders.addressed(7, torch.arange(len(rows))))
    difference = (joint.total - own.total).view(n, 4)
    error = difference.std(0) / n**0.5
    assert (difference.mean(0).abs() < 4 * error).all()
    # KL in closed form against entropy and density of the same draws
    rate = (joint.prior - joint.entropy).view(n, 4)
    assert ((rate.mean(0) - own.rates[0].view(n, 4)[0]).abs() < 4 * rate.std(0) / n**0.5).all()


def test_a_diffusion_prior_costs_what_its_bound_says():
    """The latents' prior as a diffusion oracle of N(0, I): the flow gives its density, and the bound is tight."""
    here, x = space(model(latent_channels=1, factor=4)), pixels(64)
    size = math.prod(here.latent_shape)
    oracle = GaussianMixture([1.0], torch.zeros(1, size), torch.eye(size)[None]).denoiser(
        orn.Process(orn.schedules.Cosine())
    )
    flow = joint_bound(here, x, lambda y, first: -orn.likelihood.ode(oracle, y.flatten(1), steps=16).value)
    exact = joint_bound(here, x, lambda y, first: minus_log_normal(y))
    torch.testing.assert_close(flow.total, exact.total, rtol=1e-4, atol=1e-3)
    bound = joint_bound(
        here, x, lambda y, first: orn.likelihood.vlb(oracle, y.flatten(1), 20, decoder="gaussian", first=first).total
    )
    difference = bound.total - exact.total  # beta is tight where the data have the covariance of the noise
    assert difference.mean().abs() < 4 * difference.std() / 8
    assert difference.std() > 0


def test_draws_are_the_images_own():
    here, x = space(model()), pixels(6)
    seen: list[int] = []

    def prior(y: Tensor, first: int) -> Tensor:
        seen.append(first)
        return minus_log_normal(y)

    whole = joint_bound(here, x, prior, batch=4).total
    part = joint_bound(here, x[4:], prior, first=4).total
    torch.testing.assert_close(whole[4:], part)
    assert seen == [0, 4, 4]


@pytest.mark.parametrize("kind", ["ae", "vq"])
def test_no_joint_bound_without_a_density(kind: str):
    with pytest.raises(UserError, match="deterministic"):
        joint_bound(space(model(kind)), pixels(2), lambda y, first: minus_log_normal(y))


def enlarged(z: Tensor) -> Tensor:
    """A decoder that looks at one latent at a time: tiles can make no difference."""
    return torch.nn.functional.interpolate(z.sum(1, keepdim=True), scale_factor=4)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 3, 20, 20), (1, 2, 37, 9), (1, 1, 8, 50)])
def test_tiles_are_the_whole(shape: tuple[int, ...]):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = []

    def decode(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[-2:]))
        return enlarged(part)

    torch.testing.assert_close(decode_tiled(decode, z, tile=8, overlap=3), enlarged(z))
    assert max(max(s) for s in sizes) <= 8
    assert len(sizes) == math.prod(max(1, math.ceil((n - 3) / 5)) for n in shape[-2:])


def test_tiles_fade_into_each_other():
    """Tiles that differ by a constant: no step between neighbouring pixels is as large as the difference."""
    counter = iter(range(100))

    def decode(part: Tensor) -> Tensor:
        return enlarged(part) * 0 + next(counter)

    row = decode_tiled(decode, torch.zeros(1, 1, 8, 20), tile=8, overlap=4)[0, 0, 0]
    assert float(row[0]) == 0 and float(row[-1]) == 3
    assert (row.diff() > -1e-5).all() and float(row.diff().max()) < 0.15


def latent_run(folder: Path) -> tuple[Path, Path]:
    one = model()
    autoencoders.save(one, folder / "ae")
    here = LatentSpace(one, torch.zeros(4), torch.ones(4), folder / "ae", autoencoders.fingerprint(folder / "ae"))
    net = UNet(4, 4, width=16, multipliers=(1,), depths=(1,), attention=())
    data = orn.Data(here.latent_shape)
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=data, space=here)
    denoiser.save(folder / "ld")
    return folder / "ae", folder / "ld"


def test_saved_and_loaded(tmp_path: Path):
    _, run = latent_run(tmp_path)
    d = orn.load(run)
    y = orn.sample(d, (3, 4, 4, 4), steps=2)
    images = d.decode(y)
    assert images.shape == (3, 1, 8, 8) and d.shape == (1, 8, 8)
    assert float(images.abs().max()) <= 1


def test_both_folders_may_move(tmp_path: Path):
    (tmp_path / "a").mkdir()
    latent_run(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert orn.load(tmp_path / "b" / "ld").shape == (1, 8, 8)


def test_a_missing_autoencoder_is_refused(tmp_path: Path):
    autoencoder, run = latent_run(tmp_path)
    autoencoder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="missing"):
        orn.load(run)


def test_a_changed_autoencoder_is_refused(tmp_path: Path):
    autoencoder, run = latent_run(tmp_path)
    other = autoencoders.load(autoencoder)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    autoencoders.save(other, autoencoder)
    with pytest.raises(UserError, match="has changed"):
        orn.load(run)


def test_a_model_of_the_other_kind_is_refused(tmp_path: Path):
    autoencoder, run = latent_run(tmp_path)
    with pytest.raises(UserError, match="holds an autoencoder"):
        orn.load(autoencoder)
    with pytest.raises(UserError, match="no autoencoder"):
        autoencoders.load(run)
