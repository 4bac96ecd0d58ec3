"""Training: data and a denoiser in, a run folder out."""

from ornstein.training.config import TrainConfig
from ornstein.training.task import Task
from ornstein.training.train import TrainState, run_task, train

__all__ = ["Task", "TrainConfig", "TrainState", "run_task", "train"]
