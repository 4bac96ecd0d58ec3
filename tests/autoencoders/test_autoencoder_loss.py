"""The loss of an autoencoder: its terms, their schedules, and whose gradient is whose."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein.autoencoders import AUTOENCODERS, AutoencoderLoss, KLAutoencoder, Terms, drawn
from ornstein.autoencoders.discriminator import PatchDiscriminator
from ornstein.autoencoders.perceptual import open_perceptual, random_features
from ornstein.errors import UserError


def noise(seed: int = 0):
    return drawn(torch.Generator().manual_seed(seed))


def make(kind: str = "kl", **settings: Any):
    torch.manual_seed(0)
    model = AUTOENCODERS[kind](1, 8, width=16, depths=(1, 1, 1))  # type: ignore[call-arg]
    with torch.no_grad():  # zero-initialised layers would hide what reaches the output
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return AutoencoderLoss(model, **settings).train()


X = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 127.5 - 1


@pytest.mark.parametrize("kind", ["vae", "hvae", "kl"])
def test_with_nothing_else_it_is_the_bound(kind: str):
    loss = make(kind)
    value, figures = loss(X, noise(), 0.0)
    terms = loss.model(X, noise())
    bound = terms.rates.sum(0) - loss.model.log_density(X, terms.reconstruction)
    torch.testing.assert_close(value, bound.mean() / 64)
    rates = [figures[f"rate_{i + 1}"] for i in range(len(terms.rates))]
    torch.testing.assert_close(torch.stack(rates), terms.rates.mean(1).detach())
    assert float(figures["mse"]) == pytest.approx(float((terms.reconstruction - X).square().mean().detach()))


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_other_reconstructions_and_the_scale_beside_them(name: Any, power: int):
    loss = make(reconstruction=name, kl_weight=0.0)
    value, figures = loss(X, noise(), 1.0)
    value.backward()
    terms = loss.model(X, noise())
    error = (terms.reconstruction - X).abs().pow(power).mean()
    assert float(figures["reconstruction"]) == pytest.approx(float(error.detach()), rel=1e-5)
    found = [p.grad for p in loss.model.decoder.parameters()]
    torch.testing.assert_close(found, list(torch.autograd.grad(error, list(loss.model.decoder.parameters()))))
    # the scale's gradient is that of the Gaussian's density: 0 where it is the root of the mean square
    density = loss.model.log_density(X, terms.reconstruction.detach()).mean() / 64
    torch.testing.assert_close(loss.model.scale.grad, torch.autograd.grad(-density, loss.model.scale)[0])


def test_the_best_scale_is_the_root_mean_square_error():
    loss, x_hat = make(), torch.zeros_like(X)
    rms = float(X.square().mean().sqrt())
    with torch.no_grad():
        loss.model.scale.mul_(math.log(rms) / float(loss.model.log_scale))
    density = loss.model.log_density(X, x_hat).mean()
    (gradient,) = torch.autograd.grad(density, loss.model.scale)
    assert abs(float(gradient)) < 1e-3
    assert float(density.detach()) == pytest.approx(-32 * math.log(2 * math.pi * math.e * rms**2), rel=1e-5)


def test_warm_up_is_linear():
    loss = make(warmup=0.4, kl_weight=2.0)
    assert [loss.kl_weight(p) for p in (0.0, 0.1, 0.4, 1.0)] == pytest.approx([0.0, 0.5, 2.0, 2.0])
    assert make(kl_weight=3.0).kl_weight(0.0) == 3.0
    without, _ = loss(X, noise(), 0.0)
    half, _ = loss(X, noise(), 0.2)
    rate = loss.model(X, noise()).rates.sum(0).mean() / 64
    torch.testing.assert_close(half - without, rate)


def terms(rates: list[float], model: nn.Module) -> Terms:
    return Terms(X, torch.tensor(rates)[:, None].expand(-1, 6), torch.zeros(6), torch.zeros(()))


def test_free_bits_cost_the_same_below_and_nothing_more_above():
    """Layers of 4x4x4 and 4x2x2: 64 and 16 numbers, so that 0.25 nats each are 16 and 4."""
    loss = make("hvae", free_bits=0.25)
    cases = {(1.0, 1.0): 16 + 4, (20.0, 1.0): 20 + 4, (3.0, 9.0): 16 + 9, (30.0, 10.0): 40}
    for rates, expected in cases.items():
        assert float(loss.rate(terms(list(rates), loss.model))) == pytest.approx(expected / 64)
    value = torch.tensor([[2.0] * 6, [9.0] * 6], requires_grad=True)
    loss.rate(Terms(X, value, torch.zeros(6), torch.zeros(()))).backward()
    assert value.grad is not None
    assert value.grad[0].abs().sum() == 0
    torch.testing.assert_close(value.grad[1], torch.full((6,), 1 / (6 * 64)))


def test_a_layer_counts_by_its_mean_not_sample_by_sample():
    loss = make("kl", free_bits=0.25)
    rates = torch.tensor([[0.0, 0.0, 0.0, 40.0, 40.0, 40.0]])
    assert float(loss.rate(Terms(X, rates, torch.zeros(6), torch.zeros(())))) == pytest.approx(20 / 64)


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_the_gradients_of_both_players_never_mix():
    """One backward pass against the two of a textbook: each player's gradient is that of its own loss alone."""
    loss = make(adversarial_weight=0.3, adversarial_start=0.0)
    assert loss.discriminator is not None
    loss(X, noise(), 0.5)  # one power iteration
    twin = copy.deepcopy(loss)
    value, figures = loss(X, noise(), 0.5)
    value.backward()

    assert twin.discriminator is not None
    terms = twin.model(X, noise())
    plain = (terms.rates.sum(0) - twin.model.log_density(X, terms.reconstruction)).mean() / 64
    (plain - 0.3 * twin.discriminator(terms.reconstruction).mean()).backward()
    torch.testing.assert_close(gradients(loss.model), gradients(twin.model), rtol=1e-4, atol=1e-6)
    twin.zero_grad()
    both = twin.discriminator(torch.cat([X, terms.reconstruction.detach()]))
    hinge = 0.5 * ((1 - both[:6]).relu().mean() + (1 + both[6:]).relu().mean())
    hinge.backward()
    torch.testing.assert_close(gradients(loss.discriminator), gradients(twin.discriminator), rtol=1e-4, atol=1e-6)
    assert float(figures["discriminator"]) == pytest.approx(float(hinge.detach()), rel=1e-4)
    assert any(bool(g.abs().sum() > 0) for g in gradients(loss.discriminator))


