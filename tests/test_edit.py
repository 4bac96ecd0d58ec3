"""Edits of pictures, on exact denoisers and on a small network."""

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import edit
from ornstein.inverse import downsampling
from ornstein.oracles import GaussianMixture

SHAPE = (1, 4, 4)


def smooth() -> Tensor:
    at = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    return 0.3 * torch.exp(-torch.cdist(at, at) / 2)


DATA = GaussianMixture(
    [0.5, 0.5], torch.stack([torch.full(SHAPE, 0.4), torch.full(SHAPE, -0.4)]), smooth().expand(2, 16, 16)
)
MODEL = DATA.denoiser(orn.Process(orn.schedules.Cosine()))
PICTURES = DATA.sample(2, torch.Generator().manual_seed(0)).float()
HOLE = torch.zeros(4, 4)
HOLE[1:3, 1:3] = 1


def network() -> orn.Denoiser:
    torch.manual_seed(0)
    net = orn.nets.UNet(3, 8, width=16, multipliers=(1, 2), depths=(1, 1))
    process = orn.Process(orn.schedules.Cosine())
    return orn.Denoiser(net, process, "v", data=orn.SampleSpec((3, 8, 8))).eval()


def test_a_hole_is_filled_and_the_rest_is_kept_to_the_bit() -> None:
    damaged = torch.where(HOLE.bool(), torch.nan, PICTURES)
    made = edit.inpaint(MODEL, damaged, HOLE, n=3, seed=1)
    assert made.shape == (6, *SHAPE) and bool(made.isfinite().all())
    known = ~HOLE.bool().expand(1, 4, 4)
    assert torch.equal(made[:, known], PICTURES.repeat_interleave(3, 0)[:, known])
    # the mean over many answers is that of the closed form
    many = edit.inpaint(MODEL, damaged[:1], HOLE, n=1500, seed=2)
    matrix = torch.eye(16, dtype=torch.float64)[known.flatten()]
    exact = DATA.posterior(matrix, PICTURES[0].double().flatten()[known.flatten()], 0.0)
    mean = (exact.weights[:, None] * exact.means).sum(0)
    assert float((many.double().flatten(1).mean(0) - mean).abs().max()) < 0.06


def test_masks_that_hide_all_or_nothing() -> None:
    with pytest.warns(UserWarning, match="samples of the model"):
        assert edit.inpaint(MODEL, PICTURES, torch.ones(4, 4)).shape == PICTURES.shape
    with pytest.warns(UserWarning, match="returned as they are"):
        assert torch.equal(edit.inpaint(MODEL, PICTURES, torch.zeros(4, 4), n=2), PICTURES.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="the mask has sizes"):
        edit.inpaint(MODEL, PICTURES, torch.ones(5, 4))


@pytest.mark.parametrize("method", edit.METHODS_OF_EDITS)
def test_every_method_restores(method: str) -> None:
    A = downsampling(2, SHAPE)
    y = A.forward(PICTURES)
    made = edit.restore(MODEL, A, y, 0.05, n=2, method=method, steps=10)
    assert made.shape == (4, *SHAPE) and bool(made.isfinite().all())
    if method == "dps":  # its step has no scale of its own: in ten steps it may end anywhere
        return
    left = (A.forward(made) - y.repeat_interleave(2, 0)).square().mean().sqrt()
    assert float(left) < 0.5 * float(y.square().mean().sqrt())


def test_pictures_of_a_network() -> None:
    d = network()
    assert edit.upscale(d, torch.zeros(1, 3, 4, 4), n=2, steps=3).shape == (2, 3, 8, 8)
    assert edit.colourise(d, torch.zeros(1, 1, 8, 8), steps=3).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="no whole fraction"):
        edit.upscale(d, torch.zeros(1, 3, 3, 3))


