"""Fréchet distances of few evaluations to real images: tuned, untuned, and the best of diffusers, from the same noise.

    python benchmarks/distances.py --model RUN [...] [-n 1000] [--seeds 3] [--steps 5,8,10]

RUN must have been tuned (`ornstein tune RUN --steps 5,8,10`) and its data must be where they were. The features are
those of `ornstein evaluate`; the real images are the training images, at most 5000. Of the samplers of diffusers, and
of azula and skrample where they are installed, the two of each with the smallest end-point errors on 4 trajectories
are measured, and the best distance among them is shown. The network has the precision of `ornstein sample` for all.
The spread is the standard deviation over seeds. A difference is taken seed by seed, from the same noise, and has a much
smaller error than the distances.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peers import Peer, azula_peers, diffusers_peers, skrample_peers
from tables import Table
from torch import Tensor

import ornstein as orn
from ornstein.data import ImageSet, to_uint8
from ornstein.devices import choose_precision
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance, real_floor
from ornstein.evaluation.run import STEPS
from ornstein.few_steps import tuning
from ornstein.randomness import normal
from ornstein.solvers import SOLVER, Tuned
from ornstein.training.recipe import Settings, open_data
from ornstein.wrapper import Conditioned
from solvers import rms, tuned_of

REAL = 5000
FINALISTS = 2
_FEW = 4
_OTHER = "dpmpp-3m"  # the best known multistep solver

Draw = Callable[[Tensor, dict[str, Tensor]], Tensor]


class Scorer:
    """A run, the features of its training images, and the distances of samples from them."""

    def __init__(self, run: Path, count: int, seeds: int, batch: int = 128) -> None:
        self.run, self.count, self.seeds, self.batch = run, count, seeds, batch
        self.model = orn.load(run)
        self.model.precision = choose_precision("auto", torch.device("cpu"))
        train = open_data(replace(Settings.stored(run / "train.json"), stream=False)).train
        assert isinstance(train, ImageSet)
        self.real = train.images[:: max(1, len(train) // REAL)][:REAL]
        self.features = open_features("conv")(self.real)
        self.target = self.features(self.real)

    def ours(self, solver: str | Tuned, steps: int) -> Draw:
        return lambda x, cond: orn.sample(self.model, tuple(x.shape), solver, steps, start=x, cond=cond)

    def theirs(self, peer: Peer, steps: int) -> Draw:
        return lambda x, cond: peer(Conditioned(self.model, cond), x, steps)

    def start(self, rows: range, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The states at t = 1 of the samples `rows`, and their conditions."""
        data = self.model.data
        assert data is not None
        index, shape = torch.arange(rows.start, rows.stop), (len(rows), *data.shape)
        x = self.model.process.prior(shape).sample(normal(shape, seed, index, 0))
        return x, {"label": index % len(data.classes)} if data.classes else {}

    def distances(self, draw: Draw) -> list[float]:
        """The distance of the samples of each seed."""
        out = []
        for seed in range(self.seeds):
            parts = []
            for low in range(0, self.count, self.batch):
                x, cond = self.start(range(low, min(low + self.batch, self.count)), seed)
                parts.append(self.features(to_uint8(self.model.decode(draw(x, cond)))))
            out.append(frechet_distance(torch.cat(parts), self.target))
        return out

    def finalists(self, steps: int) -> list[Peer]:
        ((d, x, end),) = tuning.trajectories(self.model, _FEW, first=1 << 20)
        best, schedule = [], self.model.process.schedule
        for peers in (list(diffusers_peers(schedule)), list(azula_peers()), list(skrample_peers(schedule))):
            errors = [(rms([(p(d, x, steps), end)]), i) for i, p in enumerate(peers)]
            best += [peers[i] for _, i in sorted(errors)[:FINALISTS]]
        return best


def of_model(run: Path, counts: list[int], count: int, seeds: int) -> Table:
    scorer = Scorer(run, count, seeds)
    floor, long = real_floor(scorer.target), scorer.distances(scorer.ours(SOLVER, STEPS))
    columns = ["evaluations", "tuned", SOLVER, _OTHER, "best of theirs", ""]
    table = Table(
        f"The model {run.name}: {count} samples a seed, {seeds} seeds, against {len(scorer.real)} real images",
        [*columns, f"tuned less {SOLVER}", "tuned less theirs"],
        note=f"Features: {scorer.features.name}. Between two halves of the real images {floor:.2f}; {STEPS} steps of "
        f"`{SOLVER}` {_spread(long)}.",
    )
    for n in counts:
        draws = {"tuned": scorer.ours(tuned_of(run, n), n), **{s: scorer.ours(s, n) for s in (SOLVER, _OTHER)}}
        ours = {name: scorer.distances(draw) for name, draw in draws.items()}
        theirs = {f"{p.library}: {p.name}": scorer.distances(scorer.theirs(p, n)) for p in scorer.finalists(n)}
        name = min(theirs, key=lambda k: statistics.fmean(theirs[k]))
        less = [[a - b for a, b in zip(ours["tuned"], k, strict=True)] for k in (ours[SOLVER], theirs[name])]
        table.add(n, *map(_spread, ours.values()), _spread(theirs[name]), name, *map(_spread, less))
    return table


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", default="5,8,10")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for run in arguments.model:
        of_model(run, [int(n) for n in arguments.steps.split(",")], arguments.n, arguments.seeds).show()


if __name__ == "__main__":
    main()
