import math

import pytest
import torch

from ornstein.errors import UserError
from ornstein.training import TrainConfig
from ornstein.training.config import ema_decay, ema_exponent


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_ema_has_the_width_asked_for(width):
    # the weight of step k in the average after n steps, from the recursion itself
    n, gamma = 4000, ema_exponent(width)
    weights = torch.zeros(n, dtype=torch.float64)
    for step in range(1, n + 1):
        decay = ema_decay(gamma, step)
        weights *= decay
        weights[step - 1] += 1 - decay
    assert weights.sum().item() == pytest.approx(1)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    mean = (weights * t).sum()
    std = ((weights * (t - mean) ** 2).sum()).sqrt().item()
    assert std == pytest.approx(width, rel=0.01)


def test_learning_rate_rises_holds_and_falls():
    config = TrainConfig(steps=1000, warmup=100, learning_rate=1.0)
    rates = [config.learning_rate_at(k, config.progress(k, 0.0)) for k in range(1000)]
    assert rates[:100] == pytest.approx([(k + 1) / 100 for k in range(100)])
    assert rates[100:700] == pytest.approx([1.0] * 600)
    assert rates[850] == pytest.approx((1 + 0.01) / 2)
    assert 0.01 < rates[-1] < 0.02
    assert rates[700:] == sorted(rates[700:], reverse=True)


def test_minutes_follow_the_clock():
    config = TrainConfig(minutes=2)
    assert config.steps is None
    assert config.progress(10**6, 30.0) == pytest.approx(0.25)
    assert config.progress(1, 500.0) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 5, "minutes": 1.0}, "give one of them"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"condition_dropout": 1.5}, "condition_dropout must lie between 0 and 1"),
        ({"ema": 0.4}, "ema must be a width"),
        ({"ema": 1.5}, "ema must lie between 0 and 1, not 1.5"),
        ({"ema": math.nan}, "ema must be a finite number"),
        ({"betas": (0.9, 1.0)}, "betas must be below 1"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"objective": "mse"}, "objective 'mse' is unknown; known: simple, score-matching, vlb-x0, "),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)
