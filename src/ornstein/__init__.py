"""Diffusion models for images and video whose noise may have any covariance: train, sample, score."""

import os

# Read when torch starts its threads, so before it is imported: on a machine that others use too, OpenMP's default, to
# spin while waiting for a thread that is not running, makes a training step of 45 ms one of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ornstein import data, guidance, likelihood, nets, noise, objectives, oracles, schedules, solvers
from ornstein.checkpoint import load
from ornstein.denoiser import Data, Denoiser
from ornstein.process import Gaussian, Prediction, Process
from ornstein.sampling import invert, sample

__version__ = "0.1.0"

__all__ = [
    "Data",
    "Denoiser",
    "Gaussian",
    "Prediction",
    "Process",
    "data",
    "guidance",
    "invert",
    "likelihood",
    "load",
    "nets",
    "noise",
    "objectives",
    "oracles",
    "sample",
    "schedules",
    "solvers",
]
