"""What all autoencoders share: shapes, sizes, configs, likelihoods, and that they learn."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ornstein.autoencoders import AUTOENCODERS, Autoencoder, AutoencoderLoss, addressed, drawn
from ornstein.randomness import generator

KINDS = list(AUTOENCODERS)


def make(kind: str, channels: int = 1, size: int = 8, **settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    model = AUTOENCODERS[kind](channels, size, **{"width": 16, "depths": (1, 1, 1)} | settings)  # type: ignore[call-arg]
    with torch.no_grad():  # zero-initialised layers would hide what reaches the output
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.train()(pixels(4, channels, size), noise())  # fills a codebook
    return model.eval()


def pixels(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=draw) / 127.5 - 1


def noise(seed: int = 0):
    return drawn(torch.Generator().manual_seed(seed))


def digits() -> Tensor:
    return torch.from_numpy(np.round(load_digits().images * 255 / 16)).float()[:, None] / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "size", "factor"), [(1, 8, 2), (1, 8, 4), (3, 28, 4), (3, 32, 8), (3, 64, 4), (3, 256, 8)]
)
def test_shapes(kind: str, channels: int, size: int, factor: int):
    model, x = make(kind, channels, size, factor=factor), pixels(2, channels, size)
    small = size // factor
    assert model.latent_shape == ((32,) if kind == "vae" else (8 if kind == "vq" else 4, small, small))
    q = model.encode(x)
    assert tuple(q.mean.shape[1:]) == model.latent_shape == tuple(q.std.shape[1:])
    assert bool((q.std == 0).all()) == (kind in ("ae", "vq"))
    terms = model(x, noise())
    assert terms.reconstruction.shape == x.shape == model.decode(q.mean).shape
    assert terms.rates.shape == (len(model.layer_shapes), 2)
    assert terms.penalty.shape == (2,)
    kernels = [p for network in model.networks for p in network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.mark.parametrize("kind", KINDS)
def test_presets_grow_and_take_settings(kind: str):
    sizes = [
        sum(p.numel() for p in AUTOENCODERS[kind].preset(name, channels=3, size=32).parameters())
        for name in ("xs", "s", "m")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]
    model = AUTOENCODERS[kind].preset("xs", channels=1, size=16, factor=4, latent_channels=5)
    assert model.config["factor"] == 4
    assert model.latent_shape[0] == 5
    with pytest.raises(ValueError, match="no preset 'huge': choose one of xs, s, m, l"):
        AUTOENCODERS[kind].preset("huge", channels=1, size=8)
    with pytest.raises(TypeError, match="latent_chanels"):
        AUTOENCODERS[kind].preset("xs", channels=1, size=8, latent_chanels=3)


@pytest.mark.parametrize("kind", KINDS)
def test_config_makes_the_model_again(kind: str):
    model, x = make(kind), pixels(3)
    again = AUTOENCODERS[kind](**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again.eval()(x, noise()).reconstruction, model(x, noise()).reconstruction)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "factor", "message"),
    [
        (30, 4, "30 pixels .* factor of 4: .* multiples of 4, the nearest 28 or 32, or factor 2 for this one"),
        (27, 2, "27 pixels .* the nearest 26 or 28$"),
        (6, 8, "the nearest 8, or factor 2"),
        (8, 3, "power of two.*got 3"),
        (8, 0, "power of two.*got 0"),
    ],
)
def test_sizes_that_do_not_work(kind: str, size: int, factor: int, message: str):
    with pytest.raises(ValueError, match=message):
        AUTOENCODERS[kind](1, size, factor=factor)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_shapes_and_arguments(kind: str):
    model = make(kind)
    with pytest.raises(ValueError, match=r"takes floats \(B, 1, 8, 8\)"):
        model.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"torch.uint8.*takes floats"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), noise())
    with pytest.raises(ValueError, match="this model's latents are"):
        model.decode(torch.zeros(2, 77, *model.latent_shape[1:]))
    with pytest.raises(ValueError, match="width is positive"):
        AUTOENCODERS[kind](1, 8, width=0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="latent_channels are positive"):
        AUTOENCODERS[kind](1, 8, latent_channels=0)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", KINDS)
def test_the_discretised_gaussian_sums_to_one(kind: str):
    model = make(kind)
    values = (torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)
    for x_hat in (-1.3, 0.2, 0.99):
        one = model.log_prob(values, torch.full((256, 1, 1, 1), x_hat)).detach()
        assert one.dtype == torch.float64
        assert float(torch.logsumexp(one, 0)) == pytest.approx(0.0, abs=1e-9)


def test_pixels_add_up_and_the_scale_is_used():
    model, x = make("vae"), pixels(3)
    x_hat = model.decode(model.encode(x).mean).detach()
    single = torch.stack([model.log_prob(x[:, :, i : i + 1], x_hat[:, :, i : i + 1]) for i in range(8)])
    torch.testing.assert_close(single.sum(0), model.log_prob(x, x_hat))
    truth = torch.distributions.Normal(x_hat, model.log_scale.detach().exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(model.log_density(x, x_hat).detach(), truth)
    with pytest.raises(ValueError, match="8-bit pixels"):
        model.log_prob(x + 0.002, x_hat)


@pytest.mark.parametrize("kind", ["vae", "hvae", "vq", "kl"])
def test_the_bound_is_its_terms_and_leaves_the_model_alone(kind: str):
    model, x = make(kind).train(), pixels(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    index = torch.tensor([4, 7, 9])
    elbo = model.bound(x, addressed(1, index))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    terms = model.eval()(x, addressed(1, index))
    torch.testing.assert_close(elbo.rates, terms.rates.detach().double())
    torch.testing.assert_close(elbo.total, terms.rates.detach().double().sum(0) + elbo.reconstruction)
    alone = model.bound(x[1:2], addressed(1, index[1:2])).total
    torch.testing.assert_close(alone, elbo.total[1:2], rtol=1e-5, atol=1e-3)
    if kind != "vq":
        assert bool((model.bound(x, addressed(2, index)).total != elbo.total).all())


def test_a_plain_autoencoder_has_neither_bound_nor_samples():
    model, x = make("ae"), pixels(2)
    with pytest.raises(ValueError, match="plain autoencoder has no bound"):
        model.bound(x, noise())
    with pytest.raises(ValueError, match="no prior over its latents: train a diffusion model"):
        model.sample(2, noise())
    assert torch.equal(model(x, noise(0)).reconstruction, model(x, noise(1)).reconstruction)


@pytest.mark.parametrize("kind", ["vae", "hvae", "vq", "kl"])
def test_samples_are_addressed(kind: str):
    model = make(kind)
    with torch.no_grad():
        four = model.sample(4, addressed(5, torch.arange(4)))
        two = model.sample(2, addressed(5, torch.tensor([2, 3])))
    assert four.shape == (4, 1, 8, 8)
    torch.testing.assert_close(two, four[2:], rtol=1e-4, atol=1e-5)
    assert float((four[0] - four[1]).abs().max()) > 1e-4


def test_the_global_generator_is_not_touched():
    models = [(make(kind).train(), kind) for kind in KINDS]
    state = torch.get_rng_state()
    for model, _ in models:
        loss = AutoencoderLoss(model)
        loss(pixels(4), noise(), 0.5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close_and_latents_keep_theirs(kind: str):
    model, x = make(kind), pixels(4)
    exact = model(x, noise())
    with torch.autocast("cpu", torch.bfloat16):
        encoded, decoded = model.networks[0](x), model.networks[1](torch.zeros(4, *model.latent_shape))
    assert encoded.dtype in (torch.float32, torch.bfloat16)
    truth = model.networks[0](x).detach()
    assert float((encoded.detach().float() - truth).abs().max()) < 0.05 * float(truth.abs().max()) + 0.05
    assert decoded.isfinite().all()
    assert exact.reconstruction.dtype == exact.rates.dtype == torch.float32
    double = make(kind).double()(x.double(), drawn(torch.Generator().manual_seed(0), torch.float64))
    assert double.reconstruction.dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_training_on_digits_learns(kind: str):
    torch.manual_seed(0)
    data = digits()
    train, held_out = data[:1500], data[1500:]
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))  # type: ignore[call-arg]
    loss = AutoencoderLoss(model, warmup=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    loss.train()
    model(train[:64], noise())

    def score() -> float:
        model.eval()
        if kind == "ae":
            x_hat = model(held_out, noise()).reconstruction
            value = float((x_hat - held_out).square().mean().detach())
        else:
            total = model.bound(held_out, addressed(0, torch.arange(len(held_out)))).total
            value = float(total.mean()) / (64 * math.log(2))
        model.train()
        return value

    before = score()
    for step in range(30):
        draw = generator(0, "test", step)
        x = train[torch.randint(0, len(train), (48,), generator=draw)]
        value, figures = loss(x, drawn(draw), step / 30)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        assert all(figure.isfinite() for figure in figures.values())
    after = score()
    assert after < (0.6 * before if kind == "ae" else before - 0.5), (before, after)