@pytest.mark.parametrize("method", ["moments", "twisted"])
def test_conditions_and_those_of_the_negative_side_are_those_of_each_answer(method: str) -> None:
    torch.manual_seed(0)
    net = orn.nets.UNet(1, 4, classes=3, width=16, multipliers=(1,), depths=(1,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    names = ("a", "b", "c")
    d = orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), "v", data=orn.SampleSpec(SHAPE, names)).eval()
    label, other = torch.tensor([0, 2]), torch.tensor([1, 1])
    options = {"method": method, "steps": 2, "particles": 2, "guidance": 2.0}
    cond = {"label": label, "negative": {"label": other}}
    both = edit.inpaint(d, PICTURES, HOLE, n=3, cond=cond, **options)
    second = {"label": label[1:], "negative": {"label": other[1:]}}
    alone = edit.inpaint(d, PICTURES[1:], HOLE, n=3, cond=second, first=3, **options)
    torch.testing.assert_close(both[3:], alone, rtol=1e-3, atol=1e-3)
    changed = edit.inpaint(d, PICTURES, HOLE, n=3, cond=cond | {"negative": {"label": label}}, **options)
    assert float((changed - both).abs().max()) > 1e-4
    variations = edit.sdedit(d, PICTURES, 0.5, n=3, cond=cond, guidance=2.0, steps=2)
    assert variations.shape == (6, *SHAPE)


def test_variations_keep_more_at_less_strength() -> None:
    def change(strength: float) -> float:
        made = edit.sdedit(MODEL, PICTURES, strength, n=50)
        return float((made - PICTURES.repeat_interleave(50, 0)).square().mean())

    assert change(0.05) < 0.3 * change(0.9)
    with pytest.raises(ValueError, match=r"strength lies in \(0, 1\]"):
        edit.sdedit(MODEL, PICTURES, 0.0)


def test_a_path_begins_and_ends_at_its_pictures() -> None:
    path = edit.interpolate(MODEL, PICTURES[:1], PICTURES[1:], n=5)
    assert path.shape == (5, *SHAPE)
    assert float((path[0] - PICTURES[0]).abs().max()) < 1e-3 and float((path[-1] - PICTURES[1]).abs().max()) < 1e-3


def test_the_spread_is_that_of_the_answers() -> None:
    answers = torch.tensor([0.0, 2.0, 1.0, 1.0]).reshape(4, 1, 1, 1)
    assert torch.allclose(edit.spread(answers, 2).flatten(), torch.tensor([2.0**0.5, 0.0]))
    with pytest.raises(ValueError, match="two answers or more"):
        edit.spread(answers, 1)


@pytest.mark.parametrize("levels", [None, 2.0])
def test_the_truth_lies_between_exact_draws_as_often_as_it_should(levels: float | None) -> None:
    exact = DATA.posterior(torch.eye(16, dtype=torch.float64)[:4], torch.zeros(4).double(), 0.1)
    draws = exact.sample(20 * 500, torch.Generator().manual_seed(0)).reshape(20, 500, 16).double()
    if levels is not None:  # rounded, so that many are equal
        draws = (draws * levels).round() / levels
    share = float(edit.coverage(draws[:19], draws[19]).mean())
    assert abs(share - 0.9) < 0.02  # 500 draws, 16 correlated numbers each: 0.9 has a standard error of 0.005
    assert float(edit.coverage(draws[:19] + 5, draws[19]).max()) == 0
    with pytest.raises(ValueError, match="two answers"):
        edit.coverage(draws[:1], draws[0])


def test_every_posterior_draw_of_moments_is_calibrated_on_its_own_data() -> None:
    A = downsampling(2, SHAPE)
    one = GaussianMixture([1.0], torch.zeros(1, *SHAPE), smooth()[None])
    truth = one.sample(60, torch.Generator().manual_seed(1)).float().reshape(60, *SHAPE)
    y = A.forward(truth) + 0.1 * torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    d = one.denoiser(orn.Process(orn.schedules.Cosine()))
    answers = edit.restore(d, A, y, 0.1, n=19, iterations=4).reshape(60, 19, *SHAPE)
    share = torch.stack([edit.coverage(a, x).mean() for a, x in zip(answers, truth, strict=True)])
    assert abs(float(share.mean()) - 0.9) < 4 * float(share.std()) / 60**0.5


def test_an_inversion_that_falls_short_is_said() -> None:
    with pytest.warns(UserWarning, match="take more steps"):
        edit.interpolate(MODEL, PICTURES[:1], PICTURES[1:], n=2, steps=3, tolerance=1e-30)
