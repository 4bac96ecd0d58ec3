"""E30: the codebook, the straight-through gradient and the bound of a VQ-VAE."""

import math

import pytest
import torch
from torch import Tensor

from ornstein.autoencoders import VQAutoencoder, drawn
from ornstein.autoencoders.vq import Codebook, perplexity, straight_through


def noise(seed: int = 0):
    return drawn(torch.Generator().manual_seed(seed))


def small(**settings) -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(1, 8, **{"codes": 16, "width": 16, "depths": (1, 1, 1), "latent_channels": 3} | settings)


def book(entries: Tensor, decay: float = 0.9) -> Codebook:
    """A codebook in use: every entry with an equal share of the tokens."""
    codebook = Codebook(*entries.shape, decay)
    codebook.entries.copy_(entries)
    codebook.counts.fill_(1.0)
    codebook.sums.copy_(entries)
    return codebook


def test_the_nearest_entry():
    entries, tokens = torch.randn(7, 3), 2 * torch.randn(50, 3)
    assert torch.equal(book(entries).nearest(tokens), torch.cdist(tokens, entries).argmin(1))


@pytest.mark.parametrize("offset", [1e3, 1e5])
@pytest.mark.parametrize("apart", [False, True])
def test_the_nearest_entry_far_from_the_origin(offset: float, apart: bool):
    """Float32 tokens and entries far out, in one cloud or in two opposite ones: the squares cancel, not the result."""
    draw = torch.Generator().manual_seed(0)
    entries, tokens = torch.randn(32, 4, generator=draw), torch.randn(400, 4, generator=draw)
    entries, tokens = entries + offset, tokens + offset
    if apart:
        entries[::2] *= -1
        tokens[::2] *= -1
    distances = torch.cdist(tokens.double(), entries.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distances.gather(1, book(entries).nearest(tokens)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), rtol=1e-6, atol=0)


def test_the_nearest_entry_in_parts(monkeypatch: pytest.MonkeyPatch):
    codebook, tokens = book(torch.randn(7, 3)), torch.randn(50, 3)
    whole = codebook.nearest(tokens)
    monkeypatch.setattr("ornstein.autoencoders.vq._AT_ONCE", 30)
    assert torch.equal(codebook.nearest(tokens), whole)


def test_the_straight_through_gradient_is_the_identity():
    encoded, entries = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    out, weight = straight_through(encoded, entries), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(out, entries)
    (gradient,) = torch.autograd.grad((out * weight).sum(), encoded)
    assert torch.equal(gradient, weight)


def test_through_the_model_the_encoder_has_the_decoder_s_gradient():
    model, x = small(commitment=0.0).train(), torch.rand(4, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        model.decoder.head[2].weight.normal_(std=0.1)  # it starts at 0
    model(x, noise())
    model.eval()
    model(x, noise()).reconstruction.square().sum().backward()
    encoded = model.encoder(x)
    z = model.encode(x).mean.requires_grad_()
    (at_entries,) = torch.autograd.grad(model.decoder(z).square().sum(), z)
    wanted = torch.autograd.grad(encoded, list(model.encoder.parameters()), at_entries)
    for parameter, gradient in zip(model.encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_commitment_draws_the_encoder_alone():
    model, x = small(commitment=0.7), torch.rand(4, 1, 8, 8) * 2 - 1
    model.train()(x, noise())
    terms = model.eval()(x, noise())
    entries = model.encode(x).mean
    torch.testing.assert_close(terms.penalty, 0.7 * (model.encoder(x) - entries).square().flatten(1).mean(1))
    assert float(terms.penalty.detach().sum()) > 0
    terms.penalty.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())
    assert not list(model.codebook.parameters())


def test_the_moving_average_in_closed_form():
    """e_k after T steps is (g^T m_0 + (1-g) sum g^(T-t) s_t)/(g^T N_0 + (1-g) sum g^(T-t) n_t)."""
    decay, steps = 0.8, 6
    start = torch.tensor([[-10.0, 0.0], [10.0, 0.0]])
    codebook = book(start, decay)
    draw = torch.Generator().manual_seed(0)
    sums, counts = start.double() * decay**steps, torch.full((2,), decay**steps, dtype=torch.float64)
    for t in range(1, steps + 1):
        which = torch.randint(0, 2, (5 + t,), generator=draw)
        tokens = start[which] + torch.randn(5 + t, 2, generator=draw)
        assert torch.equal(codebook.nearest(tokens), which)
        codebook.update(tokens, codebook.nearest(tokens))
        factor = (1 - decay) * decay ** (steps - t)
        for k in range(2):
            sums[k] += factor * tokens[which == k].double().sum(0)
            counts[k] += factor * int((which == k).sum())
    torch.testing.assert_close(codebook.entries.double(), sums / counts[:, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codebook.counts.double(), counts, rtol=1e-5, atol=1e-5)


def test_an_entry_without_tokens_stays_where_it_is():
    codebook = book(torch.tensor([[0.0], [5.0]]), decay=0.0)
    codebook.update(torch.tensor([[0.2], [0.4]]), torch.tensor([0, 0]))
    torch.testing.assert_close(codebook.entries, torch.tensor([[0.3], [5.0]]))


def test_dead_entries_come_back_as_tokens_and_others_are_left():
    codebook = book(torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]]), decay=0.5)
    tokens = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(8):
        codebook.update(tokens, codebook.nearest(tokens))
    assert float(codebook.usage()) == pytest.approx(1 / 3)
    kept = codebook.entries[0].clone()
    codebook.revive(tokens, noise())
    assert torch.equal(codebook.entries[0], kept)
    for entry in codebook.entries[1:]:
        assert bool((tokens == entry).all(1).any())
    assert float(codebook.usage()) == 1.0
    before = codebook.entries.clone()
    codebook.revive(tokens, noise(1))
    assert torch.equal(codebook.entries, before)  # nothing is dead any more


