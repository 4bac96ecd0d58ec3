"""What a text-to-image model learns of captions: `shapes`, judged by the renderer's own parser.

    python evidence/text.py train RUN [STEPS]    # `ornstein train --data shapes ...`, 40 minutes of one core
    python evidence/text.py meaning RUN          # attributes and relations of unseen combinations, by guidance
    python evidence/text.py faces RUN            # the same of a run on `--data captioned-faces`: attributes of states

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
from ornstein.faces.world import captioned

SETTINGS = {"captions": "auto", "size": 32, "net": "s", "patch": 2, "batch": 32, "steps": 9500, "checkpoint_every": 500}
FACE_PARTS = ("pose", "expression", "background", "light")
PROMPTS, FACES, STEPS, SEED = 400, 160, 20, 1  # the training draws its scenes with seed 0


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


def faces(model: Denoiser, guidance: float, unseen: bool, count: int = FACES, picture: Path | None = None) -> str:
    """A line with the share of attributes that samples of a model of the face world show as their prompts say."""
    states = [state for state in captioned.STATES if (state in captioned.HELD_OUT) == unseen]
    asked = [states[i % len(states)] for i in range(count)]
    assert model.data is not None
    cond = model.encode([captioned.caption(state) for state in asked])  # pyright: ignore[reportCallIssue]
    x = orn.sample(model, (count, *model.data.shape), steps=STEPS, seed=SEED, guidance=guidance, cond=cond, batch=100)
    pictures = to_uint8(model.decode(x)).cpu()
    if picture is not None:
        save_grid(pictures[:30], picture, columns=10, upscale=2, gap=2)
    found = captioned.read(pictures)
    right = [[a == b for a, b in zip(one, other, strict=True)] for one, other in zip(found, asked, strict=True)]
    parts = [f"{name} {sum(each) / count:.1%}" for name, each in zip(FACE_PARTS, zip(*right, strict=True), strict=True)]
    every = sum(map(sum, right)) / (count * len(FACE_PARTS))
    return f"guidance {guidance:g}, {'un' * unseen}seen states: attributes {every:.1%} ({', '.join(parts)})"


def main() -> None:
    what, run = sys.argv[1], Path(sys.argv[2])
    if what == "faces":
        model = orn.load(run)
        for guidance in (1.0, 2.0, 4.0):
            print(faces(model, guidance, unseen=True, picture=run / f"unseen-{guidance:g}.png"), flush=True)
        print(faces(model, 2.0, unseen=False), flush=True)
        return
    if what == "train":
        settings = SETTINGS | ({"steps": int(sys.argv[3])} if len(sys.argv) > 3 else {})
        orn.train("shapes", run, resume=(run / "train.json").is_file(), report=False, **settings)
    model = orn.load(run)
    for guidance in (1.0, 2.0, 4.0):
        print(meaning(model, guidance, unseen=True, picture=run / f"unseen-{guidance:g}.png"), flush=True)
    print(meaning(model, 2.0, unseen=False), flush=True)


if __name__ == "__main__":
    main()
