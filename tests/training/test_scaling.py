"""The rule that chooses network and batch, against arithmetic by hand; it needs no measurement."""

import itertools

import pytest

from ornstein.training.scaling import BATCHES, RULE, Rule, Speed, choose

SPEEDS = (
    Speed("xs", 460_000, ((8, 0.06), (32, 0.15)), 2e6, 2e6),
    Speed("s", 1_500_000, ((8, 0.11), (32, 0.28)), 4e6, 6e6),
    Speed("m", 4_300_000, ((8, 0.21), (32, 0.56)), 6e6, 2e7),
    Speed("l", 19_000_000, ((8, 0.9), (32, 2.5)), 2e7, 8e7),
)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    rule = Rule(floor=0.1, size=0.02, size_power=0.5, data=0.3, data_power=0.25, critical_batch=32.0)
    # 550 steps of 32 are worth 500 steps, and half of their images: 8000
    assert rule.images(550, 32) == pytest.approx(8000)
    assert rule.loss(4e6, 550, 32) == pytest.approx(0.1 + 0.02 / 2 + 0.3 * (10_000 / 8000) ** 0.25)
    assert rule.images(100, 32) == pytest.approx(16 * 50)  # where the learning rate has risen, from both sides
    assert rule.images(99.99, 32) == pytest.approx(16 * 50, rel=1e-3)
    assert rule.images(50, 32) == pytest.approx(16 * 12.5)  # it has been a quarter on average


def test_a_larger_network_more_steps_and_at_equal_steps_a_larger_batch_are_never_expected_to_be_worse() -> None:
    for net, steps, batch in itertools.product((1e5, 1e6, 2e7), (20, 60, 500, 10_000), BATCHES):
        here = RULE.loss(net, steps, batch)
        assert RULE.loss(2 * net, steps, batch) < here
        assert RULE.loss(net, 2 * steps, batch) < here
        assert RULE.loss(net, steps, 2 * batch) < here
        # at equal images, smaller batches
        assert RULE.loss(net, 2 * steps, batch) < RULE.loss(net, steps, 2 * batch)
        assert here > RULE.floor


@pytest.mark.parametrize("minutes", [1.0, 10.0, 60.0, 1e3, 1e5])
def test_the_choice_has_the_least_loss_of_all(minutes: float) -> None:
    choice = choose(SPEEDS, minutes, BATCHES)
    for speed, batch in itertools.product(SPEEDS, BATCHES):
        slope = (speed.seconds[1][1] - speed.seconds[0][1]) / 24
        steps = round(60 * minutes / (speed.seconds[0][1] + slope * (batch - 8)))
        if steps >= 200:
            assert choice.loss <= RULE.loss(speed.parameters, steps, batch)
    assert choice.loss == RULE.loss(choice.speed.parameters, choice.steps, choice.batch)
    assert choice.images == choice.batch * choice.steps
    assert choice.steps == pytest.approx(60 * minutes / choice.speed.seconds_a_step(choice.batch), abs=0.5)


def test_with_more_time_or_a_faster_machine_no_smaller_network_and_a_smaller_loss() -> None:
    choices = [choose(SPEEDS, minutes, BATCHES) for minutes in (2, 5, 10, 60, 600, 1e4, 1e6)]
    for before, after in itertools.pairwise(choices):
        assert after.loss < before.loss
        assert after.speed.parameters >= before.speed.parameters
    assert choices[0].speed.net != "l"
    assert choices[-1].speed.net == "l"
    fast = [speed.slowed(0.1) for speed in SPEEDS]
    assert choose(fast, 10, BATCHES).loss == pytest.approx(choose(SPEEDS, 100, BATCHES).loss, rel=1e-3)


def test_what_does_not_fit_in_memory_is_not_chosen_and_a_choice_is_always_made() -> None:
    free, tight = choose(SPEEDS, 1e5, BATCHES), choose(SPEEDS, 1e5, BATCHES, memory=3e8)
    assert free.speed.memory(free.batch) > 3e8 >= tight.speed.memory(tight.batch)
    assert choose(SPEEDS, 1e5, BATCHES, memory=1.0).speed.net == "xs"
    assert choose(SPEEDS, 1e-4, BATCHES).steps >= 1


def test_steps_between_and_beyond_the_measured_batches_lie_on_a_line() -> None:
    speed = Speed("s", 10, ((8, 1.0), (32, 2.5)), 100.0, 7.0)
    assert [speed.seconds_a_step(batch) for batch in (8, 16, 32, 128)] == pytest.approx([1.0, 1.5, 2.5, 8.5])
    assert speed.seconds_a_step(1) == 1.0
    assert Speed("s", 10, ((16, 1.0),), 0.0, 0.0).seconds_a_step(16) == 1.0
    # a noisy measurement in which the larger batch was faster: no negative times
    assert Speed("s", 10, ((8, 2.0), (32, 1.0)), 0.0, 0.0).seconds_a_step(512) == 2.0
    # weights, gradients and averages of 4 bytes, moments, activations
    assert speed.memory(4) == 3 * 40 + 7 + 400