def test_perplexity_of_known_usages():
    assert float(perplexity(torch.tensor([3, 3, 3, 3]))) == pytest.approx(4.0)
    assert float(perplexity(torch.tensor([0, 9, 0, 0]))) == pytest.approx(1.0)
    assert float(perplexity(torch.tensor([1, 1, 2]))) == pytest.approx(2**1.5)
    assert float(book(torch.randn(8, 2)).perplexity()) == pytest.approx(8.0)
    new = Codebook(4, 2, 0.9)
    assert float(new.usage()) == 0.0


def test_figures_are_of_this_batch():
    model, x = small(), torch.rand(6, 1, 8, 8) * 2 - 1
    model.train()(x, noise())
    terms = model.eval()(x, noise())
    used = torch.bincount(model.indices(x).flatten(), minlength=16)
    assert float(terms.figures["usage"]) == pytest.approx(float((used > 0).float().mean()))
    assert float(terms.figures["perplexity"]) == pytest.approx(float(perplexity(used)))


def test_training_moves_the_codebook_and_evaluation_does_not():
    model, x = small(), torch.rand(6, 1, 8, 8) * 2 - 1
    model.train()(x, noise())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(x, noise())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()(x, noise())
    assert not torch.equal(model.codebook.entries, state["codebook.entries"])


def test_a_resumed_codebook_goes_on_bit_for_bit():
    x = [torch.rand(6, 1, 8, 8) * 2 - 1 for _ in range(6)]
    whole = small().train()
    for step in range(6):
        whole(x[step], noise(step))
    first = small().train()
    for step in range(3):
        first(x[step], noise(step))
    second = small().train()
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        second(x[step], noise(step))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_rate_is_that_of_a_uniform_prior_and_samples_are_entries():
    model, x = small(), torch.randint(0, 256, (3, 1, 8, 8)) / 127.5 - 1
    model.train()(x, noise())
    model.eval()
    elbo = model.bound(x, noise())
    torch.testing.assert_close(elbo.rates, torch.full((1, 3), 16 * math.log(16)).double())
    x_hat = model.decode(model.encode(x).mean)
    torch.testing.assert_close(elbo.reconstruction, -model.log_prob(x, x_hat.detach()))
    z = model.prior(500, noise())
    assert z.shape == (500, 3, 4, 4)
    counts = torch.bincount(model.codebook.nearest(z.movedim(1, -1).flatten(0, 2)), minlength=16)
    entries = model.codebook.entries
    same = (entries[:, None] == entries[None]).all(-1)  # the first batch may have filled two entries alike
    expected = same.float().sum(1)[counts > 0] * 500 * 16 / 16
    assert bool(((counts[counts > 0] - expected).abs() < 5 * expected.sqrt()).all())


def test_what_is_decoded_is_taken_to_its_nearest_entry():
    model, x = small(), torch.rand(4, 1, 8, 8) * 2 - 1
    model.train()(x, noise())
    with torch.no_grad():
        model.decoder.head[2].weight.normal_(std=0.1)
        z = model.eval().encode(x).mean
        torch.testing.assert_close(model.embed(model.indices(x)), z)
        torch.testing.assert_close(model.decode(z + 1e-5), model.decode(z))
        assert model.decode(z[:, :, :2, :3]).shape == (4, 1, 4, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codes": 1}, "at least 2 entries"),
        ({"decay": 1.0}, r"decay in \[0, 1\)"),
        ({"commitment": -1.0}, "commitment is a weight >= 0"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
