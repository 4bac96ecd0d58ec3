"""A new person from four pictures, on our own text-to-image model of the face world, whose answers are exact.

    python evidence/personalize.py data DIR     # captioned pictures of many people, 32 pixels; four of a new one
    python evidence/personalize.py base DIR     # `ornstein train --captions auto`: the base
    python evidence/personalize.py people DIR   # methods, ranks, priors at equal processor time, and a plain recipe
    python evidence/personalize.py table DIR    # the table and the curves of docs/personalize.md

A state is a pose, an expression, a background and a light, as in the set `captioned-faces`; the prompt says all of it,
so that what a picture should be is known: who it shows is the nearest of 100 people rendered in the state that was
asked for, and what it shows the nearest state, rendered of the person that was learned.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import ornstein as orn
from ornstein.data import save_grid, to_uint8
from ornstein.data.pixels import to_unit
from ornstein.denoiser import Denoiser
from ornstein.evaluation.features import open_features
from ornstein.evaluation.frechet import frechet_distance
from ornstein.faces.world import identities, render
from ornstein.faces.world.captioned import PARTS, STATES, numbers
from ornstein.faces.world.captioned import caption as prompt
from ornstein.personalization.learned import begin
from ornstein.personalization.pictures import open_pictures
from ornstein.personalization.settings import PersonalizeSettings
from ornstein.personalization.task import Personalisation
from ornstein.store import load_tensors

SIZE, PEOPLE, PICTURES = 32, 2000, 8000
NEW, OTHERS = 7_000, 8_000  # seeds of people that no training has
BASE = {"captions": "auto", "size": SIZE, "net": "s", "patch": 2, "batch": 32, "steps": 1400, "checkpoint_every": 200}
SHOWN = (0, 15, 26, 41)  # the states of the four pictures of the new person
UNSEEN, EACH = [i for i in range(48) if i not in SHOWN][::2][:20], 3  # states that are asked for, and pictures of each
REAL, CLASS, CLASS_IMAGES = 1000, 256, 48
GUIDANCE, SECONDS, RECIPE_RATE = 2.0, 40.0, 5e-3
RECIPES = {"recipe": False, "recipe, prior images": True}
_LORA, _FULL = {"learning_rate": 5e-3, "ema": 0.1}, {"method": "dreambooth", "learning_rate": 5e-4, "ema": 0.1}
_FROZEN, _KEPT = {"prior": "frozen", "prior_weight": 4.0}, {"prior": "distilled", "prior_weight": 3.0}
_GATED, _WIDE, _OF_TEXT = {"prior": "gated"}, {"rank": 16, "alpha": 16.0}, {"targets": ("reading.kv", "reading.q")}
METHODS: dict[str, dict[str, Any]] = {
    "dreambooth, gated": _FULL | _GATED,
    "lora 4, gated": _LORA | _GATED,
    "lora 16, gated": _LORA | _GATED | _WIDE,
    "dreambooth, prior distilled": _FULL | _KEPT,
    "dreambooth, prior frozen": _FULL | _FROZEN,
    "dreambooth": _FULL,
    "lora 4, prior distilled": _LORA | _KEPT,
    "lora 4, prior frozen": _LORA | _FROZEN,
    "lora 4": _LORA,
    "lora 4, prior images": _LORA | {"prior": "images"},
    "lora 16, prior distilled": _LORA | _KEPT | _WIDE,
    "lora 16 of the attention to text, prior distilled": _LORA | _KEPT | _WIDE | _OF_TEXT,
    "textual inversion, 4 tokens": {"method": "textual-inversion", "vectors": 4, "learning_rate": 2e-2, "ema": 0.1},
}


def data(folder: Path) -> None:
    """Write the pictures of the base with captions, and four of the new person, as files."""
    draw = torch.Generator().manual_seed(0)
    people = identities(PEOPLE, seed=0)
    who = torch.randint(PEOPLE, (PICTURES,), generator=draw)
    states = [STATES[i] for i in torch.randint(len(STATES), (PICTURES,), generator=draw).tolist()]
    (folder / "faces").mkdir(parents=True, exist_ok=True)
    for low in range(0, PICTURES, 200):
        rows = slice(low, low + 200)
        pixels = render(people[who[rows]], numbers(states[rows]), SIZE).image
        for i, (picture, state) in enumerate(zip(pixels, states[rows], strict=True), low):
            save_grid(picture[None], folder / "faces" / f"{i:05d}.png")
            (folder / "faces" / f"{i:05d}.txt").write_text(prompt(state))
    shown = [STATES[i] for i in SHOWN]
    (folder / "new").mkdir(exist_ok=True)
    for i, picture in enumerate(render(identities(1, NEW).expand(4, -1), numbers(shown), SIZE).image):
        save_grid(picture[None], folder / "new" / f"{i}.png")
        (folder / "new" / f"{i}.txt").write_text(prompt(shown[i], "sks person"))


def base(folder: Path) -> None:
    """Train the base, or go on with it."""
    out = folder / "base"
    orn.train(folder / "faces", out, resume=(out / "train.json").is_file(), report=False, **BASE)


class Judge:
    """What pictures of the new person show, exactly; renders of everybody in every state are made once and kept."""

    def __init__(self, folder: Path) -> None:
        file = folder / "everybody.pt"
        people = torch.cat([identities(1, NEW), identities(99, OTHERS)])
        if not file.is_file():
            drawn = [render(people, numbers([state]).expand(100, -1), SIZE) for state in STATES]
            torch.save({"image": [d.image.half() for d in drawn], "mask": [d.mask.half() for d in drawn]}, file)
        kept = torch.load(file, weights_only=True)
        self.image, self.mask = (torch.stack(kept[name]).float() for name in ("image", "mask"))  # (48, 100, C, H, W)
        draw = torch.Generator().manual_seed(1)
        rows = torch.randint(len(STATES), (REAL,), generator=draw).tolist()
        real = render(identities(REAL, OTHERS + 1), numbers([STATES[i] for i in rows]), SIZE).image
        self.features = open_features("conv")(to_uint8(real))
        self.real = self.features(to_uint8(real))

    def person(self, pictures: Tensor, asked: list[int]) -> dict[str, float]:
        """Of pictures in [-1, 1]: how often the new person is the nearest of 100, and attributes that are right."""
        right, attributes = 0, 0
        for picture, i in zip(pictures, asked, strict=True):
            apart = ((self.image[i] - picture).square() * self.mask[i]).sum((1, 2, 3)) / self.mask[i].sum((1, 2, 3))
            right += int(apart.argmin()) == 0
            nearest = int((self.image[:, 0] - picture).square().sum((1, 2, 3)).argmin())
            attributes += sum(a == b for a, b in zip(STATES[nearest], STATES[i], strict=True))
        n = len(asked)
        return {"top1": right / n, "attributes": attributes / (n * len(PARTS))}

    def of_class(self, pictures: Tensor) -> float:
        """The Frechet distance of pictures of the class from real ones."""
        return frechet_distance(self.features(to_uint8(pictures)), self.real)


def drawn(model: Denoiser, prompts: list[str], seed: int, guidance: float) -> Tensor:
    """Pictures of prompts in [-1, 1]."""
    cond = model.encode(prompts)  # pyright: ignore[reportCallIssue]
    assert model.data is not None
    shape = (len(prompts), *model.data.shape)
    return model.decode(orn.sample(model, shape, steps=20, seed=seed, guidance=guidance, cond=cond, batch=64))


def judged(judge: Judge, model: Denoiser, who: str, sheet: Path) -> dict[str, float]:
    """The scores of a model: the person of `who` in states that no picture of it shows, and the class."""
    asked = [i for i in UNSEEN for _ in range(EACH)]
    pictures = drawn(model, [prompt(STATES[i], who) for i in asked], 3, GUIDANCE)
    save_grid(pictures[::EACH], sheet, columns=10, upscale=2, gap=1)
    states = [STATES[i % len(STATES)] for i in range(CLASS)]
    return judge.person(pictures, asked) | {
        "frechet": judge.of_class(drawn(model, [prompt(s) for s in states], 4, 1.0))
    }


def seconds_a_step(folder: Path, settings: dict[str, Any]) -> float:
    """Processor seconds of a step: the mean of ten, after two."""
    marks: list[float] = []
    plain = Personalisation.learn

    def marked(task: Personalisation, *given: Any) -> dict[str, float]:
        marks.append(time.process_time())
        return plain(task, *given)

    Personalisation.learn = marked
    try:
        with tempfile.TemporaryDirectory() as out:
            learned(folder, Path(out) / "run", settings | {"steps": 12, "checkpoint_every": 1000})
    finally:
        Personalisation.learn = plain
    return (marks[-1] - marks[1]) / (len(marks) - 2)


def learned(folder: Path, out: Path, settings: dict[str, Any]) -> Any:
    """A personalisation of the base, or its resumption."""
    shared = {"captions": "auto", "held_out": 0.0, "sample_every": 0, "report": False, "guidance": GUIDANCE, "batch": 4}
    if settings.get("prior") in ("images", "distilled"):
        shared |= {"class_images": CLASS_IMAGES, "class_folder": folder / "class"}
    who = "a photo of a sks person"
    return orn.personalize(folder / "base", folder / "new", who, out, **shared | {"checkpoint_every": 1000} | settings)


def recipe(folder: Path, seconds: float, prior: bool) -> tuple[Denoiser, int]:
    """diffusers' train_dreambooth_lora as a plain loop: rank 4, alpha 4, AdamW, a constant rate, uniform steps of 1000.

    Its files cannot express this base, so the loop is written against it; otherwise it is the recipe's: the squared
    error of the network's output, one noise and one step of 1000 a picture, as many class pictures beside, weight 1.
    """
    d = orn.load(folder / "base")
    settings = PersonalizeSettings(
        base="base", images=str(folder / "new"), prompt="a photo of a sks person", captions="auto", prior_weight=1.0
    )
    pictures = open_pictures(folder / "new", d, settings)
    own = torch.stack([to_unit(p) for p in pictures.pixels])
    conds = [d.encode([texts[0]]) for texts in pictures.prompts]  # pyright: ignore[reportCallIssue]
    class_set = orn.data.open_images(folder / "class", SIZE)
    of_class = class_set.batch(range(len(class_set)))[0]
    class_cond = d.encode(["a photo of a person"])  # pyright: ignore[reportCallIssue]
    begin(d, settings)
    optimizer = torch.optim.AdamW([p for p in d.parameters() if p.requires_grad], lr=RECIPE_RATE, weight_decay=1e-2)
    draw, steps, began = torch.Generator().manual_seed(0), 0, time.process_time()
    while time.process_time() - began < seconds:
        rows = torch.randint(len(own), (4,), generator=draw).tolist()
        x, texts = own[rows], [conds[i] for i in rows]
        if prior:
            x = torch.cat([x, of_class[torch.randint(len(of_class), (4,), generator=draw)]])
            texts += [class_cond] * 4
        longest = max(c["text"].shape[1] for c in texts)
        text = torch.cat([F.pad(c["text"], (0, 0, 0, longest - c["text"].shape[1])) for c in texts])
        mask = torch.cat([F.pad(c["text_mask"], (0, longest - c["text_mask"].shape[1])) for c in texts])
        t = torch.randint(1, 1001, (len(x),), generator=draw) / 1000
        losses = d.loss(x, t, torch.randn(x.shape, generator=draw), text=text, text_mask=mask)
        losses.mean().mul(2 if prior else 1).backward()
        torch.nn.utils.clip_grad_norm_([p for p in d.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return d.eval(), steps


def people(folder: Path, only: str | None = None) -> None:
    """Every method and the plain recipe for `SECONDS` of processor time each, or one of them; done ones are kept."""
    file = folder / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if not (folder / "warm" / "config.json").exists():  # the pictures of the class, once for all
        learned(folder, folder / "warm", {"prior": "images", "steps": 1})
    for name in ("base", *METHODS, *RECIPES) if only is None else (only,):
        if name in results:
            continue
        who, more = "sks person", {}
        if name == "base":
            model, who = orn.load(folder / "base"), "person"
        elif name in RECIPES:
            model, more["steps"] = recipe(folder, SECONDS, RECIPES[name])
        else:
            model, more = method(folder, name)
        scores = judged(Judge(folder), model, who, folder / f"{name}.png") | more
        results = json.loads(file.read_text()) if file.is_file() else {}  # another process may have added its own
        results[name] = scores
        file.write_text(json.dumps(results, indent=1))
        print(name, {k: round(v, 4) if isinstance(v, float) else v for k, v in scores.items()}, flush=True)


def method(folder: Path, name: str) -> tuple[Denoiser, dict[str, Any]]:
    """The model of a method, trained for as many steps as `SECONDS` have, and what its run says."""
    out, settings = folder / "runs" / name, METHODS[name]
    if not (out / "done.json").is_file():
        steps = max(8, round(SECONDS / seconds_a_step(folder, settings)))
        run = learned(folder, out, settings | {"steps": steps, "checkpoint_every": max(1, steps // 4)})
        curve = [[check.step, check.loss, check.drift] for check in run.checks]
        numbers = sum(value.numel() for value in load_tensors(out / "model.safetensors")[0].values())
        (out / "done.json").write_text(json.dumps({"steps": steps, "curve": curve, "numbers": numbers}))
    return orn.load(out), json.loads((out / "done.json").read_text())


def table(folder: Path) -> None:
    """The table of docs/personalize.md, and the curves of forgetting as a picture."""
    results = json.loads((folder / "results.json").read_text())
    results = {name: results[name] for name in ("base", *METHODS, *RECIPES) if name in results}
    before = results["base"]["frechet"]
    print("| method | steps | nearest of 100 | attributes right | Frechet distance of the class | drift |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        grown = "" if name == "base" else f" ({r['frechet'] / before - 1:+.0%})"
        person = "" if name == "base" else f"{r['top1']:.0%}"
        drift = f"{r['curve'][-1][2]:.1%}" if "curve" in r else ""
        cells = (name, r.get("steps", ""), person, f"{r['attributes']:.0%}", f"{r['frechet']:.1f}{grown}", drift)
        print("| " + " | ".join(map(str, cells)) + " |")
    import matplotlib.pyplot as plt

    colours = {"none": "tab:red", "images": "tab:orange", "frozen": "tab:blue", "distilled": "tab:green", "gated": "k"}
    lines = {"dreambooth": "-", "lora 4": "--", "lora 16": ":"}
    figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    for name, r in results.items():
        line = next((style for kind, style in lines.items() if name.split(",")[0] == kind), None)
        if line and "curve" in r:
            prior = METHODS[name].get("prior", "none")
            share, drift = ([0, *(c[0] / r["steps"] for c in r["curve"])], [0, *(c[2] for c in r["curve"])])
            axes.plot(share, drift, line, color=colours[prior], label=name)
    axes.set(xlabel="share of 40 s", ylabel="drift of the class", ylim=(-1e-4, None))
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "forgetting.png", dpi=130)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    commands: dict[str, Callable[..., Any]] = {"data": data, "base": base, "people": people, "table": table}
    torch.set_num_threads(1)
    commands[what](folder, *sys.argv[3:])


if __name__ == "__main__":
    main()
