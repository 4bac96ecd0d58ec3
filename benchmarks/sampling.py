"""The same weights in diffusers' pipeline and here: equal steps, equal images, and the ratio of the times.

    python benchmarks/sampling.py [--size 16] [--batch 8] [--steps 10] [--repeats 5] [--threads 1]

A small UNet2DModel with random weights, DDIM in float32 on both sides, in turns, so that a busy machine slows both; in
bf16 here where that is asked for with --bf16. Printed are the medians, and the median of the ratios of each turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from rich.console import Console

import ornstein as orn
from ornstein.interop.diffusers import times, wrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 16), ("batch", 8), ("steps", 10), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=arguments.size,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipeline = diffusers.DDIMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    d, shape = wrap(model, scheduler), (arguments.batch, 3, arguments.size, arguments.size)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    grid = times(pipeline.scheduler, arguments.steps)
    dtype = torch.bfloat16 if arguments.bf16 else None

    def theirs() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        out = pipeline(arguments.batch, generator, num_inference_steps=arguments.steps, output_type="np")
        return torch.from_numpy(out.images)

    def ours() -> torch.Tensor:
        x = orn.sample(d, shape, grid=grid, start=start, precision=dtype)
        return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    difference = float((theirs() - ours()).abs().max())
    turns = [(_seconds(ours), _seconds(theirs)) for _ in range(arguments.repeats)]
    own, other = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(a / b for a, b in turns)
    console = Console(width=160)
    console.print(f"torch {torch.__version__}, diffusers {diffusers.__version__}, {arguments.threads} threads")
    console.print(f"{shape}, {arguments.steps} steps of DDIM, largest difference of the images {difference:.1e}")
    console.print(f"ours {1000 * own:.0f} ms, diffusers {1000 * other:.0f} ms, ratio {ratio:.2f}")


def _seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
