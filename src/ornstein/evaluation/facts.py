"""What a report says about the run itself: model, data, training, command line, versions and machine."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ornstein.denoiser import Denoiser
from ornstein.errors import UserError
from ornstein.metrics import read_metrics
from ornstein.nets.unet import PRESETS
from ornstein.store import CONFIG, read_json

__all__ = ["command_line", "machine_facts", "run_facts", "seconds_text"]


def run_facts(out: Path, model: nn.Module, train: Any, held_out: Any) -> dict[str, Any]:
    """Facts of a trained run, in the order in which a report shows them.

    Args:
        out: the run directory; its config.json and metrics.jsonl say how far the training went and how long it took.
        model: the trained model.
        train, held_out: the data, with a `summary` line if they have one.
    """
    facts: dict[str, Any] = {
        "data": getattr(train, "summary", None) or f"{train.source}: {len(train)}",
        "held out": len(held_out),
        "network": network_text(model),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
    }
    if isinstance(model, Denoiser):
        schedule, noise = model.process.schedule, model.process.noise
        facts["process"] = f"{type(schedule).__name__} schedule, {type(noise).__name__} noise"
        facts["prediction"] = model.prediction
    return facts | training_facts(out) | machine_facts(model)


def network_text(model: nn.Module) -> str:
    """The class of the network and its preset, or its width and depths if it is none of the presets."""
    net = getattr(model, "net", model)
    config = getattr(net, "config", {})
    name = type(net).__name__
    if "width" not in config:
        return name
    depths = tuple(config.get("depths", ()))
    for preset, (width, (first, middle, last), _) in PRESETS.items():
        if (
            config["width"] == width
            and depths
            and depths == (first, *[middle] * (len(depths) - 2), last)[: len(depths)]
        ):
            return f"{name}, preset {preset}"
    return f"{name}, width {config['width']}, depths {', '.join(map(str, depths))}"


def training_facts(out: Path) -> dict[str, Any]:
    """Steps reached and their time, as the run directory records them; empty for a folder without a training."""
    try:
        training = read_json(out / CONFIG).get("training") or {}
    except UserError:
        return {}
    if "step" not in training:
        return {}
    planned, minutes = training.get("steps"), training.get("minutes")
    of = f" of {planned:,}" if isinstance(planned, int) else f" in {minutes:g} minutes" if minutes else ""
    facts: dict[str, Any] = {"steps reached": f"{training['step']:,}{of}"}
    lines = [line for line in read_metrics(out) if isinstance(line.get("elapsed"), float)]
    if lines:
        last = lines[-1]
        facts["training time"] = seconds_text(last["elapsed"] * training["step"] / max(1, last["step"]))
    return facts


def machine_facts(model: nn.Module | None = None) -> dict[str, Any]:
    """Command line, date, versions, and the device that a model is on."""
    device = next((p.device for p in model.parameters()), torch.device("cpu")) if model is not None else None
    return {
        "device": device_text(device or torch.device("cpu")),
        "command": command_line(),
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z").strip(),
        "versions": f"ornstein {_version()}, PyTorch {torch.__version__}, Python {platform.python_version()}",
    }


def device_text(device: torch.device) -> str:
    """The name of a device: that of the GPU, or the processor with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux
    threads = torch.get_num_threads()
    return f"CPU, {name}, {threads} thread{'' if threads == 1 else 's'} of {os.cpu_count()}"


def command_line() -> str:
    """The command that this process runs, to be copied; "Python" for a call from a program."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    if name in ("ornstein", "ornstein.exe", "__main__.py"):
        return shlex.join(["ornstein", *sys.argv[1:]])
    return "Python"


def seconds_text(seconds: float) -> str:
    """A time in words: "40 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 0.95 or seconds == 0 else f"{seconds:.1g} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(whole / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def _version() -> str:
    try:
        return version("ornstein")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"
