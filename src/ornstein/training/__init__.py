"""Training: data and a denoiser in, a run folder out."""

from ornstein.training.config import TrainConfig
from ornstein.training.train import TrainState, train

__all__ = ["TrainConfig", "TrainState", "train"]
