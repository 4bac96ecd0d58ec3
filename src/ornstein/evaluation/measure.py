"""The evaluation of a model: likelihood of held-out images, and samples by each solver against them, seed by seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from ornstein import processes
from ornstein.autoencoders.latent import LatentSpace
from ornstein.data import ImageSet, to_uint8, to_unit
from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.evaluation.features import Features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.evaluation.held_out import CALLS, Bits, bits_by_own_prior, bits_of_images
from ornstein.evaluation.kernel import kernel_distance
from ornstein.evaluation.matched import check_images, choose, class_numbers, image_shape, sample_labels
from ornstein.evaluation.neighbours import copy_report, nearest
from ornstein.evaluation.pieces import Pieces
from ornstein.evaluation.plan import ENOUGH, FIT_BATCH, FIT_STEPS, VARIATIONAL, Plan, evaluations
from ornstein.evaluation.precision import precision_recall
from ornstein.evaluation.results import METRICS, Evaluation, Row, Spread
from ornstein.likelihood import Dequantiser, FewSteps, fit_dequantiser
from ornstein.sampling import State, sample
from ornstein.wrapper import device_of

__all__ = ["Advance", "evaluate_model"]

_SHOWN = 64
_PAIRS = 24
_COPIES = 1000  # samples and real images whose nearest training image is looked for
_COPY_NUMBERS = 2**26  # and numbers in them
_FIT_IMAGES = 2048  # training images that a dequantiser is fitted to

Advance = Callable[[str, int, int], object]


def evaluate_model(
    d: Denoiser,
    plan: Plan,
    held_out: ImageSet,
    train: ImageSet | None,
    features: Callable[[Tensor], Features],
    advance: Advance = lambda what, done, total: None,
    pieces: Pieces | None = None,
    deadline: float | None = None,
    precision: torch.dtype | None = None,
    few: FewSteps | None = None,
) -> Evaluation:
    """Measure a model as planned, against held-out images.

    Samples have the classes of the real images. Images go through the network in batches, and only the features of
    samples are kept.

    Args:
        d: the model.
        plan: what to measure.
        held_out: images that the model was not trained on; at most `plan.count` of them, chosen by a fixed seed, are
            the reference.
        train: the training images, for copies and for the floor of the scores; None if they are not known.
        features: from real images to the features that distances are measured in.
        advance: called with (what, done, total), in network evaluations.
        pieces: results that are known are not measured again, and new ones are kept there.
        deadline: a time of `time.monotonic` after which nothing more is started. What is left out then is named in the
            result; a first set of samples is always measured.
        precision: of the network for samples; None is float32. Likelihoods are always in float32.
        few: for the likelihood "few".

    Raises:
        UserError: fewer than 8 images, or images that the model was not made for.
        ValueError: a solver that diverges; it says which, and at which time.
    """
    shape = image_shape(d)
    check_images(shape, held_out)
    if train is not None:
        check_images(shape, train)
    elif VARIATIONAL in plan.methods:
        raise UserError(f"{VARIATIONAL} is fitted to the training images, which were not found: leave it out")
    if len(held_out) < ENOUGH:
        raise UserError(f"{held_out.source} leaves {len(held_out)} images to evaluate on: at least {ENOUGH} are needed")
    assert d.data is not None
    work = _Work(d, plan, held_out, train, advance, Pieces() if pieces is None else pieces, deadline, precision, few)
    chosen = choose(held_out, plan.count)
    real = held_out.images[chosen]
    extract = features(real)
    real_features = extract(real)
    classes = class_numbers(held_out, d.data)
    labels = sample_labels(d.data, None if classes is None else classes[chosen], plan.count)

    bits = work.likelihoods(classes)
    rows, samples = work.quality(extract, real_features, labels)
    floor, copies = None, None
    if train is not None:
        floor = _row("training images", 0, [_compare(extract(train.images[choose(train, plan.count)]), real_features)])
        copies = copy_report(samples, train.images, held_out.images[choose(held_out, work.kept)])
    near = nearest(samples[:_PAIRS], (train or held_out).images)
    work.finish()
    return Evaluation(
        plan=plan,
        features=extract.name,
        reference=len(real),
        bits=bits,
        rows=rows,
        floor=floor,
        copies=copies,
        copies_of=len(samples),
        samples=samples[:_SHOWN],
        labels=None if labels is None else labels[:_SHOWN],
        nearest=(train or held_out).images[near.index],
        distances=near.distance,
        left_out=tuple(work.left_out),
    )


class _Work:
    """The measurements of one evaluation, and the count of network evaluations planned and done."""

    def __init__(
        self,
        d: Denoiser,
        plan: Plan,
        held_out: ImageSet,
        train: ImageSet | None,
        advance: Advance,
        pieces: Pieces,
        deadline: float | None,
        precision: torch.dtype | None,
        few: FewSteps | None = None,
    ) -> None:
        self.d, self.plan, self.held_out, self.train = d, plan, held_out, train
        self.advance, self.pieces, self.deadline, self.precision = advance, pieces, deadline, precision
        self.few = few
        self.total, self.done = plan.calls(len(held_out)), 0
        self.spent, self.called = 0.0, 0  # seconds and network evaluations of the sets of samples so far
        self.left_out: list[str] = []
        self.kept = max(_PAIRS, min(plan.count, _COPIES, _COPY_NUMBERS // math.prod(d.shape or (1,))))

    def start(self, what: str, cost: int, images: int) -> Callable[[int], object]:
        """Begin a part of `images` images at `cost` evaluations each: call the result with the number that is done."""
        before, self.done = self.done, self.done + cost * images
        self.advance(what, before, self.total)
        return lambda done: self.advance(what, before + done * cost, self.total)

    def over(self, calls: int = 0) -> bool:
        """Whether so many network evaluations would end after the deadline, as the first of several processes sees it.

        Their time is that of the sets of samples so far.
        """
        deadline, expected = self.deadline, calls * self.spent / max(1, self.called)
        return deadline is not None and processes.current().agreed(lambda: time.monotonic() + expected > deadline)

    def finish(self) -> None:
        """Everything is measured."""
        self.advance("done", self.total, self.total)

    def likelihoods(self, classes: Tensor | None) -> tuple[Bits, ...]:
        """Bits/dim by each method."""
        bits = []
        rows = choose(self.held_out, self.plan.images)
        images, labels = self.held_out.images[rows], None if classes is None else classes[rows]
        for method in self.plan.methods:
            name = f"likelihood, {method}"
            known = self.pieces.get(name)
            if known is None and self.over():
                self.left_out.append(name)
            elif known is None:
                fitted = self._dequantiser() if method == VARIATIONAL else None
                step = self.start(name, CALLS[method], len(images))
                try:
                    measured = bits_of_images(
                        self.d, images, method, labels, advance=step, dequantiser=fitted, stop=self.over, few=self.few
                    )
                except ValueError as error:  # a flow that cannot be followed: the samples can still be scored
                    self.left_out.append(f"{name}: {error}")
                    continue
                bits.append(measured)
                if measured.count == len(images):
                    self.pieces.put(name, asdict(measured))
                else:
                    self.left_out.append(f"{name}, of {len(images) - measured.count} of {len(images)} images")
            else:
                self.start(name, CALLS[method], len(images))
                bits.append(Bits(**known))
        if bits and isinstance(self.d.space, LatentSpace):
            bits.append(bits_by_own_prior(self.d.space, images))
        return tuple(bits)

    def _dequantiser(self) -> Dequantiser:
        """Fitted to training images; a backward pass counts as two evaluations."""
        assert self.d.data is not None and self.train is not None
        chosen = choose(self.train, _FIT_IMAGES)
        classes = class_numbers(self.train, self.d.data)
        cond = {"label": None if classes is None else classes[chosen]}
        step = self.start("dequantiser", 3 * FIT_BATCH, FIT_STEPS)
        pixels = to_unit(self.train.images[chosen])
        return fit_dequantiser(self.d, pixels, steps=FIT_STEPS, batch=FIT_BATCH, cond=cond, advance=step)

    def quality(self, extract: Features, real: Tensor, labels: Tensor | None) -> tuple[tuple[Row, ...], Tensor]:
        """Scores by solver and number of steps, and the samples to show.

        The samples are those of the first solver with the most steps, which is fixed beforehand and not by its score.
        """
        plan, samples = self.plan, torch.empty(0)
        pairs = [(solver, steps) for solver in plan.solvers for steps in sorted(set(plan.steps))]
        shown = (plan.solvers[0], max(plan.steps))
        pairs.sort(key=lambda pair: pair != shown)  # first of all, in case the time is over
        scores: dict[tuple[str, int], list[Mapping[str, float]]] = {pair: [] for pair in pairs}
        for solver, steps in pairs:
            for seed in range(plan.seeds):
                name, show = f"{solver}, {steps} steps, seed {seed}", (solver, steps) == shown and seed == 0
                known, pictures = self.pieces.get(name), self.pieces.pictures(name) if show else None
                if known is not None and not (show and pictures is None):
                    self.start(name, evaluations(solver, steps), plan.count)
                elif not show and self.over(evaluations(solver, steps) * plan.count):
                    self.left_out.append(name)
                    continue
                else:
                    known, pictures = self._set(name, solver, steps, seed, extract, real, labels, show)
                    self.pieces.put(name, known, pictures)
                scores[solver, steps].append(known)
                samples = samples if pictures is None else pictures
        order = sorted(pairs, key=lambda pair: (plan.solvers.index(pair[0]), pair[1]))
        return tuple(_row(*pair, scores[pair]) for pair in order if scores[pair]), samples

    def _set(
        self,
        name: str,
        solver: str,
        steps: int,
        seed: int,
        extract: Features,
        real: Tensor,
        labels: Tensor | None,
        show: bool,
    ) -> tuple[dict[str, float], Tensor | None]:
        """The scores of one set of samples, and its first samples if they are to be shown."""
        began = time.monotonic()
        parts: list[Tensor] = []
        pictures: list[Tensor] = []
        for images in self._samples(name, solver, steps, seed, labels):
            parts.append(extract(images))
            if show and sum(map(len, pictures)) < self.kept:
                pictures.append(images)
        scores = _compare(torch.cat(parts), real)
        self.spent += time.monotonic() - began
        self.called += evaluations(solver, steps) * self.plan.count
        return scores, torch.cat(pictures)[: self.kept] if show else None

    def _samples(self, name: str, solver: str, steps: int, seed: int, labels: Tensor | None) -> Iterator[Tensor]:
        """uint8 samples, a batch at a time; each of several processes makes every so many batches, and all get all."""
        d, plan, group = self.d, self.plan, processes.current()
        assert d.data is not None and d.shape is not None
        shape = d.data.shape
        step = self.start(name, evaluations(solver, steps), plan.count)

        def make(first: int) -> Tensor:
            count = min(plan.batch, plan.count - first)

            def advance(state: State) -> None:
                step(first + count * state.step // state.steps)

            label = None if labels is None else labels[first : first + count].to(device_of(d))
            try:
                images = sample(
                    d,
                    (count, *shape),
                    solver,
                    steps,
                    seed=seed,
                    cond={"label": label},
                    callback=advance,
                    first=first,
                    precision=self.precision,
                )
            except ValueError as error:
                raise ValueError(f"{solver} with {steps} steps: {error}") from error
            return to_uint8(d.decode(images))

        for first in range(0, plan.count, group.world * plan.batch):
            mine = first + group.rank * plan.batch
            made = make(mine) if mine < plan.count else torch.empty(0, *d.shape, dtype=torch.uint8, device=device_of(d))
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


def _row(solver: str, steps: int, scores: Sequence[Mapping[str, float]]) -> Row:
    spreads = {name: Spread(tuple(one[name] for one in scores)) for name in METRICS}
    error = Spread(tuple(one["kernel_error"] for one in scores)).mean
    return Row(solver, steps, kernel_error=error, **spreads)
