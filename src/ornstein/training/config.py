"""What a training is told, and the schedules that follow from it."""

from dataclasses import dataclass
from typing import Literal, get_args

from ornstein.devices import Precision
from ornstein.errors import UserError
from ornstein.objectives import OBJECTIVES
from ornstein.training.tracking import check_trackers

DECAY = 0.3  # the last part of a training, over which the learning rate falls linearly
FINAL = 0.01  # to this fraction of itself

Optimizer = Literal["muon", "adamw"]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training.

    Args:
        steps: optimizer steps in all; 20,000 where neither steps nor minutes are given.
        minutes: wall-clock minutes in all, instead of steps. Then the learning rate follows the clock, and two runs
            are equal only in law; with `steps` a run is the same bit for bit however often it is interrupted.
        batch: images per step, over all processes.
        accumulate: parts in which each process computes its share of the batch, for batches that do not fit in memory;
            the step is the same to rounding.
        optimizer: "muon", which makes the steps of matrices and convolutions orthogonal and leaves the rest to AdamW;
            or "adamw" for all.
        learning_rate: after the warm-up and before the decay over the last 30 % of the training.
        warmup: steps over which the learning rate rises from 0.
        ema: width of the average of the weights, as a fraction of the training so far (Karras et al. 2024,
            arXiv:2312.02696, section 3.1: sigma_rel); 0 keeps the last weights.
        clip: largest norm of a gradient; a larger one is scaled down to it.
        weight_decay: on matrices and convolutions.
        betas: AdamW's.
        precision: of convolutions and matrix products; "auto" is bf16 where the hardware multiplies it.
        condition_dropout: probability that a sample is trained without its label, for guidance.
        objective: a name of `ornstein.objectives.OBJECTIVES`, with the times that it is meant for; None for the
            error of the network's own output, `Denoiser.loss`, at uniform times.
        seed: of the data order, the times, the noise and the dropped labels.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between two states with `sample_due`; 0 for none.
        track: "tensorboard" or "wandb" (names with commas between them) to log there too; metrics.jsonl is always
            written.

    Raises:
        UserError: a value out of range.
    """

    steps: int | None = None
    minutes: float | None = None
    batch: int = 128
    accumulate: int = 1
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    precision: Precision = "auto"
    condition_dropout: float = 0.1
    objective: str | None = None
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 0
    track: str | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise UserError("steps and minutes were both given: give one of them")
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "steps", 20_000)
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"minutes must be positive, not {self.minutes}")
        for name in ("steps", "batch", "accumulate", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "sample_every"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"condition_dropout is a probability, not {self.condition_dropout}")
        if not 0 <= self.ema <= 0.28:
            raise UserError(f"ema must lie in 0..0.28, the widest average of that form, not {self.ema}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must lie in [0, 1), not {self.betas}")
        if self.precision not in ("auto", "float32", "bf16"):
            raise UserError(f"precision {self.precision!r} is unknown: auto, float32 or bf16")
        if self.optimizer not in get_args(Optimizer):
            raise UserError(f"optimizer {self.optimizer!r} is unknown: muon or adamw")
        check_trackers(self.track)
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise UserError(f"unknown objective {self.objective!r}; known: {', '.join(OBJECTIVES)}")

    def progress(self, step: int, elapsed: float) -> float:
        """The fraction of the training done, in [0, 1], after `step` steps and `elapsed` seconds."""
        done = elapsed / (60 * self.minutes) if self.minutes is not None else step / (self.steps or 1)
        return min(1.0, done)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, constant, linear decay over the last 30 %.

        It does not know the end until the decay: a run that is extended goes on where a longer one would be,
        but for the decay that it has already seen.
        """
        decay = FINAL + (1 - FINAL) * min(1.0, (1 - progress) / DECAY)
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup)) * decay


def ema_exponent(width: float) -> float:
    """gamma of the power-function average whose relative width is `width`; very large for a width of 0.

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
