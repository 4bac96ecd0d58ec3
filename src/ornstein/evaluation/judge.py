"""The judgement of a model: likelihood of held-out images, and samples by each solver against them, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import ImageSet, to_uint8, to_unit
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.features import Features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.held_out import CALLS, METHODS, Bits, bits_by_own_prior, bits_of_images
from ornstein.evaluation.kernel import kernel_distance
from ornstein.evaluation.matched import check_images, choose, class_numbers, image_shape, sample_labels
from ornstein.evaluation.neighbours import CopyReport, copy_report, nearest
from ornstein.evaluation.pieces import Pieces
from ornstein.evaluation.precision import precision_recall
from ornstein.likelihood import Dequantiser, fit_dequantiser
from ornstein.sampling import State, sample
from ornstein.solvers import SOLVER, SOLVERS
from ornstein.training import processes
from ornstein.wrapper import device_of

ENOUGH = 8  # images on either side, below which no figure says anything
METRICS = ("frechet", "kernel", "precision", "recall")
_SHOWN = 64
_PAIRS = 24
_COPIES = 1000  # samples and real images whose nearest training image is looked for
_COPY_NUMBERS = 2**26  # and numbers in them
_VARIATIONAL = "ode-variational"
_FIT_STEPS, _FIT_BATCH, _FIT_IMAGES = 300, 64, 2048  # of its dequantiser

Advance = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Plan:
    """What to measure: `count` samples for each of `seeds` seeds, solver and number of steps; bits/dim of `images`.

    Raises UserError for what cannot be done, each by its option.
    """

    count: int = 2000
    solvers: tuple[str, ...] = (SOLVER, "ddim")
    steps: tuple[int, ...] = (5, 10, 20, 50)
    seeds: int = 3
    methods: tuple[str, ...] = ("vlb", "ode")
    images: int = 256
    batch: int = 128

    def __post_init__(self) -> None:
        for solver in self.solvers:
            if solver not in SOLVERS:
                raise UserError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}")
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"unknown --likelihood {method!r}; known: {', '.join(METHODS)}, or none")
        if self.count < ENOUGH:
            raise UserError(f"-n must be at least {ENOUGH} samples, got {self.count}")
        if not self.solvers or not self.steps:
            raise UserError("give at least one of --solvers and one number of --steps")
        least = {"--steps": min(self.steps), "--seeds": self.seeds, "--images": self.images, "--batch": self.batch}
        for option, value in least.items():
            if value < 1:
                raise UserError(f"{option} must be at least 1, got {value}")


@dataclass(frozen=True)
class Spread:
    """A figure for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; NaN for one."""
        return float(torch.tensor(self.values, dtype=torch.float64).std()) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Row:
    """Samples of one solver at one number of steps against real images; kernel_error is the error of one seed's."""

    solver: str
    steps: int
    frechet: Spread
    kernel: Spread
    kernel_error: float
    precision: Spread
    recall: Spread


