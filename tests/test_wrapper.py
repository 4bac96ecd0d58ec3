"""Networks inside denoisers of any make: found, put into evaluation mode, and used on their own device."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.guidance import ClassifierFree
from ornstein.wrapper import (
    Conditioned,
    Wrapper,
    device_of,
    evaluation_mode,
    module_of,
    network_precision,
    networks_of,
)

P = orn.Process(orn.schedules.Cosine())


class Dropping(nn.Module):
    """A network with dropout that records whether it was in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.modes = nn.Linear(3, 3), nn.Dropout(0.5), []

    def forward(self, x, log_snr, label=None):
        self.modes.append(self.training)
        return self.dropout(self.linear(x))


def model() -> orn.Denoiser:
    torch.manual_seed(0)
    return orn.Denoiser(Dropping(), P, "v").train()


class Renamed:
    """A user's own wrapper: another attribute, no base class."""

    def __init__(self, base):
        self.base, self.process = base, base.process

    def __call__(self, x_t, t, /, **cond):
        return self.base(x_t, t, **cond)


class Slotted:
    __slots__ = ("base",)

    def __init__(self, base):
        self.base = base

    @property
    def process(self):
        return self.base.process

    def __call__(self, x_t, t, /, **cond):
        return self.base(x_t, t, **cond)


class Closed:
    """The model is in a closure."""

    process = P

    def __init__(self, base):
        self.call = lambda x_t, t, **cond: base(x_t, t, **cond)

    def __call__(self, x_t, t, /, **cond):
        return self.call(x_t, t, **cond)


class InParts:
    process = P

    def __init__(self, base):
        self.parts = {"models": [partial(base.forward)]}

    def __call__(self, x_t, t, /, **cond):
        return self.parts["models"][0](x_t, t, **cond)


@dataclass(frozen=True)
class Halved(Wrapper):
    denoiser: orn.Denoiser

    def __call__(self, x_t, t, /, **cond):
        return self.denoiser(x_t, t, **cond)


FOREIGN = [
    Renamed,
    Slotted,
    Closed,
    InParts,
    Halved,
    lambda d: Renamed(Slotted(Halved(d))),
    lambda d: Conditioned(d, {}),
]


@pytest.mark.parametrize("wrap", FOREIGN)
def test_a_wrapped_network_samples_without_dropout_and_keeps_its_mode(wrap):
    plain, wrapped = model(), model()
    torch.testing.assert_close(orn.sample(wrap(wrapped), (2, 3), steps=3), orn.sample(plain, (2, 3), steps=3))
    assert wrapped.net.modes == [False] * 3
    assert wrapped.training and wrapped.net.dropout.training


@pytest.mark.parametrize("wrap", FOREIGN)
def test_a_wrapped_network_is_found_with_its_device(wrap):
    wrapped = wrap(model().to("meta"))
    assert isinstance(module_of(wrapped), orn.Denoiser)
    assert device_of(wrapped) == torch.device("meta")


def test_all_networks_of_a_wrapper_of_several_are_in_evaluation_mode():
    """Guidance by a second, weaker model (Karras et al. 2024, arXiv:2406.02507)."""
    good, bad = model(), model()

    class Autoguided:
        process = P

        def __init__(self):
            self.strong, self.weak = good, Renamed(bad)

        def __call__(self, x_t, t, /, **cond):
            a, b = self.strong(x_t, t, **cond), self.weak(x_t, t, **cond)
            return P.convert(x_t, t, x0=b.x0 + 2 * (a.x0 - b.x0))

    d = Autoguided()
    assert networks_of(d) == [good, bad]
    orn.sample(d, (2, 3), steps=2)
    assert good.net.modes == bad.net.modes == [False, False]


def test_a_part_frozen_in_evaluation_mode_stays_so():
    d = model()
    d.net.linear.eval()
    with evaluation_mode(Renamed(d)):
        assert not d.training
    assert d.training and not d.net.linear.training


def test_an_exact_denoiser_has_no_network():
    exact = orn.oracles.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(P)
    assert module_of(exact) is None and device_of(exact) == torch.device("cpu")


def test_a_wrapper_that_refers_to_itself_is_walked_once():
    d = Renamed(model())
    d.me, d.again = d, [d, {"d": d}]
    assert networks_of(d) == [d.base]


def test_guidance_passes_process_and_device_through():
    d = ClassifierFree(Renamed(model()), 2.0)
    assert d.process is P and d.device == torch.device("cpu")


class Conversions(TorchDispatchMode):
    """Counts conversions to bfloat16 of tensors of a shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.count += tuple(args[0].shape) == self.shape
        return func(*args, **(kwargs or {}))


def test_weights_are_converted_once_for_all_calls_of_a_sampling() -> None:
    """Each call alone converts them; a sampling does so once, with the same result, and the next one with theirs."""
    d = model().eval()
    x = torch.ones(2, 3)
    with torch.no_grad(), network_precision(d, torch.bfloat16), Conversions((3, 3)) as each:
        plain = [d(x, 0.5).x0 for _ in range(3)]
    with torch.no_grad(), network_precision(d, torch.bfloat16, fixed=True), Conversions((3, 3)) as once:
        kept = [d(x, 0.5).x0 for _ in range(3)]
    assert (each.count, once.count) == (3, 1)
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    with Conversions((3, 3)) as whole:
        before = orn.sample(d, (2, 3), steps=4, precision=torch.bfloat16)
        assert isinstance(d.net, Dropping)
        with torch.no_grad():
            d.net.linear.weight.mul_(1.5)
        after = orn.sample(d, (2, 3), steps=4, precision=torch.bfloat16)
    assert whole.count == 2 and not torch.equal(before, after)
