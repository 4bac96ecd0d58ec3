"""Models to the Hugging Face hub: the files that others need, and a model card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ornstein import checkpoint
from ornstein.errors import RunError, UserError
from ornstein.extras import require
from ornstein.store import CONFIG, MODEL, read_config

__all__ = ["files_of", "model_card", "push"]

# What others need of a run. Settings and logs stay: they name folders of this machine.
_OF_RUN = (CONFIG, MODEL, checkpoint.TUNED, "samples.png")
_OF_ONNX = ("model.onnx", "model.json")
_OF_PIPELINE = (".json", ".safetensors", ".txt", ".model")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push(folder: str | Path, repo: str, licence: str | None, private: bool = False, endpoint: str | None = None) -> str:
    """Upload a run, an ONNX folder or a pipeline, with a model card, as one commit; returns its address.

    The repository is made if there is none. A README.md in the folder is the card, if it has one.

    Args:
        folder: what to upload.
        repo: "owner/name".
        licence: an identifier of the hub, such as "apache-2.0" or "cc-by-4.0"; whoever pushes decides it.
        private: of a repository that is made.
        endpoint: address of the hub; None for the public one, or that of HF_ENDPOINT.

    Raises:
        UserError: no licence, no model, or a name that is none.
        RunError: the hub refuses or does not answer.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise UserError(f"{repo} is no hub id: give owner/name")
    files = files_of(folder)
    if licence is None or not _LICENCE.fullmatch(licence):
        said = "" if licence is None else f" {licence!r} is none."
        raise UserError(f"give --license, under which others may use {folder}: apache-2.0, cc-by-4.0, other, ...{said}")
    hub: Any = require("huggingface_hub", "interop", "push")
    own = folder / "README.md"
    card = own.read_bytes() if own.is_file() else model_card(folder, repo, licence).encode()
    operations = [hub.CommitOperationAdd("README.md", card)]
    operations += [hub.CommitOperationAdd(str(f.relative_to(folder)), str(f)) for f in files]
    api = hub.HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message="Model of Ornstein")
    except Exception as error:  # of the client and its transport, many types
        raise RunError(f"{repo} was not pushed: {' '.join(str(error).split())[:300]}") from error
    return str(done.commit_url)


def files_of(folder: Path) -> list[Path]:
    """The files of a model that others need. Raises UserError for a folder without a model."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if checkpoint.is_pipeline(folder):
        return sorted(f for f in folder.rglob("*") if f.suffix in _OF_PIPELINE and f.is_file() and not f.is_symlink())
    for names in (_OF_ONNX, _OF_RUN):
        if all((folder / name).is_file() for name in names[:2]):
            return [folder / name for name in names if (folder / name).is_file()]
    raise UserError(f"{folder} holds no model to push: give a run, a folder of `ornstein export`, or a pipeline")


def model_card(folder: Path, repo: str, licence: str) -> str:
    """The card of a model: what it is, as its config says, and how it is loaded."""
    tags = ["diffusion", "ornstein"]
    if checkpoint.is_pipeline(folder):
        facts, use, library = {}, f'DiffusionPipeline.from_pretrained("{repo}")', "diffusers"
    elif (folder / "model.onnx").is_file():
        about = json.loads((folder / "model.json").read_text())
        facts, use, library = _facts(about), 'onnxruntime.InferenceSession("model.onnx")', "onnx"
    else:
        config = read_config(folder)
        facts, use, library = (
            _facts(config),
            f'ornstein.load("{repo.rpartition("/")[2]}")  # the downloaded folder',
            "ornstein",
        )
    head = "\n".join(
        ["---", f"license: {licence}", f"library_name: {library}", "tags:", *(f"- {t}" for t in tags), "---"]
    )
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"{head}\n\n# {repo.rpartition('/')[2]}\n\nA diffusion model.\n\n{listed}\n\n```python\n{use}\n```\n"


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    data, net = config.get("data") or {}, config.get("net", {})
    facts = {
        "samples": "x".join(map(str, data.get("shape", []))),
        "classes": ", ".join(data.get("classes", [])),
        "network": net.get("type", ""),
        "prediction": config.get("prediction", ""),
        "schedule": (config.get("schedule") or {}).get("type", ""),
        "weights": "8 bits" if config.get("int8") else "",
        "pruned": "yes" if net.get("widths") else "",
        "needs": f"the autoencoder {config['latent'].get('fingerprint', '')[:12]}"
        if isinstance(config.get("latent"), dict)
        else "",
    }
    return {name: value for name, value in facts.items() if value}
