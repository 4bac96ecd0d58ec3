"""Diffusion models for images and video whose noise may have any covariance: train, sample, edit, score.

Submodules and names are imported when they are first used, so that the command line answers without PyTorch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read when PyTorch starts its threads, so before it is imported: on a machine that others use too, OpenMP's default,
# to spin while waiting for a thread that is not running, makes a training step of 45 ms one of a second.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ornstein import (
        autoencoders,
        checkpoint,
        data,
        denoiser,
        devices,
        edit,
        errors,
        evaluation,
        faces,
        few_steps,
        guidance,
        interop,
        inverse,
        likelihood,
        nets,
        noise,
        objectives,
        oracles,
        preconditioning,
        process,
        randomness,
        request,
        sampling,
        schedules,
        settings,
        solvers,
        store,
        training,
        video,
        wrapper,
    )
    from ornstein.checkpoint import load
    from ornstein.compress.run import compress
    from ornstein.denoiser import Data, Denoiser, SampleSpec
    from ornstein.personalization.recipe import personalize
    from ornstein.process import Gaussian, Prediction, Process
    from ornstein.request import SampleRequest
    from ornstein.sampling import invert, sample
    from ornstein.training.recipe import train


__all__ = [
    "Data",
    "Denoiser",
    "Gaussian",
    "Prediction",
    "Process",
    "SampleRequest",
    "SampleSpec",
    "autoencoders",
    "checkpoint",
    "compress",
    "data",
    "denoiser",
    "devices",
    "edit",
    "errors",
    "evaluation",
    "faces",
    "few_steps",
    "guidance",
    "interop",
    "inverse",
    "invert",
    "likelihood",
    "load",
    "nets",
    "noise",
    "objectives",
    "oracles",
    "personalize",
    "preconditioning",
    "process",
    "randomness",
    "request",
    "sample",
    "sampling",
    "schedules",
    "settings",
    "solvers",
    "store",
    "train",
    "training",
    "video",
    "wrapper",
]

# The module of each name that is not a module itself.
_MODULE_OF = {
    "Data": "denoiser",
    "Denoiser": "denoiser",
    "Gaussian": "process",
    "Prediction": "process",
    "Process": "process",
    "SampleRequest": "request",
    "SampleSpec": "denoiser",
    "invert": "sampling",
    "load": "checkpoint",
    "personalize": "personalization.recipe",
    "sample": "sampling",
    "train": "training.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"ornstein.{_MODULE_OF[name]}"), name)
    elif name in __all__:
        value = import_module(f"ornstein.{name}")
    else:
        raise AttributeError(f"module 'ornstein' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
