"""Diffusion models for images and video whose noise may have any covariance: train, sample, score."""

from ornstein import data, guidance, nets, noise, oracles, schedules, solvers
from ornstein.checkpoint import load
from ornstein.denoiser import Data, Denoiser
from ornstein.process import Gaussian, Prediction, Process
from ornstein.sampling import invert, sample

__all__ = [
    "Data",
    "Denoiser",
    "Gaussian",
    "Prediction",
    "Process",
    "data",
    "guidance",
    "invert",
    "load",
    "nets",
    "noise",
    "oracles",
    "sample",
    "schedules",
    "solvers",
]
