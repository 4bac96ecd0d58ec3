"""What a text-to-image model learns of captions: `shapes`, judged by the renderer's own parser.

    python evidence/text.py train RUN [STEPS]    # `ornstein train --data shapes ...`, 40 minutes of one core
    python evidence/text.py meaning RUN          # attributes and relations of unseen combinations, by guidance

The prompts are captions of scenes with combinations that no picture of the training has: a colour of each shape, and a
tenth of the relations between two shapes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ornstein as orn
from ornstein.data import save_grid, to_uint8
from ornstein.data.shapes import judge, parse, scenes
from ornstein.denoiser import Denoiser

SETTINGS = {"captions": "auto", "size": 32, "net": "s", "patch": 2, "batch": 32, "steps": 9500, "checkpoint_every": 500}
PROMPTS, STEPS, SEED = 400, 20, 1  # the training draws its scenes with seed 0


def meaning(model: Denoiser, guidance: float, unseen: bool, count: int = PROMPTS, picture: Path | None = None) -> str:
    """A line with the share of attributes, objects, relations and whole pictures that are right."""
    asked = scenes(count, SEED, unseen=unseen)
    assert model.data is not None
    cond = model.encode([scene.captions[0] for scene in asked])  # pyright: ignore[reportCallIssue]
    samples = orn.sample(
        model, (count, *model.data.shape), steps=STEPS, seed=SEED, guidance=guidance, cond=cond, batch=100
    )
    pictures = to_uint8(model.decode(samples)).cpu()
    if picture is not None:
        save_grid(pictures[:32], picture, columns=8, upscale=2, gap=2)
    verdicts = [judge(scene, found) for scene, found in zip(asked, parse(pictures), strict=True)]
    parts = []
    for name in ("attributes", "objects", "relations"):
        right, total = map(sum, zip(*(getattr(verdict, name) for verdict in verdicts), strict=True))
        parts.append(f"{name} {right / total:.1%}")
    whole = sum(verdict.picture for verdict in verdicts) / count
    return f"guidance {guidance:g}, {'un' * unseen}seen combinations: {', '.join(parts)}, whole pictures {whole:.1%}"


def main() -> None:
    what, run = sys.argv[1], Path(sys.argv[2])
    if what == "train":
        settings = SETTINGS | ({"steps": int(sys.argv[3])} if len(sys.argv) > 3 else {})
        orn.train("shapes", run, resume=(run / "train.json").is_file(), report=False, **settings)
    model = orn.load(run)
    for guidance in (1.0, 2.0, 4.0):
        print(meaning(model, guidance, unseen=True, picture=run / f"unseen-{guidance:g}.png"), flush=True)
    print(meaning(model, 2.0, unseen=False), flush=True)


if __name__ == "__main__":
    main()
