"""Networks for other programs: ONNX, torch.export and plain safetensors, each checked before it is left there."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ornstein.denoiser import Denoiser
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.interop.pipeline import Pipeline
from ornstein.noise import Identity
from ornstein.process import Prediction
from ornstein.request import GRID, STEPS
from ornstein.solvers import grids
from ornstein.store import json_bytes
from ornstein.text.prompting import check_ungated

__all__ = ["TOLERANCE", "export_onnx", "export_safetensors", "export_torch", "sampling_table"]

TOLERANCE = 1e-4
"""Largest difference of what onnxruntime and PyTorch compute, in units of the largest output, at least 1."""

NETWORK, ABOUT = "model.onnx", "model.json"
_TAKEN = ("label", "text", "text_mask", "known", "known_mask")
_TOKENS = 5
_LARGEST = 4096  # of a batch, and of a side in multiples of what the network divides by


class Traced(NamedTuple):
    """An exported program, the names of its inputs, and whether height and width are free."""

    program: Any
    inputs: tuple[str, ...]
    sizes: bool


def export_onnx(d: Denoiser, out: str | Path) -> bool:
    """Write the folder `out`: model.onnx, x, log_snr and conditions in, the network's output out; and model.json.

    The batch is free, and height and width where the network allows that. The file is run by onnxruntime at three
    batches, and two sizes, before it is left there. model.json has the table of `sampling_table`.

    Returns:
        Whether height and width are free.

    Raises:
        UserError: the model or the folder cannot be used, or a package is missing.
        RunError: PyTorch cannot export the network, or onnxruntime computes something else.
    """
    require("onnx", "export", "an export to ONNX")
    require("onnxscript", "export", "an export to ONNX")
    runtime = require("onnxruntime", "export", "an export to ONNX")
    traced = _traced(d)
    with _new_folder(out) as folder:
        file = folder / NETWORK
        with _silent():
            torch.onnx.export(
                traced.program, f=str(file), input_names=list(traced.inputs), output_names=["output"], dynamo=True,
                external_data=False, verbose=False,
            )  # fmt: skip
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

        def run(inputs: tuple[Tensor, ...]) -> Tensor:
            named = {each.name: value.numpy() for each, value in zip(session.get_inputs(), inputs, strict=True)}
            return torch.from_numpy(session.run(None, named)[0])

        _check(d, traced, run, "onnxruntime")
        (folder / ABOUT).write_bytes(json_bytes(_about(d, traced)))
    return traced.sizes


def export_torch(d: Denoiser, out: str | Path) -> bool:
    """Write the file `out` of `torch.export.save`, checked as `export_onnx`; returns whether sizes are free."""
    traced = _traced(d)
    path = Path(out)
    if path.exists():
        raise UserError(f"{path} exists: name a new file")
    _check(d, traced, lambda inputs: traced.program.module()(*inputs), "the exported program")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _silent():
        torch.export.save(traced.program, str(path), extra_files={ABOUT: json.dumps(_about(d, traced))})
    return traced.sizes


def export_safetensors(d: Denoiser, out: str | Path) -> None:
    """Write a folder with config.json and model.safetensors alone: what `ornstein.load` needs, and other programs."""
    if isinstance(d, Pipeline):
        raise UserError("a pipeline is safetensors already: take --to diffusers")
    with _new_folder(out) as folder:
        d.save(folder)


def sampling_table(d: Denoiser, steps: int = STEPS) -> list[dict[str, float | list[float]]] | None:
    """What a DDIM sampler needs to know at each of its times; None where noise or preconditioning is no scalar.

    For each time: t, log_snr, alpha and sigma; `scale`, by which x is multiplied before the network; and the pairs
    (a, b) of `x0` and `eps`, which are a x + b output.
    """
    if not isinstance(d.process.noise, Identity) or d.data_covariance is not None or d.data is None:
        return None
    own = d.distilled
    times = list(own.times) if own else grids.make(GRID, d.process.schedule, (1.0, 0.0), steps).tolist()
    one = torch.ones(1, *d.data.shape, dtype=torch.float64)

    def read(x: Tensor, output: Tensor, t: float) -> Prediction:
        if d.prediction == "edm":
            return d.process.convert(x, t, x0=d._preconditioning.x0(x, t, output))
        return d.process.convert(x, t, **{d.prediction: output})  # pyright: ignore[reportArgumentType]

    table: list[dict[str, float | list[float]]] = []
    for t in times:
        row: dict[str, float | list[float]] = {"t": t}
        schedule = d.process.schedule
        row |= {"alpha": float(schedule.alpha(t)), "sigma": float(schedule.sigma(t))}
        if t > 0:
            scaled = d._preconditioning.network_input(one, t) if d.prediction == "edm" else one
            row |= {"log_snr": max(min(float(schedule.log_snr(t)), 1e4), -1e4), "scale": float(scaled.flatten()[0])}
            of_x, of_output = read(one, 0 * one, t), read(0 * one, one, t)
            row["x0"] = [float(each.x0.flatten()[0]) for each in (of_x, of_output)]
            row["eps"] = [float(each.eps.flatten()[0]) for each in (of_x, of_output)]
        table.append(row)
    return table


def _about(d: Denoiser, traced: Traced) -> dict[str, Any]:
    return {
        "inputs": list(traced.inputs),
        "free_sizes": traced.sizes,
        "prediction": d.prediction,
        "data": d.data.to_config() if d.data is not None else None,
        "latent": d.space is not None,
        "learned_variance": bool(getattr(d.net, "config", {}).get("learned_variance", False)),
        "steps": sampling_table(d),
    }


def _traced(d: Denoiser) -> Traced:
    """The network as a program. Raises UserError for models that have none, RunError if PyTorch cannot make it."""
    check_ungated(d)
    if isinstance(d, Pipeline):
        raise UserError("it is a pipeline of several networks: export it --to diffusers, whose own exporters take it")
    if d.data is None:
        raise UserError("it has no sample spec, so the size of its inputs is not known")
    foreign = [name for name in d.conditions if name not in _TAKEN]
    if foreign:
        raise UserError(f"its network {type(d.net).__name__} takes {', '.join(foreign)}, which are not exported")
    d.to("cpu").eval().requires_grad_(False)
    names = _names(d)
    inputs, batch = _inputs(d, names, 2), torch.export.Dim("batch", min=1, max=_LARGEST)
    net = _Positional(d.net, names[2:])
    failure = ""
    for sizes in (True, False) if _multiple(d) else (False,):
        try:
            with _silent(), torch.no_grad():
                program = torch.export.export(net, inputs, dynamic_shapes=(_free(d, names, batch, sizes),))
            return Traced(program, names, sizes)
        except Exception as error:  # of many types, PyTorch's own
            failure = " ".join(str(error).split())[:200]
    raise RunError(f"PyTorch cannot export this {type(d.net).__name__}: {failure}")


class _Positional(nn.Module):
    """A network with its conditions by position."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(inputs[0], inputs[1], **dict(zip(self.names, inputs[2:], strict=True)))


