"""The autoregressive model: exact likelihood, causality, caching, patches (E35)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ornstein.contrast.autoregressive import CausalTransformer, dependence_loss, from_levels, raster, to_levels
from ornstein.contrast.models import Autoregressive, bits_per_dim, build
from ornstein.contrast.problems import open_problem


def network(length: int, levels: int, group: int = 1, seed: int = 0) -> CausalTransformer:
    """A network in float64 whose predictions are far from uniform."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = CausalTransformer(length, levels, group, width=16, depth=2, heads=2).double()
        for p in net.parameters():
            p.data += 0.3 * torch.randn(p.shape, dtype=torch.float64)
    return net


@pytest.mark.parametrize(("length", "levels", "group"), [(4, 3, 1), (4, 3, 2), (3, 4, 1), (4, 2, 4)])
def test_the_probabilities_of_all_sequences_sum_to_one(length: int, levels: int, group: int) -> None:
    every = torch.tensor(list(itertools.product(range(levels), repeat=length)))
    p = network(length, levels, group).log_prob(every).detach().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert float(p.max()) > 2 * float(p.min())


@pytest.mark.parametrize("group", [1, 2, 3])
def test_the_likelihood_two_ways(group: int) -> None:
    """All at once from the true prefix, and the chain rule one factor at a time as sampling computes it."""
    net = network(6, 5, group)
    u = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        index, chain = net.sample(u)
        torch.testing.assert_close(net.log_prob(index), chain, rtol=1e-10, atol=1e-10)
        by_hand = torch.zeros(40, dtype=torch.float64)
        for i in range(6):  # only the numbers of earlier groups are kept, the others could be anything
            seen = index.clone()
            seen[:, i // group * group :] = 0
            by_hand += torch.softmax(net(seen)[:, i], -1).gather(1, index[:, i : i + 1])[:, 0].log()
    torch.testing.assert_close(by_hand, chain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("group", [1, 2])
def test_sampling_with_and_without_a_cache(group: int) -> None:
    net = network(8, 6, group)
    u = torch.rand(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        (a, p), (b, q) = net.sample(u, cache=True), net.sample(u, cache=False)
    assert torch.equal(a, b)
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    assert net.evaluations == 8 // group and len(a.unique(dim=0)) > 30


@pytest.mark.parametrize(("length", "group"), [(6, 1), (6, 2), (6, 3), (6, 6)])
def test_no_number_sees_itself_or_a_later_one(length: int, group: int) -> None:
    net = network(length, 4, group)
    h = torch.zeros(1, length, 16, dtype=torch.float64, requires_grad=True)
    tokens = net.token

    class Moved(torch.nn.Module):  # adds h to the embedding of each number
        def forward(self, index: Tensor) -> Tensor:
            return tokens(index) + h[:, : index.shape[1]]

    net.token = Moved()  # pyright: ignore[reportAttributeAccessIssue]
    logits = net(torch.randint(4, (1, length), generator=torch.Generator().manual_seed(0)))
    for i in range(length):
        (slope,) = torch.autograd.grad(logits[0, i].square().sum(), h, retain_graph=True)
        reached = slope[0].abs().sum(1) > 0
        expected = torch.arange(length) < i // group * group
        assert torch.equal(reached, expected), (i, reached)


def test_samples_have_the_models_own_probabilities() -> None:
    net = network(2, 3)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    n = 40_000
    with torch.no_grad():
        p = net.log_prob(every).exp()
        index = net.sample(torch.rand(n, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    share = torch.bincount(index[:, 0] * 3 + index[:, 1], minlength=9) / n
    assert bool(((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all())


def test_levels_and_back() -> None:
    x = from_levels(torch.arange(17), 17)
    assert torch.equal(to_levels(x, 17), torch.arange(17))
    assert float(x[0]) == pytest.approx(-16 / 17) and float(x[-1]) == pytest.approx(16 / 17)
    assert torch.equal(to_levels(torch.tensor([-1.5, -1.0, 1.0, 1.5]), 17), torch.tensor([0, 0, 16, 16]))


def test_the_order_goes_row_by_row_and_patch_by_patch() -> None:
    assert torch.equal(raster((1, 4, 4)), torch.arange(16))
    assert raster((3, 2, 2))[:6].tolist() == [0, 4, 8, 1, 5, 9]  # the channels of a pixel one after another
    assert raster((1, 4, 4), 2)[:8].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert sorted(raster((3, 8, 8), 4).tolist()) == list(range(192))
    with pytest.raises(ValueError, match="patches of 3"):
        raster((1, 8, 8), 3)


def test_the_dependence_that_a_patch_loses() -> None:
    """Two fair coins that agree with probability a; and two correlated Gaussians, -log(1 - rho^2)/2."""
    a = 0.9  # as float32, like the joint laws of histograms
    coins = torch.tensor([[a, 1 - a], [1 - a, a]]).double() / 2
    expected = math.log(2) + a * math.log(a) + (1 - a) * math.log(1 - a)
    assert float(dependence_loss(coins)) == pytest.approx(expected)
    rho = 0.8
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    log_p = -(x[:, None] ** 2 - 2 * rho * x[:, None] * x + x**2) / (2 * (1 - rho**2))
    joint = log_p.exp() / log_p.exp().sum()
    assert float(dependence_loss(joint)) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-3)
    alone = torch.einsum("i,j,k->ijk", *torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double())
    assert float(dependence_loss(alone / alone.sum())) == pytest.approx(0, abs=1e-9)
    same = torch.zeros(2, 2, 2, dtype=torch.float64)
    same[0, 0, 0] = same[1, 1, 1] = 0.5
    assert float(dependence_loss(same)) == pytest.approx(2 * math.log(2))  # three coins that always agree
    with pytest.raises(ValueError, match="sum to 1"):
        dependence_loss(torch.ones(2, 2))


def test_the_best_patch_is_the_product_of_the_marginals() -> None:
    """The cross-entropy of the best independent draw exceeds the entropy by the dependence, of any joint law."""
    joint = torch.rand(3, 4, generator=torch.Generator().manual_seed(3)).double()
    joint /= joint.sum()
    entropy = -(joint * joint.log()).sum()
    rows, columns = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in joint.shape)
    optimizer = torch.optim.LBFGS([rows, columns], max_iter=200, line_search_fn="strong_wolfe")

    def cross_entropy() -> Tensor:
        optimizer.zero_grad()
        log_q = rows.log_softmax(0)[:, None] + columns.log_softmax(0)
        value = -(joint * log_q).sum()
        value.backward()
        return value

    optimizer.step(cross_entropy)  # pyright: ignore[reportArgumentType]
    assert float(cross_entropy().detach() - entropy) == pytest.approx(float(dependence_loss(joint)), abs=1e-7)


def test_trained_by_patches_the_dependence_is_lost_and_by_numbers_it_is_not() -> None:
    """Two numbers that are always equal, 0 or 1: 0.5 bits a number in turn; 1 bit at once, half of the pairs wrong."""
    wrong, bits = [], []
    for group in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = CausalTransformer(2, 2, group, width=8, depth=1, heads=1)
        optimizer = torch.optim.Adam(net.parameters(), 0.03)
        draw = torch.Generator().manual_seed(0)
        for _ in range(120):
            index = torch.randint(2, (64, 1), generator=draw).expand(-1, 2)
            optimizer.zero_grad()
            (-net.log_prob(index).mean()).backward()
            optimizer.step()
        pairs = torch.tensor([[0, 0], [1, 1]])
        with torch.no_grad():
            bits.append(float(-net.log_prob(pairs).mean() / (2 * math.log(2))))
            made = net.sample(torch.rand(2000, 2, generator=draw))[0]
        wrong.append(float((made[:, 0] != made[:, 1]).double().mean()))
    assert bits[0] == pytest.approx(0.5, abs=0.02) and wrong[0] < 0.03
    assert bits[1] == pytest.approx(1.0, abs=0.02) and wrong[1] == pytest.approx(0.5, abs=0.06)
    lost = (bits[1] - bits[0]) * 2 * math.log(2)
    joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    assert lost == pytest.approx(float(dependence_loss(joint)), abs=0.06)


@pytest.mark.parametrize(("model", "evaluations"), [("autoregressive", 64), ("patchwise-2", 16), ("patchwise-4", 4)])
def test_bits_per_dim_of_an_untrained_model_and_its_evaluations(model: str, evaluations: int) -> None:
    problem = open_problem("digits")
    built = build(model, problem, 0)
    assert isinstance(built, Autoregressive) and built.evaluations == evaluations
    bits = bits_per_dim(built, problem)["exact"]
    with torch.no_grad():
        logits = built.net(built.levels(problem.held_out))
        index = built.levels(problem.held_out)
        mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), index.flatten())
    assert bits == pytest.approx(float(mean) / math.log(2), rel=1e-5)
    x = built.sample(3, 0)
    assert x.shape == (3, 1, 8, 8)
    assert torch.equal(built.levels(x), built.levels(built.sample(3, 0, cache=False)))
    assert torch.allclose(from_levels(to_levels(x, 17), 17), x)