@dataclass(frozen=True)
class Judgement:
    """All that was measured. `floor` is the same of training images in place of samples; None where they are not known.

    samples: the first of them, uint8, and the images nearest to them, of the training set where it is known.
    """

    plan: Plan
    features: str
    reference: int
    bits: tuple[Bits, ...]
    rows: tuple[Row, ...]
    floor: Row | None
    copies: CopyReport | None
    copies_of: int
    samples: Tensor
    labels: Tensor | None
    nearest: Tensor
    distances: Tensor

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures; what is not a number is null."""

        def row(r: Row) -> dict[str, Any]:
            spreads = {name: getattr(r, name) for name in METRICS}
            found = {k: {"mean": s.mean, "std": s.std, "values": s.values} for k, s in spreads.items()}
            return {"solver": r.solver, "steps": r.steps, **found, "kernel_error": r.kernel_error}

        return _without_nan(
            {
                "samples_per_seed": self.plan.count,
                "seeds": list(range(self.plan.seeds)),
                "reference_images": self.reference,
                "features": self.features,
                "likelihood": [asdict(b) for b in self.bits],
                "quality": [row(r) for r in self.rows],
                "training_images": None if self.floor is None else row(self.floor),
                "copies": None if self.copies is None else asdict(self.copies) | {"samples": self.copies_of},
            }
        )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge(
    d: Denoiser,
    plan: Plan,
    held_out: ImageSet,
    train: ImageSet | None,
    features: Callable[[Tensor], Features],
    advance: Advance = lambda what, done, total: None,
    pieces: Pieces | None = None,
) -> Judgement:
    """Measure as planned, against `held_out` and, for copies and the floor, the training images where known.

    At most `plan.count` held-out images are the reference, drawn by a fixed seed; samples are made of the same classes
    as these. Images go through the networks in batches, and of samples only the features are kept. advance(what, done,
    total) is told of calls of the network done. What `pieces` knows is not measured again, and what is measured is kept
    there. Raises UserError for fewer than 8 images or images the model was not made for, ValueError for a solver that
    diverges: it says which and at which time.
    """
    shape = image_shape(d)
    check_images(shape, held_out)
    if train is not None:
        check_images(shape, train)
    elif _VARIATIONAL in plan.methods:
        raise UserError(f"{_VARIATIONAL} is fitted to the training images, and they are not at hand: leave it out")
    assert d.data is not None
    if len(held_out) < ENOUGH:
        raise UserError(f"{held_out.source} leaves {len(held_out)} images to judge by: at least {ENOUGH} are needed")
    work = _Work(plan, min(plan.images, len(held_out)), advance)
    chosen = choose(held_out, plan.count)
    real = held_out.images[chosen]
    classes = class_numbers(held_out, d.data)
    extract = features(real)
    real_features = extract(real)
    labels = sample_labels(d.data, None if classes is None else classes[chosen], plan.count)

    pieces = pieces or Pieces()
    bits = []
    scored = choose(held_out, plan.images)
    for method in plan.methods:
        name = f"likelihood, {method}"
        known = pieces.get(name)
        if known is None:
            fitted = None if train is None or method != _VARIATIONAL else _dequantiser(d, train, work)
            own = None if classes is None else classes[scored]
            seen = work.start(name, CALLS[method])
            known = asdict(bits_of_images(d, held_out.images[scored], method, own, advance=seen, dequantiser=fitted))
            pieces.put(name, known)
        bits.append(Bits(**known))
    if plan.methods and isinstance(d.space, LatentSpace):
        bits.append(bits_by_own_prior(d.space, held_out.images[scored]))

    samples = torch.empty(0)
    keep = _copies(plan.count, shape)
    rows = []
    for solver in plan.solvers:
        for steps in sorted(set(plan.steps)):
            # The pictures are those of the first solver's longest chain: named beforehand, not picked by their score.
            panel = solver == plan.solvers[0] and steps == max(plan.steps)
            found = []
            for seed in range(plan.seeds):
                name, shown = f"{solver}, {steps} steps, seed {seed}", panel and seed == 0
                known, pictures = pieces.get(name), pieces.pictures(name) if shown else None
                if known is None or (shown and pictures is None):
                    parts: list[Tensor] = []
                    own_kept: list[Tensor] = []
                    for images in _samples(d, plan, solver, steps, seed, labels, work):
                        parts.append(extract(images))
                        if shown and sum(map(len, own_kept)) < keep:
                            own_kept.append(images)
                    known = _compare(torch.cat(parts), real_features)
                    pictures = torch.cat(own_kept)[:keep] if shown else None
                    pieces.put(name, known, pictures)
                found.append(known)
                if pictures is not None:
                    samples = pictures
            rows.append(_row(solver, steps, found))

    floor, copies = None, None
    if train is not None:
        floor = _row("training images", 0, [_compare(extract(train.images[choose(train, plan.count)]), real_features)])
        copies = copy_report(samples, train.images, held_out.images[choose(held_out, keep)])
    near = nearest(samples[:_PAIRS], (train or held_out).images)
    work.finish()
    return Judgement(
        plan=plan,
        features=extract.name,
        reference=len(real),
        bits=tuple(bits),
        rows=tuple(rows),
        floor=floor,
        copies=copies,
        copies_of=len(samples),
        samples=samples[:_SHOWN],
        labels=None if labels is None else labels[:_SHOWN],
        nearest=(train or held_out).images[near.index],
        distances=near.distance,
    )


def _copies(count: int, shape: Sequence[int]) -> int:
    return max(_PAIRS, min(count, _COPIES, _COPY_NUMBERS // math.prod(shape)))


class _Work:
    """Calls of the network (one for each image) planned and done."""

    def __init__(self, plan: Plan, images: int, advance: Advance) -> None:
        self.images = images
        self.total = sum(images * CALLS[m] for m in plan.methods)
        self.total += 3 * _FIT_BATCH * _FIT_STEPS if _VARIATIONAL in plan.methods else 0
        self.total += sum(plan.count * n * plan.seeds * len(plan.solvers) for n in sorted(set(plan.steps)))
        self.done = 0
        self.advance = advance

    def start(self, what: str, cost: int) -> Callable[[int], object]:
        """For a part of the work: a function to be told the number of its images that are done."""
        before = self.done
        self.advance(what, self.done, self.total)

        def seen(images: int) -> None:
            self.done = before + images * cost
            self.advance(what, self.done, self.total)

        return seen

    def finish(self) -> None:
        self.advance("done", self.total, self.total)


def _dequantiser(d: Denoiser, train: ImageSet, work: _Work) -> Dequantiser:
    """Fitted to training images; a backward pass counts as two calls."""
    assert d.data is not None
    chosen = choose(train, _FIT_IMAGES)
    classes = class_numbers(train, d.data)
    cond = {"label": None if classes is None else classes[chosen]}
    seen = work.start("dequantiser", 3 * _FIT_BATCH)
    pixels = to_unit(train.images[chosen])
    return fit_dequantiser(d, pixels, steps=_FIT_STEPS, batch=_FIT_BATCH, cond=cond, advance=seen)


def _samples(
    d: Denoiser, plan: Plan, solver: str, steps: int, seed: int, labels: Tensor | None, work: _Work
) -> Iterator[Tensor]:
    """uint8 samples, a batch at a time; of several processes each makes every so many batches, and all get all."""
    assert d.data is not None and d.shape is not None
    shape = d.data.shape
    seen = work.start(f"{solver}, {steps} steps, seed {seed}", 1)
    group = processes.current()

    def make(first: int) -> Tensor:
        count = min(plan.batch, plan.count - first)

        def advance(state: State) -> None:
            seen(first * steps + count * state.step)

        try:
            images = sample(
                d,
                (count, *shape),
                solver=solver,
                steps=steps,
                seed=seed,
                cond={"label": None if labels is None else labels[first : first + count]},
                callback=advance,
                first=first,
            )
        except ValueError as error:
            raise ValueError(f"{solver} with {steps} steps: {error}") from error
        return to_uint8(d.decode(images))

    for first in range(0, plan.count, group.world * plan.batch):
        own = first + group.rank * plan.batch
        made = make(own) if own < plan.count else torch.empty(0, *d.shape, dtype=torch.uint8, device=device_of(d))
        if group.world > 1:
            made = group.gather(torch.cat([made, made.new_zeros(plan.batch - len(made), *made.shape[1:])]))
            made = made[: plan.count - first]
        yield from made.cpu().split(plan.batch)


def _compare(samples: Tensor, real: Tensor) -> dict[str, float]:
    kernel = kernel_distance(samples, real)
    manifold = precision_recall(samples, real)
    return {
        "frechet": frechet_distance(samples, real),
        "kernel": kernel.value,
        "kernel_error": kernel.error,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }


def _row(solver: str, steps: int, found: Sequence[Mapping[str, float]]) -> Row:
    spreads = {name: Spread(tuple(one[name] for one in found)) for name in METRICS}
    error = Spread(tuple(one["kernel_error"] for one in found)).mean
    return Row(solver, steps, kernel_error=error, **spreads)