def test_the_discriminator_waits_for_its_start():
    loss = make(adversarial_weight=0.3, adversarial_start=0.5)
    value, figures = loss(X, noise(), 0.49)
    torch.testing.assert_close(value, make()(X, noise(), 0.49)[0])
    assert float(figures["generator"]) == float(figures["discriminator"]) == 0.0
    later, figures = loss(X, noise(), 0.5)
    assert float(figures["discriminator"]) > 0
    assert float(later.detach()) != float(value.detach())


def test_the_discriminator_learns_and_stays_lipschitz():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1, 8, width=16).train()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    real, fake = 0.8 * torch.ones(16, 1, 8, 8), -0.8 * torch.ones(16, 1, 8, 8)
    first = float(discriminator.hinge(real, fake).detach())
    for _ in range(40):
        optimizer.zero_grad()
        discriminator.hinge(real, fake).backward()
        optimizer.step()
    assert float(discriminator.hinge(real, fake).detach()) < 0.6 * first
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            norm = torch.linalg.matrix_norm(module.weight.detach().flatten(1), ord=2)
            assert float(norm) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("size", [4, 8, 27, 64, 256])
def test_the_discriminator_takes_every_size(size: int):
    assert PatchDiscriminator(3, size)(torch.zeros(2, 3, size, size)).shape[:2] == (2, 1)


