"""`ornstein import`, `export` and `push`: models of other libraries as runs, and runs for other programs."""

from __future__ import annotations

from ornstein import checkpoint
from ornstein.errors import UserError
from ornstein.interop.diffusers import load_pipeline
from ornstein.interop.exchange import export_model, write_model
from ornstein.interop.hub import push as push_model
from ornstein.interop.pipeline import Pipeline
from ornstein.interop.portable import export_onnx, export_safetensors, export_torch
from ornstein.interop.settings import Export, Import, Push
from ornstein.progress import say
from ornstein.sizes import check_sample

__all__ = ["export", "import_", "push"]


def import_(asked: Import, given: frozenset[str]) -> None:
    """Make a run of a folder."""
    model = load_pipeline(asked.folder)
    if model.data is not None:
        check_sample(model.data.shape, str(asked.folder), asked.trust_sizes)
    write_model(model, asked.folder, asked.out)
    kind = "a checked copy of the folder" if isinstance(model, Pipeline) else "a run"
    say(f"{asked.out}: {kind}; `ornstein sample {asked.out}`")


def export(asked: Export, given: frozenset[str]) -> None:
    """Write a model in another form."""
    if checkpoint.is_autoencoder(asked.run):
        raise UserError(f"{asked.run} is an autoencoder: diffusion models are exported")
    model = checkpoint.load(asked.run, trust_sizes=asked.trust_sizes)
    try:
        if asked.to == "diffusers":
            export_model(model, asked.out)
            said = f"a folder of diffusers; DiffusionPipeline.from_pretrained({str(asked.out)!r}) opens it"
        elif asked.to == "safetensors":
            export_safetensors(model, asked.out)
            said = "config and weights"
        else:
            free = (export_onnx if asked.to == "onnx" else export_torch)(model, asked.out)
            sizes = "any batch and size" if free else "any batch, at its own size"
            said = f"the network for {sizes}, as exact as float32 is here"
    except UserError as error:
        raise UserError(f"{asked.run}: {error}") from None
    say(f"{asked.out}: {said}")


def push(asked: Push, given: frozenset[str]) -> None:
    """Upload a model."""
    say(f"pushed: {push_model(asked.folder, asked.repo, asked.license, asked.private)}")
