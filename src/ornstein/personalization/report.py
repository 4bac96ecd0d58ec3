"""The report of a personalisation: its pictures, samples by prompt, loss on fixed noise and drift of the class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.evaluation.charts import Axis, Line, chart, linear_ticks
from ornstein.evaluation.panels import Panel
from ornstein.evaluation.report import Charts, Curve, Report, Skipped, write_report
from ornstein.metrics import read_metrics
from ornstein.personalization.pictures import Pictures
from ornstein.personalization.task import Personalisation

__all__ = ["write_personal_report"]

_SHOWN = 12  # pictures of a panel
_METHODS = {"lora": "LoRA", "dreambooth": "DreamBooth", "textual-inversion": "Textual inversion"}


def write_personal_report(
    path: Path,
    task: Personalisation,
    prompts: list[str],
    after: Tensor,
    before: Tensor | None,
    pictures: Pictures,
    held_out: Pictures | None,
    of_class: Pictures | None,
) -> None:
    """Write the report of a run.

    Args:
        path: the HTML file.
        task: the training, with its checks.
        prompts: of the samples.
        after, before: uint8 samples (prompts, n, C, H, W) of the personalised model, and of its base.
        pictures, held_out, of_class: what was trained on, held out, and made of the class.
    """
    settings, lead = task.settings, []
    lead.append(f"{_METHODS[settings.method]} on {len(pictures)} pictures of {settings.prompt!r}")
    best = task.best
    if best is not None:
        where = "held-out pictures" if held_out is not None else "the pictures themselves: none were held out"
        lead.append(f"loss {best.loss:.4f} at step {best.step}, on fixed times and noise of {where}")
        lead.append(f"predictions of the class moved by {best.drift:.2%} of their mean square")
    panels = [_shown("Pictures", "What the model was shown, as it was cut and resized.", pictures)]
    if held_out is not None:
        panels.append(_shown("Held-out pictures", "Measured, and never trained on.", held_out))
    if of_class is not None:
        panels.append(_shown("Pictures of the class", f"{len(of_class)} made by the base, which keep it.", of_class))
    caption = f"One noise for every prompt, guidance {settings.guidance:g}, solver steps 20."
    for i, prompt in enumerate(prompts):
        rows = [after[i]] if before is None else [before[i], after[i]]
        names = ("personalised",) if before is None else ("base", "personalised")
        panels.append(Panel(f"Samples of {prompt!r}", caption, torch.stack(rows), rows=names))
    facts: dict[str, Any] = {
        "base": settings.base,
        "hash of the base": task.about["personal"]["base"]["hash"],
        "numbers learned": f"{sum(p.numel() for p in task.model.parameters()):,}",
        "numbers of the base": f"{sum(p.numel() for p in task.denoiser.parameters()):,}",
        "class": settings.of_class,
        "placeholder": settings.word,
    }
    lines = [line for line in read_metrics(path.parent) if "loss" in line]
    report = Report(
        f"Personalised: {path.parent.name}",
        ". ".join(text[0].upper() + text[1:] for text in lead) + ".",
        panels=panels,
        charts=_charts(task, held_out is not None),
        losses=Curve([int(line["step"]) for line in lines], [line["loss"] for line in lines]),
        facts=facts,
        settings=settings.shown(),
        skipped=[Skipped(*each) for each in pictures.skipped],
    )
    write_report(path, report)


def _shown(title: str, caption: str, pictures: Pictures) -> Panel:
    """Pictures of the commonest size, in a row."""
    size = Counter(tuple(p.shape) for p in pictures.pixels).most_common(1)[0][0]
    chosen = [p for p in pictures.pixels if tuple(p.shape) == size][:_SHOWN]
    return Panel(title, caption, torch.stack(chosen)[None])


def _charts(task: Personalisation, held_out: bool) -> list[Charts]:
    """The loss on fixed noise, and the drift of the class, against the steps."""
    steps = [check.step for check in task.checks]
    if not steps:
        return []
    what = "held-out loss" if held_out else "loss of the pictures"
    drawn = []
    for name, values in ((what, [c.loss for c in task.checks]), ("drift of the class", [c.drift for c in task.checks])):
        label = f"{name} against step, {values[0]:.4f} at step {steps[0]}, {values[-1]:.4f} at step {steps[-1]}"
        line = Line(name, steps, values, markers=True)
        drawn.append((name, chart(label, [line], Axis("step", linear_ticks(steps)), Axis("", linear_ticks(values)))))
    caption = (
        "At 8 fixed times and with fixed noise, so that runs compare: "
        + (
            "on pictures held out; the training keeps its lowest point. "
            if held_out
            else "on the pictures themselves. "
        )
        + "Drift: the mean square between the predictions for the class now and those of the base, over their own."
    )
    return [Charts("On fixed noise", caption, drawn)]
