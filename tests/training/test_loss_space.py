"""Losses in the coordinates of the noise (E14): against the Mahalanobis norm, closed forms and small runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import objectives
from ornstein.data import MotionClips
from ornstein.errors import UserError
from ornstein.noise import AR1, Carried, Identity, Kronecker, Mixed, Spectrum, Toeplitz
from ornstein.training import TrainConfig, train
from ornstein.training.loss_space import LossSpace

SHAPE = (5, 2, 4, 3, 3)
T = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.95])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """The output W x over the frames of a clip, which has a gradient in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * normal(4, 4, seed=7))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return torch.einsum("kf,bcfhw->bckhw", self.weight, x)


@pytest.mark.parametrize(
    "noise", [AR1(4, 0.9), Mixed(4, 0.4), Toeplitz([1, 0.7, 0.5, 0.1]), Kronecker(time=AR1(4, 0.5), space=AR1(9, 0.3))]
)
def test_the_whitened_norm_is_that_of_the_inverse(noise: orn.noise.Covariance) -> None:
    error = normal(*SHAPE)
    whitened, pixel = (LossSpace(s, None, noise).norm(error, T) for s in ("whitened", "pixel"))
    dense = noise.dense()
    columns = error.flatten(2) if len(dense) == 36 else error.movedim(2, -1).flatten(1, -2).flatten(0, 1)
    columns = columns.reshape(len(error), -1, len(dense))
    by_hand = torch.einsum("bni,ij,bnj->b", columns, torch.linalg.inv(dense), columns) / error[0].numel()
    torch.testing.assert_close(whitened, by_hand)
    torch.testing.assert_close(LossSpace("0.3", None, noise).norm(error, T), 0.7 * pixel + 0.3 * by_hand)


def test_the_simple_loss_in_it_is_the_regression_on_white_noise() -> None:
    noise = Toeplitz([1, 0.8, 0.5, 0.2])
    d = orn.Denoiser(Linear(), orn.Process(orn.schedules.Cosine(), noise), "v")
    x0, z = normal(*SHAPE), normal(*SHAPE, seed=1)
    loss = objectives.simple(d, x0, T, z, norm=LossSpace("whitened", "simple", noise).norm)
    z_hat = noise.whiten(d(d.process.add_noise(x0, T, z), T).eps)
    torch.testing.assert_close(loss, (z - z_hat).flatten(1).square().mean(1))


def test_its_gradient_is_the_closed_form() -> None:
    noise = AR1(4, 0.8)
    net = Linear()
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v")
    x0, z = normal(*SHAPE), normal(*SHAPE, seed=1)
    d.loss(x0, T, z, norm=LossSpace("whitened", None, noise).norm).mean().backward()
    x = d.process.add_noise(x0, T, z)
    a, s = d.process.coefficients(T, x)
    error = net(x, T) - (a * noise.color(z) - s * x0)
    inverse = torch.linalg.inv(noise.dense())
    by_hand = 2 * torch.einsum("ij,bcjhw,bcfhw->if", inverse, error, x) / x.numel()
    torch.testing.assert_close(net.weight.grad, by_hand.detach())


def test_a_whitened_network_is_the_network_on_whitened_clips() -> None:
    noise, net = Toeplitz([1, 0.8, 0.5, 0.2]), Linear()
    inside = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v", whitened=True)
    outside = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), Identity()), "v")
    x = normal(*SHAPE)
    torch.testing.assert_close(inside(noise.color(x), 0.4).x0, noise.color(outside(x, 0.4).x0))
    x0, z = normal(*SHAPE, seed=2), normal(*SHAPE, seed=3)
    ours = inside.loss(noise.color(x0), T, z, norm=LossSpace("whitened", None, noise).norm)
    torch.testing.assert_close(ours, outside.loss(x0, T, z))


def test_learned_weights_bring_every_mode_to_one() -> None:
    noise = Toeplitz([1, 0.9, 0.7, 0.4])
    space = LossSpace("learned", None, noise)
    root = noise.eigenvectors * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)
    for step in range(60):
        error = torch.einsum("kf,bcfhw->bckhw", root, normal(64, 1, 4, 5, 5, seed=step)).float()
        t = torch.full((64,), 0.5)
        figures = {name: float(value) for name, value in space.figures(error, t).items()}
        assert space.learn(figures, 1).keys() == {"pixel"}
    assert space.square is not None
    torch.testing.assert_close(space.square[4].sqrt(), torch.tensor([0.1, 1, 3, 10.0]).double(), rtol=0.05, atol=0)
    assert bool((space.square[3] == 1).all())  # nothing was seen at other times
    assert float(space.norm(error, t).mean()) == pytest.approx(1, rel=0.1)
    again = LossSpace("learned", None, noise)
    state = space.to_state()
    assert state is not None
    again.load_state(state)
    torch.testing.assert_close(again.norm(error, t), space.norm(error, t))


@pytest.mark.parametrize(
    ("text", "objective", "noise", "message"),
    [
        ("whitened", None, Identity(), "does nothing with white noise"),
        ("whitened", "vlb-eps", AR1(4, 0.5), "for the objective simple"),
        ("whitened", None, AR1(4, 1.0), "singular"),
        ("0.5", None, Carried(), "carried by motion"),
        ("learned", None, Spectrum([[1.0, 2.0], [2.0, 1.0]]), "modes of a covariance over frames"),
        ("1.5", None, AR1(4, 0.5), "share of whitened between 0 and 1"),
        ("white", None, AR1(4, 0.5), "pixel, whitened, learned"),
    ],
)
def test_spaces_that_do_not_go_together(text: str, objective: str | None, noise: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LossSpace(text, objective, noise)  # pyright: ignore[reportArgumentType]


def test_a_run_with_learned_weights_resumes_to_the_same_bits(tmp_path: Path) -> None:
    clips = MotionClips("bouncing-balls", 4, 16, count=8)

    def run(steps: int, out: Path, resume: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = orn.nets.VideoUNet(1, 16, 4, width=8, multipliers=(1,), depths=(1,), attention=())
        d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), AR1(4, 0.8)), "v", whitened=True)
        config = TrainConfig(steps=steps, batch=2, checkpoint_every=2, loss_space="learned", warmup=0, ema=0.0)
        for state in train(d, clips, config, out, resume):
            if state.step == 2 and not resume and steps == 4 and out.name == "half":
                break
        return {k: v.clone() for k, v in d.state_dict().items()}

    whole = run(4, tmp_path / "whole")
    run(4, tmp_path / "half")
    again = run(4, tmp_path / "half", resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert orn.load(tmp_path / "half").whitened
