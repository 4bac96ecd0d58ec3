"""The settings of a training and the schedules that follow from them. It imports no torch: the options come from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ornstein.errors import UserError
from ornstein.settings import check, precision_setting, setting
from ornstein.training.tracking import TRACKERS, check_trackers

__all__ = [
    "LOSS_SPACES", "OBJECTIVES", "POST_HOC", "TIME_SAMPLINGS", "WIDTHS", "TrainConfig", "check_ema", "check_length",
    "decay_of", "ema_decay", "ema_exponent",
]  # fmt: skip

STEPS = 20_000  # optimizer steps if neither steps nor minutes are given
DECAY = 0.3  # the last part of a training, over which the learning rate falls linearly
FINAL = 0.01  # to this fraction of itself

# The keys of `ornstein.objectives.OBJECTIVES`, which imports torch; a test compares them.
OBJECTIVES = (
    "simple", "score-matching", "vlb-x0", "vlb-eps", "hybrid", "continuous", "min-snr", "soft-min-snr", "sigmoid",
    "edm",
)  # fmt: skip

LOSS_SPACES = ("pixel", "whitened", "learned")

# The keys of `ornstein.training.objective.TIME_SAMPLINGS`.
TIME_SAMPLINGS = ("uniform", "steps", "logit-normal", "log-normal", "importance")

POST_HOC = "post-hoc"
WIDTHS = (0.05, 0.10)  # of the averages that are kept for it; the first one is shown
_WIDEST = 0.28  # a power-function average with gamma = 0
_LEAST_DECAY = 0.5

_OPTIMIZER = "Optimizer"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of the trainer.

    With `minutes` the learning rate follows the clock, and two runs are equal only in law; with `steps` a run is the
    same bit for bit however often it is interrupted. `accumulate` gives the same steps to rounding. The EMA is that of
    Karras et al. 2024 (arXiv:2312.02696), section 3.

    Raises:
        UserError: a value of the wrong type or out of range.
    """

    steps: int | None = setting(None, "Optimizer steps in all.", by_data=f"{STEPS} without --minutes", minimum=1)
    minutes: float | None = setting(None, "Minutes of training in all, instead of steps.", above=0)
    batch: int = setting(128, "Images or clips per step, over all processes.", names=("-b", "--batch"), minimum=1)
    accumulate: int = setting(1, "Parts to compute a batch in, if it does not fit in memory.", minimum=1)
    recompute: bool = setting(
        False, "Compute the blocks again in the backward pass: about a third slower, and a fraction of the memory."
    )
    compile: bool = setting(
        False, "Compile the networks first: minutes once, then faster steps on a GPU; other rounding than without it."
    )
    optimizer: Literal["muon", "adamw"] = setting(
        "adamw", "Muon for matrices and convolutions and AdamW for the rest, or AdamW for all."
    )
    learning_rate: float = setting(1e-3, "Learning rate, after the warm-up and before the decay.", above=0)
    precision: str = precision_setting()
    objective: str | None = setting(
        None, "Training objective.", choices=OBJECTIVES, by_data="error of the network's output, at uniform times"
    )
    loss_space: str = setting(
        "pixel", "Where errors are squared: pixels, whitened by C (R^-1), modes of C each by its own mean error.",
        choices=LOSS_SPACES, other="the share of whitened, 0.5",
    )  # fmt: skip
    time_sampling: str | None = setting(
        None, "Distribution of the training times.", choices=TIME_SAMPLINGS,
        other="one with its mean and standard deviation, logit-normal:0,1", by_data="that of the objective",
    )  # fmt: skip
    seed: int = setting(0, "Seed of the data order, the times, the noise and the weights.", random=True)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", minimum=1)
    sample_every: int = setting(0, "Steps between previews of samples, 0 for none.", minimum=0)
    track: str | None = setting(None, f"Log to {' or '.join(TRACKERS)} too (with a comma: both).")
    flip: bool = setting(False, "Mirror images and clips left to right, at random.")
    warmup: int = setting(100, "Steps over which the learning rate rises from 0.", minimum=0, panel=_OPTIMIZER)
    ema: float | str = setting(
        0.05, "Average of the weights: its width as a share of the training so far, to 0.28; 0 for the last weights; "
        "a decay rate such as 0.999; or post-hoc, a choice of `ornstein ema` afterwards.",
        choices=(POST_HOC,), other="a number", minimum=0, maximum=1, panel=_OPTIMIZER,
    )  # fmt: skip
    clip: float = setting(1.0, "Largest norm of the gradient; a larger one is scaled down.", above=0, panel=_OPTIMIZER)
    weight_decay: float = setting(0.01, "Weight decay of matrices and convolutions.", minimum=0, panel=_OPTIMIZER)
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "Decay rates of AdamW's moments.", minimum=0, below=1, panel=_OPTIMIZER
    )
    condition_dropout: float = setting(
        0.1, "Share of samples that are trained without their class or caption, for guidance.", minimum=0, maximum=1,
        panel=_OPTIMIZER,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        check_ema(self.ema)
        check_trackers(self.track)
        check_length(self.steps, self.minutes)
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "steps", STEPS)

    def progress(self, step: int, elapsed: float) -> float:
        """The fraction of the training done, in [0, 1], after `step` steps and `elapsed` seconds."""
        done = elapsed / (60 * self.minutes) if self.minutes is not None else step / (self.steps or 1)
        return min(1.0, done)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, constant, linear decay over the last 30 %.

        Until the decay it does not depend on the length: a run that is extended goes on where a longer one would be,
        but for the decay that it has already had.
        """
        decay = FINAL + (1 - FINAL) * min(1.0, (1 - progress) / DECAY)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup)) * decay


def check_length(steps: int | None, minutes: float | None) -> None:
    """Raise UserError if both steps and minutes are given."""
    if steps is not None and minutes is not None:
        raise UserError("steps and minutes were both given: give one of them")


def check_ema(ema: float | str | None) -> None:
    """Raise UserError unless `ema` is a width, a decay rate or "post-hoc"."""
    if ema is None or ema == POST_HOC:
        return
    if isinstance(ema, str) or not (0 <= ema <= _WIDEST or _LEAST_DECAY <= ema < 1):
        raise UserError(
            f"--ema must be a width from 0 to {_WIDEST:g}, a decay rate from {_LEAST_DECAY:g} to below 1 (0.999), or "
            f"{POST_HOC}, not {ema}"
        )


def decay_of(ema: float) -> Callable[[int], float]:
    """The weight of the old average at step 1, 2, ... of an average of that width or decay rate.

    A decay rate d is warmed up, min(d, (1 + step)/(10 + step)), so that the first weights are soon forgotten.
    """
    if ema >= _LEAST_DECAY:
        return lambda step: min(ema, (1 + step) / (10 + step))
    exponent = ema_exponent(ema)
    return lambda step: ema_decay(exponent, step) if ema else 0.0


def ema_exponent(width: float) -> float:
    """The exponent gamma of the power-function average of relative width `width`; very large for a width of 0.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), decreasing in gamma, solved by bisection.
    Source: Karras et al. 2024 (arXiv:2312.02696), section 3.1.
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > width**2:
            low = gamma
        else:
            high = gamma
    return low


def ema_decay(exponent: float, step: int) -> float:
    """Weight of the old average at step 1, 2, ...: (1 - 1/step)^(gamma + 1), which is 0 at the first step.

    Source: Karras et al. 2024 (arXiv:2312.02696), section 3.1: no start-up bias, at any length of the training.
    """
    return (1 - 1 / step) ** (exponent + 1)
