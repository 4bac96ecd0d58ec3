"""The settings of `ornstein evaluate` and `ornstein bench`; importing them needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ornstein.interop.settings import Prompts
from ornstein.request import SOLVER, SOLVERS
from ornstein.settings import PRECISIONS, again, check, device_setting, setting, trust_sizes_setting

__all__ = ["FULL", "METHODS", "Bench", "Evaluate"]

METHODS = ("vlb", "consistency", "continuous", "ode", "ode-variational", "few")

# The full plan of an evaluation; what is not given is sized to the time.
FULL: dict[str, Any] = {
    "count": 2000,
    "solvers": (SOLVER, "ddim"),
    "steps": (5, 10, 20, 50),
    "seeds": 3,
    "methods": ("vlb", "ode"),
    "images": 256,
}

MINUTES = 3.0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a model on images it was not trained on: likelihood, distances of samples from data, copies.

    The sizes that are not given are chosen so that the evaluation takes about three minutes on this machine; --minutes
    and --full change that. Of an autoencoder the reconstructions and rates are measured. Started again with the same
    model, data and sizes, it measures what is missing. `torchrun --nproc-per-node 8 -m ornstein evaluate ...` shares
    the samples out among processes.

    Example: ornstein evaluate runs/photos -n 1000 --steps 10,50 --seeds 2
    """

    run: Path = setting(help="The run directory of a trained model, or the folder of a pipeline.", argument=True)
    data: str | None = setting(
        None, "Images to evaluate on, as for `train`.", names=("-d", "--data"), by_data="those that the run held out"
    )
    prompt: str | None = again(Prompts, "prompt", None)
    prompts: Path | None = again(Prompts, "prompts", None)
    negative: str | None = again(Prompts, "negative", None)
    minutes: float | None = setting(None, "Time that the evaluation may take.", by_data=f"{MINUTES:g}", above=0)
    full: bool = setting(False, "Measure the full plan, however long it takes.")
    num: int | None = setting(
        None, "Samples for each seed, and real images at most.", names=("-n", "--num"), by_data="by time, up to 2000"
    )
    solvers: tuple[str, ...] | None = setting(
        None, "Solvers.", choices=SOLVERS, by_data="by time, flow-3m and ddim; a distilled model's own"
    )
    steps: tuple[int, ...] | None = setting(
        None, "Numbers of solver steps.", by_data="by time, of 5,10,20,50; a distilled model's own"
    )
    features: str = setting(
        "conv", "Features that distances are measured in.", choices=("conv", "pixels"), other="a TorchScript file"
    )
    seeds: int | None = setting(None, "Sets of samples, for the spread of every figure.", by_data="by time, up to 3")
    likelihood: tuple[str, ...] | None = setting(
        None,
        "Likelihoods.",
        choices=(*METHODS, "none"),
        by_data="by time, vlb and ode; none of a distilled model",
    )
    images: int | None = setting(None, "Held-out images for the likelihood.", by_data="by time, up to 256")
    held_out: float | None = setting(
        None, "Use this share of the data only, drawn by the run's seed.", above=0, below=1
    )
    batch: int = setting(128, "Samples that go through the network at once.", minimum=1)
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()
    precision: str = setting("float32", "Precision of the network.", choices=PRECISIONS)
    json: bool = setting(False, "Print the results as JSON.")
    overwrite: bool = setting(False, "Replace files that this command did not write.")
    out: Path | None = setting(None, "Folder for the report.", names=("-o", "--out"), by_data="RUN/evaluation")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the speed of sampling: images a second, milliseconds an evaluation, and the share outside the network.

    Example: ornstein bench runs/photos --solvers ddim,unipc --steps 10,20 --batch 32
    """

    run: Path = setting(help="The run directory of a trained model.", argument=True)
    solvers: tuple[str, ...] = setting(("ddim", SOLVER), "Solvers.", choices=SOLVERS)
    steps: tuple[int, ...] = setting((10,), "Numbers of steps.", minimum=1)
    batch: tuple[int, ...] = setting((1, 32), "Numbers of samples at once.", minimum=1)
    precision: tuple[str, ...] = setting(
        ("float32", "auto"), "Precisions.", choices=("float32", "bf16", "fp16", "auto")
    )
    repeats: int = setting(3, "Samplings of each case; the median is shown.", minimum=1)
    compile: bool = setting(False, "Compile the network first, and say how long that took.")
    device: str = device_setting()
    trust_sizes: bool = trust_sizes_setting()
    json: bool = setting(False, "Print the results as JSON.")

    def __post_init__(self) -> None:
        check(self)