def test_random_features_see_what_differs():
    assert random_features(X, X).tolist() == [0.0] * 6
    moved = torch.roll(X, 1, 3)
    assert bool((random_features(X, moved) > 0.05).all())
    torch.testing.assert_close(random_features(X[2:3], moved[2:3]), random_features(X, moved)[2:3])
    assert torch.equal(random_features(X, moved), random_features(X, moved))
    loss = make(perceptual="random", perceptual_weight=2.0)
    value, figures = loss(X, noise(), 0.0)
    torch.testing.assert_close(value - make()(X, noise(), 0.0)[0], 2 * figures["perceptual"])


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((2, 3))


class Thresholds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_feature_file(tmp_path):
    file = tmp_path / "features.pt"
    torch.jit.script(Means()).save(str(file))
    x_hat = (X + 0.1).requires_grad_()
    distance = open_perceptual(str(file))(X, x_hat)
    torch.testing.assert_close(distance, torch.full((6,), 0.04))
    assert float(torch.autograd.grad(distance.sum(), x_hat)[0].abs().sum()) > 0
    loss = make(perceptual=str(file))
    before = set(make().state_dict())
    assert set(loss.state_dict()) == before  # it is neither trained nor saved
    assert float(loss(X, noise(), 0.0)[1]["perceptual"]) > 0
    copy.deepcopy(loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_feature_files_that_cannot_serve(tmp_path):
    with pytest.raises(UserError, match="unknown perceptual loss 'vgg': give random or the path"):
        make(perceptual="vgg")
    text = tmp_path / "text.pt"
    text.write_text("no module")
    with pytest.raises(UserError, match=r"text\.pt cannot be opened as TorchScript"):
        make(perceptual=str(text))
    flat = tmp_path / "flat.pt"
    torch.jit.script(Thresholds()).save(str(flat))
    with pytest.raises(UserError, match="passes no gradient"):
        make(perceptual=str(flat))(X, noise(), 0.0)
    dense = tmp_path / "dense.pt"
    torch.jit.script(nn.Linear(5, 2)).save(str(dense))
    with pytest.raises(UserError, match=r"dense\.pt does not take images of \(1, 8, 8\)"):
        make(perceptual=str(dense))(X, noise(), 0.0)


@pytest.mark.parametrize("kind", list(AUTOENCODERS))
def test_figures_keep_their_names_and_the_config_its_settings(kind: str):
    settings: dict[str, Any] = {"adversarial_weight": 0.1, "adversarial_start": 0.5, "perceptual": "random"}
    loss = make(kind, **settings)
    early, late = (loss(X, noise(), p)[1] for p in (0.0, 0.9))
    assert list(early) == list(late)
    assert all(v.shape == () and not v.requires_grad and v.dtype == torch.float32 for v in late.values())
    assert ("perplexity" in early) == (kind == "vq")
    assert json.loads(json.dumps(loss.config))["adversarial_start"] == 0.5
    assert make(kind, **loss.config).config == loss.config
    assert loss.networks[-1] is loss.discriminator


def test_a_step_is_a_function_of_state_and_noise():
    """Loss, gradients and buffers of a copy made in the middle are those of the original."""
    loss = make("vq", adversarial_weight=0.2, adversarial_start=0.0, perceptual="random")
    loss(X, noise(1), 0.3)
    twin = make("vq", adversarial_weight=0.2, adversarial_start=0.0, perceptual="random")
    twin.load_state_dict(loss.state_dict())
    values = []
    for each in (loss, twin):
        value, _ = each(X, noise(2), 0.4)
        value.backward()
        values.append((value.detach(), gradients(each), list(each.state_dict().values())))
    assert torch.equal(values[0][0], values[1][0])
    for one, other in zip(values[0][1] + values[0][2], values[1][1] + values[1][2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reconstruction": "l3"}, "reconstruction is one of nll, l1, l2, got 'l3'"),
        ({"kl_weight": -1.0}, "kl_weight is a finite number >= 0"),
        ({"free_bits": math.nan}, "free_bits is a finite"),
        ({"adversarial_weight": math.inf}, "adversarial_weight is a finite"),
        ({"warmup": 1.5}, "warmup is a fraction of the training"),
        ({"adversarial_start": -0.1}, "adversarial_start is a fraction"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        AutoencoderLoss(KLAutoencoder(1, 8, width=16), **settings)