def _names(d: Denoiser) -> tuple[str, ...]:
    """The inputs: x, log_snr and the conditions that the network was made for."""
    config = getattr(d.net, "config", {})
    made = {"label": bool(d.data and d.data.classes), "text": config.get("text_width", 0) > 0}
    made |= {"text_mask": made["text"], "known": bool(config.get("conditioning"))}
    made |= {"known_mask": made["known"]}
    return ("x", "log_snr", *(name for name in _TAKEN if name in d.conditions and made[name]))


def _inputs(d: Denoiser, names: tuple[str, ...], batch: int, more: int = 0) -> tuple[Tensor, ...]:
    """Random inputs; height and width are `more` multiples larger than those that the model was made for."""
    assert d.data is not None
    draw, shape = torch.Generator().manual_seed(batch), list(d.data.shape)
    shape[-2:] = [side + more * (_multiple(d) or 0) for side in shape[-2:]]
    x = torch.randn((batch, *shape), generator=draw)
    known = torch.zeros(batch, shape[1], dtype=torch.bool)
    known[:, :1] = True
    made = {
        "x": x,
        "log_snr": 3 * torch.randn(batch, generator=draw),
        "label": torch.arange(batch) % (len(d.data.classes) + 1) - 1,
        "text": torch.randn((batch, _TOKENS, getattr(d.net, "config", {}).get("text_width", 0)), generator=draw),
        "text_mask": torch.arange(_TOKENS).expand(batch, -1) < 1 + torch.arange(batch)[:, None] % _TOKENS,
        "known": x.flip(0),
        "known_mask": known,
    }
    return tuple(made[name].contiguous() for name in names)


def _multiple(d: Denoiser) -> int | None:
    """What height and width are multiples of, for networks that take any; None for others."""
    net: Any = getattr(d.net, "image", d.net)
    return getattr(net, "multiple", None) or (net.patch if type(net).__name__ == "DiT" else None)


def _free(d: Denoiser, names: tuple[str, ...], batch: Any, sizes: bool) -> tuple[dict[int, Any], ...]:
    """The free axes of each input."""
    assert d.data is not None
    axes: dict[str, dict[int, Any]] = {name: {0: batch} for name in names}
    if sizes:
        rank = 1 + len(d.data.shape)
        step = _multiple(d) or 1
        height, width = (torch.export.Dim(side, min=1, max=_LARGEST) for side in ("rows", "columns"))
        for name in {"x", "known"} & axes.keys():
            axes[name] |= {rank - 2: step * height, rank - 1: step * width}
    if "text" in axes:
        tokens = torch.export.Dim("tokens", min=2, max=_LARGEST)
        axes["text"][1] = axes["text_mask"][1] = tokens
    return tuple(axes[name] for name in names)


def _check(d: Denoiser, traced: Traced, run: Any, what: str) -> None:
    """Compare with PyTorch at three batches and two sizes. Raises RunError where they differ."""
    for more in (0, 1) if traced.sizes else (0,):
        for batch in (1, 2, 5):
            inputs = _inputs(d, traced.inputs, batch, more)
            with torch.no_grad():
                expected = d.net(*inputs[:2], **dict(zip(traced.inputs[2:], inputs[2:], strict=True)))
                difference = float((run(inputs) - expected).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise RunError(
                    f"{what} differs from PyTorch by {difference:.2g} at {tuple(inputs[0].shape)}, more than "
                    f"{TOLERANCE:g}: nothing was written"
                )


@contextmanager
def _new_folder(out: str | Path) -> Iterator[Path]:
    """A folder that is put at `out` when it is complete."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what PyTorch's exporter says of operators of other libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
