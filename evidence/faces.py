"""Face swaps measured: in the procedural world against the truth, on photographs by a recogniser that no training saw.

Everything is kept in --out, and gone on with where it is called again. The tables of docs/faces.md are made of it.

    python evidence/faces.py world --out runs/evidence-faces --minutes 6
    ornstein faces prepare lfw-train.zip --out runs/lfw64
    python evidence/faces.py photos --faces runs/lfw64 --out runs/evidence-faces --recogniser 8 --minutes 120
    python evidence/faces.py scores --faces runs/lfw64 --out runs/evidence-faces
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ornstein.data import save_grid
from ornstein.faces.demo import PHOTOS, demo
from ornstein.faces.detect import Detector
from ornstein.faces.evaluate import Held, photos_of, score_swaps, swap_held
from ornstein.faces.face_set import open_faces
from ornstein.faces.identity import agreement
from ornstein.faces.recognise import Recogniser
from ornstein.faces.runs import people_split, train_recogniser, train_swap
from ornstein.faces.sampling import FaceModel
from ornstein.faces.training import FaceSettings
from ornstein.files import atomic_write
from ornstein.training import TrainConfig

# steps, guidance, strength, towards
SETTINGS = (
    {"steps": 20, "guidance": 1.0},
    {"steps": 20, "guidance": 2.0},
    {"steps": 20, "guidance": 2.0, "strength": 1.3},
    {"steps": 20, "guidance": 2.0, "towards": 0.02},
    {"steps": 20, "guidance": 2.0, "strength": 1.3, "towards": 0.02},
    {"steps": 20, "guidance": 2.0, "strength": 1.3, "towards": 0.05},
    {"steps": 10, "guidance": 2.0, "strength": 1.3, "towards": 0.05},
    {"steps": 30, "guidance": 2.0, "strength": 1.3, "towards": 0.05},
)


def world(args: argparse.Namespace) -> None:
    out = args.out / "world"

    def tell(stage: str, done: float) -> None:
        print(f"\r{stage:<28}{done:6.1%}", end="", file=sys.stderr, flush=True)

    began = time.monotonic()
    finished = demo(out, args.minutes, photos=args.photos, preset=args.preset, tell=tell)
    scores = {name: asdict(score) for name, score in finished.scores.items()}
    seconds = time.monotonic() - began
    atomic_write(out / "scores.json", json.dumps({"seconds": seconds, "scores": scores}, indent=1).encode())
    for name, score in scores.items():
        print(f"{name:<20}" + "  ".join(f"{key} {value:.3f}" for key, value in score.items()))


def photos(args: argparse.Namespace) -> None:
    train, held = people_split(open_faces(args.faces))
    out = args.out / "photos"
    teach = TrainConfig(minutes=args.recogniser, batch=64, learning_rate=2e-3, checkpoint_every=200)
    for state in train_recogniser(train, out, teach):
        if state.step % 50 == 0:
            print(f"recogniser {state.step}: {state.loss:.3f}, {state.images_per_second:.0f} images/s", flush=True)
    settings = FaceSettings(identity=args.identity, swap=args.swap, begins=args.begins)
    config = TrainConfig(minutes=args.minutes, batch=32, learning_rate=1e-3, checkpoint_every=200)
    # the folder is there, with the recogniser in it: a run that was not begun is gone on with from its beginning
    for state in train_swap(train, out, config, settings, args.preset, resume=True):
        if state.step % 50 == 0:
            print(f"swap {state.step}: {state.loss:.3f}, {state.images_per_second:.0f} images/s", flush=True)
    model = FaceModel.load(out)
    print("recogniser on held-out people:", agreement(model.recogniser, photos_of(held)))


def scores(args: argparse.Namespace) -> None:
    held = Held.of(people_split(open_faces(args.faces))[1], args.among)
    out = args.out / "photos"
    model, recogniser, detector = FaceModel.load(out), Recogniser(), Detector()
    rows = []
    for settings in SETTINGS[: args.settings]:
        swaps, seconds = swap_held(model, held, **settings)
        score = score_swaps(held, swaps, seconds, recogniser, detector, **settings)
        rows.append(score.as_row())
        print(json.dumps(rows[-1]), flush=True)
        atomic_write(out / "scores.json", json.dumps(rows, indent=1).encode())
        if args.sheet is not None:
            shown = torch.cat([held.crops[:16], held.crops.roll(-1, 0)[:16], swaps[:16]])
            save_grid(shown, args.sheet, columns=16, upscale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for run in (world, photos, scores):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--out", type=Path, default=Path("runs/evidence-faces"))
        if run is not world:
            command.add_argument("--faces", type=Path, required=True, help="what `ornstein faces prepare` made")
        if run is world:
            command.add_argument("--minutes", type=float, default=6.0)
            command.add_argument("--photos", type=int, default=PHOTOS)
            command.add_argument("--preset", default="xs")
        if run is photos:
            command.add_argument("--recogniser", type=float, default=8.0, help="minutes for the recogniser")
            command.add_argument("--minutes", type=float, default=120.0, help="minutes for the swap")
            command.add_argument("--preset", default="s")
            command.add_argument("--identity", type=float, default=FaceSettings.identity)
            command.add_argument("--swap", type=float, default=FaceSettings.swap)
            command.add_argument("--begins", type=float, default=FaceSettings.begins)
        if run is scores:
            command.add_argument("--among", type=int, default=100)
            command.add_argument("--settings", type=int, default=len(SETTINGS), help="how many settings, in order")
            command.add_argument("--sheet", type=Path, help="a PNG of source, target, swap; not to be published")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
