"""`orn.compress`: from a run to a smaller one, fine-tuned on what the large one predicts."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein import checkpoint, processes
from ornstein.compress.budget import TOLERANCE, network_macs, widths_for
from ornstein.compress.depth import shallower
from ornstein.compress.diffusers_unet import KINDS as UNETS
from ornstein.compress.diffusers_unet import prune_unet2d
from ornstein.compress.folder import TRAINING, compressed_folder
from ornstein.compress.groups import channel_groups, with_widths
from ornstein.compress.imitation import Imitation
from ornstein.compress.int8 import output_error, save_int8
from ornstein.compress.integral import INTEGRAL, LEAST, Elastic, ordered, total_variation
from ornstein.compress.prune import input_moments, kept_channels, narrowed, refitted, taylor_gradients
from ornstein.compress.settings import BUDGET, CompressSettings
from ornstein.denoiser import Denoiser
from ornstein.devices import choose_device, choose_precision
from ornstein.errors import UserError
from ornstein.evaluation import Score
from ornstein.interop.diffusers import DiffusersNet
from ornstein.progress import say
from ornstein.randomness import generator
from ornstein.settings import read, read_file, to_json
from ornstein.store import atomic_write
from ornstein.text.prompting import check_ungated
from ornstein.training.folder import check_folder
from ornstein.training.jobs import encode, new_job, size_of
from ornstein.training.recipe import REPORT, Split, follow, open_data, report_of, report_seconds
from ornstein.training.settings import COMPRESS, SETTINGS, Settings, resumed
from ornstein.training.state import check_new, check_resumable, has_state, read_record

__all__ = ["Compressed", "compress", "pruned"]

_SHARE = 0.1  # of the steps, or minutes, of the run's own training
_TAYLOR_BATCH, _TAYLOR_BATCHES = 64, 4
_JUDGED = 256
# The methods that a setting is for.
_TUNED = ("prune", "integral")
_ONLY = dict.fromkeys(("macs", "criterion", "depth"), ("prune",)) | dict.fromkeys(
    ("data", "steps", "minutes", "batch", "learning_rate", "checkpoint_every"), _TUNED
)


@dataclass(frozen=True)
class Compressed:
    """A compressed model.

    path: its run directory. macs, full_macs: multiply-adds of one evaluation of the network, and of the large one's.
    model: the small one. scores: those of the report; none without one.
    """

    path: Path
    macs: int
    full_macs: int
    scores: list[Score]
    model: Denoiser = field(repr=False)


def compress(
    run: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    report: bool = True,
    device: str = "auto",
    trust_sizes: bool = False,
    **settings: Any,
) -> Compressed:
    """Make a trained model cheaper: what `ornstein compress` does.

    Args:
        run: the run directory of a diffusion model.
        out: the run directory to write.
        resume: continue the fine-tuning in `out` with its stored settings; `settings` may extend it (steps, minutes).
        report: evaluate the result on the held-out data and write report.html.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        trust_sizes: lift the bounds on the sizes that the run's config names.
        **settings: the fields of `CompressSettings`: macs, method, criterion, steps, minutes, ...

    Raises:
        UserError: the settings are wrong, the budget cannot be met, or the run cannot be compressed.
        RunError: the fine-tuning failed; the last checkpoint is intact.
    """
    run, out = Path(run), Path(out)
    asked = _asked(run, out, resume, settings)
    if checkpoint.is_autoencoder(run):
        raise UserError(f"{run} is an autoencoder: diffusion models are compressed, and it stays what they work in")
    if checkpoint.is_pipeline(run):
        return _folder(asked, run, out, resume, choose_device(device))
    where = choose_device(device)
    teacher = checkpoint.load(run, trust_sizes=trust_sizes).to(where)
    check_ungated(teacher)
    group = processes.current()
    group.agreed(lambda: _claim(asked, out, resume))
    tuning = _tuning(asked, run, out, resume)
    split = None if tuning is None else open_data(tuning, show=True)
    student, macs, full = _student(asked, teacher, _batches(tuning, split, teacher, out, resume, where))
    say(f"{macs:,} of {full:,} multiply-adds ({macs / full:.3f}), {size_of(student)} of {size_of(teacher)}")
    if (run / checkpoint.TUNED).is_file():
        say(f"the tuned solvers of {run} are for its own network and stay there: `ornstein tune {out}` learns new ones")
    if group.main:
        atomic_write(out / COMPRESS, (json.dumps(to_json(asked), indent=1) + "\n").encode())
        if (run / SETTINGS).is_file():  # which data the model knows, for `evaluate`
            known = (run / SETTINGS).read_bytes() if tuning is None else json.dumps(to_json(tuning), indent=1).encode()
            atomic_write(out / SETTINGS, known)
    if tuning is None or split is None:
        return Compressed(out, macs, full, [], _without_tuning(asked, student, teacher, out))
    objective = Imitation(teacher, choose_precision(tuning.precision, where))
    if asked.method == "integral":
        objective = Elastic(objective, student)
    job = new_job(tuning, split.train, split.held_out, out, resume, where, student, objective)
    began = time.monotonic()
    steps, seconds = follow(job, tuning, out, resume)
    group.end()
    if not steps and resume:
        say(f"{out} is finished already; give more --steps or --minutes to train on")
    scores: list[Score] = []
    if report and group.main and (steps or not (out / REPORT).is_file()):
        plan = {"shown": tuning.shown(), "judged": _JUDGED, "quality_steps": ()}
        budget = report_seconds(max(seconds, time.monotonic() - began))
        scores = report_of(job, title=f"{out.name}: {run.name} at {macs / full:.2f} of its multiply-adds",
                           budget=budget, **plan)  # fmt: skip
    return Compressed(out, macs, full, scores, student)


def _folder(asked: CompressSettings, run: Path, out: Path, resume: bool, device: torch.device) -> Compressed:
    """Prune a folder of diffusers into a folder of diffusers."""
    if asked.method != "prune" or asked.depth:
        what = f"--method {asked.method}" if asked.method != "prune" else "--depth"
        raise UserError(f"{run} is a folder of diffusers, whose channels alone are pruned: leave out {what}")
    processes.current().agreed(lambda: _claim_folder(out, resume))
    student, macs, full = compressed_folder(asked, run, out, resume, device)
    return Compressed(out, macs, full, [], student)


def _claim_folder(out: Path, resume: bool) -> None:
    if resume and not (out / COMPRESS).is_file():
        raise UserError(f"{out} is no compressed folder: leave out --resume, or give another --out")
    if not resume and out.exists() and (not out.is_dir() or any(each.name != TRAINING for each in out.iterdir())):
        raise UserError(f"{out} exists: name a new folder, or go on with --resume")


def _student(
    asked: CompressSettings, teacher: Denoiser, batches: list[tuple[Tensor, dict[str, Any]]]
) -> tuple[Denoiser, int, int]:
    """The model that is fine-tuned, its multiply-adds, and those of the large one."""
    if asked.method == "prune":
        return pruned(teacher, asked, batches)
    assert teacher.data is not None
    student = copy.deepcopy(teacher)
    if asked.method == "integral":
        student.net = ordered(teacher.net)
        before, after = total_variation(teacher.net), total_variation(student.net)
        say(f"total variation of the channels {before:.4g}, in order {after:.4g}; widths from {LEAST:g} to 1")
    macs = network_macs(student.net, teacher.data.shape)
    return student.eval(), macs, macs


def _without_tuning(asked: CompressSettings, student: Denoiser, teacher: Denoiser, out: Path) -> Denoiser:
    """Store a model as it is."""
    if asked.method == "int8":
        rounded = save_int8(student, out)
        say(f"weights of 8 bits: the predictions differ by {output_error(teacher, rounded):.2%}")
        return rounded
    student.save(out, {INTEGRAL: LEAST} if asked.method == "integral" else None)
    return student


def pruned(
    teacher: Denoiser, settings: CompressSettings, batches: list[tuple[Tensor, dict[str, Any]]]
) -> tuple[Denoiser, int, int]:
    """The pruned copy of a model, its multiply-adds, and those of the model; `batches` of data are for "taylor"."""
    assert teacher.data is not None
    net, shape = teacher.net, teacher.data.shape
    budget = BUDGET if settings.macs is None else settings.macs
    draw = generator(settings.seed, "compress")
    student = copy.deepcopy(teacher)
    if isinstance(net, DiffusersNet) and type(net.model).__name__ in UNETS:
        if settings.depth:
            raise UserError("of a network of diffusers the channels alone are pruned: leave out --depth")
        values = _values(teacher, settings, batches, draw)
        inner = values and {name.removeprefix("model."): value for name, value in values.items()}
        small, macs, full = prune_unet2d(net.model, budget, tuple(shape), inner, draw)
        changed = {name: small.config[name] for name in ("block_out_channels", "time_embedding_dim")}
        student.net = DiffusersNet({**net.config["model"], **changed}, net.config["betas"])
        student.net.model.load_state_dict(small.state_dict())
        student.net.to(next(net.parameters()).device)
        return student.eval(), macs, full
    channel_groups(net)  # refuses what cannot be pruned
    full = network_macs(net, shape)
    if settings.depth:
        if not batches:
            raise UserError("--depth needs data to find the branches that are missed least: give --data")
        student = shallower(teacher, budget, settings.depth, batches, draw)
    return (*_narrower(student, settings, budget, full, batches, draw), full)


def _narrower(
    model: Denoiser,
    settings: CompressSettings,
    budget: float,
    full: int,
    batches: list[tuple[Tensor, dict[str, Any]]],
    draw: torch.Generator,
) -> tuple[Denoiser, int]:
    """A model with the channels that meet the budget, a share of `full` multiply-adds, and its multiply-adds."""
    assert model.data is not None
    net, shape = model.net, model.data.shape
    macs = network_macs(net, shape)
    if macs <= (1 + TOLERANCE) * budget * full:
        return model.eval(), macs
    groups, student = channel_groups(net), copy.deepcopy(model)
    values = _values(model, settings, batches, draw)
    widths, macs, _ = widths_for(groups, lambda widths: with_widths(net, widths), shape, budget, whole=full)
    kept = kept_channels(groups, widths, values, draw)
    student.net = with_widths(net, widths).to(next(net.parameters()).device)
    state = net.state_dict()
    if batches:
        state = refitted(groups, state, kept, input_moments(model, groups, batches, draw))
    student.net.load_state_dict(narrowed(groups, state, kept))
    return student.eval(), macs


def _values(
    teacher: Denoiser,
    settings: CompressSettings,
    batches: list[tuple[Tensor, dict[str, Any]]],
    draw: torch.Generator,
) -> dict[str, Tensor] | None:
    """What the criterion squares and adds up; None for random channels."""
    criterion = settings.criterion or ("taylor" if batches else "magnitude")
    if criterion == "random":
        return None
    weights = {name: p.detach() for name, p in teacher.net.named_parameters()}
    if criterion == "magnitude":
        return weights
    if not batches:
        raise UserError("the criterion taylor needs data: give --data, or take --criterion magnitude")
    gradients = taylor_gradients(teacher, batches, draw)
    return {name: weights[name] * gradients[name] for name in gradients}


def _asked(run: Path, out: Path, resume: bool, given: dict[str, Any]) -> CompressSettings:
    """The settings of this call: those stored in `out` for a resumption, with what is given."""
    unknown = given.keys() - CompressSettings.__dataclass_fields__.keys()
    if unknown:
        raise UserError(
            f"compress has no setting {min(unknown)!r}; known: {', '.join(CompressSettings.__dataclass_fields__)}"
        )
    teacher: dict[str, Any] = {"teacher": str(run), "fingerprint": checkpoint.fingerprint(run)}
    if not (resume and (out / COMPRESS).is_file()):
        asked = CompressSettings(**given | teacher)
        idle = [name for name in _ONLY if name in given and asked.method not in _ONLY[name]]
        if idle:
            raise UserError(f"{idle[0]} does nothing with method {asked.method}: leave it out")
        return replace(asked, macs=BUDGET) if asked.method == "prune" and asked.macs is None else asked
    stored = read(CompressSettings, read_file(out / COMPRESS), out / COMPRESS)
    for name in given.keys() - {"steps", "minutes", "checkpoint_every", "data"}:
        if given[name] != getattr(stored, name):
            raise UserError(
                f"{out} was compressed with {name} {getattr(stored, name)}, and {given[name]} is asked for: resume "
                "with the same, or compress into another folder"
            )
    if stored.fingerprint != teacher["fingerprint"]:
        raise UserError(f"{out} was not made of {run} as it is now: resume with its own teacher, or compress anew")
    return resumed(stored, given)


def _claim(asked: CompressSettings, out: Path, resume: bool) -> None:
    """Refuse what cannot be begun or resumed, before any work."""
    check_folder(out)
    if not resume:
        check_new(out)
    elif not (out / COMPRESS).is_file():
        check_resumable(out)
        raise UserError(f"{out} is no compressed run: leave out --resume, or give another --out")
    out.mkdir(parents=True, exist_ok=True)


def _tuning(asked: CompressSettings, run: Path, out: Path, resume: bool) -> Settings | None:
    """The settings of the fine-tuning: those of the run but for what is asked; None for no fine-tuning."""
    if asked.steps == 0 or asked.method == "int8":
        return None
    if not (run / SETTINGS).is_file():
        raise UserError(f"{run} does not say what data it was trained on: give --steps 0 for no fine-tuning")
    own = Settings.stored(run / SETTINGS)
    length: dict[str, Any] = {"steps": asked.steps, "minutes": asked.minutes}
    if asked.steps is None and asked.minutes is None:
        done = read_record(run)["step"] if has_state(run) else own.config().steps or 0
        length = {"steps": max(1, math.ceil(_SHARE * done)), "minutes": None}
        if own.minutes is not None and not has_state(run):
            length = {"steps": None, "minutes": _SHARE * own.minutes}
    changed = {
        name: getattr(asked, name) for name in ("data", "batch", "learning_rate") if getattr(asked, name) is not None
    }
    if asked.data is not None:
        changed |= {"data": str(Path(asked.data).resolve()) if Path(asked.data).exists() else asked.data}
        changed |= {"fingerprint": None}
    # a warm-up is to be over in the first tenth, and a tenth of some minutes is not known in steps
    warmup = own.warmup if length["steps"] is None else min(own.warmup, length["steps"] // 10)
    return replace(
        own, **length, **changed, warmup=warmup, precision=asked.precision, checkpoint_every=asked.checkpoint_every,
        sample_every=0, objective=None, init=None, track=None, compile=False,
    )  # fmt: skip


def _batches(
    tuning: Settings | None, split: Split | None, teacher: Denoiser, out: Path, resume: bool, device: torch.device
) -> list[tuple[Tensor, dict[str, Any]]]:
    """Some of the data with their conditions, for the criterion."""
    if tuning is None or split is None:
        return []
    rows: Any = split.train
    if tuning.latent is not None:
        rows = encode(Path(tuning.latent), split.train, out, resume, device)  # pyright: ignore[reportArgumentType]
    draw = torch.Generator().manual_seed(tuning.seed)
    batches = []
    for _ in range(_TAYLOR_BATCHES):
        x0, labels = rows.batch(torch.randint(len(rows), (_TAYLOR_BATCH,), generator=draw))
        x0 = x0[:, 0] if tuning.latent is not None else x0
        labelled = labels is not None and "label" in teacher.conditions and teacher.data and teacher.data.classes
        batches.append((x0.to(device), {"label": labels} if labelled else {}))
    return batches
