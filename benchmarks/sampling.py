"""The same weights in diffusers' pipeline and here: equal steps, equal images, and the ratio of the times.

    python benchmarks/sampling.py [--width 64] [--size 32] [--batch 16] [--steps 10] [--repeats 5] [--threads 1]

A UNet2DModel with random weights at the scale of real ones (at width 64 and 32x32 pixels, 4 million parameters, a
quarter of DDPM's own on CIFAR-10), DDIM on both sides from the same start, in turns in one process, so that a busy
machine slows all. Ours is timed as `load_pipeline` gives it in float32, where the images must be equal; as `ornstein
sample` does by default, bf16 where the processor multiplies it; and so with its --compile. Equal quality
is another matter than equal steps: with --model RUN the last table is of that model, DDIM at 50 steps in diffusers'
pipeline loop against the fewest steps of ours whose Fréchet distance is no larger.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distances import Scorer
from tables import Table, median, ratio, turns
from torch import Tensor

import ornstein as orn
from ornstein.compiling import compile_network
from ornstein.devices import choose_precision
from ornstein.interop.diffusers import times, wrap
from ornstein.solvers import SOLVER
from solvers import tuned_of

_PIPELINE_STEPS = 50


def equal_steps(width: int, size: int, batch: int, steps: int, repeats: int, compiled: bool) -> Table:
    """Seconds of one batch of images there and here, and how far the images are apart."""
    warnings.simplefilter("ignore")
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=size,
        block_out_channels=(width, 2 * width, 2 * width),
        layers_per_block=1,
        norm_num_groups=min(32, width // 2),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    # A random network's noise would make an x0 of hundreds at t = 1, and its rounding as much larger.
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    pipeline = diffusers.DDIMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    # Ours has weights of its own: their layout in memory is part of what is compared.
    copy = diffusers.UNet2DModel.from_config(model.config).eval()
    copy.load_state_dict(model.state_dict())
    d, shape = wrap(copy, scheduler), (batch, 3, size, size)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = times(pipeline.scheduler, steps)

    def theirs() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        out = pipeline(batch, generator, num_inference_steps=steps, output_type="np")
        return torch.from_numpy(out.images)

    def ours(precision: torch.dtype | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            x = orn.sample(d, shape, "ddim", grid=grid, start=start, precision=precision)
            return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

        return run

    auto = choose_precision("auto", torch.device("cpu"))
    parameters = sum(p.numel() for p in model.parameters())
    table = Table(
        f"The same weights, {steps} steps of DDIM, {batch} images of {size}×{size}",
        ["ours", "images differ by at most", "seconds", "diffusers, seconds", "ratio", "aim"],
        note=f"UNet2DModel of {parameters / 1e6:.1f} M parameters, random; medians of {repeats} turns.",
    )

    def row(name: str, run: Callable[[], Tensor], aim: str) -> None:
        difference = float((theirs() - run()).abs().max())
        found = turns([run, theirs], repeats)
        table.add(name, f"{difference:.1e}", median(found, 0), median(found, 1), ratio(found, 0, 1), aim)

    row("float32", ours(None), "0.9, equal to 1e-4")
    if auto is not None:
        row("bf16, the default of `ornstein sample`", ours(auto), "0.45")
    if compiled:
        took = compile_network(d, lambda: ours(auto)())
        row(f"{'bf16' if auto else 'float32'}, compiled in {took:.0f} s", ours(auto), "0.6")
    return table


def equal_quality(run: Path, count: int, seeds: int, batch: int, repeats: int) -> Table:
    """The time of DDIM at 50 steps as a pipeline runs it, against the fewest steps here that are as good."""
    import diffusers

    scorer = Scorer(run, count, seeds)
    model, (start, cond) = scorer.model, scorer.start(range(batch), 0)
    betas = model.process.schedule.betas(1000).tolist()
    scheduler: Any = diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(_PIPELINE_STEPS)

    def theirs() -> Tensor:
        x = start
        with torch.no_grad():
            for k in scheduler.timesteps:  # the loop of DDIMPipeline, with this network in it
                x = scheduler.step(model(x, (int(k) + 1) / 1000, **cond).eps, k, x).prev_sample
        return x

    far = statistics.fmean(scorer.distances(scorer.ours("ddim", _PIPELINE_STEPS)))
    table = Table(
        f"The model {run.name} at equal Fréchet distance",
        ["ours", "distance", "DDIM, 50 steps", "seconds", "diffusers' loop, seconds", "ratio", "aim"],
        note=f"The fewest of 5, 8, 10 (tuned), 15 and 20 steps whose distance is no larger than that of DDIM at 50, "
        f"over {count} samples and {seeds} seeds; batches of {batch}, float32 on both sides.",
    )
    for n in (5, 8, 10, 15, 20):
        draw = scorer.ours(tuned_of(run, n) if n <= 10 else SOLVER, n)
        near = statistics.fmean(scorer.distances(draw))
        if near <= far:
            found = turns([partial(draw, start, cond), theirs], repeats)
            table.add(f"{n} steps", near, far, median(found, 0), median(found, 1), ratio(found, 0, 1), "0.25")
            break
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 64), ("size", 32), ("batch", 16), ("steps", 10), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--model", type=Path, help="a run, tuned for few steps, for the table at equal quality")
    parser.add_argument("-n", type=int, default=1000, help="samples a seed of that table")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {k: getattr(arguments, k) for k in ("width", "size", "batch", "steps", "repeats")}
    equal_steps(**options, compiled=not arguments.no_compile).show()
    if arguments.model is not None:
        equal_quality(arguments.model, arguments.n, arguments.seeds, arguments.batch, arguments.repeats).show()


if __name__ == "__main__":
    main()
