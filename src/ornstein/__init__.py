"""Diffusion models for images and video whose noise may have any covariance: train, sample, score."""

from ornstein import guidance, noise, oracles, schedules
from ornstein.denoiser import Data, Denoiser
from ornstein.process import Gaussian, Prediction, Process

__all__ = [
    "Data",
    "Denoiser",
    "Gaussian",
    "Prediction",
    "Process",
    "guidance",
    "noise",
    "oracles",
    "schedules",
]
